//! The restore point by SCN: once it is published, nothing at or below its SCN ever follows in any thread.

use std::collections::BTreeMap;

use sheetanchor_core::agent::{self, Agent};
use sheetanchor_core::by_scn::{Effect, Event, ScnPoint};
use sheetanchor_core::error::Result;
use sheetanchor_core::format::catalog::Cut;
use sheetanchor_core::identity::{Epoch, LifeId, NodeId, OperationId, OperationKind, ThreadId, TimelineId};
use sheetanchor_core::point::{Floor, Limits};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Answer, Request};
use sheetanchor_core::round::Step;
use sheetanchor_core::scn::Scn;
use sheetanchor_core::time::Moment;
use stateright::{Model, Property};

use crate::explore::{breaks, holds};
use crate::{belonging, header, name_of};

/// What a database could get wrong; each must be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fault {
    None,
    /// After a restart the clock starts where it likes, not above what was reserved (D7).
    SlowClock,
    /// The SCN is not observed: only the record itself is stamped above it.
    NotObserved,
    /// A mark counts in whatever life the node is.
    MarkInAnyLife,
}

/// The cut: the first node has been there, the second one's clock is behind.
const SCN: u64 = 3;

/// The longest sequence of commits.
const COMMITS_MAX: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Entry {
    scn: u64,
    barrier: bool,
}

/// A node: its agent, its log of stamps, and the clock that stamps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Node {
    agent: Agent,
    life: u64,
    last: u64,
    log: Vec<Entry>,
    flushed: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    coordinator: ScnPoint,
    now: Moment,
    nodes: BTreeMap<NodeId, Node>,
    sent: BTreeMap<u64, (Step, NodeId, Request)>,
    commits_left: u8,
    crashes_left: u8,
    published: Option<Cut>,
    aborted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    /// A request arrives; the node may crash between performing it and looking which life it is in.
    Deliver {
        asked: u64,
        what: (&'static str, NodeId),
        lost: bool,
        crash: bool,
    },
    /// A commit is stamped, and durable before it is acknowledged, or not.
    Commit {
        node: NodeId,
        durable: bool,
    },
    CoordinatorTime,
    NodeCrash(NodeId),
}

fn operation() -> OperationId {
    OperationId::new(OperationKind::Point, 1, 2)
}

fn lsn(place: usize) -> Lsn {
    Lsn::new(u64::try_from(place).expect("a short log"))
}

impl Node {
    fn new(id: NodeId, last: u64) -> Self {
        Self { agent: Agent::new(id, Some(belonging())), life: 1, last, log: Vec::new(), flushed: 0 }
    }

    fn stamp(&mut self, barrier: bool) {
        self.last += 1;
        self.log.push(Entry { scn: self.last, barrier });
    }

    fn crash(&mut self, id: NodeId, fault: Fault) {
        self.life += 1;
        self.agent = Agent::new(id, Some(belonging()));
        self.log.truncate(self.flushed);
        // Above what was reserved before, and so above all that was ever stamped or observed.
        if fault == Fault::SlowClock {
            self.last = 0;
        }
    }

    fn answer(&mut self, id: NodeId, request: &Request, crash: bool, fault: Fault) -> Result<Answer> {
        let now = Moment::default();
        let asked = agent::Event::Asked(1, header(id, operation(), Epoch::new(1)), request.clone());
        let effects = self.agent.step(now, asked);
        for effect in effects {
            match effect {
                agent::Effect::Reply(_, answer) => return answer,
                agent::Effect::Perform(ticket, _, request) => {
                    let outcome = self.perform(id, &request, crash, fault);
                    let effects = self.agent.step(now, agent::Event::Performed(ticket, outcome.clone()));
                    let reply = effects.into_iter().find_map(|effect| match effect {
                        agent::Effect::Reply(_, answer) => Some(answer),
                        _ => None,
                    });
                    // The agent that was asked is gone with its database in one crash; then nobody answers but the fault.
                    return reply.unwrap_or(outcome);
                }
                agent::Effect::Free(_) | agent::Effect::DropPin(_) => {}
            }
        }
        panic!("every request is answered")
    }

    fn perform(&mut self, id: NodeId, request: &Request, crash: bool, fault: Fault) -> Result<Answer> {
        match request {
            Request::Enlist { .. } => Ok(Answer::Enlisted { life: LifeId::new(self.life), epoch: Epoch::new(1) }),
            Request::Mark { life, scn, .. } => {
                let before = self.last;
                self.last = self.last.max(scn.get());
                let until = self.log.len();
                self.stamp(true);
                if fault == Fault::NotObserved {
                    self.last = before;
                }
                if crash {
                    self.crash(id, fault);
                } else {
                    self.flushed = self.log.len();
                }
                if *life != LifeId::new(self.life) && fault != Fault::MarkInAnyLife {
                    return Err(Refusal::new(Code::LifeChanged, "another life").into());
                }
                let until = Position { thread: ThreadId::of(id), timeline: TimelineId::new(1), lsn: lsn(until) };
                Ok(Answer::CutMade { until, proof: lsn(self.log.len()) })
            }
            other => panic!("a point by SCN does not ask to {}", other.word()),
        }
    }
}

