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

use super::in_doubt::resolutions;
use super::{Coordinator, Footing, Term, abort_of};
use crate::pump::{self, Perform, Performed};
use crate::repository::Created;

/// How long to wait before a silent node is asked again.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// How often a node that has just restarted may say that it does not know the operation.
const UNKNOWN_MAX: usize = 5;

/// A restore that has opened a new incarnation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Which restore.
    pub operation: OperationId,
    /// What it did.
    pub plan: Plan,
    /// What it decided of every transaction that was in doubt at the cut.
    pub in_doubt: Vec<Resolved>,
}

impl Restored {
    /// What is said about the nodes together: the cut's guarantee, unless something was left in doubt.
    pub fn guarantee(&self) -> Guarantee {
        let left = self.in_doubt.iter().any(|half| matches!(half.verdict, Verdict::Left(_)));
        if left { self.plan.guarantee.min(Guarantee::Causal) } else { self.plan.guarantee }
    }
}

impl Coordinator {
    /// Restores every node to a target and opens a new incarnation there.
    ///
    /// # Errors
    /// Those of [`Coordinator::plan_restore`]; `SA401` if a node still has a database; whatever the nodes refuse with.
    /// Then what was staged is removed again, unless the incarnation was opened: that restore can be resumed.
    pub async fn restore(&self, aim: impl Into<Aim> + Send) -> Result<Restored> {
        let aim = aim.into();
        let footing = self.footing().await?;
        let seen = self.survey(&footing).await?;
        if let Some(node) = seen.values().find(|description| description.state != "empty") {
            let message = format!("node {} has a database, which is `{}`", node.node, node.state);
            return Err(Refusal::new(Code::FolderNotEmpty, message).into());
        }
        // Planned before it is registered, so that a target that cannot be reached leaves nothing behind.
        self.plan_restore(&aim).await?;
        let term = self.register(&footing, OperationKind::Restore, footing.next, None).await?;
        let planned = self.plan(&footing, &aim, term.operation).await;
        let plan = match planned {
            Ok(planned) => planned.plan,
            Err(error) => {
                let registered = self.repository.registered(term.operation).await?;
                self.bury(&registered, term, &error).await?;
                return Err(error);
            }
        };
        let body = format::write(&plan);
        let hash = ContentHash::of(&body);
        self.repository.put_hashed(&keys::plan(term.operation, hash), body).await?;
        self.run_restore(&footing, term, plan, hash, false).await
    }

    /// Takes up a restore whose coordinator is gone.
    ///
    /// # Errors
    /// `SA208` if there is no such restore, `SA207` if it was aborted, `SA402` if another has opened its incarnation;
    /// those of [`Coordinator::restore`].
    pub async fn resume(&self, operation: OperationId) -> Result<Restored> {
        let footing = self.footing().await?;
        let registered = self.repository.registered(operation).await?;
        let (hash, plan) = self.repository.newest_plan(operation).await?;
        let decided =
            match self.repository.find::<IncarnationObject>(&keys::incarnation(registered.incarnation)).await? {
                None => false,
                Some(object) => {
                    check_own(&object, operation)?;
                    true
                }
            };
        let nonce = self.nonce();
        let epoch = self.repository.take_over(operation, nonce).await?;
        self.run_restore(&footing, Term { operation, epoch, nonce }, plan, hash, decided).await
    }

    async fn run_restore(
        &self,
        footing: &Footing,
        term: Term,
        plan: Plan,
        hash: ContentHash,
        decided: bool,
    ) -> Result<Restored> {
        let order = Order {
            nodes: plan.nodes.keys().copied().collect(),
            units: plan.units.keys().copied().collect(),
            plan: hash,
            cut: plan.cut.clone(),
            sought: plan.resolved.sought,
            decided,
            limits: self.limits.restore,
        };
        let mut machine = Restore::new(order);
        let performer = RestorePerformer { coordinator: self, footing, term, plan: &plan, hash };
        let outcome: Result<()> =
            pump::run(&self.env, term.operation, &mut machine, &performer, &self.cancel, self.watcher.as_deref()).await;
        outcome?;
        tracing::info!(target: "sheetanchor::phase", operation = %term.operation, incarnation = %plan.opens, phase = "opened");
        let in_doubt = resolutions(&self.repository, term.operation).await?;
        Ok(Restored { operation: term.operation, plan, in_doubt })
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

/// Whether the object under a restore's number lets it open.
fn check_own(object: &IncarnationObject, operation: OperationId) -> Result<(), Refusal> {
    match &object.state {
        IncarnationState::Opened(_) if object.restore == Some(operation) => Ok(()),
        IncarnationState::Aborted(abort) if object.restore == Some(operation) => {
            Err(Refusal::new(Code::Aborted, format!("{operation} was aborted: {}", abort.message)))
        }
        IncarnationState::Opened(_) | IncarnationState::Aborted(_) => {
            let by = object.restore.map_or_else(|| "nobody".to_string(), |other| other.to_string());
            Err(Refusal::new(Code::IncarnationTaken, format!("incarnation {} belongs to {by}", object.incarnation)))
        }
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
            branch: Some(Branch { cut, parent: self.plan.incarnation }),
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
            Created::Theirs(theirs) => Ok(check_own(&theirs, self.term.operation)?),
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
