//! The coordinator of a fenced restore point: close, drain, cut, release, flush, publish.
//!
//! Why it is causal: every node's hold spans the instant at which the last node had drained. A commit that the cut holds
//! was finished before that instant, one that it does not hold begins after it; so nothing in the cut can depend on
//! anything that is not.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use crate::error::{Error, Result};
use crate::format::catalog::{Cut, ThreadCut};
use crate::identity::{HoldId, LifeId, NodeId, ThreadId};
use crate::position::{Lsn, Position};
use crate::refusal::{Code, Refusal};
use crate::request::{Answer, Request};
use crate::round::{Round, Step, name_nodes};
use crate::scn::Scn;
use crate::time::Moment;

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// A fence opens by itself after this, on each node's own clock.
    pub lease: Duration,
    /// Commits in flight must finish within this.
    pub drain: Duration,
    /// Any other answer must come within this.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { lease: Duration::from_secs(2), drain: Duration::from_secs(1), patience: Duration::from_secs(5) }
    }
}

/// What the cut must not lie before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Floor {
    /// The point before this one; every position must exceed its own.
    pub previous: Option<Cut>,
    /// The highest SCN that any node has reported to the operation.
    pub scn: Scn,
    /// Where each thread's backup stopped: recovery has to come this far at least.
    pub stops: BTreeMap<ThreadId, Position>,
}

impl Floor {
    /// Checks that a node's cut lies in its own thread, at or after the stop of its backup.
    ///
    /// # Errors
    /// `SA211` if it does not.
    pub(crate) fn check_stop(&self, node: NodeId, until: Position) -> Result<()> {
        let stop = self.stops.get(&until.thread);
        if until.thread == ThreadId::of(node)
            && stop.is_none_or(|stop| stop.timeline == until.timeline && until.lsn >= stop.lsn)
        {
            return Ok(());
        }
        let stop = stop.map_or_else(|| "nowhere".to_string(), ToString::to_string);
        let message = format!("node {node} is cut at {until}, but its backup stopped at {stop}");
        Err(Refusal::new(Code::NotMonotonic, message).into())
    }
}

/// Checks that `cut` lies after the point before it.
///
/// # Errors
/// `SA211` if it does not.
pub(crate) fn after_floor(cut: &Cut, floor: &Floor) -> Result<()> {
    match &floor.previous {
        Some(previous) if !cut.is_after(previous) => {
            let message =
                format!("the cut at SCN {} does not lie after `{}` at SCN {}", cut.scn, previous.record, previous.scn);
            Err(Refusal::new(Code::NotMonotonic, message).into())
        }
        Some(_) | None => Ok(()),
    }
}

/// What happens to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// It begins.
    Begun,
    /// A node has answered the request of a step.
    Answered(Step, NodeId, Result<Answer>),
    /// The outcome is decided: what [`Effect::Publish`] or [`Effect::Abort`] came to.
    Settled(Result<()>),
    /// The operator wants it ended.
    Cancelled,
    /// The moment of [`FencedPoint::deadline`] has come, perhaps.
    Elapsed,
}

/// What the coordinator does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Ask a node.
    Ask(Step, NodeId, Request),
    /// Make the cut the operation's outcome.
    Publish(Cut),
    /// Make failure the operation's outcome.
    Abort(Error),
    /// It has ended.
    Finish(Result<Cut>),
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Not begun.
    Idle,
    /// Every node looks the operation up.
    Enlisting,
    /// New commits begin to wait.
    Closing,
    /// Commits in flight finish.
    Draining,
    /// Every node has drained; each writes its record.
    Cutting,
    /// Every node is cut; commits flow again.
    Releasing,
    /// Every node makes its record durable.
    Flushing,
    /// The outcome is being written.
    Deciding,
    /// It failed: fences are opened, then failure becomes the outcome.
    Undoing,
    /// Failure is being made the outcome.
    Aborting,
    /// It has ended.
    Ended,
}

impl Phase {
    /// The word for it in traces.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Enlisting => "enlisting",
            Self::Closing => "closing",
            Self::Draining => "draining",
            Self::Cutting => "drained",
            Self::Releasing => "cut",
            Self::Flushing => "released",
            Self::Deciding => "flushed",
            Self::Undoing => "undoing",
            Self::Aborting => "aborting",
            Self::Ended => "ended",
        }
    }
}

/// The coordinator of one fenced restore point.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FencedPoint {
    nodes: BTreeSet<NodeId>,
    record: String,
    hold: HoldId,
    limits: Limits,
    floor: Floor,
    phase: Phase,
    round: Round<Answer>,
    deadline: Option<Moment>,
    fence_until: Option<Moment>,
    lives: BTreeMap<NodeId, LifeId>,
    scn: Scn,
    cuts: BTreeMap<ThreadId, ThreadCut>,
    why: Option<Error>,
}

