//! What an agent admits, its hold and its pins.

use std::time::Duration;

use sheetanchor_core::agent::{self, Agent, Belonging};
use sheetanchor_core::error::Result;
use sheetanchor_core::identity::{
    ClusterId, Epoch, HoldId, Incarnation, LifeId, Membership, NodeId, OperationId, OperationKind,
};
use sheetanchor_core::request::{Answer, Header, Request};
use sheetanchor_core::scn::Scn;
use sheetanchor_core::time::Moment;

use super::point::answer_point;
use super::{HOLD, LIFE, code, ms, operation, place};

fn belonging() -> Belonging {
    Belonging { cluster: ClusterId::new(7), membership: Membership::new(1), incarnation: Incarnation::new(1) }
}

fn header(operation: OperationId, epoch: u32) -> Header {
    let Belonging { cluster, membership, incarnation } = belonging();
    Header {
        cluster,
        membership,
        incarnation,
        node: NodeId::new(1),
        operation: Some(operation),
        epoch: Epoch::new(epoch),
    }
}

/// An agent, asked one thing after another; what it is to perform succeeds with `answer`.
struct Asking {
    agent: Agent,
    ticket: u64,
}

impl Asking {
    fn new() -> Self {
        Self { agent: Agent::new(NodeId::new(1), Some(belonging())), ticket: 0 }
    }

    fn ask(&mut self, now: Moment, header: Header, request: Request) -> Result<Answer> {
        self.ask_then(now, now, header, &request)
    }

    /// Asks at `now`; what is performed ends at `done`.
    fn ask_then(&mut self, now: Moment, done: Moment, header: Header, request: &Request) -> Result<Answer> {
        self.ticket += 1;
        let effects = self.agent.step(now, agent::Event::Asked(self.ticket, header, request.clone()));
        let performed = effects.into_iter().find_map(|effect| match effect {
            agent::Effect::Reply(_, answer) => Some(Err(answer)),
            agent::Effect::Perform(ticket, _, _) => Some(Ok(ticket)),
            _ => None,
        });
        let ticket = match performed.expect("every request is performed or answered") {
            Ok(ticket) => ticket,
            Err(answer) => return answer,
        };
        let answer = match request {
            Request::Enlist { .. } | Request::Close { .. } | Request::Drain { .. } | Request::Cut { .. } => {
                answer_point(NodeId::new(1), request)
            }
            Request::Pin { .. } => Answer::Pinned { from: place(NodeId::new(1), 0) },
            Request::Begin => Answer::Begun { start: place(NodeId::new(1), 10 * self.ticket), scn: Scn::new(1) },
            _ => Answer::Done,
        };
        let effects = self.agent.step(done, agent::Event::Performed(ticket, Ok(answer)));
        let reply = effects.into_iter().find_map(|effect| match effect {
            agent::Effect::Reply(_, answer) => Some(answer),
            _ => None,
        });
        reply.expect("what was performed is answered")
    }
}

fn close() -> Request {
    Request::Close { hold: HOLD, lease_ms: 2_000 }
}

fn cut_request() -> Request {
    Request::Cut { hold: HOLD, life: LIFE, scn: Scn::new(103), record: "sa-x".into() }
}

#[test]
fn an_agent_refuses_what_is_not_meant_for_it() {
    let point = operation(OperationKind::Point);
    let enlist = Request::Enlist { fence: true };
    type Breaks = fn(&mut Header);
    let other: [(&str, Breaks); 4] = [
        ("SA113", |header| header.node = NodeId::new(2)),
        ("SA104", |header| header.cluster = ClusterId::new(8)),
        ("SA105", |header| header.membership = Membership::new(2)),
        ("SA108", |header| header.incarnation = Incarnation::new(2)),
    ];
    for (wanted, breaks) in other {
        let mut header = header(point, 1);
        breaks(&mut header);
        assert_eq!(code(&Asking::new().ask(ms(0), header, enlist.clone())), wanted);
    }
    assert_eq!(code(&Asking::new().ask(ms(0), header(point, 1), close())), "SA209", "never enlisted");
}

