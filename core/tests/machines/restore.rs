//! The restore.

use std::collections::VecDeque;

use sheetanchor_core::error::Result;
use sheetanchor_core::format::catalog::{Cut, ThreadCut};
use sheetanchor_core::identity::{ContentHash, Epoch, NodeId, ThreadId, TimelineId};
use sheetanchor_core::in_doubt::Held;
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Answer, Request};
use sheetanchor_core::restore::{self, Restore};
use sheetanchor_core::scn::Scn;

use super::{LIFE, code, ms, nodes, place};

/// Three nodes, one of which stages for all.
pub fn restore_order(decided: bool) -> restore::Order {
    let thread = |node| {
        let cut = ThreadCut { proof: Lsn::new(70), timeline: TimelineId::new(1), until: Lsn::new(60) };
        (ThreadId::of(node), cut)
    };
    let cut = Cut { record: "sa-x".into(), scn: Scn::new(103), threads: nodes().into_iter().map(thread).collect() };
    let units = [NodeId::new(1)].into();
    let plan = ContentHash::of(b"plan");
    let limits = restore::Limits::default();
    restore::Order { nodes: nodes(), units, plan, cut, sought: false, decided, stop: false, delta: false, limits }
}

fn answer_restore(node: NodeId, request: &Request) -> Answer {
    match request {
        Request::Enlist { .. } => Answer::Enlisted { life: LIFE, epoch: Epoch::new(1) },
        Request::Inspect { .. }
        | Request::Stage { .. }
        | Request::Recover { .. }
        | Request::Open { .. }
        | Request::Discard => Answer::Done,
        Request::Prove { .. } => Answer::Reached { scn: Scn::new(103), until: place(node, 60), in_doubt: Vec::new() },
        other => panic!("asked to {}", other.word()),
    }
}

fn run_restore(
    decided: bool,
    mut answer: impl FnMut(NodeId, &Request) -> Option<Result<Answer>>,
    settles: &Result<()>,
) -> (Vec<String>, Result<()>) {
    let mut machine = Restore::new(restore_order(decided));
    let mut done = Vec::new();
    let mut now = ms(0);
    let mut effects: VecDeque<restore::Effect> = machine.step(now, restore::Event::Begun).into();
    loop {
        let Some(effect) = effects.pop_front() else {
            now = machine.deadline().expect("a machine that waits has a deadline");
            effects.extend(machine.step(now, restore::Event::Elapsed));
            continue;
        };
        let event = match effect {
            restore::Effect::Ask(step, node, request) => {
                done.push(format!("{} {node}", request.word()));
                match answer(node, &request) {
                    Some(answer) => restore::Event::Answered(step, node, answer),
                    None => continue,
                }
            }
            restore::Effect::Judge(in_doubt) => {
                let nodes: Vec<String> = in_doubt.keys().map(ToString::to_string).collect();
                done.push(format!("judge {}", nodes.join(" and ")));
                restore::Event::Judged(settles.clone())
            }
            restore::Effect::Decide(_) => {
                done.push("decide".into());
                restore::Event::Settled(settles.clone())
            }
            restore::Effect::Abort(_) => {
                done.push("abort".into());
                restore::Event::Settled(Ok(()))
            }
            restore::Effect::Finish(outcome) => return (done, outcome),
        };
        effects.extend(machine.step(now, event));
    }
}

#[test]
fn no_node_opens_before_all_have_proven_the_cut_and_the_incarnation_is_decided() {
    let (done, outcome) = run_restore(false, |node, request| Some(Ok(answer_restore(node, request))), &Ok(()));
    assert_eq!(outcome, Ok(()));
    let wanted =
        "enlist 1, enlist 2, enlist 3, stage 1, recover 1, prove 1, prove 2, prove 3, decide, open 1, open 2, open 3";
    assert_eq!(done.join(", "), wanted);
}

