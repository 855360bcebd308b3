//! The restore point by SCN.

use std::collections::{BTreeMap, VecDeque};

use sheetanchor_core::by_scn::{Effect, Event, ScnPoint};
use sheetanchor_core::error::Result;
use sheetanchor_core::format::catalog::{Cut, ThreadCut};
use sheetanchor_core::identity::{Epoch, NodeId, ThreadId, TimelineId};
use sheetanchor_core::point::{Floor, Limits};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::request::{Answer, Request};
use sheetanchor_core::scn::Scn;

use super::{LIFE, code, ms, nodes, place, silent};

const S: Scn = Scn::new(200);

fn answer(node: NodeId, request: &Request) -> Answer {
    match request {
        Request::Enlist { fence: false } => Answer::Enlisted { life: LIFE, epoch: Epoch::new(1) },
        Request::Mark { life, scn, record } => {
            assert_eq!((*life, *scn, record.as_str()), (LIFE, S, "sa-x"));
            Answer::CutMade { until: place(node, 60), proof: Lsn::new(90) }
        }
        other => panic!("asked to {}", other.word()),
    }
}

/// Runs a point; `answer` may stand in for a node, or `None` to stay silent. Returns what was asked, and the end.
fn run(
    floor: Floor,
    mut answer: impl FnMut(NodeId, &Request) -> Option<Result<Answer>>,
    settles: &Result<()>,
) -> (Vec<String>, Result<Cut>) {
    let mut machine = ScnPoint::new(nodes(), "sa-x".into(), Limits::default(), floor);
    let mut asked = Vec::new();
    let mut effects: VecDeque<Effect> = machine.step(ms(0), Event::Begun).into();
    let mut now = ms(0);
    loop {
        let Some(effect) = effects.pop_front() else {
            now = machine.deadline().expect("a machine that waits has a deadline");
            effects.extend(machine.step(now, Event::Elapsed));
            continue;
        };
        let event = match effect {
            Effect::Ask(step, node, request) => {
                asked.push(format!("{} {node}", request.word()));
                match answer(node, &request) {
                    Some(answer) => Event::Answered(step, node, answer),
                    None => continue,
                }
            }
            Effect::Publish(_) => {
                asked.push("publish".into());
                Event::Settled(settles.clone())
            }
            Effect::Abort(_) => {
                asked.push("abort".into());
                Event::Settled(Ok(()))
            }
            Effect::Finish(outcome) => return (asked, outcome),
        };
        effects.extend(machine.step(now, event));
    }
}

fn floor() -> Floor {
    Floor { scn: S, ..Floor::default() }
}

#[test]
fn a_point_by_scn_takes_two_rounds_and_holds_nothing() {
    let (asked, cut) = run(floor(), |node, request| Some(Ok(answer(node, request))), &Ok(()));
    assert_eq!(asked, ["enlist 1", "enlist 2", "enlist 3", "mark 1", "mark 2", "mark 3", "publish"]);
    let cut = cut.unwrap();
    assert_eq!((cut.scn, cut.threads.len()), (S, 3));
    let thread = cut.threads.get(&ThreadId::new(2)).unwrap();
    assert_eq!((thread.until, thread.proof), (Lsn::new(60), Lsn::new(90)), "other records may lie between them");
}

#[test]
fn whichever_node_is_lost_nothing_is_published() {
    for lost in ["enlist", "mark"] {
        for refuses in [true, false] {
            let answer = |node: NodeId, request: &Request| {
                if node == NodeId::new(2) && request.word() == lost {
                    return refuses.then(|| Err(silent()));
                }
                Some(Ok(answer(node, request)))
            };
            let (asked, cut) = run(floor(), answer, &Ok(()));
            assert_eq!(code(&cut), "SA201", "{lost}");
            assert_eq!(asked.last().map(String::as_str), Some("abort"), "{asked:?}");
            assert!(!asked.contains(&"publish".to_string()), "{asked:?}");
        }
    }
}

#[test]
fn a_cut_below_a_stop_or_not_after_the_point_before_it_is_refused() {
    let stops = BTreeMap::from([(ThreadId::new(3), place(NodeId::new(3), 61))]);
    let thread = |until| ThreadCut { proof: Lsn::new(until), timeline: TimelineId::new(1), until: Lsn::new(until) };
    let previous = |scn, until| {
        let threads = BTreeMap::from([(ThreadId::new(2), thread(until))]);
        Floor { previous: Some(Cut { record: "before".into(), scn: Scn::new(scn), threads }), ..floor() }
    };
    for (floor, fits) in [
        (Floor { stops, ..floor() }, false),
        (previous(199, 59), true),
        (previous(200, 59), false),
        (previous(199, 60), false),
    ] {
        let (_, cut) = run(floor, |node, request| Some(Ok(answer(node, request))), &Ok(()));
        assert_eq!(cut.is_ok(), fits);
        assert!(fits || code(&cut) == "SA211");
    }
}

#[test]
fn an_outcome_that_another_coordinator_took_is_obeyed() {
    let (asked, cut) = run(floor(), |node, request| Some(Ok(answer(node, request))), &Err(silent()));
    assert_eq!(code(&cut), "SA201");
    assert_eq!(asked.iter().filter(|line| *line == "abort" || *line == "publish").count(), 1);
}
