//! The coordinator of a backup: pin, begin, capture, end, cut, wait for the archive, seal, unpin. It is published only
//! when all of it is proven, else not at all; and nobody unpins before its outcome is decided.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::compression::Compression;
use crate::error::{Error, Result};
use crate::format::catalog::{Cut, Guarantee, Method, ThreadCut};
use crate::identity::{NodeId, OperationId, ThreadId};
use crate::planted::{self, Bug};
use crate::point::{Floor, unexpected};
use crate::position::Position;
use crate::refusal::{Code, Refusal};
use crate::request::{Answer, Captured, Request};
use crate::round::{Round, Step};
use crate::scn::Scn;
use crate::time::Moment;

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// A pin goes by itself after this without renewal, on each node's own clock. Renewed every third of it.
    pub pin: Duration,
    /// A short answer must come within this.
    pub patience: Duration,
    /// Beginning and ending must be done within this: they wait for a checkpoint.
    pub checkpoint: Duration,
    /// Copying must be done within this.
    pub capture: Duration,
    /// The archive must reach the cut within this.
    pub archive: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pin: Duration::from_mins(1),
            patience: Duration::from_secs(10),
            checkpoint: Duration::from_mins(10),
            capture: Duration::from_hours(48),
            archive: Duration::from_mins(10),
        }
    }
}

/// What to back up, and how.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Order {
    /// All members.
    pub nodes: BTreeSet<NodeId>,
    /// Whether all nodes share one set of files.
    pub shared: bool,
    /// How the cut is taken.
    pub method: Method,
    /// The sealed backup that it goes on from; none for a full one.
    pub base: Option<OperationId>,
    /// How what is copied is packed.
    pub compression: Compression,
    /// The name of the records that mark a cut of each node by itself, unique for ever.
    pub record: String,
    /// How long things may take.
    pub limits: Limits,
}

/// What the point that a backup ends with came to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Taken {
    /// The restore point.
    pub point: OperationId,
    /// Its cut.
    pub cut: Cut,
    /// What it says about the nodes together.
    pub guarantee: Guarantee,
}

/// Everything that a seal rests on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Evidence {
    /// Where each thread's recovery starts.
    pub starts: BTreeMap<ThreadId, Position>,
    /// The highest SCN when all had begun.
    pub begun_scn: Scn,
    /// What each agent captured, in order.
    pub captured: BTreeMap<NodeId, Vec<Captured>>,
    /// How far each thread's recovery has to come at least.
    pub stops: BTreeMap<ThreadId, Position>,
    /// The highest SCN when all had ended.
    pub ended_scn: Scn,
    /// The cut.
    pub cut: Option<Cut>,
    /// What the cut says about the nodes together.
    pub guarantee: Option<Guarantee>,
    /// The restore point that was published for it.
    pub point: Option<OperationId>,
}

/// What happens to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// It begins.
    Begun,
    /// A node has answered the request of a step.
    Answered(Step, NodeId, Result<Answer>),
    /// What [`Effect::TakePoint`] came to.
    PointTaken(Result<Taken>),
    /// The outcome is decided: what [`Effect::Seal`] or [`Effect::Abort`] came to.
    Settled(Result<()>),
    /// The operator wants it ended.
    Cancelled,
    /// The moment of [`Backup::deadline`] has come, perhaps.
    Elapsed,
}

/// What the coordinator does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Ask a node.
    Ask(Step, NodeId, Request),
    /// Take a restore point that does not lie before this.
    TakePoint(Floor),
    /// Make a manifest of the evidence, validate it as a reader would, and make it the operation's outcome.
    Seal(Evidence),
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
    /// Every node keeps its WAL from now on.
    Pinning,
    /// Every node begins.
    Beginning,
    /// Every node has begun; files are copied.
    Capturing,
    /// Every node ends.
    Ending,
    /// The cut is taken.
    Cutting,
    /// WAL up to the cut goes into the archive.
    Archiving,
    /// The outcome is being written.
    Deciding,
    /// It is sealed; pins go.
    Unpinning,
    /// It failed; failure is being made the outcome.
    Aborting,
    /// It failed for good; what is left of it on the nodes goes.
    Cleaning,
    /// It has ended.
    Ended,
}

