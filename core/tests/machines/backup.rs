//! The backup.

use std::collections::VecDeque;

use sheetanchor_core::backup::{self, Backup};
use sheetanchor_core::compression::Compression;
use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::format::catalog::{Cut, Guarantee, Method, ThreadCut};
use sheetanchor_core::identity::{ByteCount, ContentHash, Epoch, NodeId, OperationKind, ThreadId, TimelineId};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Answer, Captured, Request};
use sheetanchor_core::scn::Scn;

use super::{LIFE, code, ms, nodes, operation, place, silent};

fn order(method: Method) -> backup::Order {
    let (limits, compression) = (backup::Limits::default(), Compression::Lz4);
    backup::Order { nodes: nodes(), shared: true, method, base: None, compression, record: "sa-b".into(), limits }
}

fn answer_backup(node: NodeId, request: &Request) -> Answer {
    let captured = Captured {
        list: "files/x".into(),
        hash: ContentHash::of(b""),
        entries: 1,
        bytes: ByteCount::new(1),
        stored: ByteCount::new(1),
        base: None,
        why_full: None,
    };
    match request {
        Request::Enlist { .. } => Answer::Enlisted { life: LIFE, epoch: Epoch::new(1) },
        Request::Pin { .. } => Answer::Pinned { from: place(node, 0) },
        Request::Begin => Answer::Begun { start: place(node, 10), scn: Scn::new(10 + u64::from(node.get())) },
        Request::Capture { compression, .. } => {
            assert_eq!(*compression, Compression::Lz4, "as was ordered");
            Answer::Captured(captured)
        }
        Request::End { start } => {
            assert_eq!(*start, place(node, 10), "what the node has begun, and nothing else, is ended");
            Answer::Ended { stop: place(node, 50), scn: Scn::new(100 + u64::from(node.get())), extra: None }
        }
        Request::CutAlone { .. } => Answer::CutMade { until: place(node, 60), proof: Lsn::new(70) },
        Request::Archive { through } => Answer::Archived { until: through.lsn },
        Request::Unpin | Request::Renew { .. } => Answer::Done,
        other => panic!("asked to {}", other.word()),
    }
}

/// Runs a backup; returns everything that it did, in words, and the end.
fn run_backup(
    method: Method,
    mut answer: impl FnMut(NodeId, &Request) -> Option<Result<Answer>>,
    settles: &Result<()>,
) -> (Vec<String>, Result<()>) {
    let mut machine = Backup::new(order(method));
    let mut done = Vec::new();
    let mut now = ms(0);
    let mut effects: VecDeque<backup::Effect> = machine.step(now, backup::Event::Begun).into();
    loop {
        let Some(effect) = effects.pop_front() else {
            now = machine.deadline().expect("a machine that waits has a deadline");
            effects.extend(machine.step(now, backup::Event::Elapsed));
            continue;
        };
        let event = match effect {
            backup::Effect::Ask(step, node, request) => {
                if request.word() != "renew" {
                    done.push(format!("{} {node}", request.word()));
                }
                match answer(node, &request) {
                    Some(answer) => backup::Event::Answered(step, node, answer),
                    None => continue,
                }
            }
            backup::Effect::TakePoint(floor) => {
                assert_eq!((floor.scn, floor.stops.len()), (Scn::new(103), 3), "after every stop, above every SCN");
                done.push("point".into());
                let thread = |node| {
                    let cut = ThreadCut { proof: Lsn::new(70), timeline: TimelineId::new(1), until: Lsn::new(60) };
                    (ThreadId::of(node), cut)
                };
                let cut = Cut {
                    record: "sa-x".into(),
                    scn: Scn::new(103),
                    threads: nodes().into_iter().map(thread).collect(),
                };
                let taken = backup::Taken { point: operation(OperationKind::Point), cut, guarantee: Guarantee::Atomic };
                backup::Event::PointTaken(Ok(taken))
            }
            backup::Effect::Seal(evidence) => {
                assert_eq!(evidence.begun_scn, Scn::new(13));
                done.push("seal".into());
                backup::Event::Settled(settles.clone())
            }
            backup::Effect::Abort(_) => {
                done.push("abort".into());
                backup::Event::Settled(Ok(()))
            }
            backup::Effect::Finish(outcome) => return (done, outcome),
        };
        effects.extend(machine.step(now, event));
    }
}

#[test]
fn a_backup_captures_when_all_have_begun_and_unpins_when_it_is_sealed() {
    let (done, outcome) = run_backup(Method::Fence, |node, request| Some(Ok(answer_backup(node, request))), &Ok(()));
    assert_eq!(outcome, Ok(()));
    let words: Vec<&str> = done.iter().map(|line| line.split(' ').next().unwrap()).collect();
    let mut rounds = words.clone();
    rounds.dedup();
    assert_eq!(rounds, ["enlist", "pin", "begin", "capture", "end", "point", "archive", "seal", "unpin"]);
    assert_eq!(words.iter().filter(|word| **word == "capture").count(), 1, "shared files are captured once");
}

#[test]
fn a_backup_of_each_node_by_itself_says_so() {
    let (done, outcome) = run_backup(Method::Alone, |node, request| Some(Ok(answer_backup(node, request))), &Ok(()));
    assert_eq!(outcome, Ok(()));
    assert!(done.iter().any(|line| line == "cut-alone 3") && !done.iter().any(|line| line == "point"), "{done:?}");
}

#[test]
fn whatever_fails_nobody_unpins_before_failure_is_the_outcome() {
    for lost in ["enlist", "pin", "begin", "capture", "end", "archive"] {
        for refuses in [true, false] {
            let answer = |node: NodeId, request: &Request| {
                if node == NodeId::new(1) && request.word() == lost {
                    return refuses.then(|| Err(silent()));
                }
                Some(Ok(answer_backup(node, request)))
            };
            let (done, outcome) = run_backup(Method::Fence, answer, &Ok(()));
            let wanted = if lost == "archive" && !refuses { "SA503" } else { "SA201" };
            assert_eq!(code(&outcome), wanted, "{lost}");
            let abort = done.iter().position(|line| line == "abort").expect("failure becomes the outcome");
            let unpin = done.iter().position(|line| line.starts_with("unpin")).expect("and then the pins go");
            assert!(abort < unpin, "{lost}: {done:?}");
        }
    }
}

#[test]
fn a_backup_whose_pins_cannot_be_renewed_is_refused() {
    let answer = |node: NodeId, request: &Request| match request.word() {
        "renew" if node == NodeId::new(3) => Some(Err(Error::Bug("the answer was lost".into()))),
        "capture" => None,
        _ => Some(Ok(answer_backup(node, request))),
    };
    let (done, outcome) = run_backup(Method::Fence, answer, &Ok(()));
    assert_eq!(code(&outcome), "SA201");
    assert!(!done.iter().any(|line| line == "seal"));
}

#[test]
fn a_seal_that_another_coordinator_forestalled_unpins_and_is_refused() {
    let taken = Err(Refusal::new(Code::Aborted, "aborted by another").into());
    let (done, outcome) = run_backup(Method::Fence, |node, request| Some(Ok(answer_backup(node, request))), &taken);
    assert_eq!(code(&outcome), "SA207");
    assert_eq!(done.last().unwrap(), "unpin 3");
}
