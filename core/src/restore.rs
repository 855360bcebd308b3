//! The coordinator of a restore: stage, recover, prove, resolve what is in doubt, decide, open. No node opens before all
//! have reached the cut and the incarnation is this restore's. Before that write, giving up means removing what was staged; after it, only
//! forward: a restore that is taken up then goes through the same steps, for a node that lost its disk before it had
//! opened is staged again to the same cut. A node that cannot be brought there holds the others up no more.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;

use crate::error::{Error, Result};
use crate::format::catalog::Cut;
use crate::identity::{ContentHash, NodeId, ThreadId};
use crate::in_doubt::Held;
use crate::point::unexpected;
use crate::refusal::{Code, Refusal};
use crate::request::{Answer, Request};
use crate::round::{Round, Step};
use crate::time::Moment;

/// How long things may take. A node may restart meanwhile: the engine asks again until the step's deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// A short answer must come within this.
    pub patience: Duration,
    /// Staging must be done within this.
    pub stage: Duration,
    /// Recovery must be done within this.
    pub recover: Duration,
    /// Opening must be done within this.
    pub open: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(30),
            stage: Duration::from_hours(48),
            recover: Duration::from_hours(48),
            open: Duration::from_mins(10),
        }
    }
}

/// What to restore, as far as the coordinator's decisions need it. The rest is in the plan.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::struct_excessive_bools, reason = "each is a choice of its own")]
pub struct Order {
    /// All members.
    pub nodes: BTreeSet<NodeId>,
    /// The nodes whose agents stage and recover: all, or one for files that all share.
    pub units: BTreeSet<NodeId>,
    /// The plan in the repository.
    pub plan: ContentHash,
    /// The cut that every node must have reached. Of a restore that is decided, the one that it was decided at.
    pub cut: Cut,
    /// Whether only the cut's SCN is known: each node proves its own place, at or before the one in `cut`.
    pub sought: bool,
    /// Whether the outcome is there already: a resumed restore that only goes forward.
    pub decided: bool,
    /// Whether to end when all nodes stand at the cut, proven and closed. Taken up again without it, it goes on to open.
    pub stop: bool,
    /// Whether folders may hold an older copy: then every node looks at its own before anything is changed on any.
    pub delta: bool,
    /// How long things may take.
    pub limits: Limits,
}

/// What happens to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// It begins.
    Begun,
    /// A node has answered the request of a step.
    Answered(Step, NodeId, Result<Answer>),
    /// What becomes of all that is in doubt is in the repository, or cannot get there.
    Judged(Result<()>),
    /// The outcome is decided: what [`Effect::Decide`] or [`Effect::Abort`] came to.
    Settled(Result<()>),
    /// The operator wants it ended.
    Cancelled,
    /// The moment of [`Restore::deadline`] has come, perhaps.
    Elapsed,
}

/// What the coordinator does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Ask a node.
    Ask(Step, NodeId, Request),
    /// Decide what becomes of what each node has prepared, once and for all, and store it.
    Judge(BTreeMap<NodeId, Vec<Held>>),
    /// Make the new incarnation, which branches off at the cut that all nodes have proved, the operation's outcome.
    Decide(Cut),
    /// Make failure the operation's outcome.
    Abort(Error),
    /// It has ended.
    Finish(Result<()>),
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Not begun.
    Idle,
    /// Every node looks the operation up.
    Enlisting,
    /// Every node says whether what it has may be overwritten.
    Inspecting,
    /// Files are put in place.
    Staging,
    /// Every unit recovers to the cut.
    Recovering,
    /// Every node says which cut it has reached.
    Proving,
    /// What is prepared on some node is being decided.
    Judging,
    /// It is decided; nodes end what they have prepared.
    Resolving,
    /// The outcome is being written.
    Deciding,
    /// The incarnation is this restore's; nodes open.
    Opening,
    /// It failed; failure is being made the outcome.
    Aborting,
    /// It failed for good; what was staged is removed.
    Discarding,
    /// It has ended.
    Ended,
}

impl Phase {
    /// The word for it in traces.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Enlisting => "enlisting",
            Self::Inspecting => "inspecting",
            Self::Staging => "staging",
            Self::Recovering => "recovering",
            Self::Proving => "proving",
            Self::Judging => "judging",
            Self::Resolving => "resolving",
            Self::Deciding => "deciding",
            Self::Opening => "opening",
            Self::Aborting => "aborting",
            Self::Discarding => "discarding",
            Self::Ended => "ended",
        }
    }

    const fn can_fail(self) -> bool {
        matches!(
            self,
            Self::Enlisting
                | Self::Inspecting
                | Self::Staging
                | Self::Recovering
                | Self::Proving
                | Self::Judging
                | Self::Resolving
        )
    }
}

/// The coordinator of one restore.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Restore {
    order: Order,
    phase: Phase,
    round: Round<Answer>,
    deadline: Option<Moment>,
    /// The cut, once all nodes have proved it.
    proved: Option<Cut>,
    why: Option<Error>,
    /// Nodes that cannot be brought to the cut of a restore that is decided: nothing more is asked of them.
    out: BTreeSet<NodeId>,
}

