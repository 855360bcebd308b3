//! The coordinator of a restore point by SCN: every node observes S and makes a barrier record durable above it; then
//! publish. Two rounds, and nobody waits.
//!
//! Why it is a state of the cluster: after a node has observed S nothing at or below S can follow in its thread, and the
//! barrier proves that all which lies before it is durable. So "every record with an SCN at or below S" is the same set
//! of records for ever. It is causal for whatever carries the SCN from cause to effect: pages, messages between nodes,
//! sessions that tell each node what they have seen. What is tied together outside of the database, by a session that
//! carries nothing, only a fence keeps together.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::error::{Error, Result};
use crate::format::catalog::{Cut, ThreadCut};
use crate::identity::{LifeId, NodeId, ThreadId};
pub use crate::point::{Effect, Event};
use crate::point::{Floor, Limits, after_floor, outcome, unexpected};
use crate::refusal::{Code, Refusal};
use crate::request::{Answer, Request};
use crate::round::Round;
use crate::time::Moment;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Not begun.
    Idle,
    /// Every node looks the operation up.
    Enlisting,
    /// Every node observes the SCN, and makes a record above it durable.
    Marking,
    /// The outcome is being written.
    Deciding,
    /// Failure is being made the outcome. Nothing is held on any node, so there is nothing to undo.
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
            Self::Marking => "marking",
            Self::Deciding => "marked",
            Self::Aborting => "aborting",
            Self::Ended => "ended",
        }
    }
}

/// The coordinator of one restore point by SCN.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ScnPoint {
    nodes: BTreeSet<NodeId>,
    record: String,
    limits: Limits,
    floor: Floor,
    phase: Phase,
    round: Round<Answer>,
    deadline: Option<Moment>,
    lives: BTreeMap<NodeId, LifeId>,
    cuts: BTreeMap<ThreadId, ThreadCut>,
    why: Option<Error>,
}

impl ScnPoint {
    /// A restore point over `nodes` at `floor.scn`, the highest SCN that any of them has reported: whatever was
    /// acknowledged before that report lies in it. `record` names the barriers, and is unique for ever.
    pub fn new(nodes: BTreeSet<NodeId>, record: String, limits: Limits, floor: Floor) -> Self {
        assert!(!nodes.is_empty(), "a membership has nodes");
        Self {
            nodes,
            record,
            limits,
            floor,
            phase: Phase::Idle,
            round: Round::new(0, []),
            deadline: None,
            lives: BTreeMap::new(),
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
                self.ask_all(now, Phase::Enlisting, self.limits.patience, |_| Request::Enlist { fence: false })
            }
            Event::Answered(step, node, _) if step != self.round.step() || !self.round.waits_for(node) => Vec::new(),
            Event::Answered(..) | Event::Cancelled | Event::Elapsed if self.is_decided() => Vec::new(),
            Event::Answered(_, node, Ok(answer)) => {
                self.round.take(node, answer);
                if self.round.is_complete() { self.advance(now) } else { Vec::new() }
            }
            Event::Answered(_, _, Err(error)) => self.abort(error),
            Event::Settled(settled) => self.settle(settled),
            Event::Cancelled => self.abort(Refusal::new(Code::Cancelled, "the restore point was cancelled").into()),
            Event::Elapsed => match self.deadline {
                Some(deadline) if deadline <= now => {
                    let (silent, phase) = (self.round.silent(), self.phase.word());
                    let message = format!("{silent} did not answer in phase `{phase}`");
                    self.abort(Refusal::new(Code::NodeSilent, message).into())
                }
                _ => Vec::new(),
            },
        }
    }

    fn is_decided(&self) -> bool {
        matches!(self.phase, Phase::Deciding | Phase::Aborting | Phase::Ended)
    }

    /// Goes on once every node has answered.
    fn advance(&mut self, now: Moment) -> Vec<Effect> {
        match self.phase {
            Phase::Enlisting => {
                for (node, answer) in self.round.answers() {
                    let Answer::Enlisted { life, .. } = answer else {
                        let error = unexpected(*node, answer);
                        return self.abort(error);
                    };
                    self.lives.insert(*node, *life);
                }
                let (scn, record, lives) = (self.floor.scn, self.record.clone(), self.lives.clone());
                self.ask_all(now, Phase::Marking, self.limits.patience, |node| Request::Mark {
                    life: lives.get(&node).copied().unwrap_or_default(),
                    scn,
                    record: record.clone(),
                })
            }
            Phase::Marking => match self.collect_cuts() {
                Ok(cut) => {
                    self.phase = Phase::Deciding;
                    self.deadline = None;
                    Vec::from([Effect::Publish(cut)])
                }
                Err(error) => self.abort(error),
            },
            Phase::Idle | Phase::Deciding | Phase::Aborting | Phase::Ended => Vec::new(),
        }
    }

    fn collect_cuts(&mut self) -> Result<Cut> {
        for (node, answer) in self.round.answers() {
            let Answer::CutMade { until, proof } = answer else { return Err(unexpected(*node, answer)) };
            self.floor.check_stop(*node, *until)?;
            self.cuts.insert(until.thread, ThreadCut { proof: *proof, timeline: until.timeline, until: until.lsn });
        }
        let cut = self.cut();
        after_floor(&cut, &self.floor)?;
        Ok(cut)
    }

    fn cut(&self) -> Cut {
        Cut { record: self.record.clone(), scn: self.floor.scn, threads: self.cuts.clone() }
    }

    fn abort(&mut self, why: Error) -> Vec<Effect> {
        self.phase = Phase::Aborting;
        self.deadline = None;
        self.why = Some(why.clone());
        Vec::from([Effect::Abort(why)])
    }

    fn settle(&mut self, settled: Result<()>) -> Vec<Effect> {
        let cut = match self.phase {
            Phase::Deciding => Some(self.cut()),
            Phase::Aborting => None,
            Phase::Idle | Phase::Enlisting | Phase::Marking | Phase::Ended => return Vec::new(),
        };
        let Some(outcome) = outcome(cut, settled, self.why.take()) else { return Vec::new() };
        self.phase = Phase::Ended;
        Vec::from([Effect::Finish(outcome)])
    }

    fn ask_all(
        &mut self,
        now: Moment,
        phase: Phase,
        wait: Duration,
        request: impl Fn(NodeId) -> Request,
    ) -> Vec<Effect> {
        let step = self.round.step().saturating_add(1);
        self.round = Round::new(step, self.nodes.iter().copied());
        self.phase = phase;
        self.deadline = Some(now.after(wait));
        self.nodes.iter().map(|node| Effect::Ask(step, *node, request(*node))).collect()
    }
}