impl Phase {
    /// The word for it in traces.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Enlisting => "enlisting",
            Self::Pinning => "pinning",
            Self::Beginning => "beginning",
            Self::Capturing => "capturing",
            Self::Ending => "ending",
            Self::Cutting => "cutting",
            Self::Archiving => "archiving",
            Self::Deciding => "deciding",
            Self::Unpinning => "sealed",
            Self::Aborting => "aborting",
            Self::Cleaning => "cleaning",
            Self::Ended => "ended",
        }
    }

    const fn holds_pins(self) -> bool {
        matches!(
            self,
            Self::Beginning | Self::Capturing | Self::Ending | Self::Cutting | Self::Archiving | Self::Deciding
        )
    }

    const fn can_fail(self) -> bool {
        matches!(
            self,
            Self::Enlisting
                | Self::Pinning
                | Self::Beginning
                | Self::Capturing
                | Self::Ending
                | Self::Cutting
                | Self::Archiving
        )
    }
}

/// Renewals are asked in a step of their own, beside the round that is going on.
const RENEWAL: Step = 0;

/// The coordinator of one backup.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Backup {
    order: Order,
    phase: Phase,
    round: Round<Answer>,
    deadline: Option<Moment>,
    renew_at: Option<Moment>,
    renewed: BTreeMap<NodeId, Moment>,
    evidence: Evidence,
    why: Option<Error>,
}

