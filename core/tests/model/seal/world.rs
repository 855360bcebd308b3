//! A backup in a world small enough to be explored whole: its coordinator, the agents, the network, what the nodes keep
//! and what lies in the repository; another coordinator that may take it over and end it; a restore point of another
//! operation that failed and cleans up; and expiry, which removes what an aborted backup has stored.

mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sheetanchor_core::backup::{self, Backup, Evidence, Limits, Order, Taken};
use sheetanchor_core::compression::Compression;
use sheetanchor_core::error::{Error, Fault as WorldFault, FaultKind};
use sheetanchor_core::format::catalog::{Cut, Guarantee, Method, ThreadCut};
use sheetanchor_core::identity::{Epoch, HoldId, NodeId, OperationId, OperationKind, ThreadId, TimelineId};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::Request;
use sheetanchor_core::round::Step;
use sheetanchor_core::scn::Scn;
use sheetanchor_core::time::Moment;

use crate::name_of;
pub use node::Node;

/// What an engine or a database could get wrong; each must be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nothing.
    None,
    /// A node has one place for a pin: whoever lets go of his, lets go of the other's (L12).
    OnePinSlot,
    /// What ends one operation ends every operation on the node (L13).
    AbortTouchesAll,
    /// Epochs are counted for all operations together (D2).
    OneEpochForAll,
    /// The outcome may be written over (D3).
    OutcomeOverwritten,
    /// A node ends whatever backup of that name it has begun, also one that a repeated request began in a later life.
    EndsAnyBeginning,
}

/// The outcome of the backup.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Sealed(Evidence),
    Aborted,
}

/// What the coordinator waits for, other than answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Waits {
    Nothing,
    /// The restore point that is its cut.
    Point,
    /// That its evidence is read back.
    Validation,
    /// That its seal is written. It may stall here for as long as it likes.
    Seal,
    /// That its failure is written.
    Abort,
}

/// The other coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Other {
    Away,
    /// It has taken the operation over.
    HasTerm,
    /// It has been told what became of the operation.
    Told,
}

/// On its way, once and for ever: it may arrive at any time, any number of times, or never.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Asked {
    /// The coordinator's step; nobody waits for the answers of other requests.
    step: Option<Step>,
    node: NodeId,
    operation: OperationId,
    epoch: Epoch,
    request: Request,
}

/// The cluster at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    coordinator: Option<Backup>,
    now: Moment,
    waits: Waits,
    evidence: Evidence,
    other: Other,
    nodes: BTreeMap<NodeId, Node>,
    sent: BTreeMap<u64, Asked>,
    /// The term that the repository knows.
    epoch: Epoch,
    /// Whose capture lies in the repository.
    captured: BTreeSet<NodeId>,
    pub outcome: Option<Outcome>,
    /// Whom the outcome was told to as a success, and as a failure.
    told: (bool, bool),
    /// Whether anything happened that may end a backup: a crash, a lease or a deadline that ran out, a takeover.
    disturbed: bool,
    /// Which beginnings the ends that the coordinator was told of belong to.
    ends: BTreeMap<NodeId, Lsn>,
    /// Whether something was sealed that was not all there.
    unproven: bool,
    left: Budget,
}

/// What may still go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Crashes of a node.
    pub crashes: u8,
    /// Whether the coordinator may crash.
    pub coordinator_crash: bool,
    /// Deadlines of the coordinator that come, renewals among them.
    pub deadlines: u8,
    /// Leases of pins that run out.
    pub leases: u8,
    /// Whether another coordinator may take over.
    pub takeover: bool,
    /// Whether a restore point of another operation cleans up after it failed.
    pub point: bool,
}

