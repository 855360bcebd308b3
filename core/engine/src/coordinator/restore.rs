//! Runs a restore.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::time::Duration;

use futures_util::future::BoxFuture;
use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::format::catalog::{
    Branch, Cut, Guarantee, IncarnationObject, IncarnationState, Opened, Registered,
};
use sheetanchor_core::format::manifest::Plan;
use sheetanchor_core::format::{self, keys};
use sheetanchor_core::identity::{ContentHash, Incarnation, NodeId, OperationId, OperationKind};
use sheetanchor_core::in_doubt::{Resolved, Verdict};
use sheetanchor_core::plan::Aim;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Answer, Request};
use sheetanchor_core::restore::{Effect, Event, Order, Restore};
use sheetanchor_core::round::name_nodes;

use super::copy::origin_of;
use super::in_doubt::resolutions;
use super::{Coordinator, Footing, Term, abort_of};
use crate::pump::{self, Perform, Performed};
use crate::repository::Created;

/// How long to wait before a silent node is asked again.
pub(super) const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// How often a node that has just restarted may say that it does not know the operation.
const UNKNOWN_MAX: usize = 5;

/// A restore that has opened a new incarnation, or stands at its cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Which restore.
    pub operation: OperationId,
    /// What it did.
    pub plan: Plan,
    /// What it decided of every transaction that was in doubt at the cut.
    pub in_doubt: Vec<Resolved>,
    /// Whether it is open; else all nodes stand at the cut, proven and closed, until the restore is taken up or aborted.
    pub is_open: bool,
}

impl Restored {
    /// What is said about the nodes together: the cut's guarantee, unless something was left in doubt.
    pub fn guarantee(&self) -> Guarantee {
        let left = self.in_doubt.iter().any(|half| matches!(half.verdict, Verdict::Left(_)));
        if left { self.plan.guarantee.min(Guarantee::Causal) } else { self.plan.guarantee }
    }
}

/// How a restore is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// Stop on arrival: end when all nodes stand at the cut, proven and closed.
    pub stop: bool,
    /// Begin although an earlier restore is decided and has not opened every node. What its nodes have written since is
    /// left behind in its incarnation.
    pub anew: bool,
    /// Folders may hold an older copy, of which what is right stays. The nodes must be closed.
    pub delta: bool,
}

impl Coordinator {
    /// Restores every node to a target and opens a new incarnation there.
    ///
    /// # Errors
    /// Those of [`Coordinator::plan_restore`]; `SA401` if a node still has a database; whatever the nodes refuse with.
    /// Then what was staged is removed again, unless the incarnation was opened: that restore can be resumed.
    pub async fn restore(&self, aim: impl Into<Aim> + Send) -> Result<Restored> {
        self.restore_in(aim, Manner::default()).await
    }

    /// The same, in a manner of one's own.
    ///
    /// # Errors
    /// Those of [`Coordinator::restore`]; `SA410` if an earlier restore is decided and has not opened every node; of one
    /// over older copies `SA413` and `SA414`, before anything is changed on any node. If that fails later, what is right
    /// stays for the next one, without a control file.
    pub async fn restore_in(&self, aim: impl Into<Aim> + Send, manner: Manner) -> Result<Restored> {
        let aim = aim.into();
        let footing = self.footing().await?;
        if !manner.anew {
            self.check_opened(&footing).await?;
        }
        let seen = self.survey(&footing).await?;
        let (in_the_way, code): (&dyn Fn(&str) -> bool, Code) = if manner.delta {
            (&|state| state == "open", Code::FolderInUse)
        } else {
            (&|state| state != "empty", Code::FolderNotEmpty)
        };
        if let Some(node) = seen.values().find(|description| in_the_way(&description.state)) {
            let message = format!("node {} has a database, which is `{}`", node.node, node.state);
            return Err(Refusal::new(code, message).into());
        }
        // Planned before it is registered, so that a target that cannot be reached leaves nothing behind.
        self.plan_restore(&aim).await?;
        let term = self.register(&footing, OperationKind::Restore, footing.next, None).await?;
        let planned = self.plan(&footing, &aim, term.operation).await;
        let plan = match planned {
            Ok(planned) => Plan { delta: manner.delta, ..planned.plan },
            Err(error) => {
                let registered = self.repository.registered(term.operation).await?;
                self.bury(&registered, term, &error).await?;
                return Err(error);
            }
        };
        let body = format::write(&plan);
        let hash = ContentHash::of(&body);
        self.repository.put_hashed(&keys::plan(term.operation, hash), body).await?;
        self.run_restore(&footing, term, plan, hash, Course::to_the_end(manner)).await
    }

