//! Two restores in a world small enough to be explored whole: their coordinators, the agents, the network, the nodes'
//! folders, and the incarnations in the repository. Each restore has a unit on each of two nodes.

mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sheetanchor_core::error::Error;
use sheetanchor_core::format::catalog::{Cut, ThreadCut};
use sheetanchor_core::identity::{ContentHash, Epoch, NodeId, OperationId, OperationKind, ThreadId, TimelineId};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::Request;
use sheetanchor_core::restore::{self, Limits, Order, Restore};
use sheetanchor_core::round::Step;
use sheetanchor_core::scn::Scn;
use sheetanchor_core::time::Moment;

use crate::name_of;
use node::Node;

/// What an engine or a database could get wrong; each must be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nothing.
    None,
    /// A restore whose number is taken takes the next one, and no node looks whose folder it has (D11).
    TakesNextNumber,
    /// A node proves and opens whatever its folder holds.
    OpensAnyFolder,
    /// A node says that it has reached the cut before it has.
    ProvesUnrecovered,
    /// A node that had opened and lost its disk is staged again like one that had not.
    StagesOpenedAgain,
}

/// What stands under a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Incarnation {
    pub restore: usize,
    pub opened: bool,
}

/// What a coordinator waits for from the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Waits {
    Nothing,
    Decide,
    Abort,
}

/// One restore.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Slot {
    /// The number that it means to open, once it is registered.
    opens: Option<u32>,
    coordinator: Option<Restore>,
    now: Moment,
    waits: Waits,
    epoch: Epoch,
    refused: bool,
}

/// On its way, once and for ever: it may arrive at any time, any number of times, or never.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Asked {
    restore: usize,
    epoch: Epoch,
    step: Step,
    node: NodeId,
    request: Request,
}

/// The cluster at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    slots: [Slot; 2],
    incarnations: BTreeMap<u32, Incarnation>,
    nodes: BTreeMap<NodeId, Node>,
    sent: BTreeMap<u64, Asked>,
    /// Who stood at the cut when it said so, for which restore.
    proved: BTreeSet<(usize, NodeId)>,
    unproved: bool,
    /// Who has opened, for which restore: what the nodes write in the repository before they do.
    opened: BTreeSet<(usize, NodeId)>,
    pub removed: bool,
    /// A node was staged again behind what it may have written since it had opened.
    pub rewound: bool,
    left: Budget,
}

/// When there is a second restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Second {
    Never,
    /// It is registered at any time after the first one.
    AnyTime,
    /// It is registered when the first one is decided.
    Afterwards,
}

/// What may still go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    /// The second restore, whose coordinator has seen all nodes empty, however long ago.
    pub second: Second,
    /// Whether answers get lost.
    pub losses: bool,
    /// Agents that forget what they know.
    pub restarts: u8,
    /// Disks that are lost with all that is on them.
    pub disks: u8,
    /// Deadlines that come.
    pub deadlines: u8,
    /// Crashes of the first coordinator, after each of which another one resumes its restore.
    pub resumes: u8,
}

