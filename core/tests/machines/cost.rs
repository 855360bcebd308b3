//! What an operation costs in messages and rounds, counted on the machines: messages grow with the nodes, rounds do not.

use std::collections::BTreeSet;

use sheetanchor_core::by_scn::ScnPoint;
use sheetanchor_core::identity::{Epoch, LifeId, NodeId};
use sheetanchor_core::point::{Effect, Event, FencedPoint, Floor, Limits};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::request::{Answer, Request};
use sheetanchor_core::scn::Scn;
use sheetanchor_core::time::Moment;

use super::{HOLD, LIFE, ms, place};

/// Requests, and how often the coordinator waited for answers.
#[derive(Debug, PartialEq, Eq)]
struct Cost {
    messages: usize,
    rounds: usize,
}

fn answer(node: NodeId, request: &Request) -> Answer {
    match request {
        Request::Enlist { .. } => Answer::Enlisted { life: LIFE, epoch: Epoch::new(1) },
        Request::Close { .. } => Answer::Closed { life: LifeId::new(9) },
        Request::Drain { .. } => Answer::Drained { scn: Scn::new(100), end: place(node, 50) },
        Request::Cut { .. } | Request::Mark { .. } => Answer::CutMade { until: place(node, 60), proof: Lsn::new(70) },
        Request::Release { .. } | Request::Flush { .. } => Answer::Done,
        other => panic!("asked to {}", other.word()),
    }
}

/// Runs a point whose nodes all answer, each round as a whole.
fn cost(mut step: impl FnMut(Moment, Event) -> Vec<Effect>) -> Cost {
    let mut cost = Cost { messages: 0, rounds: 0 };
    let mut effects = step(ms(0), Event::Begun);
    loop {
        let asked: Vec<Effect> = std::mem::take(&mut effects);
        assert!(!asked.is_empty(), "a point whose nodes answer comes to its end");
        cost.rounds += usize::from(asked.iter().any(|effect| matches!(effect, Effect::Ask(..))));
        for effect in asked {
            match effect {
                Effect::Ask(number, node, request) => {
                    cost.messages += 1;
                    effects.extend(step(ms(1), Event::Answered(number, node, Ok(answer(node, &request)))));
                }
                Effect::Publish(_) => effects.extend(step(ms(1), Event::Settled(Ok(())))),
                Effect::Abort(why) => panic!("aborted: {why}"),
                Effect::Finish(outcome) => {
                    assert!(outcome.is_ok(), "{outcome:?}");
                    return cost;
                }
            }
        }
    }
}

fn members(count: u16) -> BTreeSet<NodeId> {
    (1..=count).map(NodeId::new).collect()
}

#[test]
fn a_fenced_point_costs_six_messages_a_node_and_six_rounds() {
    for nodes in [3, 16, 64] {
        let mut point = FencedPoint::new(members(nodes), "sa-x".into(), HOLD, Limits::default(), Floor::default());
        let expected = Cost { messages: 6 * usize::from(nodes), rounds: 6 };
        assert_eq!(cost(|now, event| point.step(now, event)), expected, "{nodes} nodes");
    }
}

#[test]
fn a_point_by_scn_costs_two_messages_a_node_and_two_rounds() {
    for nodes in [3, 16, 64] {
        let floor = Floor { scn: Scn::new(100), ..Floor::default() };
        let mut point = ScnPoint::new(members(nodes), "sa-x".into(), Limits::default(), floor);
        let expected = Cost { messages: 2 * usize::from(nodes), rounds: 2 };
        assert_eq!(cost(|now, event| point.step(now, event)), expected, "{nodes} nodes");
    }
}