impl Restore {
    /// A restore to be done, or to be taken up again: every step may be repeated.
    pub fn new(order: Order) -> Self {
        assert!(!order.units.is_empty() && order.units.is_subset(&order.nodes), "units are captured by members");
        let round = Round::new(0, []);
        Self { order, phase: Phase::Idle, round, deadline: None, proved: None, why: None, out: BTreeSet::new() }
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
        let limits = self.order.limits;
        match event {
            Event::Begun => {
                let nodes = self.order.nodes.clone();
                self.ask(now, Phase::Enlisting, limits.patience, &Request::Enlist { fence: false }, nodes)
            }
            Event::Answered(step, node, _) if step != self.round.step() || !self.round.waits_for(node) => Vec::new(),
            Event::Answered(_, node, answer) => self.answered(now, node, answer),
            Event::Judged(judged) if self.phase == Phase::Judging => match judged {
                Ok(()) => {
                    let (plan, nodes) = (self.order.plan, self.order.nodes.clone());
                    self.ask(now, Phase::Resolving, limits.patience, &Request::Resolve { plan }, nodes)
                }
                Err(error) => self.fail(error),
            },
            Event::Settled(settled) => self.settle(now, settled),
            Event::Cancelled if self.phase.can_fail() && !self.order.decided => {
                self.fail(Refusal::new(Code::Cancelled, "the restore was cancelled").into())
            }
            Event::Elapsed if self.deadline.is_some_and(|deadline| deadline <= now) => self.time_out(now),
            Event::Judged(_) | Event::Cancelled | Event::Elapsed => Vec::new(),
        }
    }

    fn answered(&mut self, now: Moment, node: NodeId, answer: Result<Answer>) -> Vec<Effect> {
        match answer {
            Ok(answer) => self.round.take(node, answer),
            Err(error) if self.phase.can_fail() && !self.order.decided => return self.fail(error),
            Err(error) if self.phase.can_fail() => {
                self.leave_out(node, error);
                self.round.take(node, Answer::Done);
            }
            Err(error) => {
                if self.phase == Phase::Opening {
                    self.why.get_or_insert(error);
                }
                self.round.take(node, Answer::Done);
            }
        }
        if self.round.is_complete() { self.advance(now) } else { Vec::new() }
    }

    /// Goes on once every node has answered.
    fn advance(&mut self, now: Moment) -> Vec<Effect> {
        let (limits, plan) = (self.order.limits, self.order.plan);
        let (nodes, units) = (self.order.nodes.clone(), self.order.units.clone());
        match self.phase {
            // What is decided is put in place where something was lost, and nowhere else.
            Phase::Enlisting if self.order.delta && !self.order.decided => {
                self.ask(now, Phase::Inspecting, limits.patience, &Request::Inspect { plan }, nodes)
            }
            Phase::Enlisting | Phase::Inspecting => {
                self.ask(now, Phase::Staging, limits.stage, &Request::Stage { plan }, units)
            }
            Phase::Staging => self.ask(now, Phase::Recovering, limits.recover, &Request::Recover { plan }, units),
            Phase::Recovering => self.ask(now, Phase::Proving, limits.patience, &Request::Prove { plan }, nodes),
            Phase::Proving if self.order.decided => {
                self.leave_out_unproved();
                let open_doubts =
                    |answer: &Answer| matches!(answer, Answer::Reached { in_doubt, .. } if !in_doubt.is_empty());
                // It was judged before it was decided; a node that was staged again has not heard of it.
                if self.round.answers().values().any(open_doubts) {
                    return self.ask(now, Phase::Resolving, limits.patience, &Request::Resolve { plan }, nodes);
                }
                self.ask(now, Phase::Opening, limits.open, &Request::Open { plan }, nodes)
            }
            Phase::Proving => match self.proved() {
                Ok(_) if self.order.stop => self.finish(),
                Ok((cut, in_doubt)) => {
                    self.proved = Some(cut);
                    if in_doubt.is_empty() {
                        return self.decide();
                    }
                    self.phase = Phase::Judging;
                    self.deadline = Some(now.after(limits.recover));
                    Vec::from([Effect::Judge(in_doubt)])
                }
                Err(error) => self.fail(error),
            },
            Phase::Resolving if self.order.decided => {
                self.ask(now, Phase::Opening, limits.open, &Request::Open { plan }, nodes)
            }
            Phase::Resolving => self.decide(),
            Phase::Opening | Phase::Discarding => self.finish(),
            Phase::Idle | Phase::Judging | Phase::Deciding | Phase::Aborting | Phase::Ended => Vec::new(),
        }
    }

    fn decide(&mut self) -> Vec<Effect> {
        self.phase = Phase::Deciding;
        self.deadline = None;
        Vec::from([Effect::Decide(self.proved.clone().unwrap_or_else(|| self.order.cut.clone()))])
    }