    /// Two restores must not make two live clusters: the nodes that the first one has opened may still serve.
    async fn check_opened(&self, footing: &Footing) -> Result<()> {
        let Some((restore, missing)) = self.half_open(footing).await? else { return Ok(()) };
        let (opens, missing) = (footing.incarnation, name_nodes(&missing));
        let message = format!("{restore} has decided on incarnation {opens}, and not opened {missing}");
        Err(Refusal::new(Code::RestoreUnfinished, message).into())
    }

    /// The restore that has opened the incarnation in force, if there are nodes that it has not opened yet.
    pub(super) async fn half_open(&self, footing: &Footing) -> Result<Option<(OperationId, Vec<NodeId>)>> {
        let object: IncarnationObject = self.repository.load(&keys::incarnation(footing.incarnation)).await?;
        let Some(restore) = object.restore else { return Ok(None) };
        let opened = self.repository.opened_by(restore).await?;
        let members = self.repository.membership(footing.opened.membership).await?;
        let missing: Vec<NodeId> = members.nodes.keys().copied().filter(|node| !opened.contains(node)).collect();
        Ok((!missing.is_empty()).then_some((restore, missing)))
    }

    /// Takes up a restore whose coordinator is gone, or that stopped at its cut. A node that lost its disk before it had
    /// opened is staged again to the same cut.
    ///
    /// # Errors
    /// `SA208` if there is no such restore, `SA207` if it was aborted, `SA402` if another has opened its incarnation,
    /// `SA108` if the cluster was restored again since, `SA409` if a node lost its disk after it had opened: the others
    /// are opened; those of [`Coordinator::restore`].
    pub async fn resume(&self, operation: OperationId) -> Result<Restored> {
        let footing = self.footing_or_unopened().await?;
        let registered = self.repository.registered(operation).await?;
        let (hash, plan) = self.repository.newest_plan(operation).await?;
        let key = keys::incarnation(registered.incarnation);
        let decided = match self.repository.find::<IncarnationObject>(&key).await? {
            None => None,
            Some(object) => {
                let opened = check_own(&object, operation)?;
                let cut = opened.begins().cloned();
                if footing.incarnation != plan.opens {
                    let (opens, now) = (plan.opens, footing.incarnation);
                    let message = format!("{operation} has opened incarnation {opens}; the cluster lives in {now}");
                    return Err(Refusal::new(Code::OtherIncarnation, message).into());
                }
                // Where the cut was sought, all nodes have found it: it is known now.
                Some(cut.unwrap_or_else(|| plan.cut.clone()))
            }
        };
        let nonce = self.nonce();
        let epoch = self.repository.take_over(operation, nonce).await?;
        let course = Course { decided, stop: false };
        self.run_restore(&footing, Term { operation, epoch, nonce }, plan, hash, course).await
    }

    pub(super) async fn run_restore(
        &self,
        footing: &Footing,
        term: Term,
        plan: Plan,
        hash: ContentHash,
        course: Course,
    ) -> Result<Restored> {
        let Course { decided, stop } = course;
        let order = Order {
            nodes: plan.nodes.keys().copied().collect(),
            units: plan.units.keys().copied().collect(),
            plan: hash,
            sought: plan.resolved.sought && decided.is_none(),
            decided: decided.is_some(),
            delta: plan.delta,
            cut: decided.unwrap_or_else(|| plan.cut.clone()),
            stop,
            limits: self.limits.restore,
        };
        let mut machine = Restore::new(order);
        let performer = RestorePerformer { coordinator: self, footing, term, plan: &plan, hash };
        let outcome: Result<()> =
            pump::run(&self.env, term.operation, &mut machine, &performer, &self.cancel, self.watcher.as_deref()).await;
        let settled = self.settle_source(performer.plan, outcome.is_ok() && !stop).await;
        outcome?;
        settled?;
        let phase = if stop { "stopped" } else { "opened" };
        tracing::info!(target: "sheetanchor::phase", operation = %term.operation, incarnation = %plan.opens, phase);
        let in_doubt = resolutions(&self.repository, term.operation).await?;
        Ok(Restored { operation: term.operation, plan, in_doubt, is_open: !stop })
    }

    /// Makes failure the outcome of a restore: the number of its incarnation is never used.
    pub(super) async fn bury(&self, registered: &Registered, term: Term, why: &Error) -> Result<()> {
        let tombstone = IncarnationObject {
            incarnation: registered.incarnation,
            nonce: term.nonce,
            restore: Some(term.operation),
            state: IncarnationState::Aborted(abort_of(why)),
        };
        match self.repository.create(&keys::incarnation(registered.incarnation), &tombstone).await? {
            Created::Ours => Ok(()),
            Created::Theirs(theirs) => match theirs.state {
                IncarnationState::Opened(_) if theirs.restore == Some(term.operation) => {
                    let message = format!("{} has opened incarnation {}", term.operation, registered.incarnation);
                    Err(Refusal::new(Code::Aborted, message).into())
                }
                // It can never open: the number belongs to somebody else, or to its own tombstone.
                IncarnationState::Opened(_) | IncarnationState::Aborted(_) => Ok(()),
            },
        }
    }
}

