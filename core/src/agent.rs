//! The agent's decisions: what it admits, the hold and its lease, the pins and theirs. The engine performs what is
//! admitted and reports back; the database does what only it can.

mod hold;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::time::Duration;

pub use hold::Hold;

use crate::error::{Error, Result};
use crate::identity::{ClusterId, Epoch, HoldId, Incarnation, Membership, NodeId, OperationId, OperationKind};
use crate::planted::{self, Bug};
use crate::position::Position;
use crate::refusal::{Code, Refusal};
use crate::request::{Answer, Header, Needs, Request};
use crate::time::Moment;

/// Numbers the requests that an agent is working on.
pub type Ticket = u64;

/// How many operations an agent remembers. The oldest are forgotten first: their requests then need a new `Enlist`.
const OPERATIONS_MAX: usize = 4096;

/// The cluster that a node is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Belonging {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Under which list of members.
    pub membership: Membership,
    /// In which incarnation.
    pub incarnation: Incarnation,
}

/// What happens to an agent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A verified request has come in.
    Asked(Ticket, Header, Request),
    /// What [`Effect::Perform`] asked for has ended.
    Performed(Ticket, Result<Answer>),
    /// The node has become part of a cluster, or been opened in another incarnation.
    Belongs(Belonging),
    /// The database has pins of these operations; a lease begins for those that have none.
    FoundPins(Vec<OperationId>, Duration),
    /// The pins of these operations were let go of: each learns of it when it renews its own.
    LostPins(Vec<OperationId>),
    /// The moment of [`Agent::deadline`] has come, perhaps.
    Elapsed,
}

/// What an agent does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Do what is asked, and report with the ticket.
    Perform(Ticket, Header, Request),
    /// Answer the request.
    Reply(Ticket, Result<Answer>),
    /// Let commits flow again: the hold's lease ran out. Nothing is reported.
    Free(HoldId),
    /// Let go of the pin, whose lease ran out. Nothing is reported.
    DropPin(OperationId),
}

/// What an agent remembers of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Known {
    epoch: Epoch,
    /// The hold that this operation had once; a late repetition of its `Close` must not close again.
    spent: Option<HoldId>,
    /// Where the backup that it has begun starts.
    begun: Option<Position>,
}

/// One node's agent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Agent {
    node: NodeId,
    belonging: Option<Belonging>,
    operations: BTreeMap<OperationId, Known>,
    working: BTreeMap<Ticket, (Header, Request)>,
    hold: Option<Hold>,
    pins: BTreeMap<OperationId, Moment>,
}

impl Agent {
    /// The agent of `node`, which is part of a cluster or not yet.
    pub fn new(node: NodeId, belonging: Option<Belonging>) -> Self {
        Self {
            node,
            belonging,
            operations: BTreeMap::new(),
            working: BTreeMap::new(),
            hold: None,
            pins: BTreeMap::new(),
        }
    }

    /// The cluster that the node is part of.
    pub fn belonging(&self) -> Option<Belonging> {
        self.belonging
    }

    /// The operation that holds the fence.
    pub fn fenced_by(&self) -> Option<OperationId> {
        self.hold.as_ref().map(Hold::operation)
    }

    /// When the standing hold ends.
    pub fn hold_deadline(&self) -> Option<Moment> {
        self.hold.as_ref().map(Hold::deadline)
    }

    /// How long each pin is still kept without renewal.
    pub fn pin_leases(&self, now: Moment) -> BTreeMap<OperationId, Duration> {
        self.pins.iter().map(|(operation, deadline)| (*operation, deadline.since(now))).collect()
    }

    /// When [`Event::Elapsed`] is due.
    pub fn deadline(&self) -> Option<Moment> {
        self.pins.values().copied().chain(self.hold.as_ref().map(Hold::deadline)).min()
    }

