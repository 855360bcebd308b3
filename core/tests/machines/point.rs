//! The fenced restore point.

use std::collections::{BTreeMap, VecDeque};

use sheetanchor_core::error::Result;
use sheetanchor_core::format::catalog::{Cut, ThreadCut};
use sheetanchor_core::identity::{Epoch, NodeId, ThreadId, TimelineId};
use sheetanchor_core::point::{self, FencedPoint, Floor};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::request::{Answer, Request};
use sheetanchor_core::scn::Scn;

use super::{HOLD, LIFE, code, ms, nodes, place, silent};

/// Answers a restore point's requests as three healthy nodes would; `scn` differs by node.
pub fn answer_point(node: NodeId, request: &Request) -> Answer {
    match request {
        Request::Enlist { .. } => Answer::Enlisted { life: LIFE, epoch: Epoch::new(1) },
        Request::Close { .. } => Answer::Closed { life: LIFE },
        Request::Drain { .. } => Answer::Drained { scn: Scn::new(100 + u64::from(node.get())), end: place(node, 50) },
        Request::Cut { .. } => Answer::CutMade { until: place(node, 60), proof: Lsn::new(70) },
        Request::Release { .. } | Request::Flush { .. } => Answer::Done,
        other => panic!("asked to {}", other.word()),
    }
}

/// Runs a restore point; `answer` may stand in for a node, or `None` to stay silent. Returns what was asked, in words,
/// and the end.
fn run_point(
    mut machine: FencedPoint,
    mut answer: impl FnMut(NodeId, &Request) -> Option<Result<Answer>>,
) -> (Vec<String>, Result<Cut>) {
    let mut asked = Vec::new();
    let mut now = ms(0);
    let mut effects: VecDeque<point::Effect> = machine.step(now, point::Event::Begun).into();
    loop {
        let Some(effect) = effects.pop_front() else {
            now = machine.deadline().expect("a machine that waits has a deadline");
            effects.extend(machine.step(now, point::Event::Elapsed));
            continue;
        };
        let event = match effect {
            point::Effect::Ask(step, node, request) => {
                asked.push(format!("{} {node}", request.word()));
                match answer(node, &request) {
                    Some(answer) => point::Event::Answered(step, node, answer),
                    None => continue,
                }
            }
            point::Effect::Publish(_) | point::Effect::Abort(_) => point::Event::Settled(Ok(())),
            point::Effect::Finish(outcome) => return (asked, outcome),
        };
        effects.extend(machine.step(now, event));
    }
}

fn fenced_point(floor: Floor) -> FencedPoint {
    FencedPoint::new(nodes(), "sa-x".into(), HOLD, point::Limits::default(), floor)
}

#[test]
fn a_restore_point_closes_all_before_it_drains_and_drains_all_before_it_cuts() {
    let (asked, cut) = run_point(fenced_point(Floor::default()), |node, request| Some(Ok(answer_point(node, request))));
    let words: Vec<&str> = asked.iter().map(|line| line.split(' ').next().unwrap()).collect();
    let rounds: Vec<&str> = words.chunks(3).map(|round| round[0]).collect();
    assert!(words.chunks(3).all(|round| round.iter().all(|word| *word == round[0])), "{words:?}");
    assert_eq!(rounds, ["enlist", "close", "drain", "cut", "release", "flush"]);
    let cut = cut.unwrap();
    assert_eq!(cut.scn, Scn::new(103), "the highest that any node has seen");
    assert_eq!(cut.threads.len(), 3);
}

#[test]
fn a_cut_never_lies_below_what_the_backup_has_seen() {
    let floor = Floor { scn: Scn::new(500), ..Floor::default() };
    let (_, cut) = run_point(fenced_point(floor), |node, request| Some(Ok(answer_point(node, request))));
    assert_eq!(cut.unwrap().scn, Scn::new(500));
    let stops = nodes().into_iter().map(|node| (ThreadId::of(node), place(node, 61))).collect();
    let floor = Floor { stops, ..Floor::default() };
    let (asked, cut) = run_point(fenced_point(floor), |node, request| Some(Ok(answer_point(node, request))));
    assert_eq!(code(&cut), "SA211", "cut at 60, stopped at 61");
    assert_eq!(asked.last().unwrap(), "release 3", "whoever fails opens every fence");
}

#[test]
fn a_point_that_does_not_lie_after_the_one_before_it_is_refused() {
    let thread = |until| ThreadCut { proof: Lsn::new(until), timeline: TimelineId::new(1), until: Lsn::new(until) };
    for (scn, until, fits) in [(102, 59, true), (103, 59, false), (102, 60, false)] {
        let threads = BTreeMap::from([(ThreadId::new(2), thread(until))]);
        let previous = Some(Cut { record: "before".into(), scn: Scn::new(scn), threads });
        let floor = Floor { previous, ..Floor::default() };
        let (_, cut) = run_point(fenced_point(floor), |node, request| Some(Ok(answer_point(node, request))));
        assert_eq!(cut.is_ok(), fits, "scn {scn}, until {until}");
    }
}

#[test]
fn whichever_step_a_node_is_lost_in_every_fence_is_opened_and_nothing_is_published() {
    for lost in ["enlist", "close", "drain", "cut", "release", "flush"] {
        for refuses in [true, false] {
            let (asked, cut) = run_point(fenced_point(Floor::default()), |node, request| {
                if node == NodeId::new(2) && request.word() == lost {
                    return refuses.then(|| Err(silent()));
                }
                Some(Ok(answer_point(node, request)))
            });
            let wanted = if lost == "drain" && !refuses { "SA206" } else { "SA201" };
            assert_eq!(code(&cut), wanted, "{lost}");
            let closed = asked.iter().any(|line| line.starts_with("close"));
            let released = asked.iter().filter(|line| line.starts_with("release")).count();
            assert!(!closed || released >= 3, "{lost}: {asked:?}");
        }
    }
}

#[test]
fn the_fence_is_never_waited_on_for_longer_than_its_lease() {
    let mut machine = fenced_point(Floor::default());
    let limits = point::Limits::default();
    let mut effects = machine.step(ms(0), point::Event::Begun);
    for late in [1, 1_900] {
        let asked: Vec<_> = std::mem::take(&mut effects);
        for effect in asked {
            let point::Effect::Ask(step, node, request) = effect else { panic!("{effect:?}") };
            effects
                .extend(machine.step(ms(late), point::Event::Answered(step, node, Ok(answer_point(node, &request)))));
        }
    }
    assert_eq!(machine.phase(), point::Phase::Draining);
    assert_eq!(
        machine.deadline(),
        Some(ms(1).after(limits.lease)),
        "the drain may take 1 s, the lease ends before that"
    );
}