/// What may happen next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A request arrives; its answer may be lost.
    Deliver { asked: u64, what: (&'static str, NodeId), lost: bool },
    /// The restore point is taken, or fails.
    Point { taken: bool },
    /// What the coordinator waits for from the repository happens; the answer to a write may be lost.
    Repository { lost: bool },
    /// The other coordinator takes its next step.
    Other,
    /// Expiry removes what an aborted backup has stored.
    Expire,
    /// A node's next deadline comes.
    AgentTime(NodeId),
    /// The coordinator's next deadline comes.
    CoordinatorTime,
    /// The coordinator is gone for good.
    CoordinatorCrash,
    /// A node and its agent begin another life.
    NodeCrash(NodeId),
}

pub fn backup_id() -> OperationId {
    OperationId::new(OperationKind::Backup, 1, 2)
}

/// The restore point that failed.
fn point_id() -> OperationId {
    OperationId::new(OperationKind::Point, 3, 4)
}

/// The pin's lease, a third of which is one deadline of the coordinator.
const PIN: Duration = Duration::from_secs(3);

fn order(nodes: &BTreeMap<NodeId, Node>) -> Order {
    let wait = Duration::from_secs(2);
    let limits = Limits { pin: PIN, patience: wait, checkpoint: wait, capture: wait, archive: wait };
    let record = "sa-b".into();
    let (nodes, compression) = (nodes.keys().copied().collect(), Compression::default());
    Order { nodes, shared: false, method: Method::Fence, base: None, compression, record, limits }
}

impl State {
    /// Two nodes, and a coordinator that has just begun.
    pub fn new(left: Budget) -> Self {
        let nodes: BTreeMap<NodeId, Node> = [1, 2].map(NodeId::new).map(|id| (id, Node::new(id, 1))).into();
        let mut state = Self {
            coordinator: Some(Backup::new(order(&nodes))),
            now: Moment::default(),
            waits: Waits::Nothing,
            evidence: Evidence::default(),
            other: Other::Away,
            nodes,
            sent: BTreeMap::new(),
            epoch: Epoch::new(1),
            captured: BTreeSet::new(),
            outcome: None,
            told: (false, false),
            disturbed: false,
            ends: BTreeMap::new(),
            unproven: false,
            left,
        };
        if left.point {
            // In a later term than the backup's: an hourly point may have been taken over before.
            let (operation, epoch) = (point_id(), Epoch::new(2));
            let ends = [Request::Enlist { fence: true }, Request::Release { hold: HoldId::new(5) }, Request::Unpin];
            for (node, request) in
                state.nodes.keys().copied().flat_map(|node| ends.clone().map(|ends| (node, ends))).collect::<Vec<_>>()
            {
                state.send(Asked { step: None, node, operation, epoch, request });
            }
        }
        state.coordinate(backup::Event::Begun);
        state
    }

    /// Everything that may happen next.
    pub fn actions(&self, actions: &mut Vec<Action>) {
        let last = self.sent.values().filter_map(|asked| asked.step).max().unwrap_or_default();
        for (name, asked) in &self.sent {
            let what = (asked.request.word(), asked.node);
            actions.push(Action::Deliver { asked: *name, what, lost: false });
            // The answers of an earlier round are lost on the coordinator anyway.
            if asked.step.is_some_and(|step| step == 0 || step == last) {
                actions.push(Action::Deliver { asked: *name, what, lost: true });
            }
        }
        match self.waits {
            Waits::Nothing => {}
            Waits::Point => actions.extend([true, false].map(|taken| Action::Point { taken })),
            Waits::Validation => actions.push(Action::Repository { lost: false }),
            Waits::Seal | Waits::Abort => actions.extend([true, false].map(|lost| Action::Repository { lost })),
        }
        if self.left.takeover && self.other != Other::Told {
            actions.push(Action::Other);
        }
        if self.outcome == Some(Outcome::Aborted) && !self.captured.is_empty() {
            actions.push(Action::Expire);
        }
        // Nodes are alike: what befalls one of them befalls the second.
        for (id, node) in self.nodes.iter().skip(1) {
            if self.left.leases > 0 && node.deadline().is_some() {
                actions.push(Action::AgentTime(*id));
            }
            if self.left.crashes > 0 {
                actions.push(Action::NodeCrash(*id));
            }
        }
        if self.left.deadlines > 0 && self.coordinator.as_ref().is_some_and(|backup| backup.deadline().is_some()) {
            actions.push(Action::CoordinatorTime);
        }
        if self.coordinator.is_some() && self.left.coordinator_crash {
            actions.push(Action::CoordinatorCrash);
        }
    }

    /// The cluster after `action`.
    pub fn after(&self, action: &Action, fault: Fault) -> Self {
        let mut next = self.clone();
        match action {
            Action::Deliver { asked, lost, .. } => next.deliver(*asked, *lost, fault),
            Action::Point { taken } => next.point(*taken),
            Action::Repository { lost } => next.repository(*lost, fault),
            Action::Other => next.other(),
            Action::Expire => next.captured.clear(),
            Action::AgentTime(id) => {
                next.left.leases -= 1;
                next.disturbed = true;
                if let Some(node) = next.nodes.get_mut(id) {
                    node.lease_ends();
                }
            }
            Action::CoordinatorTime => {
                next.left.deadlines -= 1;
                let deadline = self.coordinator.as_ref().and_then(Backup::deadline);
                next.now = deadline.unwrap_or(self.now);
                next.coordinate(backup::Event::Elapsed);
            }
            Action::CoordinatorCrash => {
                next.disturbed = true;
                next.coordinator = None;
                next.waits = Waits::Nothing;
                next.evidence = Evidence::default();
            }
            Action::NodeCrash(id) => {
                next.left.crashes -= 1;
                next.disturbed = true;
                if let Some(node) = next.nodes.get_mut(id) {
                    node.restart(PIN);
                }
            }
        }
        next
    }

    fn send(&mut self, asked: Asked) {
        self.sent.insert(name_of(&asked), asked);
    }

    fn deliver(&mut self, asked: u64, lost: bool, fault: Fault) {
        let Some(Asked { step, node, operation, mut epoch, request }) = self.sent.get(&asked).cloned() else { return };
        let named = if fault == Fault::OneEpochForAll && matches!(request, Request::Enlist { .. }) {
            epoch = epoch.max(self.epoch);
            backup_id()
        } else {
            operation
        };
        let repository = node::Repository {
            epoch: if operation == backup_id() { self.epoch } else { epoch },
            aborted: self.outcome == Some(Outcome::Aborted) && operation == backup_id(),
            decided: self.outcome.is_some(),
        };
        let Some(asked) = self.nodes.get_mut(&node) else { return };
        let header = crate::header(node, named, epoch);
        let answer = asked.answer(header, request.clone(), repository, fault);
        if matches!(request, Request::Capture { .. }) && answer.is_ok() {
            self.captured.insert(node);
        }
        if matches!(request, Request::End { .. })
            && answer.is_ok()
            && !lost
            && let Some(start) = asked.ended()
        {
            self.ends.entry(node).or_insert(start);
        }
        if let Some(step) = step.filter(|_| !lost) {
            self.coordinate(backup::Event::Answered(step, node, answer));
        }
    }

    fn point(&mut self, taken: bool) {
        self.waits = Waits::Nothing;
        let thread = ThreadCut { proof: Lsn::new(100), timeline: TimelineId::new(1), until: Lsn::new(100) };
        let threads = self.nodes.keys().map(|node| (ThreadId::of(*node), thread)).collect();
        let cut = Cut { record: "sa-x".into(), scn: Scn::new(9), threads };
        let outcome = if taken {
            Ok(Taken { point: OperationId::new(OperationKind::Point, 5, 6), cut, guarantee: Guarantee::Causal })
        } else {
            self.disturbed = true;
            Err(Refusal::new(Code::Busy, "fenced by another").into())
        };
        self.coordinate(backup::Event::PointTaken(outcome));
    }

    /// What the engine does with `Seal` and `Abort`: evidence is read back, then one object is created or not at all.
    fn repository(&mut self, lost: bool, fault: Fault) {
        let awaited = std::mem::replace(&mut self.waits, Waits::Nothing);
        let aborted = || Error::from(Refusal::new(Code::Aborted, "decided by another coordinator"));
        if awaited == Waits::Validation {
            if self.is_there(&self.evidence) {
                self.waits = Waits::Seal;
            } else {
                self.disturbed = true;
                let missing = Refusal::new(Code::Missing, "what was captured is not there");
                self.coordinate(backup::Event::Settled(Err(missing.into())));
            }
            return;
        }
        let evidence = std::mem::take(&mut self.evidence);
        let wanted = if awaited == Waits::Seal { Outcome::Sealed(evidence) } else { Outcome::Aborted };
        let settled = match &self.outcome {
            Some(Outcome::Aborted) if wanted == Outcome::Aborted => Ok(()),
            Some(_) if fault != Fault::OutcomeOverwritten => Err(aborted()),
            Some(_) | None => {
                self.unproven |= matches!(&wanted, Outcome::Sealed(evidence) if !self.is_whole(evidence));
                self.outcome = Some(wanted);
                Ok(())
            }
        };
        // The write may have taken effect all the same.
        let timed_out = WorldFault::new(FaultKind::TimedOut, "write the outcome", "no answer");
        self.disturbed |= lost;
        self.coordinate(backup::Event::Settled(if lost { Err(timed_out.into()) } else { settled }));
    }

    /// What `sheetanchor abort` does: a new term, failure as the outcome, and only then the pins.
    fn other(&mut self) {
        self.disturbed = true;
        if self.other == Other::Away {
            self.epoch = Epoch::new(2);
            self.other = Other::HasTerm;
            return;
        }
        self.other = Other::Told;
        if matches!(self.outcome.get_or_insert(Outcome::Aborted), Outcome::Sealed(_)) {
            return;
        }
        self.told.1 = true;
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            let (operation, epoch) = (backup_id(), self.epoch);
            self.send(Asked { step: None, node, operation, epoch, request: Request::Unpin });
        }
    }

    fn coordinate(&mut self, event: backup::Event) {
        let Some(mut coordinator) = self.coordinator.take() else { return };
        for effect in coordinator.step(self.now, event) {
            match effect {
                backup::Effect::Ask(step, node, request) => {
                    let (operation, epoch) = (backup_id(), Epoch::new(1));
                    self.send(Asked { step: Some(step), node, operation, epoch, request });
                }
                backup::Effect::TakePoint(_) => self.waits = Waits::Point,
                backup::Effect::Seal(evidence) => {
                    self.waits = Waits::Validation;
                    self.evidence = evidence;
                }
                backup::Effect::Abort(why) => {
                    // A deadline that came is a disturbance; being refused is not.
                    let came =
                        why.refusal().is_some_and(|why| matches!(why.code, Code::NodeSilent | Code::ArchiveBehind));
                    self.disturbed |= came;
                    self.waits = Waits::Abort;
                }
                backup::Effect::Finish(Ok(())) => self.told.0 = true,
                backup::Effect::Finish(Err(why)) => {
                    self.told.1 |= why.refusal().is_some_and(|why| why.code != Code::NodeSilent);
                }
            }
        }
        // What has ended asks nothing more.
        self.coordinator = Some(coordinator).filter(|coordinator| coordinator.phase() != backup::Phase::Ended);
    }

    /// What the engine reads back before it seals: what was captured, and WAL without a gap.
    fn is_there(&self, evidence: &Evidence) -> bool {
        evidence.captured.keys().all(|node| self.captured.contains(node)) && self.nodes.values().all(Node::is_archived)
    }

    /// Whether every part is there and belongs together: what each node captured, its WAL from the beginning to the cut,
    /// and an end of the very beginning that the manifest names.
    fn is_whole(&self, evidence: &Evidence) -> bool {
        let ended = |id: &NodeId| {
            let start = evidence.starts.get(&ThreadId::of(*id)).map(|start| start.lsn);
            start.is_some() && start == self.ends.get(id).copied()
        };
        evidence.captured.len() == self.nodes.len() && self.is_there(evidence) && self.nodes.keys().all(ended)
    }

    /// What is sealed was whole when the seal was written.
    pub fn is_proven(&self) -> bool {
        !self.unproven
    }

    /// No request of anybody lets go of a pin before the outcome is decided.
    pub fn pins_are_held(&self) -> bool {
        self.nodes.values().all(|node| !node.was_let_go_early())
    }

    /// Nobody is told of an outcome other than the one that stands.
    pub fn has_one_outcome(&self) -> bool {
        let sealed = matches!(self.outcome, Some(Outcome::Sealed(_)));
        let (success, failure) = self.told;
        let contradicts = if sealed { self.other == Other::Told && failure } else { success };
        !(contradicts || success && failure)
    }

    /// Another operation is no reason for a backup to fail.
    pub fn fails_for_a_reason(&self) -> bool {
        self.disturbed || (self.outcome != Some(Outcome::Aborted) && self.waits != Waits::Abort)
    }

    /// Whoever dies, a pin goes by itself.
    pub fn every_pin_has_a_lease(&self) -> bool {
        self.nodes.values().all(Node::pin_has_a_lease)
    }
}