    /// Takes one event in. Never fails: what cannot be done is answered with a refusal.
    pub fn step(&mut self, now: Moment, event: Event) -> Vec<Effect> {
        let mut effects = self.expire(now);
        match event {
            Event::Asked(ticket, header, request) => match self.admit(now, &header, &request) {
                Ok(None) => {
                    self.working.insert(ticket, (header.clone(), request.clone()));
                    effects.push(Effect::Perform(ticket, header, request));
                }
                Ok(Some(answer)) => effects.push(Effect::Reply(ticket, Ok(answer))),
                Err(refusal) => effects.push(Effect::Reply(ticket, Err(Error::Refusal(refusal)))),
            },
            Event::Performed(ticket, outcome) => {
                if let Some((header, request)) = self.working.remove(&ticket) {
                    if let (Request::Close { hold, .. }, Err(_)) = (&request, &outcome) {
                        // It never closed, so there is nothing to hold.
                        self.hold.take_if(|standing| standing.id() == *hold && !standing.is_closed());
                    }
                    let outcome = outcome.and_then(|answer| self.settle(now, &header, &request, answer));
                    effects.push(Effect::Reply(ticket, outcome));
                }
            }
            Event::Belongs(belonging) => self.belonging = Some(belonging),
            Event::FoundPins(operations, lease) => {
                for operation in operations {
                    self.pins.entry(operation).or_insert(pinned_until(now, lease));
                }
            }
            Event::LostPins(operations) => self.pins.retain(|pinned, _| !operations.contains(pinned)),
            Event::Elapsed => {}
        }
        effects
    }

    /// Ends what has run out. A lease belongs to a deadline, not to a code path that must run.
    fn expire(&mut self, now: Moment) -> Vec<Effect> {
        let mut effects = Vec::new();
        if let Some(hold) = self.hold.take_if(|hold| hold.deadline() <= now) {
            self.spend(&hold);
            effects.push(Effect::Free(hold.id()));
        }
        let expired: Vec<OperationId> =
            self.pins.iter().filter(|(_, deadline)| **deadline <= now).map(|(operation, _)| *operation).collect();
        for operation in expired {
            self.pins.remove(&operation);
            effects.push(Effect::DropPin(operation));
        }
        effects
    }

    fn spend(&mut self, hold: &Hold) {
        if let Some(known) = self.operations.get_mut(&hold.operation()) {
            known.spent = Some(hold.id());
        }
    }

    /// Whether a request may be performed (`None`), or what is answered at once.
    fn admit(&mut self, now: Moment, header: &Header, request: &Request) -> Result<Option<Answer>, Refusal> {
        let needs = request.needs();
        if needs == Needs::Nothing {
            return Ok(None);
        }
        if header.node != self.node {
            return refuse(Code::OtherNode, format!("asked for node {}, this is node {}", header.node, self.node));
        }
        self.admit_cluster(header, needs, matches!(request, Request::Join { .. }))?;
        if needs == Needs::Node {
            return Ok(None);
        }
        let Some(operation) = header.operation else {
            return refuse(Code::OutOfOrder, format!("`{}` without an operation", request.word()));
        };
        self.admit_epoch(operation, header.epoch, needs)?;
        self.admit_in(now, operation, request)
    }

