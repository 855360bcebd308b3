//! Arbitrary events in arbitrary order: no machine panics, each ends once its deadlines have come, and an agent answers
//! every request.

use std::fmt::Debug;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;
use sheetanchor_core::agent::{self, Agent, Belonging};
use sheetanchor_core::backup::{self, Backup};
use sheetanchor_core::by_scn::ScnPoint;
use sheetanchor_core::compression::Compression;
use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::format::catalog::{Cut, Guarantee, Method, ThreadCut};
use sheetanchor_core::identity::{
    ByteCount, ClusterId, ContentHash, Epoch, HoldId, Incarnation, LifeId, Membership, NodeId, OperationId,
    OperationKind, ThreadId, TimelineId,
};
use sheetanchor_core::in_doubt::Held;
use sheetanchor_core::point::{self, FencedPoint, Floor};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Answer, Captured, Header, Request};
use sheetanchor_core::restore::{self, Restore};
use sheetanchor_core::scn::Scn;
use sheetanchor_core::time::Moment;

use super::restore::restore_order;
use super::{HOLD, ms, nodes, operation, place};

/// Deadlines that any operation may need until it ends.
const DEADLINES_MAX: usize = 20_000;

fn answers() -> impl Strategy<Value = Result<Answer>> {
    let (node, other) = (NodeId::new(1), NodeId::new(7));
    let captured = Captured {
        list: "files/x".into(),
        hash: ContentHash::of(b""),
        entries: 1,
        bytes: ByteCount::new(1),
        stored: ByteCount::new(1),
        base: None,
        why_full: None,
    };
    let sound = vec![
        Answer::Done,
        Answer::Enlisted { life: LifeId::new(1), epoch: Epoch::new(1) },
        Answer::Pinned { from: place(node, 0) },
        Answer::Begun { start: place(other, u64::MAX), scn: Scn::new(u64::MAX) },
        Answer::Captured(captured),
        Answer::Ended { stop: place(node, 5), scn: Scn::new(1), extra: None },
        Answer::Archived { until: Lsn::new(0) },
        Answer::Closed { life: LifeId::new(2) },
        Answer::Drained { scn: Scn::new(u64::MAX), end: place(node, 9) },
        Answer::CutMade { until: place(other, 60), proof: Lsn::new(0) },
        Answer::CutMade { until: place(node, 60), proof: Lsn::new(70) },
        Answer::Pins(Vec::new()),
        Answer::Reached { scn: Scn::new(103), until: place(node, 60), in_doubt: Vec::new() },
        Answer::Reached {
            scn: Scn::new(103),
            until: place(node, 60),
            in_doubt: vec![Held { gid: "g".into(), transaction: "7".into() }],
        },
    ];
    let refusal = |code| Err(Refusal::new(code, "refused").into());
    let mut all: Vec<Result<Answer>> = sound.into_iter().map(Ok).collect();
    all.extend([Code::NodeSilent, Code::Busy, Code::Aborted, Code::PinLost].map(refusal));
    all.push(Err(Error::Bug("broken".into())));
    select(all)
}

/// One event: which node and step it is of, what is answered, and what happens besides.
type Draw = (u16, u32, Result<Answer>, u8, u64);

fn draws() -> impl Strategy<Value = Vec<Draw>> {
    prop::collection::vec((0_u16..5, 0_u32..10, answers(), 0_u8..12, 0_u64..100_000), 0..60)
}

fn cut() -> Cut {
    let thread = ThreadCut { proof: Lsn::new(70), timeline: TimelineId::new(1), until: Lsn::new(60) };
    Cut { record: "sa-x".into(), scn: Scn::new(9), threads: [(ThreadId::new(1), thread)].into() }
}

/// Lets a machine's deadlines come, or what it waits for be over, until it has ended. The repository and a backup's point
/// have deadlines of their own.
fn ends<M: Debug>(
    machine: &mut M,
    is_over: impl Fn(&M) -> bool,
    mut go_on: impl FnMut(&mut M),
) -> std::result::Result<(), TestCaseError> {
    let mut left = DEADLINES_MAX;
    while !is_over(machine) {
        left -= 1;
        prop_assert!(left > 0, "it never ends: {machine:?}");
        go_on(machine);
    }
    Ok(())
}