/// Nodes 2 and 3 have something prepared.
fn answer_in_doubt(node: NodeId, request: &Request) -> Answer {
    match request {
        Request::Prove { .. } if node != NodeId::new(1) => {
            let held = Held { gid: "g".into(), transaction: "7".into() };
            Answer::Reached { scn: Scn::new(103), until: place(node, 60), in_doubt: vec![held] }
        }
        Request::Resolve { .. } => Answer::Done,
        _ => answer_restore(node, request),
    }
}

#[test]
fn what_is_in_doubt_is_decided_and_resolved_on_every_node_before_the_incarnation_is() {
    let (done, outcome) = run_restore(false, |node, request| Some(Ok(answer_in_doubt(node, request))), &Ok(()));
    assert_eq!(outcome, Ok(()));
    let wanted = "prove 3, judge 2 and 3, resolve 1, resolve 2, resolve 3, decide, open 1, open 2, open 3";
    assert!(done.join(", ").ends_with(wanted), "{done:?}");
}

#[test]
fn a_node_that_is_staged_again_after_the_decision_is_resolved_as_it_was_decided() {
    let (done, outcome) = run_restore(true, |node, request| Some(Ok(answer_in_doubt(node, request))), &Ok(()));
    assert_eq!(outcome, Ok(()));
    let wanted = "prove 3, resolve 1, resolve 2, resolve 3, open 1, open 2, open 3";
    assert!(done.join(", ").ends_with(wanted), "{done:?}");
}

#[test]
fn a_restore_whose_doubts_cannot_be_decided_or_resolved_opens_nothing() {
    let failed = Err(Refusal::new(Code::Damaged, "no catalog").into());
    let (done, outcome) = run_restore(false, |node, request| Some(Ok(answer_in_doubt(node, request))), &failed);
    assert_eq!(code(&outcome), "SA002");
    assert!(done.contains(&"discard 1".into()) && !done.contains(&"decide".into()), "{done:?}");
    let silent = |node, request: &Request| match request {
        Request::Resolve { .. } if node == NodeId::new(2) => None,
        _ => Some(Ok(answer_in_doubt(node, request))),
    };
    let (done, outcome) = run_restore(false, silent, &Ok(()));
    assert_eq!(code(&outcome), "SA201");
    assert!(done.contains(&"discard 1".into()) && !done.contains(&"decide".into()), "{done:?}");
}

#[test]
fn a_node_beside_the_cut_ends_the_restore() {
    for lsn in [59, 61] {
        let answer = |node: NodeId, request: &Request| match request {
            Request::Prove { .. } if node == NodeId::new(2) => {
                Some(Ok(Answer::Reached { scn: Scn::new(103), until: place(node, lsn), in_doubt: Vec::new() }))
            }
            _ => Some(Ok(answer_restore(node, request))),
        };
        let (done, outcome) = run_restore(false, answer, &Ok(()));
        assert_eq!(code(&outcome), "SA403");
        assert!(done.contains(&"discard 1".into()) && !done.iter().any(|line| line.starts_with("open")), "{done:?}");
    }
}

#[test]
fn a_restore_that_lost_the_incarnation_opens_nothing() {
    let taken = Err(Refusal::new(Code::IncarnationTaken, "taken").into());
    let (done, outcome) = run_restore(false, |node, request| Some(Ok(answer_restore(node, request))), &taken);
    assert_eq!(code(&outcome), "SA402");
    assert!(!done.iter().any(|line| line.starts_with("open")));
    assert_eq!(done.last().unwrap(), "discard 3");
}

#[test]
fn after_the_outcome_only_forward() {
    let answer = |node: NodeId, request: &Request| match request {
        Request::Open { .. } if node == NodeId::new(2) => None,
        _ => Some(Ok(answer_restore(node, request))),
    };
    for decided in [false, true] {
        let (done, outcome) = run_restore(decided, answer, &Ok(()));
        assert_eq!(code(&outcome), "SA201");
        assert!(!done.iter().any(|line| line.starts_with("discard") || line == "abort"), "{done:?}");
    }
}