    fn admit_in(&mut self, now: Moment, operation: OperationId, request: &Request) -> Result<Option<Answer>, Refusal> {
        match request {
            Request::Close { hold, lease_ms } => {
                self.admit_close(now, operation, *hold, Duration::from_millis(*lease_ms))?;
                Ok(None)
            }
            Request::Drain { hold, life } => self.standing(*hold)?.quoted(*life).map(|()| None),
            Request::Cut { hold, life, scn, record } => {
                let standing = self.standing(*hold)?;
                standing.quoted(*life)?;
                standing.cut_before(*scn, record)
            }
            Request::Release { hold } => {
                if let Some(hold) = self.hold.take_if(|standing| standing.id() == *hold) {
                    self.spend(&hold);
                }
                Ok(None)
            }
            Request::Renew { lease_ms } => match self.pins.get_mut(&operation) {
                Some(deadline) => {
                    *deadline = pinned_until(now, Duration::from_millis(*lease_ms));
                    Ok(Some(Answer::Done))
                }
                None => refuse(Code::PinLost, format!("{operation} has no pin on node {}", self.node)),
            },
            Request::Unpin => {
                self.pins.remove(&operation);
                Ok(None)
            }
            Request::End { start } => self.check_begun(operation, *start).map(|()| None),
            Request::Describe
            | Request::Join { .. }
            | Request::Enlist { .. }
            | Request::Pin { .. }
            | Request::Begin
            | Request::Capture { .. }
            | Request::Archive { .. }
            | Request::CutAlone { .. }
            | Request::Flush { .. }
            | Request::Inspect { .. }
            | Request::Throttle { .. }
            | Request::Stage { .. }
            | Request::Recover { .. }
            | Request::Prove { .. }
            | Request::Search { .. }
            | Request::Resolve { .. }
            | Request::Open { .. }
            | Request::Discard
            | Request::Pins
            | Request::DropPin { .. }
            | Request::Mark { .. } => Ok(None),
        }
    }

    /// What is captured between a beginning and an end of two lives belongs to neither.
    fn check_begun(&self, operation: OperationId, start: Position) -> Result<(), Refusal> {
        match self.operations.get(&operation).and_then(|known| known.begun) {
            Some(begun) if begun == start => Ok(()),
            begun => {
                let begun = begun.map_or_else(|| "nowhere".to_string(), |begun| begun.to_string());
                let message =
                    format!("{operation} has begun at {begun} in this life of node {}, not at {start}", self.node);
                refuse(Code::LifeChanged, message)
            }
        }
    }

    fn admit_cluster(&self, header: &Header, needs: Needs, joins: bool) -> Result<(), Refusal> {
        let Some(belonging) = self.belonging else {
            // A node that has lost everything learns from the plan in the repository what it becomes part of.
            return match needs {
                Needs::Nothing | Needs::Operation | Needs::Ending | Needs::KnownRestore => Ok(()),
                Needs::Node if joins => Ok(()),
                Needs::Node | Needs::KnownOperation => {
                    refuse(Code::DatabaseDown, format!("node {} is part of no cluster yet", self.node))
                }
            };
        };
        if header.cluster != belonging.cluster {
            return refuse(
                Code::OtherCluster,
                format!("node {} belongs to cluster {}, asked for {}", self.node, belonging.cluster, header.cluster),
            );
        }
        if header.membership != belonging.membership && !planted::is(Bug::MembershipUnchecked) {
            return refuse(
                Code::OtherMembership,
                format!("node {} has membership {}, asked with {}", self.node, belonging.membership, header.membership),
            );
        }
        let of_restore = header.operation.is_some_and(|operation| operation.kind() == OperationKind::Restore);
        if header.incarnation != belonging.incarnation && !of_restore {
            return refuse(
                Code::OtherIncarnation,
                format!(
                    "node {} lives in incarnation {}, asked in {}",
                    self.node, belonging.incarnation, header.incarnation
                ),
            );
        }
        Ok(())
    }

    fn admit_epoch(&mut self, operation: OperationId, epoch: Epoch, needs: Needs) -> Result<(), Refusal> {
        match self.operations.get_mut(&operation) {
            Some(known) if epoch < known.epoch && !planted::is(Bug::StaleEpochAccepted) => {
                refuse(Code::StaleEpoch, format!("{operation} is at epoch {}, asked with {epoch}", known.epoch))
            }
            Some(known) => {
                known.epoch = epoch;
                Ok(())
            }
            None if matches!(needs, Needs::Operation | Needs::Ending) => Ok(()),
            None => {
                refuse(Code::OutOfOrder, format!("node {} does not know {operation}: it may have restarted", self.node))
            }
        }
    }