fn settled(answer: Result<Answer>) -> Result<()> {
    answer.map(|_| ())
}

fn point_event((node, step, answer, kind, _): Draw) -> point::Event {
    match kind {
        0 => point::Event::Begun,
        1 => point::Event::Cancelled,
        2 => point::Event::Elapsed,
        3 => point::Event::Settled(settled(answer)),
        _ => point::Event::Answered(step, NodeId::new(node), answer),
    }
}

fn backup_event((node, step, answer, kind, _): Draw) -> backup::Event {
    match kind {
        0 => backup::Event::Begun,
        1 => backup::Event::Cancelled,
        2 => backup::Event::Elapsed,
        3 => backup::Event::Settled(settled(answer)),
        4 => {
            let taken =
                backup::Taken { point: operation(OperationKind::Point), cut: cut(), guarantee: Guarantee::Atomic };
            backup::Event::PointTaken(answer.map(|_| taken))
        }
        _ => backup::Event::Answered(step, NodeId::new(node), answer),
    }
}

fn restore_event((node, step, answer, kind, _): Draw) -> restore::Event {
    match kind {
        0 => restore::Event::Begun,
        1 => restore::Event::Cancelled,
        2 => restore::Event::Elapsed,
        3 => restore::Event::Settled(settled(answer)),
        4 => restore::Event::Judged(settled(answer)),
        _ => restore::Event::Answered(step, NodeId::new(node), answer),
    }
}

fn request(kind: u8, hold: u64, at: u64) -> Request {
    let (hold, life, scn) = (HoldId::new(hold), LifeId::new(at % 3), Scn::new(at));
    match kind {
        0 => Request::Enlist { fence: true },
        1 => Request::Close { hold, lease_ms: at },
        2 => Request::Drain { hold, life },
        3 => Request::Cut { hold, life, scn, record: "sa-x".into() },
        4 => Request::Release { hold },
        5 => Request::Flush { life, through: Lsn::new(at) },
        6 => Request::Pin { lease_ms: at },
        7 => Request::Renew { lease_ms: u64::MAX },
        8 => Request::Begin,
        9 => Request::End { start: place(NodeId::new(1), at) },
        10 => Request::Unpin,
        _ => Request::Describe,
    }
}