impl State {
    fn coordinate(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for effect in self.coordinator.step(self.now, event) {
                match effect {
                    Effect::Ask(step, node, request) => {
                        let asked = (step, node, request);
                        self.sent.insert(name_of(&asked), asked);
                    }
                    Effect::Publish(cut) => {
                        self.published = Some(cut);
                        events.push(Event::Settled(Ok(())));
                    }
                    Effect::Abort(_) => {
                        self.aborted = true;
                        events.push(Event::Settled(Ok(())));
                    }
                    Effect::Finish(_) => {}
                }
            }
        }
    }

    fn until(&self, id: NodeId) -> Option<Lsn> {
        self.published.as_ref().and_then(|cut| Some(cut.threads.get(&ThreadId::of(id))?.until))
    }

    /// Nothing at or below the cut's SCN lies behind the place that the cut names.
    fn is_closed(&self) -> bool {
        self.nodes.iter().all(|(id, node)| {
            let Some(until) = self.until(*id) else { return true };
            node.log.iter().enumerate().all(|(place, entry)| lsn(place) < until || entry.scn > SCN)
        })
    }

    /// The record that proves the cut lies there, durable.
    fn is_proven(&self) -> bool {
        self.nodes.iter().all(|(id, node)| {
            let Some(until) = self.until(*id) else { return true };
            let durable = node.log.iter().enumerate().take(node.flushed);
            durable.into_iter().any(|(place, entry)| entry.barrier && lsn(place) == until)
        })
    }
}

struct ByScn {
    crashes: u8,
    fault: Fault,
}

const CLOSED: &str = "nothing at or below a published SCN follows";
const PROVEN: &str = "the records of a published SCN are there";

impl Model for ByScn {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let nodes: BTreeMap<NodeId, Node> =
            [(1, SCN), (2, 0)].map(|(id, last)| (NodeId::new(id), Node::new(NodeId::new(id), last))).into();
        let floor = Floor { scn: Scn::new(SCN), ..Floor::default() };
        let all = nodes.keys().copied().collect();
        let mut state = State {
            coordinator: ScnPoint::new(all, "sa-x".into(), Limits::default(), floor),
            now: Moment::default(),
            nodes,
            sent: BTreeMap::new(),
            commits_left: COMMITS_MAX,
            crashes_left: self.crashes,
            published: None,
            aborted: false,
        };
        state.coordinate(Event::Begun);
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (name, (_, node, request)) in &state.sent {
            let what = (request.word(), *node);
            actions.extend([false, true].map(|lost| Action::Deliver { asked: *name, what, lost, crash: false }));
            if state.crashes_left > 0 && matches!(request, Request::Mark { .. }) {
                actions.push(Action::Deliver { asked: *name, what, lost: false, crash: true });
            }
        }
        for node in state.nodes.keys().copied() {
            if state.commits_left > 0 {
                actions.extend([true, false].map(|durable| Action::Commit { node, durable }));
            }
            if state.crashes_left > 0 {
                actions.push(Action::NodeCrash(node));
            }
        }
        if state.coordinator.deadline().is_some() {
            actions.push(Action::CoordinatorTime);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Deliver { asked, lost, crash, .. } => {
                let (step, node, request) = state.sent.get(&asked)?.clone();
                next.crashes_left -= u8::from(crash);
                let answer = next.nodes.get_mut(&node)?.answer(node, &request, crash, self.fault);
                if !lost {
                    next.coordinate(Event::Answered(step, node, answer));
                }
            }
            Action::Commit { node, durable } => {
                next.commits_left -= 1;
                let node = next.nodes.get_mut(&node)?;
                node.stamp(false);
                if durable {
                    node.flushed = node.log.len();
                }
            }
            Action::CoordinatorTime => {
                next.now = state.coordinator.deadline()?;
                next.coordinate(Event::Elapsed);
            }
            Action::NodeCrash(id) => {
                next.crashes_left -= 1;
                next.nodes.get_mut(&id)?.crash(id, self.fault);
            }
        }
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(CLOSED, |_, state: &State| state.is_closed()),
            Property::always(PROVEN, |_, state: &State| state.is_proven()),
            Property::sometimes("a point is published", |_, state: &State| state.published.is_some()),
            Property::sometimes("a point is aborted", |_, state: &State| state.aborted),
        ]
    }

    /// A repeated mark writes one more record; the log has to end somewhere.
    fn within_boundary(&self, state: &State) -> bool {
        state.nodes.values().all(|node| node.log.len() <= 3)
    }
}

#[test]
fn every_schedule_of_a_point_by_scn_is_safe() {
    holds("by SCN", ByScn { crashes: 1, fault: Fault::None });
}

#[test]
fn d7_a_clock_that_starts_low_after_a_crash_stamps_below_a_published_cut() {
    breaks(CLOSED, ByScn { crashes: 1, fault: Fault::SlowClock });
}

#[test]
fn a_node_that_does_not_observe_the_scn_stamps_below_a_published_cut() {
    breaks(CLOSED, ByScn { crashes: 0, fault: Fault::NotObserved });
}

#[test]
fn a_mark_that_counts_in_any_life_loses_its_record() {
    breaks(PROVEN, ByScn { crashes: 1, fault: Fault::MarkInAnyLife });
}
