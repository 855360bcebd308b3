//! A cluster small enough to be explored whole: a coordinator of one restore point, agents with a database each, a network
//! that loses, repeats and reorders, and a client whose every commit depends on the one before.

use std::collections::BTreeMap;

use sheetanchor_core::agent::{self, Agent};
use sheetanchor_core::error::Result;
use sheetanchor_core::format::catalog::Cut;
use sheetanchor_core::identity::{Epoch, HoldId, LifeId, NodeId, OperationId, OperationKind, ThreadId, TimelineId};
use sheetanchor_core::point::{self, FencedPoint, Floor, Limits};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Answer, Header, Request};
use sheetanchor_core::round::Step;
use sheetanchor_core::scn::Scn;
use sheetanchor_core::time::Moment;

use crate::{belonging, name_of, replied};

const HOLD: HoldId = HoldId::new(5);

/// The longest chain of commits.
const COMMITS_MAX: u8 = 2;

/// What an engine or a database could get wrong; each must be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nothing.
    None,
    /// The fence of the second node does not hold commits back.
    FenceOpen,
    /// The first node, which is the coordinator's own, holds nothing back before its cut, and the other is released with
    /// its cut (L2).
    PeerReleasedFirst,
    /// A lease that ran out does not open the fence (L3).
    LeaseIgnored,
    /// The fence is left closed when what closed it is gone (L4).
    FenceOutlivesLife,
    /// The cut names the end of the record, and recovery takes in a record that starts there (L15).
    InclusiveEnd,
    /// Flushing is confirmed in whatever life the node is, also when it has crashed with its record unflushed (D4).
    FlushInAnyLife,
    /// A node's next life answers to the name of the one before: repetitions of `Close` and `Cut` are believed (D5).
    LivesLookAlike,
}

/// What is in a node's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// The client's commit of that number.
    Commit(u8),
    /// The restore point's record.
    Record,
}

/// A node: its agent, and as much of a database as the protocol knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    pub agent: Agent,
    now: Moment,
    life: u64,
    /// The hold that keeps commits back.
    pub fence: Option<HoldId>,
    pub log: Vec<Entry>,
    flushed: usize,
}

/// On its way, once and for ever: whatever was asked may arrive at any time, any number of times, or never. Its answer
/// arrives at once or never: a later arrival changes nothing but what happens before the coordinator's next request
/// arrives, which may be as late as one likes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Asked {
    step: Step,
    node: NodeId,
    request: Request,
}

/// The cluster at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    coordinator: Option<FencedPoint>,
    coordinator_now: Moment,
    pub nodes: BTreeMap<NodeId, Node>,
    sent: BTreeMap<u64, Asked>,
    commits: u8,
    crashes_left: u8,
    pub published: Option<Cut>,
    pub aborted: bool,
}

/// What may happen next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A request arrives.
    Deliver {
        /// Which.
        asked: u64,
        /// To do what, and whom it asks.
        what: (&'static str, NodeId),
        /// Whether the agent's lease runs out while it is being performed.
        late: bool,
        /// Whether its answer is lost.
        lost: bool,
    },
    /// The client commits on a node.
    Commit(NodeId),
    /// A node's next deadline comes.
    AgentTime(NodeId),
    /// The coordinator's next deadline comes.
    CoordinatorTime,
    /// The coordinator is gone for good.
    CoordinatorCrash,
    /// A node loses what was not flushed, and begins another life.
    NodeCrash(NodeId),
}

fn operation() -> OperationId {
    OperationId::new(OperationKind::Point, 1, 2)
}

fn header(node: NodeId) -> Header {
    crate::header(node, operation(), Epoch::new(1))
}

fn index(lsn: usize) -> Lsn {
    Lsn::new(u64::try_from(lsn).expect("a short log"))
}

impl State {
    /// A cluster of `nodes` nodes in which the operation has just begun, and at most `crashes` crashes to come.
    pub fn new(nodes: u16, crashes: u8) -> Self {
        let ids: Vec<NodeId> = (1..=nodes).map(NodeId::new).collect();
        let fresh = |id: &NodeId| (*id, Node::new(*id, 1));
        let coordinator =
            FencedPoint::new(ids.iter().copied().collect(), "sa-x".into(), HOLD, Limits::default(), Floor::default());
        let mut state = Self {
            coordinator: Some(coordinator),
            coordinator_now: Moment::default(),
            nodes: ids.iter().map(fresh).collect(),
            sent: BTreeMap::new(),
            commits: 0,
            crashes_left: crashes,
            published: None,
            aborted: false,
        };
        state.coordinate(point::Event::Begun);
        state
    }