/// What may happen next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A restore is registered under the next free number, and begins.
    Register(usize),
    /// A request arrives; its answer may be lost.
    Deliver { asked: u64, what: (usize, &'static str, NodeId), lost: bool },
    /// What a coordinator has asked of the repository happens; its answer may be lost.
    Repository { restore: usize, lost: bool },
    /// A coordinator's deadline comes.
    CoordinatorTime(usize),
    /// The coordinator is gone; another resumes its restore.
    Resume(usize),
    /// A node's agent begins another life.
    Restart(NodeId),
    /// A node loses all that it has.
    DiskLoss(NodeId),
}

/// Both restores go to one cut: nothing in a proof tells them apart.
pub const CUT: Lsn = Lsn::new(60);

pub fn operation(restore: usize) -> OperationId {
    OperationId::new(OperationKind::Restore, 1, u32::try_from(restore).expect("two restores"))
}

fn order(nodes: &BTreeMap<NodeId, Node>, decided: bool) -> Order {
    let wait = Duration::from_secs(1);
    let nodes: BTreeSet<NodeId> = nodes.keys().copied().collect();
    let thread = ThreadCut { proof: Lsn::new(70), timeline: TimelineId::new(1), until: CUT };
    let threads = nodes.iter().map(|node| (ThreadId::of(*node), thread)).collect();
    Order {
        units: nodes.clone(),
        nodes,
        plan: ContentHash::of(b"plan"),
        cut: Cut { record: "sa-x".into(), scn: Scn::new(9), threads },
        sought: false,
        decided,
        stop: false,
        delta: false,
        limits: Limits { patience: wait, stage: wait, recover: wait, open: wait },
    }
}

impl State {
    /// Two empty nodes, and the incarnation that was lost.
    pub fn new(left: Budget) -> Self {
        let slot = Slot {
            opens: None,
            coordinator: None,
            now: Moment::default(),
            waits: Waits::Nothing,
            epoch: Epoch::new(1),
            refused: false,
        };
        Self {
            slots: [slot.clone(), slot],
            incarnations: BTreeMap::from([(1, Incarnation { restore: 9, opened: true })]),
            nodes: [1, 2].map(NodeId::new).map(|id| (id, Node::new(id))).into(),
            sent: BTreeMap::new(),
            proved: BTreeSet::new(),
            unproved: false,
            opened: BTreeSet::new(),
            removed: false,
            rewound: false,
            left,
        }
    }

    /// Everything that may happen next.
    pub fn actions(&self, actions: &mut Vec<Action>) {
        for (restore, slot) in self.slots.iter().enumerate() {
            let may_begin = match (restore, self.left.second) {
                (0, _) => true,
                (_, Second::Never) => false,
                (_, Second::AnyTime) => self.slots[0].opens.is_some(),
                (_, Second::Afterwards) => self.incarnations.len() > 1,
            };
            if slot.opens.is_none() && may_begin {
                actions.push(Action::Register(restore));
            }
            if slot.waits != Waits::Nothing {
                actions.push(Action::Repository { restore, lost: false });
                if self.left.losses {
                    actions.push(Action::Repository { restore, lost: true });
                }
            }
            if self.left.deadlines > 0 && slot.coordinator.as_ref().is_some_and(|restore| restore.deadline().is_some())
            {
                actions.push(Action::CoordinatorTime(restore));
            }
        }
        if self.left.resumes > 0 && self.slots[0].opens.is_some() {
            actions.push(Action::Resume(0));
        }
        self.deliveries(actions);
        for id in self.nodes.keys() {
            if self.left.restarts > 0 {
                actions.push(Action::Restart(*id));
            }
            if self.left.disks > 0 {
                actions.push(Action::DiskLoss(*id));
            }
        }
    }

    fn deliveries(&self, actions: &mut Vec<Action>) {
        for (name, asked) in &self.sent {
            let slot = &self.slots[asked.restore];
            let what = (asked.restore, asked.request.word(), asked.node);
            actions.push(Action::Deliver { asked: *name, what, lost: false });
            let mut own =
                self.sent.values().filter(|other| other.restore == asked.restore && other.epoch == asked.epoch);
            // The answers of an earlier round are lost on the coordinator anyway.
            if self.left.losses
                && slot.coordinator.is_some()
                && slot.epoch == asked.epoch
                && own.all(|other| other.step <= asked.step)
            {
                actions.push(Action::Deliver { asked: *name, what, lost: true });
            }
        }
    }

    /// The cluster after `action`.
    pub fn after(&self, action: &Action, fault: Fault) -> Self {
        let mut next = self.clone();
        match action {
            Action::Register(restore) => {
                let last = self.incarnations.keys().next_back().copied().unwrap_or_default();
                next.slots[*restore].opens = Some(last + 1);
                next.begin(*restore, false);
            }
            Action::Deliver { asked, lost, .. } => next.deliver(*asked, *lost, fault),
            Action::Repository { restore, lost } => next.repository(*restore, *lost, fault),
            Action::CoordinatorTime(restore) => {
                next.left.deadlines -= 1;
                let deadline = self.slots[*restore].coordinator.as_ref().and_then(Restore::deadline);
                next.slots[*restore].now = deadline.unwrap_or(self.slots[*restore].now);
                next.coordinate(*restore, restore::Event::Elapsed);
            }
            Action::Resume(restore) => next.resume(*restore),
            Action::Restart(id) => {
                next.left.restarts -= 1;
                if let Some(node) = next.nodes.get_mut(id) {
                    node.restart();
                }
            }
            Action::DiskLoss(id) => {
                next.left.disks -= 1;
                next.nodes.insert(*id, Node::new(*id));
            }
        }
        next
    }

    fn begin(&mut self, restore: usize, decided: bool) {
        let slot = &mut self.slots[restore];
        slot.coordinator = Some(Restore::new(order(&self.nodes, decided)));
        slot.now = Moment::default();
        slot.waits = Waits::Nothing;
        self.coordinate(restore, restore::Event::Begun);
    }

    /// What `Coordinator::resume` does: it reads what was decided, and takes the operation over.
    fn resume(&mut self, restore: usize) {
        self.left.resumes -= 1;
        let slot = &mut self.slots[restore];
        let object = slot.opens.and_then(|number| self.incarnations.get(&number));
        let (ours, theirs) =
            (object.is_some_and(|object| object.restore == restore && object.opened), object.is_some());
        slot.epoch = Epoch::new(2);
        slot.coordinator = None;
        slot.waits = Waits::Nothing;
        if ours || !theirs {
            self.begin(restore, ours);
        } else {
            self.slots[restore].refused = true;
        }
    }

    fn deliver(&mut self, asked: u64, lost: bool, fault: Fault) {
        let Some(Asked { restore, epoch, step, node, request }) = self.sent.get(&asked).cloned() else { return };
        let slot = &self.slots[restore];
        let object = slot.opens.and_then(|number| Some((number, *self.incarnations.get(&number)?)));
        let newest = self.incarnations.iter().rev().find(|(_, standing)| standing.opened).map(|(number, _)| *number);
        let Some(asked) = self.nodes.get_mut(&node) else { return };
        let opened = self.opened.contains(&(restore, node));
        let repository = node::Repository { restore, epoch: slot.epoch, object, opened, newest };
        let was_empty = asked.is_empty();
        let (answer, removed) = asked.answer(operation(restore), epoch, &request, &repository, fault);
        // Gone for good, although an incarnation was opened on it.
        self.removed |= removed.is_some_and(|by| {
            self.incarnations.values().any(|incarnation| incarnation.opened && incarnation.restore == by)
        });
        self.rewound |= opened && was_empty && !asked.is_empty() && matches!(request, Request::Stage { .. });
        if matches!(request, Request::Open { .. }) && answer.is_ok() {
            self.opened.insert((restore, node));
        }
        if matches!(request, Request::Prove { .. }) && answer.is_ok() && asked.has_reached(restore) {
            self.proved.insert((restore, node));
        }
        if !lost && epoch == self.slots[restore].epoch {
            self.coordinate(restore, restore::Event::Answered(step, node, answer));
        }
    }

    /// What the engine does with `Decide` and `Abort`: one object is created under the number, or not at all.
    fn repository(&mut self, restore: usize, lost: bool, fault: Fault) {
        let slot = &mut self.slots[restore];
        let awaited = std::mem::replace(&mut slot.waits, Waits::Nothing);
        let mut number = slot.opens.unwrap_or_default();
        if fault == Fault::TakesNextNumber && awaited == Waits::Decide {
            while self.incarnations.get(&number).is_some_and(|standing| standing.restore != restore) {
                number += 1;
            }
            slot.opens = Some(number);
        }
        let opened = awaited == Waits::Decide;
        let standing = *self.incarnations.entry(number).or_insert_with(|| {
            let all = self.nodes.keys().all(|node| self.proved.contains(&(restore, *node)));
            self.unproved |= opened && !all;
            Incarnation { restore, opened }
        });
        let refused = |code: Code| Err(Error::from(Refusal::new(code, "the number is taken")));
        let settled = match (opened, standing.opened) {
            (true, true) | (false, false) if standing.restore == restore => Ok(()),
            (true, false) | (false, true) if standing.restore == restore => refused(Code::Aborted),
            (true, _) => refused(Code::IncarnationTaken),
            (false, _) => Ok(()),
        };
        let lost_answer = Err(Error::Bug("the answer was lost".into()));
        self.coordinate(restore, restore::Event::Settled(if lost { lost_answer } else { settled }));
    }

    fn coordinate(&mut self, restore: usize, event: restore::Event) {
        let Some(mut coordinator) = self.slots[restore].coordinator.take() else { return };
        let effects = coordinator.step(self.slots[restore].now, event);
        let slot = &mut self.slots[restore];
        for effect in effects {
            match effect {
                restore::Effect::Ask(step, node, request) => {
                    let asked = Asked { restore, epoch: slot.epoch, step, node, request };
                    self.sent.insert(name_of(&asked), asked);
                }
                restore::Effect::Judge(_) => panic!("nothing is prepared on these nodes"),
                restore::Effect::Decide(_) => slot.waits = Waits::Decide,
                restore::Effect::Abort(_) => slot.waits = Waits::Abort,
                restore::Effect::Finish(outcome) => slot.refused |= outcome.is_err(),
            }
        }
        slot.coordinator = Some(coordinator).filter(|coordinator| coordinator.phase() != restore::Phase::Ended);
    }

    /// Every node had reached the cut, for this very restore, when its incarnation was decided.
    pub fn is_proved(&self) -> bool {
        !self.unproved
    }

    /// A node is open only with the files of the restore whose incarnation it is open in.
    pub fn opens_its_own(&self) -> bool {
        self.nodes.values().all(|node| {
            node.open_in().is_none_or(|(number, by)| {
                self.incarnations
                    .get(&number)
                    .is_some_and(|incarnation| incarnation.opened && incarnation.restore == by)
            })
        })
    }

    /// Never two live clusters.
    pub fn is_one_cluster(&self) -> bool {
        let open: BTreeSet<u32> = self.nodes.values().filter_map(Node::open_in).map(|(number, _)| number).collect();
        open.len() <= 1
    }

    pub fn is_open(&self) -> bool {
        self.nodes.values().all(|node| node.open_in().is_some())
    }

    pub fn refused(&self) -> bool {
        self.slots.iter().any(|slot| slot.refused)
    }
}