#[test]
fn a_cut_that_was_sought_is_where_all_nodes_prove_it_at_one_scn() {
    let decided = |scn: u64, lsn: u64| {
        let mut machine = Restore::new(restore::Order { sought: true, ..restore_order(false) });
        let mut effects: VecDeque<restore::Effect> = machine.step(ms(0), restore::Event::Begun).into();
        while let Some(effect) = effects.pop_front() {
            match effect {
                restore::Effect::Ask(step, node, request) => {
                    let answer = match request {
                        Request::Prove { .. } if node == NodeId::new(2) => {
                            Answer::Reached { scn: Scn::new(scn), until: place(node, lsn), in_doubt: Vec::new() }
                        }
                        _ => answer_restore(node, &request),
                    };
                    effects.extend(machine.step(ms(0), restore::Event::Answered(step, node, Ok(answer))));
                }
                restore::Effect::Judge(_) => panic!("nothing is in doubt"),
                restore::Effect::Decide(cut) => return Ok(cut.threads[&ThreadId::new(2)].until),
                restore::Effect::Abort(why) => return Err(why.refusal().unwrap().code),
                restore::Effect::Finish(outcome) => panic!("{outcome:?}"),
            }
        }
        panic!("it came to nothing");
    };
    assert_eq!(decided(103, 41), Ok(Lsn::new(41)), "the branch is where the node proved it");
    for (scn, lsn) in [(102, 41), (104, 41), (103, 61)] {
        assert_eq!(decided(scn, lsn), Err(Code::CutMissed), "{scn} at {lsn}");
    }
}

#[test]
fn a_restore_that_is_decided_stages_what_was_lost_and_opens_all_that_can_be_opened() {
    let (done, outcome) = run_restore(true, |node, request| Some(Ok(answer_restore(node, request))), &Ok(()));
    assert_eq!(outcome, Ok(()));
    let wanted = "enlist 1, enlist 2, enlist 3, stage 1, recover 1, prove 1, prove 2, prove 3, open 1, open 2, open 3";
    assert_eq!(done.join(", "), wanted);
    let open = |lost: fn(&Request) -> Option<Result<Answer>>| {
        let answer = |node: NodeId, request: &Request| match lost(request) {
            answer if node == NodeId::new(1) => answer,
            _ => Some(Ok(answer_restore(node, request))),
        };
        let (done, outcome) = run_restore(true, answer, &Ok(()));
        assert!(!done.iter().any(|line| line.starts_with("discard") || line == "abort"), "{done:?}");
        let opened = done.iter().filter_map(|line| line.strip_prefix("open ")).collect::<Vec<_>>().join(" ");
        (opened, outcome.as_ref().err().and_then(|error| error.refusal()).map(|refusal| refusal.code.to_string()))
    };
    assert_eq!(open(|_| None), ("2 3".into(), Some("SA201".into())), "one that is silent");
    let lost = open(|request| match request {
        Request::Stage { .. } => Some(Err(Refusal::new(Code::LostAfterOpening, "lost").into())),
        _ => Some(Ok(answer_restore(NodeId::new(1), request))),
    });
    assert_eq!(lost, ("2 3".into(), Some("SA409".into())), "one that had opened and was lost");
    let gone_on = open(|request| match request {
        Request::Prove { .. } => Some(Ok(Answer::Done)),
        _ => Some(Ok(answer_restore(NodeId::new(1), request))),
    });
    assert_eq!(gone_on, ("1 2 3".into(), None), "one that is open and has gone on from the cut");
    let beside = open(|request| match request {
        Request::Prove { .. } => {
            Some(Ok(Answer::Reached { scn: Scn::new(103), until: place(NodeId::new(1), 61), in_doubt: Vec::new() }))
        }
        _ => Some(Ok(answer_restore(NodeId::new(1), request))),
    });
    assert_eq!(beside, ("2 3".into(), Some("SA403".into())), "one beside the cut");
}

