//! Plans and runs a restore.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::time::Duration;

use futures_util::future::BoxFuture;
use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::format::catalog::{Branch, IncarnationObject, IncarnationState, Opened, Registered};
use sheetanchor_core::format::manifest::{Manifest, Plan};
use sheetanchor_core::format::{self, keys};
use sheetanchor_core::identity::{ContentHash, Incarnation, NodeId, OperationId, OperationKind, ThreadId};
use sheetanchor_core::plan::{Choice, Reach, Target, choices, high_water, threads};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Answer, Request};
use sheetanchor_core::restore::{Effect, Event, Order, Restore};
use sheetanchor_core::scn::Scn;

use super::{Coordinator, Footing, Term, abort_of};
use crate::pump::{self, Perform, Performed};
use crate::repository::Created;

/// How long to wait before a silent node is asked again.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// How often a node that has just restarted may say that it does not know the operation.
const UNKNOWN_MAX: usize = 5;

/// What a restore would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The plan as it would be written; its operation is registered only by [`Coordinator::restore`].
    pub plan: Plan,
    /// What the target resolved to, in words.
    pub resolved: alloc::string::String,
    /// Newer cuts that `latest` passed over, and why.
    pub passed_over: Vec<Refusal>,
}

/// A restore that has opened a new incarnation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Which restore.
    pub operation: OperationId,
    /// What it did.
    pub plan: Plan,
}

impl Coordinator {
    /// Resolves a target and lists everything that restoring to it takes. Changes nothing.
    ///
    /// # Errors
    /// `SA301`, `SA302`, `SA303`, `SA501`; `SA002`, `SA003`, `SA504` if the repository is damaged.
    pub async fn plan_restore(&self, target: &Target) -> Result<Planned> {
        let footing = self.footing().await?;
        self.plan(&footing, target, self.new_id(OperationKind::Restore)).await
    }

    async fn plan(&self, footing: &Footing, target: &Target, operation: OperationId) -> Result<Planned> {
        let catalog = self.repository.catalog(footing.incarnation).await?;
        let mut passed_over = Vec::new();
        for choice in choices(&catalog, target)? {
            let seal = catalog.backups.iter().find(|(id, _)| *id == choice.backup).map(|(_, seal)| seal);
            let Some(seal) = seal else { continue };
            let manifest = self.repository.manifest(choice.backup, seal).await?;
            let archive = self.archive_of(&manifest).await?;
            let wal = match threads(&manifest, &choice, &archive) {
                Ok(wal) => wal,
                Err(refusal) if matches!(refusal.code, Code::NotReachable | Code::WalGap) => {
                    passed_over.push(refusal);
                    continue;
                }
                Err(refusal) => return Err(refusal.into()),
            };
            let scn_floor = self.high_water(footing).await?;
            let resolved = choice.resolved.clone();
            let plan = plan_of(footing, target, operation, manifest, choice, wal, scn_floor);
            return Ok(Planned { plan, resolved, passed_over });
        }
        let none = || Refusal::new(Code::NotReachable, "the archive reaches no cut");
        Err(passed_over.into_iter().next().unwrap_or_else(none).into())
    }

    pub(super) async fn archive_of(&self, manifest: &Manifest) -> Result<BTreeMap<ThreadId, Reach>> {
        let mut archive = BTreeMap::new();
        for (thread, span) in &manifest.threads {
            let headers = self.repository.wal_headers(manifest.incarnation, *thread).await?;
            let headers = headers.into_iter().filter(|(_, header)| header.timeline == span.timeline).collect();
            archive.insert(*thread, Reach::from(span.start, headers));
        }
        Ok(archive)
    }