proptest! {
    #[test]
    fn a_fenced_point_survives_any_events(draws in draws()) {
        let mut machine = FencedPoint::new(nodes(), "sa-x".into(), HOLD, point::Limits::default(), Floor::default());
        machine.step(ms(0), point::Event::Begun);
        let mut now = 0;
        for draw in draws {
            now += draw.4;
            machine.step(ms(now), point_event(draw));
        }
        ends(&mut machine, |machine| machine.phase() == point::Phase::Ended, |machine| match machine.deadline() {
            Some(deadline) => drop(machine.step(deadline, point::Event::Elapsed)),
            None => drop(machine.step(ms(now), point::Event::Settled(Ok(())))),
        })?;
    }

    #[test]
    fn a_point_by_scn_survives_any_events(draws in draws()) {
        let floor = Floor { scn: Scn::new(9), ..Floor::default() };
        let mut machine = ScnPoint::new(nodes(), "sa-x".into(), point::Limits::default(), floor);
        machine.step(ms(0), point::Event::Begun);
        let mut now = 0;
        for draw in draws {
            now += draw.4;
            machine.step(ms(now), point_event(draw));
        }
        ends(&mut machine, |machine| machine.phase() == sheetanchor_core::by_scn::Phase::Ended, |machine| match machine.deadline() {
            Some(deadline) => drop(machine.step(deadline, point::Event::Elapsed)),
            None => drop(machine.step(ms(now), point::Event::Settled(Ok(())))),
        })?;
    }

    #[test]
    fn a_backup_survives_any_events(draws in draws(), shared in any::<bool>(), fenced in any::<bool>()) {
        let method = if fenced { Method::Fence } else { Method::Alone };
        let limits = backup::Limits { capture: Duration::from_mins(30), ..backup::Limits::default() };
        let (record, compression) = ("sa-b".into(), Compression::default());
        let order = backup::Order { nodes: nodes(), shared, method, base: None, compression, record, limits };
        let mut machine = Backup::new(order);
        machine.step(ms(0), backup::Event::Begun);
        let mut now = 0;
        for draw in draws {
            now += draw.4;
            machine.step(ms(now), backup_event(draw));
        }
        ends(&mut machine, |machine| machine.phase() == backup::Phase::Ended, |machine| {
            let event = match (machine.phase(), machine.deadline()) {
                (backup::Phase::Cutting, _) if fenced => {
                    backup::Event::PointTaken(Err(Refusal::new(Code::Busy, "no point").into()))
                }
                (backup::Phase::Deciding | backup::Phase::Aborting, _) | (_, None) => backup::Event::Settled(Ok(())),
                (_, Some(deadline)) => return drop(machine.step(deadline, backup::Event::Elapsed)),
            };
            drop(machine.step(ms(now), event));
        })?;
    }

    #[test]
    fn a_restore_survives_any_events(draws in draws(), decided in any::<bool>()) {
        let mut machine = Restore::new(restore_order(decided));
        machine.step(ms(0), restore::Event::Begun);
        let mut now = 0;
        for draw in draws {
            now += draw.4;
            machine.step(ms(now), restore_event(draw));
        }
        ends(&mut machine, |machine| machine.phase() == restore::Phase::Ended, |machine| match machine.deadline() {
            Some(deadline) => drop(machine.step(deadline, restore::Event::Elapsed)),
            None => drop(machine.step(ms(now), restore::Event::Settled(Ok(())))),
        })?;
    }

    #[test]
    fn an_agent_answers_every_request(
        draws in prop::collection::vec((0_u8..14, 0_u64..3, 0_u64..5_000, 1_u32..4, answers()), 0..80),
    ) {
        let incarnation = Incarnation::new(1);
        let belonging = Belonging { cluster: ClusterId::new(7), membership: Membership::new(1), incarnation };
        let mut agent = Agent::new(NodeId::new(1), Some(belonging));
        let (mut now, mut waiting, mut asked, mut answered) = (Moment::default(), Vec::new(), 0, 0);
        for (kind, hold, at, epoch, answer) in draws {
            let event = match kind {
                12 => agent::Event::Elapsed,
                // No lease is none at all.
                13 => agent::Event::FoundPins(vec![operation(OperationKind::Backup)], Duration::from_millis(at + 1)),
                _ => {
                    asked += 1;
                    let kinds = [OperationKind::Point, OperationKind::Backup, OperationKind::Restore];
                    let header = Header {
                        cluster: belonging.cluster,
                        membership: belonging.membership,
                        incarnation,
                        node: NodeId::new(1),
                        operation: kinds.get(usize::from(kind) % 4).map(|kind| OperationId::new(*kind, hold, 1)),
                        epoch: Epoch::new(epoch),
                    };
                    agent::Event::Asked(asked, header, request(kind, hold, at))
                }
            };
            now = now.after(Duration::from_millis(at));
            let mut effects = agent.step(now, event);
            if at % 3 == 0 && let Some(ticket) = waiting.pop() {
                effects.extend(agent.step(now, agent::Event::Performed(ticket, answer)));
            }
            for effect in effects {
                match effect {
                    agent::Effect::Perform(ticket, ..) => waiting.push(ticket),
                    agent::Effect::Reply(..) => answered += 1,
                    agent::Effect::Free(_) | agent::Effect::DropPin(_) => {}
                }
            }
            prop_assert!(agent.deadline().is_none_or(|deadline| deadline > now), "what is due has been done");
        }
        for ticket in waiting {
            let effects = agent.step(now, agent::Event::Performed(ticket, Ok(Answer::Done)));
            answered += u64::from(effects.iter().any(|effect| matches!(effect, agent::Effect::Reply(..))));
        }
        prop_assert_eq!(asked, answered, "every request is answered once");
    }
}