#[test]
fn a_node_that_only_says_that_it_is_done_has_proved_nothing_before_the_decision() {
    let answer = |node: NodeId, request: &Request| match request {
        Request::Prove { .. } if node == NodeId::new(2) => Some(Ok(Answer::Done)),
        _ => Some(Ok(answer_restore(node, request))),
    };
    let (done, outcome) = run_restore(false, answer, &Ok(()));
    assert!(outcome.is_err() && !done.contains(&"decide".into()), "{done:?}");
}

#[test]
fn a_restore_that_stops_on_arrival_proves_the_cut_and_decides_nothing() {
    let mut machine = Restore::new(restore::Order { stop: true, ..restore_order(false) });
    let mut effects: VecDeque<restore::Effect> = machine.step(ms(0), restore::Event::Begun).into();
    let mut proved = 0;
    while let Some(effect) = effects.pop_front() {
        match effect {
            restore::Effect::Ask(step, node, request) => {
                proved += u32::from(matches!(request, Request::Prove { .. }));
                let answer = Ok(answer_restore(node, &request));
                effects.extend(machine.step(ms(0), restore::Event::Answered(step, node, answer)));
            }
            restore::Effect::Finish(outcome) => {
                assert_eq!((outcome, proved), (Ok(()), 3));
                return;
            }
            restore::Effect::Judge(_) => panic!("nothing is in doubt"),
            restore::Effect::Decide(_) | restore::Effect::Abort(_) => panic!("{effect:?}"),
        }
    }
    panic!("it came to nothing");
}

/// Every node looks at its folder before any is changed; one that says no ends the restore before that.
#[test]
fn a_restore_over_what_is_there_has_every_node_look_first() {
    let asked = |refuses: bool| {
        let mut machine = Restore::new(restore::Order { delta: true, ..restore_order(false) });
        let mut effects: VecDeque<restore::Effect> = machine.step(ms(0), restore::Event::Begun).into();
        let mut asked = Vec::new();
        while let Some(effect) = effects.pop_front() {
            match effect {
                restore::Effect::Ask(step, node, request) => {
                    asked.push(format!("{} {node}", request.word()));
                    let in_use = || Refusal::new(Code::FolderInUse, "a server runs there").into();
                    let refused = refuses && node == NodeId::new(3) && matches!(request, Request::Inspect { .. });
                    let answer = if refused { Err(in_use()) } else { Ok(answer_restore(node, &request)) };
                    effects.extend(machine.step(ms(0), restore::Event::Answered(step, node, answer)));
                }
                restore::Effect::Decide(_) | restore::Effect::Abort(_) => {
                    effects.extend(machine.step(ms(0), restore::Event::Settled(Ok(()))));
                }
                restore::Effect::Judge(_) => panic!("nothing is in doubt"),
                restore::Effect::Finish(outcome) => assert_eq!(outcome.is_err(), refuses),
            }
        }
        asked.into_iter().skip(3).take(4).collect::<Vec<_>>()
    };
    assert_eq!(asked(false), ["inspect 1", "inspect 2", "inspect 3", "stage 1"]);
    assert_eq!(asked(true), ["inspect 1", "inspect 2", "inspect 3", "discard 1"]);
    // What is decided is not put back anywhere: nobody has to look.
    let mut machine = Restore::new(restore::Order { delta: true, ..restore_order(true) });
    let mut effects: VecDeque<restore::Effect> = machine.step(ms(0), restore::Event::Begun).into();
    while let Some(effect) = effects.pop_front() {
        let restore::Effect::Ask(step, node, request) = effect else { break };
        assert!(!matches!(request, Request::Inspect { .. }), "asked node {node}");
        let answer = Ok(answer_restore(node, &request));
        effects.extend(machine.step(ms(0), restore::Event::Answered(step, node, answer)));
    }
}