impl FencedPoint {
    /// A restore point over `nodes`, marked by records named `record`, which is unique for ever.
    pub fn new(nodes: BTreeSet<NodeId>, record: String, hold: HoldId, limits: Limits, floor: Floor) -> Self {
        assert!(!nodes.is_empty(), "a membership has nodes");
        Self {
            nodes,
            record,
            hold,
            limits,
            floor,
            phase: Phase::Idle,
            round: Round::new(0, []),
            deadline: None,
            fence_until: None,
            lives: BTreeMap::new(),
            scn: Scn::ZERO,
            cuts: BTreeMap::new(),
            why: None,
        }
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// When [`Event::Elapsed`] is due.
    pub fn deadline(&self) -> Option<Moment> {
        self.deadline
    }

    /// Takes one event in.
    pub fn step(&mut self, now: Moment, event: Event) -> Vec<Effect> {
        match event {
            Event::Begun => {
                self.ask_all(now, Phase::Enlisting, self.limits.patience, |_, _| Request::Enlist { fence: true })
            }
            Event::Answered(step, node, _) if step != self.round.step() || !self.round.waits_for(node) => Vec::new(),
            Event::Answered(_, node, Ok(answer)) => {
                self.round.take(node, answer);
                if self.round.is_complete() { self.advance(now) } else { Vec::new() }
            }
            Event::Answered(_, node, Err(error)) => match self.phase {
                // What could not be released opens when its lease ends.
                Phase::Undoing => {
                    self.round.take(node, Answer::Done);
                    if self.round.is_complete() { self.abort() } else { Vec::new() }
                }
                Phase::Deciding | Phase::Aborting | Phase::Ended => Vec::new(),
                Phase::Idle
                | Phase::Enlisting
                | Phase::Closing
                | Phase::Draining
                | Phase::Cutting
                | Phase::Releasing
                | Phase::Flushing => self.undo(now, error),
            },
            Event::Settled(settled) => self.settle(settled),
            Event::Cancelled if self.is_deciding() || self.phase == Phase::Undoing => Vec::new(),
            Event::Cancelled => self.undo(now, Refusal::new(Code::Cancelled, "the restore point was cancelled").into()),
            Event::Elapsed => match self.deadline {
                Some(deadline) if deadline <= now => self.time_out(now),
                _ => Vec::new(),
            },
        }
    }

    fn is_deciding(&self) -> bool {
        matches!(self.phase, Phase::Deciding | Phase::Aborting | Phase::Ended)
    }

    /// Goes on once every node has answered.
    fn advance(&mut self, now: Moment) -> Vec<Effect> {
        match self.phase {
            Phase::Enlisting => {
                let (hold, lease) = (self.hold, self.limits.lease);
                let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
                self.fence_until = Some(now.after(lease));
                self.ask_all(now, Phase::Closing, lease, |_, _| Request::Close { hold, lease_ms })
            }
            Phase::Closing => {
                for (node, answer) in self.round.answers() {
                    let Answer::Closed { life } = answer else { return self.undo(now, unexpected(*node, answer)) };
                    self.lives.insert(*node, *life);
                }
                let hold = self.hold;
                self.ask_all(now, Phase::Draining, self.limits.drain, |_, life| Request::Drain { hold, life })
            }
            Phase::Draining => {
                self.scn = self.floor.scn;
                for (node, answer) in self.round.answers() {
                    let Answer::Drained { scn, .. } = answer else { return self.undo(now, unexpected(*node, answer)) };
                    self.scn = self.scn.max(*scn);
                }
                let (hold, scn, record) = (self.hold, self.scn, self.record.clone());
                self.ask_all(now, Phase::Cutting, self.limits.lease, |_, life| Request::Cut {
                    hold,
                    life,
                    scn,
                    record: record.clone(),
                })
            }
            Phase::Cutting => match self.collect_cuts() {
                Ok(()) => {
                    let hold = self.hold;
                    self.ask_all(now, Phase::Releasing, self.limits.patience, |_, _| Request::Release { hold })
                }
                Err(error) => self.undo(now, error),
            },
            Phase::Releasing => {
                let proofs: BTreeMap<NodeId, Lsn> = self
                    .nodes
                    .iter()
                    .filter_map(|node| Some((*node, self.cuts.get(&ThreadId::of(*node))?.proof)))
                    .collect();
                self.ask_all(now, Phase::Flushing, self.limits.patience, |node, life| Request::Flush {
                    life,
                    through: proofs.get(&node).copied().unwrap_or_default(),
                })
            }
            Phase::Flushing => self.publish(now),
            Phase::Undoing => self.abort(),
            Phase::Idle | Phase::Deciding | Phase::Aborting | Phase::Ended => Vec::new(),
        }
    }

    fn collect_cuts(&mut self) -> Result<()> {
        for (node, answer) in self.round.answers() {
            let Answer::CutMade { until, proof } = answer else { return Err(unexpected(*node, answer)) };
            self.floor.check_stop(*node, *until)?;
            self.cuts.insert(until.thread, ThreadCut { proof: *proof, timeline: until.timeline, until: until.lsn });
        }
        Ok(())
    }

    fn publish(&mut self, now: Moment) -> Vec<Effect> {
        let cut = Cut { record: self.record.clone(), scn: self.scn, threads: self.cuts.clone() };
        if let Err(error) = after_floor(&cut, &self.floor) {
            return self.undo(now, error);
        }
        self.phase = Phase::Deciding;
        self.deadline = None;
        Vec::from([Effect::Publish(cut)])
    }

    /// Opens every fence that may be closed, wherever the failure was seen; then makes failure the outcome.
    fn undo(&mut self, now: Moment, why: Error) -> Vec<Effect> {
        self.why.get_or_insert(why);
        if self.fence_until.is_none() {
            return self.abort();
        }
        let hold = self.hold;
        self.ask_all(now, Phase::Undoing, self.limits.patience, |_, _| Request::Release { hold })
    }

    fn abort(&mut self) -> Vec<Effect> {
        self.phase = Phase::Aborting;
        self.deadline = None;
        self.why.clone().map(Effect::Abort).into_iter().collect()
    }

    fn settle(&mut self, settled: Result<()>) -> Vec<Effect> {
        let cut = match self.phase {
            Phase::Deciding => Some(Cut { record: self.record.clone(), scn: self.scn, threads: self.cuts.clone() }),
            Phase::Aborting => None,
            Phase::Idle
            | Phase::Enlisting
            | Phase::Closing
            | Phase::Draining
            | Phase::Cutting
            | Phase::Releasing
            | Phase::Flushing
            | Phase::Undoing
            | Phase::Ended => return Vec::new(),
        };
        let Some(outcome) = outcome(cut, settled, self.why.take()) else { return Vec::new() };
        self.phase = Phase::Ended;
        Vec::from([Effect::Finish(outcome)])
    }

    fn time_out(&mut self, now: Moment) -> Vec<Effect> {
        let silent = self.round.silent();
        if self.phase == Phase::Undoing {
            return self.abort();
        }
        let refusal = if self.phase == Phase::Draining {
            let drain_ms = self.limits.drain.as_millis();
            Refusal::new(Code::DrainTimedOut, format!("{silent} did not drain within {drain_ms} ms"))
        } else {
            Refusal::new(Code::NodeSilent, format!("{silent} did not answer in phase `{}`", self.phase.word()))
        };
        self.undo(now, refusal.into())
    }

    /// Puts a question to every node. Until the cut is made nothing may take longer than the fence's lease.
    fn ask_all(
        &mut self,
        now: Moment,
        phase: Phase,
        wait: Duration,
        request: impl Fn(NodeId, LifeId) -> Request,
    ) -> Vec<Effect> {
        let step = self.round.step().saturating_add(1);
        self.round = Round::new(step, self.nodes.iter().copied());
        self.phase = phase;
        let fenced = matches!(phase, Phase::Closing | Phase::Draining | Phase::Cutting);
        let wait_until = now.after(wait);
        let deadline = self.fence_until.filter(|_| fenced).map_or(wait_until, |fence| fence.min(wait_until));
        self.deadline = Some(deadline);
        let life = |node| self.lives.get(&node).copied().unwrap_or_default();
        self.nodes.iter().map(|node| Effect::Ask(step, *node, request(*node, life(*node)))).collect()
    }
}

/// What a point came to once its outcome is written: `cut` if that is its publication, else `why` it failed.
pub(crate) fn outcome(cut: Option<Cut>, settled: Result<()>, why: Option<Error>) -> Option<Result<Cut>> {
    match cut {
        Some(cut) => Some(settled.map(|()| cut)),
        None => why.map(Err),
    }
}

/// An answer that does not belong to the question.
pub(crate) fn unexpected(node: NodeId, answer: &Answer) -> Error {
    Error::Bug(format!("{} gave an answer of another kind: {answer:?}", name_nodes([&node])))
}
