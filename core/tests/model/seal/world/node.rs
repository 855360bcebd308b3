//! A node: its agent, and as much of a database as a backup needs.

use std::time::Duration;

use sheetanchor_core::agent::{self, Agent};
use sheetanchor_core::error::Result;
use sheetanchor_core::identity::{ByteCount, ContentHash, Epoch, LifeId, NodeId, ThreadId, TimelineId};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Answer, Captured, Header, Request};
use sheetanchor_core::scn::Scn;
use sheetanchor_core::time::Moment;

use super::{Fault, backup_id};
use crate::{belonging, replied};

/// What an agent reads in the repository before it answers.
#[derive(Clone, Copy)]
pub struct Repository {
    /// The term that the operation is in.
    pub epoch: Epoch,
    /// Whether the operation was aborted.
    pub aborted: bool,
    /// Whether the backup's outcome is decided.
    pub decided: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    id: NodeId,
    agent: Agent,
    now: Moment,
    life: u64,
    /// Durable: WAL from here on is kept for the backup.
    pinned: bool,
    /// The backup that this life has begun, by its start.
    begun: Option<Lsn>,
    /// Whether WAL has been kept without a gap since the first beginning.
    kept: bool,
    ended: Option<Lsn>,
    archived: bool,
    let_go_early: bool,
}

impl Node {
    pub fn new(id: NodeId, life: u64) -> Self {
        Self {
            id,
            agent: Agent::new(id, Some(belonging())),
            now: Moment::default(),
            life,
            pinned: false,
            begun: None,
            kept: false,
            ended: None,
            archived: false,
            let_go_early: false,
        }
    }

    pub fn deadline(&self) -> Option<Moment> {
        self.agent.deadline()
    }

    pub fn is_archived(&self) -> bool {
        self.archived
    }

    /// The start of the backup that it has ended last.
    pub fn ended(&self) -> Option<Lsn> {
        self.ended
    }

    pub fn was_let_go_early(&self) -> bool {
        self.let_go_early
    }

    pub fn pin_has_a_lease(&self) -> bool {
        !self.pinned || self.agent.pin_leases(self.now).contains_key(&backup_id())
    }

    /// The node's next deadline comes.
    pub fn lease_ends(&mut self) {
        self.now = self.agent.deadline().unwrap_or(self.now);
        let effects = self.agent.step(self.now, agent::Event::Elapsed);
        self.drop_pins(&effects);
    }

    /// Another life: what was begun is gone, the pin is not, and its lease starts afresh.
    pub fn restart(&mut self, lease: Duration) {
        self.life += 1;
        self.agent = Agent::new(self.id, Some(belonging()));
        self.now = Moment::default();
        self.begun = None;
        let pins = Some(backup_id()).filter(|_| self.pinned).into_iter().collect();
        self.agent.step(self.now, agent::Event::FoundPins(pins, lease));
    }

    /// What the engine's agent does with a request: admit, perform, answer.
    pub fn answer(&mut self, header: Header, request: Request, repository: Repository, fault: Fault) -> Result<Answer> {
        let request = match (request, self.begun) {
            (Request::End { .. }, Some(start)) if fault == Fault::EndsAnyBeginning => {
                Request::End { start: self.place(start) }
            }
            (request, _) => request,
        };
        let effects = self.agent.step(self.now, agent::Event::Asked(1, header, request));
        self.drop_pins(&effects);
        for effect in effects {
            match effect {
                agent::Effect::Reply(_, answer) => return answer,
                agent::Effect::Perform(ticket, header, request) => {
                    let outcome = self.perform(&header, &request, repository, fault);
                    let effects = self.agent.step(self.now, agent::Event::Performed(ticket, outcome));
                    return replied(effects);
                }
                agent::Effect::Free(_) | agent::Effect::DropPin(_) => {}
            }
        }
        panic!("every request is answered")
    }

    fn drop_pins(&mut self, effects: &[agent::Effect]) {
        if effects.contains(&agent::Effect::DropPin(backup_id())) {
            self.unpin();
        }
    }

    /// At worst, WAL that nothing keeps is gone at once.
    fn unpin(&mut self) {
        self.pinned = false;
        self.kept = false;
    }

    fn place(&self, lsn: Lsn) -> Position {
        Position { thread: ThreadId::of(self.id), timeline: TimelineId::new(1), lsn }
    }

    fn perform(&mut self, header: &Header, request: &Request, repository: Repository, fault: Fault) -> Result<Answer> {
        let own = header.operation == Some(backup_id());
        match request {
            Request::Enlist { .. } if repository.aborted => Err(Refusal::new(Code::Aborted, "aborted").into()),
            Request::Enlist { .. } => Ok(Answer::Enlisted { life: LifeId::new(self.life), epoch: repository.epoch }),
            Request::Pin { .. } => {
                self.pinned = true;
                Ok(Answer::Pinned { from: self.place(Lsn::new(0)) })
            }
            Request::Begin => {
                let start = *self.begun.get_or_insert(Lsn::new(self.life));
                self.kept |= self.pinned;
                Ok(Answer::Begun { start: self.place(start), scn: Scn::new(1) })
            }
            Request::Capture { .. } => Ok(Answer::Captured(captured())),
            Request::End { .. } => {
                let Some(start) = self.begun else {
                    return Err(Refusal::new(Code::LifeChanged, "this life has not begun it").into());
                };
                self.ended = Some(start);
                Ok(Answer::Ended { stop: self.place(Lsn::new(50)), scn: Scn::new(2), extra: None })
            }
            Request::Archive { through } if self.kept => {
                self.archived = true;
                Ok(Answer::Archived { until: through.lsn })
            }
            Request::Archive { .. } => Err(Refusal::new(Code::WalGap, "WAL was recycled").into()),
            Request::Unpin => {
                if own || matches!(fault, Fault::AbortTouchesAll | Fault::OnePinSlot) {
                    self.let_go_early |= self.pinned && !repository.decided;
                    self.unpin();
                    self.begun = self.begun.filter(|_| !own && fault == Fault::OnePinSlot);
                }
                Ok(Answer::Done)
            }
            Request::Release { .. } => Ok(Answer::Done),
            other => panic!("a backup does not ask to {}", other.word()),
        }
    }
}

fn captured() -> Captured {
    let (entries, bytes, stored) = (1, ByteCount::new(1), ByteCount::new(1));
    Captured { list: "files/x".into(), hash: ContentHash::of(b""), entries, bytes, stored, base: None, why_full: None }
}