    fn admit_close(
        &mut self,
        now: Moment,
        operation: OperationId,
        hold: HoldId,
        lease: Duration,
    ) -> Result<(), Refusal> {
        if let Some(standing) = &self.hold {
            if standing.id() == hold {
                return Ok(());
            }
            return refuse(Code::Busy, format!("node {} is fenced by {}", self.node, standing.operation()));
        }
        if self.operations.get(&operation).is_some_and(|known| known.spent.is_some()) {
            return refuse(Code::HoldLost, format!("hold {hold} of {operation} has ended on node {}", self.node));
        }
        let lease = if planted::is(Bug::LeaseIgnored) { Duration::from_hours(1) } else { lease };
        self.hold = Some(Hold::new(operation, hold, now.after(lease)));
        Ok(())
    }

    fn standing(&mut self, hold: HoldId) -> Result<&mut Hold, Refusal> {
        let node = self.node;
        match &mut self.hold {
            Some(standing) if standing.id() == hold => Ok(standing),
            _ => refuse(Code::HoldLost, format!("hold {hold} does not stand on node {node}")),
        }
    }

    /// What is answered once a request has been performed.
    fn settle(&mut self, now: Moment, header: &Header, request: &Request, answer: Answer) -> Result<Answer> {
        match (request, &answer) {
            (Request::Enlist { .. }, Answer::Enlisted { epoch, .. }) => {
                let Some(operation) = header.operation else { return Ok(answer) };
                if header.epoch < *epoch {
                    refuse(Code::StaleEpoch, format!("{operation} is at epoch {epoch}, asked with {}", header.epoch))?;
                }
                if planted::is(Bug::SixteenOperationsAtMost) && self.operations.len() >= 16 {
                    refuse(Code::Busy, format!("node {} knows 16 operations already", self.node))?;
                }
                if planted::is(Bug::OneOperationAtATime) {
                    self.operations.retain(|known, _| *known == operation);
                }
                self.remember(operation, header.epoch);
            }
            (Request::Begin, Answer::Begun { start, .. }) => {
                if let Some(known) = header.operation.and_then(|operation| self.operations.get_mut(&operation)) {
                    known.begun = Some(*start);
                }
            }
            (Request::Close { hold, .. }, Answer::Closed { life }) => self.standing(*hold)?.closed_in(*life)?,
            (Request::Drain { hold, .. }, _) => drop(self.standing(*hold)?),
            // The record is written; only a hold that stood until now makes it a cut.
            (Request::Cut { hold, scn, record, .. }, Answer::CutMade { .. }) => {
                self.standing(*hold)?.cut_made(*scn, record, &answer);
            }
            (Request::DropPin { name }, Answer::Done) => {
                if let Ok(operation) = name.parse() {
                    self.pins.remove(&operation);
                }
            }
            (Request::Pin { lease_ms }, Answer::Pinned { .. }) => {
                if let Some(operation) = header.operation {
                    self.pins.insert(operation, pinned_until(now, Duration::from_millis(*lease_ms)));
                }
            }
            _ => {}
        }
        Ok(answer)
    }

    fn remember(&mut self, operation: OperationId, epoch: Epoch) {
        let known = self.operations.entry(operation).or_insert(Known { epoch, spent: None, begun: None });
        known.epoch = known.epoch.max(epoch);
        while self.operations.len() > OPERATIONS_MAX {
            // Ids sort by kind, then by time. A hold's own operation stays: forgetting it would let its `Close` back in.
            let fenced = self.fenced_by();
            let Some(oldest) =
                self.operations.keys().copied().find(|known| Some(*known) != fenced && *known != operation)
            else {
                break;
            };
            self.operations.remove(&oldest);
        }
    }
}

/// Until when a pin is kept that is promised now, for so long.
fn pinned_until(now: Moment, lease: Duration) -> Moment {
    now.after(if planted::is(Bug::PinNeverExpires) { Duration::from_hours(24) } else { lease })
}

fn refuse<T>(code: Code, message: alloc::string::String) -> Result<T, Refusal> {
    Err(Refusal::new(code, message))
}