    /// The cut as all nodes have proved it, and what is in doubt there, node by node. Each must have reached the very cut:
    /// not before it, not beyond it. Where the cut was sought, all must have been recovered to its SCN.
    fn proved(&self) -> Result<(Cut, BTreeMap<NodeId, Vec<Held>>)> {
        let mut cut = self.order.cut.clone();
        let mut in_doubt = BTreeMap::new();
        for (node, answer) in self.round.answers() {
            self.prove(&mut cut, *node, answer)?;
            if let Answer::Reached { in_doubt: held, .. } = answer
                && !held.is_empty()
            {
                in_doubt.insert(*node, held.clone());
            }
        }
        Ok((cut, in_doubt))
    }

    fn prove(&self, cut: &mut Cut, node: NodeId, answer: &Answer) -> Result<()> {
        let Answer::Reached { scn, until, .. } = answer else { return Err(unexpected(node, answer)) };
        let thread = ThreadId::of(node);
        let Some(wanted) = cut.threads.get_mut(&thread).filter(|_| until.thread == thread) else {
            return Err(beside(node, &format!("{until}, which is no place of the cut")));
        };
        if self.order.sought {
            if *scn != cut.scn || until.lsn > wanted.until {
                let wanted = wanted.until;
                return Err(beside(node, &format!("{until} at SCN {scn}, not {} by {wanted}", cut.scn)));
            }
            wanted.until = until.lsn;
        } else if wanted.until != until.lsn {
            return Err(beside(node, &format!("{until}, the cut is at {}", wanted.until)));
        }
        Ok(())
    }

    /// After the decision a node has opened, and says no more than that; or it stands at the cut that was decided.
    fn leave_out_unproved(&mut self) {
        let mut beside = Vec::new();
        for (node, answer) in self.round.answers().iter().filter(|(node, _)| !self.out.contains(node)) {
            let mut cut = self.order.cut.clone();
            if *answer == Answer::Done {
                continue;
            }
            if let Err(error) = self.prove(&mut cut, *node, answer) {
                beside.push((*node, error));
            }
        }
        for (node, error) in beside {
            self.leave_out(node, error);
        }
    }

    fn leave_out(&mut self, node: NodeId, why: Error) {
        self.why.get_or_insert(why);
        self.out.insert(node);
    }

    fn settle(&mut self, now: Moment, settled: Result<()>) -> Vec<Effect> {
        let (limits, nodes) = (self.order.limits, self.order.nodes.clone());
        match (self.phase, settled) {
            (Phase::Deciding, Ok(())) => {
                let plan = self.order.plan;
                self.ask(now, Phase::Opening, limits.open, &Request::Open { plan }, nodes)
            }
            // Another restore has the incarnation, or somebody ended this one: it can never open.
            (Phase::Deciding, Err(error @ Error::Refusal(_))) => {
                self.why = Some(error);
                self.ask(now, Phase::Discarding, limits.patience, &Request::Discard, nodes)
            }
            (Phase::Aborting, Ok(())) => self.ask(now, Phase::Discarding, limits.patience, &Request::Discard, nodes),
            // What was decided is not known. Nothing is removed; the restore can be resumed.
            (Phase::Deciding | Phase::Aborting, Err(error)) => {
                self.why.get_or_insert(error);
                self.finish()
            }
            _ => Vec::new(),
        }
    }

    fn time_out(&mut self, now: Moment) -> Vec<Effect> {
        let silent = self.round.silent();
        let refusal =
            Refusal::new(Code::NodeSilent, format!("{silent} did not answer in phase `{}`", self.phase.word()));
        if self.phase.can_fail() && self.order.decided {
            let silent: Vec<NodeId> =
                self.order.nodes.iter().copied().filter(|node| self.round.waits_for(*node)).collect();
            for node in silent {
                self.leave_out(node, refusal.clone().into());
                self.round.take(node, Answer::Done);
            }
            return self.advance(now);
        }
        if self.phase.can_fail() {
            return self.fail(refusal.into());
        }
        self.why.get_or_insert(refusal.into());
        self.finish()
    }

    fn fail(&mut self, why: Error) -> Vec<Effect> {
        self.why = Some(why.clone());
        self.phase = Phase::Aborting;
        self.deadline = None;
        Vec::from([Effect::Abort(why)])
    }

    fn finish(&mut self) -> Vec<Effect> {
        self.phase = Phase::Ended;
        self.deadline = None;
        Vec::from([Effect::Finish(self.why.take().map_or(Ok(()), Err))])
    }

    fn ask(
        &mut self,
        now: Moment,
        phase: Phase,
        wait: Duration,
        request: &Request,
        mut nodes: BTreeSet<NodeId>,
    ) -> Vec<Effect> {
        let step = self.round.step().saturating_add(1);
        nodes.retain(|node| !self.out.contains(node));
        self.phase = phase;
        self.deadline = Some(now.after(wait));
        let effects = nodes.iter().map(|node| Effect::Ask(step, *node, request.clone())).collect();
        self.round = Round::new(step, nodes);
        if self.round.is_complete() { self.advance(now) } else { effects }
    }
}

fn beside(node: NodeId, reached: &str) -> Error {
    Refusal::new(Code::CutMissed, format!("node {node} has recovered {reached}")).into()
}