    /// Everything that may happen next.
    pub fn actions(&self, actions: &mut Vec<Action>) {
        for (name, sent) in &self.sent {
            let what = (sent.request.word(), sent.node);
            for lost in [false, true] {
                actions.push(Action::Deliver { asked: *name, what, late: false, lost });
                if matches!(sent.request, Request::Cut { .. }) {
                    actions.push(Action::Deliver { asked: *name, what, late: true, lost });
                }
            }
        }
        for (id, node) in &self.nodes {
            if node.fence.is_none() && self.commits < COMMITS_MAX {
                actions.push(Action::Commit(*id));
            }
            if node.agent.deadline().is_some() {
                actions.push(Action::AgentTime(*id));
            }
            if self.crashes_left > 0 {
                actions.push(Action::NodeCrash(*id));
            }
        }
        if self.coordinator.as_ref().is_some_and(|coordinator| coordinator.deadline().is_some()) {
            actions.push(Action::CoordinatorTime);
        }
        if self.coordinator.is_some() && self.crashes_left > 0 {
            actions.push(Action::CoordinatorCrash);
        }
    }

    /// The cluster after `action`.
    pub fn after(&self, action: &Action, fault: Fault) -> Self {
        let mut next = self.clone();
        match action {
            Action::Deliver { asked, late, lost, .. } => {
                let Some(Asked { step, node, request }) = self.sent.get(asked).cloned() else { return next };
                let answer = next.nodes.get_mut(&node).map(|asked| asked.answer(node, request, *late, fault));
                if let Some(answer) = answer.filter(|_| !lost) {
                    next.coordinate(point::Event::Answered(step, node, answer));
                }
            }
            Action::Commit(id) => {
                next.commits += 1;
                if let Some(node) = next.nodes.get_mut(id) {
                    node.log.push(Entry::Commit(next.commits));
                    // Acknowledged means durable.
                    node.flushed = node.log.len();
                }
            }
            Action::AgentTime(id) => {
                if let Some(node) = next.nodes.get_mut(id) {
                    node.now = node.agent.deadline().unwrap_or(node.now);
                    let effects = node.agent.step(node.now, agent::Event::Elapsed);
                    node.free(&effects, fault);
                }
            }
            Action::CoordinatorTime => {
                let deadline = self.coordinator.as_ref().and_then(FencedPoint::deadline);
                next.coordinator_now = deadline.unwrap_or(self.coordinator_now);
                next.coordinate(point::Event::Elapsed);
            }
            Action::CoordinatorCrash => {
                next.crashes_left -= 1;
                next.coordinator = None;
            }
            Action::NodeCrash(id) => {
                next.crashes_left -= 1;
                if let Some(node) = next.nodes.get_mut(id) {
                    let mut reborn = Node::new(*id, node.life + 1);
                    reborn.fence = node.fence.filter(|_| fault == Fault::FenceOutlivesLife);
                    reborn.log = node.log[..node.flushed].to_vec();
                    reborn.flushed = node.flushed;
                    *node = reborn;
                }
            }
        }
        next
    }

    fn send(&mut self, asked: Asked) {
        self.sent.insert(name_of(&asked), asked);
    }

    fn coordinate(&mut self, event: point::Event) {
        let Some(mut coordinator) = self.coordinator.take() else { return };
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for effect in coordinator.step(self.coordinator_now, event) {
                match effect {
                    point::Effect::Ask(step, node, request) => self.send(Asked { step, node, request }),
                    point::Effect::Publish(cut) => {
                        self.published = Some(cut);
                        events.push(point::Event::Settled(Ok(())));
                    }
                    point::Effect::Abort(_) => {
                        self.aborted = true;
                        events.push(point::Event::Settled(Ok(())));
                    }
                    point::Effect::Finish(_) => {}
                }
            }
        }
        self.coordinator = Some(coordinator);
    }

    /// Whether recovery to the cut takes in what lies at that place of a node's log.
    fn recovers(cut: &Cut, id: NodeId, place: usize, fault: Fault) -> bool {
        let until = cut.threads.get(&ThreadId::of(id)).map(|thread| thread.until);
        Some(index(place)) < until || (fault == Fault::InclusiveEnd && Some(index(place)) == until)
    }

    /// Whether the commit of that number lies within the cut.
    fn is_in(&self, cut: &Cut, commit: u8, fault: Fault) -> bool {
        self.nodes.iter().any(|(id, node)| {
            let mut entries = node.log.iter().enumerate();
            entries.any(|(place, entry)| *entry == Entry::Commit(commit) && Self::recovers(cut, *id, place, fault))
        })
    }

    /// No effect without its cause: every commit depends on the one before it.
    pub fn is_causal(&self, fault: Fault) -> bool {
        let Some(cut) = &self.published else { return true };
        (2..=self.commits).all(|commit| !self.is_in(cut, commit, fault) || self.is_in(cut, commit - 1, fault))
    }

    /// Recovery to the cut takes in nothing that lies beyond the record which marks it.
    pub fn is_exact(&self, fault: Fault) -> bool {
        let Some(cut) = &self.published else { return true };
        self.nodes.iter().all(|(id, node)| {
            let record = node.log.iter().position(|entry| *entry == Entry::Record).unwrap_or(node.log.len());
            (record + 1..node.log.len()).all(|place| !Self::recovers(cut, *id, place, fault))
        })
    }

    /// The record that proves the cut lies where the point says, on every node.
    pub fn is_proven(&self) -> bool {
        let Some(cut) = &self.published else { return true };
        self.nodes.iter().all(|(id, node)| {
            let place = cut.threads.get(&ThreadId::of(*id)).map(|thread| thread.until);
            node.log.iter().enumerate().any(|(at, entry)| *entry == Entry::Record && Some(index(at)) == place)
        })
    }

    /// Whoever dies, a closed fence opens by itself.
    pub fn every_fence_has_a_lease(&self) -> bool {
        self.nodes.values().all(|node| node.fence.is_none() || node.agent.hold_deadline().is_some())
    }
}