    /// Above every SCN that any incarnation has used, as far as anything of it is left.
    async fn high_water(&self, footing: &Footing) -> Result<Scn> {
        let mut highest = footing.opened.scn_floor;
        for object in self.repository.incarnations().await? {
            let IncarnationState::Opened(opened) = object.state else { continue };
            let catalog = self.repository.catalog(object.incarnation).await?;
            let members = self.repository.membership(opened.membership).await?;
            let ends = self.repository.wal_ends(object.incarnation, &members).await?;
            let archived = ends.values().filter_map(|header| header.scn_last);
            highest = highest.max(opened.scn_floor).max(high_water(&catalog, archived));
        }
        Ok(highest)
    }

    /// Restores every node to `target` and opens a new incarnation there.
    ///
    /// # Errors
    /// Those of [`Coordinator::plan_restore`]; `SA401` if a node still has a database; whatever the nodes refuse with.
    /// Then what was staged is removed again, unless the incarnation was opened: that restore can be resumed.
    pub async fn restore(&self, target: &Target) -> Result<Restored> {
        let footing = self.footing().await?;
        let seen = self.survey(&footing).await?;
        if let Some(node) = seen.values().find(|description| description.state != "empty") {
            let message = format!("node {} has a database, which is `{}`", node.node, node.state);
            return Err(Refusal::new(Code::FolderNotEmpty, message).into());
        }
        // Planned before it is registered, so that a target that cannot be reached leaves nothing behind.
        self.plan_restore(target).await?;
        let term = self.register(&footing, OperationKind::Restore, footing.next, None).await?;
        let planned = self.plan(&footing, target, term.operation).await;
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
        let prefix = format!("operations/{operation}/plan-");
        let plans = self.repository.bucket().list(&prefix).await?;
        let hash: ContentHash =
            plans.first().and_then(|key| key.strip_prefix(&prefix)).and_then(|hash| hash.parse().ok()).ok_or_else(
                || Refusal::new(Code::OutOfOrder, format!("{operation} came to no plan: abort it and start again")),
            )?;
        let plan = self.repository.plan(operation, hash).await?;
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
            decided,
            limits: self.limits.restore,
        };
        let mut machine = Restore::new(order);
        let performer = RestorePerformer { coordinator: self, footing, term, plan: &plan };
        let outcome: Result<()> =
            pump::run(&self.env, term.operation, &mut machine, &performer, &self.cancel, self.watcher.as_deref()).await;
        outcome?;
        tracing::info!(target: "sheetanchor::phase", operation = %term.operation, incarnation = %plan.opens, phase = "opened");
        Ok(Restored { operation: term.operation, plan })
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

fn plan_of(
    footing: &Footing,
    target: &Target,
    operation: OperationId,
    manifest: Manifest,
    choice: Choice,
    wal: BTreeMap<ThreadId, sheetanchor_core::format::manifest::ThreadPlan>,
    scn_floor: Scn,
) -> Plan {
    Plan {
        backup: choice.backup,
        begun_scn: manifest.begun_scn,
        cluster: manifest.cluster,
        cut: choice.cut,
        engine: manifest.engine,
        guarantee: choice.guarantee,
        incarnation: choice.incarnation,
        membership: manifest.membership,
        nodes: manifest.nodes,
        opens: footing.next,
        operation,
        scn_floor,
        shared: manifest.shared,
        target: target.to_string(),
        threads: wal,
        units: manifest.units,
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

struct RestorePerformer<'a> {
    coordinator: &'a Coordinator,
    footing: &'a Footing,
    term: Term,
    plan: &'a Plan,
}

impl RestorePerformer<'_> {
    /// Asks until the node answers: it may restart meanwhile, and then knows nothing of the operation.
    async fn ask(&self, node: NodeId, request: &Request) -> Result<Answer> {
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

    async fn decide(&self) -> Result<()> {
        let wall = self.coordinator.env.clock.wall();
        let opened = Opened {
            branch: Some(Branch { cut: self.plan.cut.clone(), parent: self.plan.incarnation }),
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
                Effect::Decide => Performed::Event(Event::Settled(self.decide().await)),
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