#[test]
fn a_stale_coordinator_is_refused_and_a_new_term_is_remembered() {
    let mut asking = Asking::new();
    let point = operation(OperationKind::Point);
    asking.ask(ms(0), header(point, 2), Request::Enlist { fence: true }).unwrap();
    assert_eq!(code(&asking.ask(ms(1), header(point, 1), close())), "SA202");
    asking.ask(ms(2), header(point, 3), close()).unwrap();
    assert_eq!(code(&asking.ask(ms(3), header(point, 2), cut_request())), "SA202");
}

#[test]
fn a_fence_is_a_lease() {
    let mut asking = Asking::new();
    let point = operation(OperationKind::Point);
    asking.ask(ms(0), header(point, 1), Request::Enlist { fence: true }).unwrap();
    asking.ask(ms(10), header(point, 1), close()).unwrap();
    assert_eq!(asking.agent.deadline(), Some(ms(2_010)));
    assert_eq!(asking.agent.step(ms(2_009), agent::Event::Elapsed), []);
    assert_eq!(asking.agent.step(ms(2_010), agent::Event::Elapsed), [agent::Effect::Free(HOLD)]);
    assert_eq!(code(&asking.ask(ms(2_011), header(point, 1), cut_request())), "SA203");
    assert_eq!(
        code(&asking.ask(ms(2_012), header(point, 1), close())),
        "SA203",
        "a late repetition must not close again"
    );
}

#[test]
fn a_cut_counts_only_if_its_hold_stood_until_the_record_was_written() {
    let mut asking = Asking::new();
    let point = operation(OperationKind::Point);
    asking.ask(ms(0), header(point, 1), Request::Enlist { fence: true }).unwrap();
    asking.ask(ms(0), header(point, 1), close()).unwrap();
    assert_eq!(code(&asking.ask_then(ms(1_999), ms(2_000), header(point, 1), &cut_request())), "SA203");
}

#[test]
fn a_repeated_cut_gets_the_same_answer_and_another_is_refused() {
    let mut asking = Asking::new();
    let point = operation(OperationKind::Point);
    asking.ask(ms(0), header(point, 1), Request::Enlist { fence: true }).unwrap();
    assert_eq!(code(&asking.ask(ms(0), header(point, 1), cut_request())), "SA203", "not closed");
    asking.ask(ms(0), header(point, 1), close()).unwrap();
    let first = asking.ask(ms(1), header(point, 1), cut_request()).unwrap();
    assert_eq!(asking.ask(ms(2), header(point, 1), cut_request()).unwrap(), first);
    let other = Request::Cut { hold: HOLD, life: LIFE, scn: Scn::new(104), record: "sa-x".into() };
    assert_eq!(code(&asking.ask(ms(3), header(point, 1), other)), "SA209");
    let other_life = Request::Cut { hold: HOLD, life: LifeId::new(1), scn: Scn::new(103), record: "sa-x".into() };
    assert_eq!(code(&asking.ask(ms(3), header(point, 1), other_life)), "SA204");
}

#[test]
fn one_fence_at_a_time_and_nobody_opens_anothers() {
    let mut asking = Asking::new();
    let (first, second) = (operation(OperationKind::Point), OperationId::new(OperationKind::Point, 5, 6));
    asking.ask(ms(0), header(first, 1), Request::Enlist { fence: true }).unwrap();
    asking.ask(ms(0), header(second, 1), Request::Enlist { fence: true }).unwrap();
    asking.ask(ms(0), header(first, 1), close()).unwrap();
    let other = HoldId::new(6);
    assert_eq!(code(&asking.ask(ms(1), header(second, 1), Request::Close { hold: other, lease_ms: 9 })), "SA205");
    asking.ask(ms(1), header(second, 1), Request::Release { hold: other }).unwrap();
    assert_eq!(asking.agent.fenced_by(), Some(first));
    asking.ask(ms(2), header(first, 1), Request::Release { hold: HOLD }).unwrap();
    assert_eq!(asking.agent.fenced_by(), None);
}