/// What a restore's number stands for, if it lets the restore open.
fn check_own(object: &IncarnationObject, operation: OperationId) -> Result<&Opened, Refusal> {
    match &object.state {
        IncarnationState::Opened(opened) if object.restore == Some(operation) => Ok(opened),
        IncarnationState::Aborted(abort) if object.restore == Some(operation) => {
            Err(Refusal::new(Code::Aborted, format!("{operation} was aborted: {}", abort.message)))
        }
        IncarnationState::Opened(_) | IncarnationState::Aborted(_) => {
            let by = object.restore.map_or_else(|| "nobody".to_string(), |other| other.to_string());
            Err(Refusal::new(Code::IncarnationTaken, format!("incarnation {} belongs to {by}", object.incarnation)))
        }
    }
}

/// Where a restore begins, and where it ends.
pub(super) struct Course {
    /// The cut that it was decided at, if it was.
    decided: Option<Cut>,
    /// Whether it ends there, closed.
    stop: bool,
}

impl Course {
    /// From the beginning, as far as the operator wants.
    pub(super) fn to_the_end(manner: Manner) -> Self {
        Self { decided: None, stop: manner.stop }
    }
}

pub(super) struct RestorePerformer<'a> {
    pub(super) coordinator: &'a Coordinator,
    pub(super) footing: &'a Footing,
    pub(super) term: Term,
    pub(super) plan: &'a Plan,
    pub(super) hash: ContentHash,
}

impl RestorePerformer<'_> {
    /// Asks until the node answers: it may restart meanwhile, and then knows nothing of the operation.
    pub(super) async fn ask(&self, node: NodeId, request: &Request) -> Result<Answer> {
        let header = self.footing.header(node, Some(self.term));
        let mut unknown = 0;
        loop {
            let answer = async {
                self.coordinator.caller.ask(&header, &Request::Enlist { fence: false }).await?;
                if let (Request::Stage { .. }, Some(rate)) = (request, self.coordinator.rate) {
                    self.coordinator.caller.ask(&header, &Request::Throttle { rate }).await?;
                }
                self.coordinator.caller.ask(&header, request).await
            };
            match answer.await {
                Err(Error::Refusal(refusal)) if refusal.code == Code::NodeSilent => {}
                Err(Error::Refusal(refusal)) if refusal.code == Code::OutOfOrder && unknown < UNKNOWN_MAX => {
                    unknown += 1;
                }
                answer => return answer,
            }
            self.coordinator.env.clock.sleep(AGAIN_AFTER).await;
        }
    }

    async fn decide(&self, cut: Cut) -> Result<()> {
        let wall = self.coordinator.env.clock.wall();
        let opened = Opened {
            origin: origin_of(self.plan, &cut),
            // A clone begins a lineage of its own.
            branch: self.plan.source.is_none().then_some(Branch { cut, parent: self.plan.incarnation }),
            membership: self.plan.membership,
            opened_ms: wall,
            scn_floor: self.plan.scn_floor,
            // A history that ran ahead of the clock must not stop its successor.
            scn_offset_ms: self.plan.scn_floor.millis().saturating_sub(wall.get()),
        };
        let object = IncarnationObject {
            incarnation: self.plan.opens,
            nonce: self.term.nonce,
            restore: Some(self.term.operation),
            state: IncarnationState::Opened(opened),
        };
        let number: Incarnation = self.plan.opens;
        match self.coordinator.repository.create(&keys::incarnation(number), &object).await? {
            Created::Ours => Ok(()),
            Created::Theirs(theirs) => Ok(check_own(&theirs, self.term.operation).map(drop)?),
        }
    }
}

impl Perform<Restore, Result<()>> for RestorePerformer<'_> {
    fn perform(&self, effect: Effect) -> BoxFuture<'_, Performed<Event, Result<()>>> {
        Box::pin(async move {
            match effect {
                Effect::Ask(step, node, request) => {
                    Performed::Event(Event::Answered(step, node, self.ask(node, &request).await))
                }
                Effect::Judge(in_doubt) => Performed::Event(Event::Judged(self.judge(&in_doubt).await)),
                Effect::Decide(cut) => Performed::Event(Event::Settled(self.decide(cut).await)),
                Effect::Abort(why) => {
                    let registered = self.coordinator.repository.registered(self.term.operation).await;
                    let buried = match registered {
                        Ok(registered) => self.coordinator.bury(&registered, self.term, &why).await,
                        Err(error) => Err(error),
                    };
                    Performed::Event(Event::Settled(buried))
                }
                Effect::Finish(outcome) => Performed::Finished(outcome),
            }
        })
    }
}