impl Node {
    fn new(id: NodeId, life: u64) -> Self {
        let agent = Agent::new(id, Some(belonging()));
        Self { agent, now: Moment::default(), life, fence: None, log: Vec::new(), flushed: 0 }
    }

    /// What the engine's agent does with a request: admit, perform, answer.
    fn answer(&mut self, id: NodeId, request: Request, late: bool, fault: Fault) -> Result<Answer> {
        let asked = agent::Event::Asked(1, header(id), request);
        let effects = self.agent.step(self.now, asked);
        self.free(&effects, fault);
        for effect in effects {
            match effect {
                agent::Effect::Reply(_, answer) => return answer,
                agent::Effect::Perform(ticket, _, request) => {
                    let outcome = self.perform(id, &request, fault);
                    if late {
                        self.now = self.agent.deadline().unwrap_or(self.now);
                    }
                    let effects = self.agent.step(self.now, agent::Event::Performed(ticket, outcome));
                    self.free(&effects, fault);
                    return replied(effects);
                }
                agent::Effect::Free(_) | agent::Effect::DropPin(_) => {}
            }
        }
        panic!("every request is answered")
    }

    fn free(&mut self, effects: &[agent::Effect], fault: Fault) {
        for effect in effects {
            if let agent::Effect::Free(hold) = effect
                && self.fence == Some(*hold)
                && fault != Fault::LeaseIgnored
            {
                self.fence = None;
            }
        }
    }

    fn perform(&mut self, id: NodeId, request: &Request, fault: Fault) -> Result<Answer> {
        let place = |lsn| Position { thread: ThreadId::of(id), timeline: TimelineId::new(1), lsn: index(lsn) };
        let own_life = LifeId::new(if fault == Fault::LivesLookAlike { 1 } else { self.life });
        let first = id == NodeId::new(1);
        match request {
            Request::Enlist { .. } => Ok(Answer::Enlisted { life: own_life, epoch: Epoch::new(1) }),
            Request::Close { hold, .. } => {
                let open = (fault == Fault::FenceOpen && !first) || (fault == Fault::PeerReleasedFirst && first);
                if !open {
                    self.fence = Some(*hold);
                }
                Ok(Answer::Closed { life: own_life })
            }
            Request::Drain { .. } => {
                let scn = Scn::new(index(self.log.len()).get());
                Ok(Answer::Drained { scn, end: place(self.log.len()) })
            }
            Request::Cut { .. } => {
                let until = self.log.len();
                self.log.push(Entry::Record);
                if fault == Fault::PeerReleasedFirst && !first {
                    self.fence = None;
                }
                let named = if fault == Fault::InclusiveEnd { until + 1 } else { until };
                Ok(Answer::CutMade { until: place(named), proof: index(until + 1) })
            }
            Request::Release { hold } => {
                self.fence.take_if(|standing| standing == hold);
                Ok(Answer::Done)
            }
            Request::Flush { life, .. } => {
                self.flushed = self.log.len();
                if *life == own_life || fault == Fault::FlushInAnyLife {
                    return Ok(Answer::Done);
                }
                Err(Refusal::new(Code::LifeChanged, "another life").into())
            }
            other => panic!("a restore point does not ask to {}", other.word()),
        }
    }
}