impl Backup {
    /// A backup to be taken.
    pub fn new(order: Order) -> Self {
        assert!(!order.nodes.is_empty(), "a membership has nodes");
        Self {
            order,
            phase: Phase::Idle,
            round: Round::new(RENEWAL, []),
            deadline: None,
            renew_at: None,
            renewed: BTreeMap::new(),
            evidence: Evidence::default(),
            why: None,
        }
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// When [`Event::Elapsed`] is due.
    pub fn deadline(&self) -> Option<Moment> {
        let renewal = self.renew_at.filter(|_| self.phase.holds_pins());
        self.deadline.into_iter().chain(renewal).min()
    }

    /// Takes one event in.
    pub fn step(&mut self, now: Moment, event: Event) -> Vec<Effect> {
        match event {
            Event::Begun => {
                let fence = self.order.method == Method::Fence;
                self.ask_all(now, Phase::Enlisting, self.order.limits.patience, &Request::Enlist { fence })
            }
            Event::Answered(RENEWAL, node, answer) => self.renewed(now, node, answer),
            Event::Answered(step, node, _) if step != self.round.step() || !self.round.waits_for(node) => Vec::new(),
            Event::Answered(_, node, answer) => self.answered(now, node, answer),
            Event::PointTaken(Ok(taken)) if self.phase == Phase::Cutting => {
                self.evidence.guarantee = Some(taken.guarantee);
                self.evidence.point = Some(taken.point);
                self.evidence.cut = Some(taken.cut);
                if planted::is(Bug::CutBeforeEnd) { self.capture(now) } else { self.archive(now) }
            }
            Event::PointTaken(Err(error)) if self.phase == Phase::Cutting => self.fail(error),
            Event::Settled(settled) => self.settle(now, settled),
            Event::Cancelled if self.phase.can_fail() => {
                self.fail(Refusal::new(Code::Cancelled, "the backup was cancelled").into())
            }
            Event::PointTaken(_) | Event::Cancelled => Vec::new(),
            Event::Elapsed => self.elapsed(now),
        }
    }

    fn answered(&mut self, now: Moment, node: NodeId, answer: Result<Answer>) -> Vec<Effect> {
        match answer {
            Ok(answer) => self.round.take(node, answer),
            // It is decided already; what stays behind on a node ends with its lease.
            Err(_) if matches!(self.phase, Phase::Unpinning | Phase::Cleaning) => self.round.take(node, Answer::Done),
            Err(error) => return if self.phase.can_fail() { self.fail(error) } else { Vec::new() },
        }
        if !self.round.is_complete() {
            return Vec::new();
        }
        match self.advance(now) {
            Ok(effects) => effects,
            Err(error) => self.fail(error),
        }
    }

    /// Goes on once every node has answered.
    fn advance(&mut self, now: Moment) -> Result<Vec<Effect>> {
        let limits = self.order.limits;
        let lease_ms = u64::try_from(limits.pin.as_millis()).unwrap_or(u64::MAX);
        Ok(match self.phase {
            Phase::Enlisting => self.ask_all(now, Phase::Pinning, limits.patience, &Request::Pin { lease_ms }),
            Phase::Pinning => {
                self.renewed = self.order.nodes.iter().map(|node| (*node, now)).collect();
                self.renew_at = Some(now.after(limits.pin / 3));
                self.ask_all(now, Phase::Beginning, limits.checkpoint, &Request::Begin)
            }
            Phase::Beginning => {
                for (node, answer) in self.round.answers() {
                    let Answer::Begun { start, scn } = answer else { return Err(unexpected(*node, answer)) };
                    self.evidence.starts.insert(start.thread, *start);
                    self.evidence.begun_scn = self.evidence.begun_scn.max(*scn);
                }
                if planted::is(Bug::CutBeforeEnd) { self.take_point() } else { self.capture(now) }
            }
            Phase::Capturing => {
                for (node, answer) in self.round.answers() {
                    let Answer::Captured(captured) = answer else { return Err(unexpected(*node, answer)) };
                    self.evidence.captured.entry(*node).or_default().push(captured.clone());
                }
                let step = self.next_round(now, Phase::Ending, limits.checkpoint, self.order.nodes.clone());
                let starts =
                    self.order.nodes.iter().map(|node| (*node, self.evidence.starts.get(&ThreadId::of(*node))));
                let ends = starts.filter_map(|(node, start)| Some((node, Request::End { start: *start? })));
                let asks: Vec<Effect> = ends.map(|(node, end)| Effect::Ask(step, node, end)).collect();
                if asks.len() != self.order.nodes.len() {
                    return Err(Error::Bug(format!("{} threads have a start", asks.len())));
                }
                asks
            }
            Phase::Ending => self.ended(now)?,
            Phase::Cutting => self.cut_alone(now)?,
            Phase::Archiving => {
                self.phase = Phase::Deciding;
                self.deadline = None;
                Vec::from([Effect::Seal(self.evidence.clone())])
            }
            Phase::Unpinning | Phase::Cleaning => self.finish(),
            Phase::Idle | Phase::Deciding | Phase::Aborting | Phase::Ended => Vec::new(),
        })
    }

    fn ended(&mut self, now: Moment) -> Result<Vec<Effect>> {
        self.evidence.ended_scn = self.evidence.begun_scn;
        for (node, answer) in self.round.answers() {
            let Answer::Ended { stop, scn, extra } = answer else { return Err(unexpected(*node, answer)) };
            self.evidence.stops.insert(stop.thread, *stop);
            self.evidence.ended_scn = self.evidence.ended_scn.max(*scn);
            if let Some(extra) = extra {
                self.evidence.captured.entry(*node).or_default().push(extra.clone());
            }
        }
        let limits = self.order.limits;
        Ok(match self.order.method {
            Method::Fence | Method::Scn if planted::is(Bug::CutBeforeEnd) => self.archive(now),
            Method::Fence | Method::Scn => self.take_point(),
            Method::Alone => {
                let record = self.order.record.clone();
                self.ask_all(now, Phase::Cutting, limits.checkpoint, &Request::CutAlone { record })
            }
        })
    }

    /// The files of every node, or of the first one where all share them.
    fn capture(&mut self, now: Moment) -> Vec<Effect> {
        let units = if self.order.shared { 1 } else { self.order.nodes.len() };
        let units: BTreeSet<NodeId> = self.order.nodes.iter().take(units).copied().collect();
        let base = self.order.base;
        let starts = if base.is_some() { self.evidence.starts.values().copied().collect() } else { Vec::new() };
        let request = Request::Capture { base, starts, compression: self.order.compression };
        self.ask(now, Phase::Capturing, self.order.limits.capture, &request, units)
    }

    /// The cut comes after every node has ended: what lies before an end is no state that recovery can reach.
    fn take_point(&mut self) -> Vec<Effect> {
        self.phase = Phase::Cutting;
        self.deadline = None;
        let (scn, stops) = (self.evidence.ended_scn.max(self.evidence.begun_scn), self.evidence.stops.clone());
        Vec::from([Effect::TakePoint(Floor { previous: None, scn, stops })])
    }

    fn cut_alone(&mut self, now: Moment) -> Result<Vec<Effect>> {
        let mut threads = BTreeMap::new();
        for (node, answer) in self.round.answers() {
            let Answer::CutMade { until, proof } = answer else { return Err(unexpected(*node, answer)) };
            threads.insert(until.thread, ThreadCut { proof: *proof, timeline: until.timeline, until: until.lsn });
        }
        self.evidence.cut = Some(Cut { record: self.order.record.clone(), scn: Scn::ZERO, threads });
        self.evidence.guarantee = Some(Guarantee::Node);
        Ok(self.archive(now))
    }

    fn archive(&mut self, now: Moment) -> Vec<Effect> {
        let cut = self.evidence.cut.clone().map(|cut| cut.threads).unwrap_or_default();
        let places: BTreeMap<NodeId, Position> = self
            .order
            .nodes
            .iter()
            .map(|node| (*node, ThreadId::of(*node)))
            .filter_map(|(node, thread)| Some((node, thread, cut.get(&thread)?)))
            .map(|(node, thread, cut)| (node, Position { thread, timeline: cut.timeline, lsn: cut.proof }))
            .collect();
        if places.len() != self.order.nodes.len() {
            return self.fail(Error::Bug(format!("the cut covers {} threads only", places.len())));
        }
        let step = self.next_round(now, Phase::Archiving, self.order.limits.archive, self.order.nodes.clone());
        places.into_iter().map(|(node, through)| Effect::Ask(step, node, Request::Archive { through })).collect()
    }

    fn renewed(&mut self, now: Moment, node: NodeId, answer: Result<Answer>) -> Vec<Effect> {
        match answer {
            Ok(_) => {
                self.renewed.insert(node, now);
                Vec::new()
            }
            Err(Error::Refusal(refusal)) if self.phase.can_fail() => self.fail(Error::Refusal(refusal)),
            // A renewal that got lost is asked again; the pin's lease says when that is too late.
            Err(_) => Vec::new(),
        }
    }

    fn elapsed(&mut self, now: Moment) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.phase.holds_pins() && self.renew_at.is_some_and(|at| at <= now) {
            let pin = self.order.limits.pin;
            self.renew_at = Some(now.after(pin / 3));
            if let Some((node, _)) = self.renewed.iter().find(|(_, at)| now.since(**at) >= pin)
                && self.phase.can_fail()
            {
                let message = format!("node {node} did not renew its pin for {} ms", pin.as_millis());
                return self.fail(Refusal::new(Code::NodeSilent, message).into());
            }
            let lease_ms = u64::try_from(pin.as_millis()).unwrap_or(u64::MAX);
            effects
                .extend(self.order.nodes.iter().map(|node| Effect::Ask(RENEWAL, *node, Request::Renew { lease_ms })));
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            let silent = self.round.silent();
            let refusal = if self.phase == Phase::Archiving {
                Refusal::new(Code::ArchiveBehind, format!("the archive of {silent} did not reach the cut in time"))
            } else {
                Refusal::new(Code::NodeSilent, format!("{silent} did not answer in phase `{}`", self.phase.word()))
            };
            effects.extend(if self.phase.can_fail() { self.fail(refusal.into()) } else { self.finish() });
        }
        effects
    }