#[test]
fn a_pin_is_renewed_or_expires_and_says_so() {
    let mut asking = Asking::new();
    let backup = operation(OperationKind::Backup);
    asking.ask(ms(0), header(backup, 1), Request::Enlist { fence: true }).unwrap();
    assert_eq!(code(&asking.ask(ms(0), header(backup, 1), Request::Renew { lease_ms: 9 })), "SA210");
    asking.ask(ms(0), header(backup, 1), Request::Pin { lease_ms: 1_000 }).unwrap();
    asking.ask(ms(900), header(backup, 1), Request::Renew { lease_ms: 1_000 }).unwrap();
    assert_eq!(asking.agent.step(ms(1_899), agent::Event::Elapsed), []);
    assert_eq!(asking.agent.step(ms(1_900), agent::Event::Elapsed), [agent::Effect::DropPin(backup)]);
    assert_eq!(code(&asking.ask(ms(1_901), header(backup, 1), Request::Renew { lease_ms: 9 })), "SA210");
    let found = agent::Event::FoundPins(vec![backup], Duration::from_millis(50));
    assert_eq!(asking.agent.step(ms(2_000), found.clone()), []);
    assert_eq!(asking.agent.step(ms(2_040), found), [], "a lease that is kept of it stays");
    assert_eq!(asking.agent.step(ms(2_050), agent::Event::Elapsed), [agent::Effect::DropPin(backup)]);
}

#[test]
fn whose_pin_an_operator_drops_is_told_so() {
    let mut asking = Asking::new();
    let [backup, other] = [operation(OperationKind::Backup), "backup-000000000001-00000001".parse().unwrap()];
    for operation in [backup, other] {
        asking.ask(ms(0), header(operation, 1), Request::Enlist { fence: true }).unwrap();
        asking.ask(ms(0), header(operation, 1), Request::Pin { lease_ms: 1_000 }).unwrap();
    }
    asking.ask(ms(1), header(backup, 1), Request::DropPin { name: backup.to_string() }).unwrap();
    assert_eq!(code(&asking.ask(ms(2), header(backup, 1), Request::Renew { lease_ms: 9 })), "SA210");
    asking.ask(ms(2), header(other, 1), Request::Renew { lease_ms: 9 }).unwrap();
}

#[test]
fn whose_wal_was_let_go_of_is_told_so() {
    let mut asking = Asking::new();
    let [backup, other] = [operation(OperationKind::Backup), "backup-000000000001-00000001".parse().unwrap()];
    for operation in [backup, other] {
        asking.ask(ms(0), header(operation, 1), Request::Enlist { fence: true }).unwrap();
        asking.ask(ms(0), header(operation, 1), Request::Pin { lease_ms: 1_000 }).unwrap();
    }
    assert_eq!(asking.agent.step(ms(1), agent::Event::LostPins(vec![backup])), []);
    assert_eq!(code(&asking.ask(ms(2), header(backup, 1), Request::Renew { lease_ms: 9 })), "SA210");
    asking.ask(ms(2), header(other, 1), Request::Renew { lease_ms: 9 }).unwrap();
}

#[test]
fn only_the_very_backup_that_was_begun_is_ended() {
    let mut asking = Asking::new();
    let backup = operation(OperationKind::Backup);
    asking.ask(ms(0), header(backup, 1), Request::Enlist { fence: true }).unwrap();
    let end = |start| Request::End { start };
    assert_eq!(code(&asking.ask(ms(0), header(backup, 1), end(place(NodeId::new(1), 10)))), "SA204", "never begun");
    let Answer::Begun { start, .. } = asking.ask(ms(0), header(backup, 1), Request::Begin).unwrap() else { panic!() };
    asking.ask(ms(0), header(backup, 1), end(start)).unwrap();
    let mut next_life = Asking { agent: Agent::new(NodeId::new(1), Some(belonging())), ticket: 7 };
    next_life.ask(ms(0), header(backup, 1), Request::Enlist { fence: true }).unwrap();
    next_life.ask(ms(0), header(backup, 1), Request::Begin).unwrap();
    assert_eq!(code(&next_life.ask(ms(0), header(backup, 1), end(start))), "SA204", "a repetition has begun another");
}