    fn fail(&mut self, why: Error) -> Vec<Effect> {
        self.phase = Phase::Aborting;
        self.deadline = None;
        self.why = Some(why.clone());
        let mut effects = Vec::new();
        if planted::is(Bug::UnpinBeforeOutcome) {
            effects.extend(self.order.nodes.iter().map(|node| Effect::Ask(RENEWAL, *node, Request::Unpin)));
        }
        effects.push(Effect::Abort(why));
        effects
    }

    fn settle(&mut self, now: Moment, settled: Result<()>) -> Vec<Effect> {
        let patience = self.order.limits.patience;
        match (self.phase, settled) {
            (Phase::Deciding, Ok(())) => self.ask_all(now, Phase::Unpinning, patience, &Request::Unpin),
            (Phase::Deciding, Err(error @ Error::Refusal(_)))
                if error.refusal().is_some_and(|why| why.code == Code::Aborted) =>
            {
                self.why = Some(error);
                self.clean(now)
            }
            // Not valid, and not decided by anybody else: decide it.
            (Phase::Deciding, Err(error @ Error::Refusal(_))) => self.fail(error),
            // Whether it is sealed is not known: the pins stay until their leases end.
            (Phase::Deciding | Phase::Aborting, Err(error)) => {
                self.why.get_or_insert(error);
                self.finish()
            }
            (Phase::Aborting, Ok(())) => self.clean(now),
            _ => Vec::new(),
        }
    }

    fn clean(&mut self, now: Moment) -> Vec<Effect> {
        let patience = self.order.limits.patience;
        self.ask_all(now, Phase::Cleaning, patience, &Request::Unpin)
    }

    fn finish(&mut self) -> Vec<Effect> {
        self.phase = Phase::Ended;
        self.deadline = None;
        Vec::from([Effect::Finish(self.why.take().map_or(Ok(()), Err))])
    }

    fn ask_all(&mut self, now: Moment, phase: Phase, wait: Duration, request: &Request) -> Vec<Effect> {
        self.ask(now, phase, wait, request, self.order.nodes.clone())
    }

    fn ask(
        &mut self,
        now: Moment,
        phase: Phase,
        wait: Duration,
        request: &Request,
        nodes: BTreeSet<NodeId>,
    ) -> Vec<Effect> {
        let step = self.next_round(now, phase, wait, nodes.clone());
        nodes.into_iter().map(|node| Effect::Ask(step, node, request.clone())).collect()
    }

    fn next_round(&mut self, now: Moment, phase: Phase, wait: Duration, nodes: BTreeSet<NodeId>) -> Step {
        let step = self.round.step().saturating_add(1);
        self.phase = phase;
        self.deadline = Some(now.after(wait));
        self.round = Round::new(step, nodes);
        step
    }
}
