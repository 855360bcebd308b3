//! Makes a cluster of its own from another one's repository: a clone. The other repository is only read, but for the one
//! operation that holds the backup there against expiry; the nodes of the clone cannot even do that.

use alloc::format;
use alloc::sync::Arc;

use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::format::catalog::{
    Abort, Cluster, Cut, Ending, IncarnationObject, IncarnationState, Members, Opened, Origin, Outcome, Registered,
};
use sheetanchor_core::format::manifest::Plan;
use sheetanchor_core::format::{self, keys};
use sheetanchor_core::identity::{ClusterId, ContentHash, Incarnation, Membership, OperationId, OperationKind};
use sheetanchor_core::plan::Aim;
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;

use super::restore::Course;
use super::{Coordinator, Footing, Manner, Planned, Restored, Term};
use crate::env::Bucket;
use crate::read_only::ReadOnly;
use crate::repository::{Created, Repository};

/// A clone's own first incarnation.
const FIRST: Incarnation = Incarnation::new(1);

impl Coordinator {
    /// Names the repository that clones are made from.
    #[must_use]
    pub fn cloning_from(mut self, source: Arc<dyn Bucket>) -> Self {
        self.source = Some(source);
        self
    }

    /// What a clone would be made from. Changes nothing.
    ///
    /// # Errors
    /// `SA412` if no source is named; those of [`Coordinator::plan_restore`], of the source.
    pub async fn plan_clone(&self, aim: impl Into<Aim> + Send) -> Result<Planned> {
        let origin = self.origin()?;
        let from = origin.footing_of_any_name().await?;
        origin.plan(&from, &aim.into(), self.new_id(OperationKind::Restore)).await
    }

    /// Restores the source's cluster to a target as a cluster of its own: with another identity, in this repository, which
    /// must be empty, as the first incarnation of a lineage of its own. Meanwhile the source holds its backups against
    /// expiry, unless `unheld`.
    ///
    /// # Errors
    /// `SA412` if no source is named; `SA103` if the repository is not empty; `SA104`, `SA401` if a node is not; `SA105` if
    /// the source has other nodes; `SA411` if the source cannot be held; those of [`Coordinator::restore`].
    pub async fn clone_cluster(&self, aim: impl Into<Aim> + Send, manner: Manner, unheld: bool) -> Result<Restored> {
        let aim = aim.into();
        let origin = self.origin()?;
        let from = origin.footing_of_any_name().await?;
        if let Some(cluster) = self.repository.find::<Cluster>(keys::CLUSTER).await? {
            let message = format!("the repository holds cluster `{}`; a clone needs an empty one", cluster.name);
            return Err(Refusal::new(Code::AlreadyInitialised, message).into());
        }
        self.check_repository_is_empty().await?;
        self.check_nodes_are_empty(&from).await?;
        let operation = self.new_id(OperationKind::Restore);
        // Planned before it is held, so that a target that cannot be reached leaves nothing behind.
        origin.plan(&from, &aim, operation).await?;
        if !unheld {
            self.hold_source(&from, operation).await?;
        }
        let begun = async {
            let plan = origin.plan(&from, &aim, operation).await?.plan;
            self.found(&from, plan).await
        };
        let (footing, term, plan, hash) = match begun.await {
            Ok(begun) => begun,
            Err(error) => {
                let result = Ending::Aborted(super::abort_of(&error));
                self.let_source_go(operation, result).await?;
                return Err(error);
            }
        };
        self.run_restore(&footing, term, plan, hash, Course::to_the_end(manner)).await
    }

    /// Where the backup and the WAL of a plan lie: a clone's are another cluster's, and only read.
    pub(super) fn repository_of(&self, plan: &Plan) -> Result<Repository> {
        Ok(if plan.source.is_some() { self.origin()?.repository } else { self.repository.clone() })
    }

    /// The source's side: a coordinator that can only read there.
    fn origin(&self) -> Result<Self> {
        let none = || Refusal::new(Code::SourceUnnamed, "there is no source to clone from");
        let source = ReadOnly::new(self.source.clone().ok_or_else(none)?);
        Ok(Self { repository: Repository::read_only(source, &self.env), source: None, ..self.clone() })
    }

    async fn check_nodes_are_empty(&self, from: &Footing) -> Result<()> {
        for (node, description) in self.describe_all().await {
            let description = description?;
            if let Some(cluster) = description.cluster {
                return Err(
                    Refusal::new(Code::OtherCluster, format!("node {node} belongs to cluster {cluster}")).into()
                );
            }
            if description.state != "empty" {
                let message = format!("node {node} has a database, which is `{}`", description.state);
                return Err(Refusal::new(Code::FolderNotEmpty, message).into());
            }
            if (&description.engine, description.shared) != (&from.members.engine, from.members.shared) {
                let message = format!("node {node} runs {}, the source {}", description.engine, from.members.engine);
                return Err(Refusal::new(Code::ConfigInvalid, message).into());
            }
        }
        Ok(())
    }

    /// Founds the clone in its own repository: who it is, its members, and what is to be done.
    async fn found(&self, from: &Footing, of: Plan) -> Result<(Footing, Term, Plan, ContentHash)> {
        let id = if planted::is(Bug::CloneKeepsIdentity) { from.cluster.id } else { self.another_id(from.cluster.id) };
        let (name, nonce) = (self.setup.name.clone(), self.nonce());
        let cluster = Cluster { created_ms: self.env.clock.wall(), id, name, nonce };
        let members = Members { membership: Membership::new(1), nonce: self.nonce(), ..from.members.clone() };
        let plan =
            Plan { cluster: id, membership: members.membership, opens: FIRST, source: Some(from.cluster.id), ..of };
        if let Created::Theirs(theirs) = self.repository.create(keys::CLUSTER, &cluster).await? {
            let message = format!("the repository has just become that of cluster `{}`", theirs.name);
            return Err(Refusal::new(Code::AlreadyInitialised, message).into());
        }
        self.repository.create(&keys::members(members.membership), &members).await?;
        let term = Term { operation: plan.operation, epoch: sheetanchor_core::identity::Epoch::new(1), nonce };
        let body = format::write(&plan);
        let hash = ContentHash::of(&body);
        self.repository.put_hashed(&keys::plan(term.operation, hash), body).await?;
        let (operation, membership) = (term.operation, members.membership);
        let registered = Registered { incarnation: FIRST, label: None, membership, nonce, operation };
        let epoch = self.repository.register(&registered).await?;
        tracing::info!(target: "sheetanchor::phase", operation = %operation, source = %from.cluster.id, phase = "registered");
        Ok((unopened(cluster, members), Term { epoch, ..term }, plan, hash))
    }

    fn another_id(&self, taken: ClusterId) -> ClusterId {
        let id = ClusterId::new(self.env.entropy.word());
        if id == taken { ClusterId::new(id.get().wrapping_add(1)) } else { id }
    }

    /// What a restore stands on: a clone that is not open yet has no incarnation.
    pub(super) async fn footing_or_unopened(&self) -> Result<Footing> {
        match self.repository.current_incarnation().await {
            Err(Error::Refusal(refusal)) if refusal.code == Code::NotInitialised => {
                Ok(unopened(self.repository.cluster().await?, self.repository.members().await?))
            }
            Err(error) => Err(error),
            Ok(_) => self.footing().await,
        }
    }

    /// Registers the clone in the source's repository: until that has an outcome, expiry waits.
    async fn hold_source(&self, from: &Footing, operation: OperationId) -> Result<()> {
        let Some(source) = self.source.clone() else { return Ok(()) };
        let (operation, nonce) = (operation.as_kind(OperationKind::Clone), self.nonce());
        let (incarnation, membership) = (from.incarnation, from.members.membership);
        let registered = Registered { incarnation, label: None, membership, nonce, operation };
        match Repository::of(source, &self.env).register(&registered).await {
            Ok(_) => Ok(()),
            Err(Error::Fault(fault)) => {
                let message = format!("{operation} cannot be registered in the source's repository: {fault}");
                Err(Refusal::new(Code::SourceUnheld, message).into())
            }
            Err(error) => Err(error),
        }
    }

    /// Ends the hold on the source, if there is one. A source that does not answer any more is no reason to fail: what
    /// stays held there is shown to its operators, who can end it.
    async fn let_source_go(&self, operation: OperationId, result: Ending) -> Result<()> {
        let Some(source) = self.source.clone() else { return Ok(()) };
        let (source, operation) = (Repository::of(source, &self.env), operation.as_kind(OperationKind::Clone));
        let told = async {
            if source.find::<Registered>(&keys::registration(operation)).await?.is_none() {
                return Ok(());
            }
            let outcome = Outcome { nonce: self.nonce(), operation, result };
            // Somebody at the source may have ended it before.
            source.create(&keys::outcome(operation), &outcome).await.map(drop)
        };
        match told.await {
            Err(Error::Fault(fault)) => {
                tracing::warn!(target: "sheetanchor::phase", %operation, %fault, "the source could not be told");
                Ok(())
            }
            told => told,
        }
    }

    /// What a run of a clone's restore leaves at its source: a hold, until the clone is open on every node or dead.
    pub(super) async fn settle_source(&self, plan: &Plan, is_done: bool) -> Result<()> {
        if plan.source.is_none() {
            return Ok(());
        }
        if is_done {
            return self.let_source_go(plan.operation, Ending::Cloned(plan.cluster)).await;
        }
        match self.repository.find::<IncarnationObject>(&keys::incarnation(plan.opens)).await? {
            Some(IncarnationObject { state: IncarnationState::Aborted(Abort { code, message }), .. }) => {
                self.let_source_go(plan.operation, Ending::Aborted(Abort { code, message })).await
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// What a clone was made from; nothing for a restore in the cluster's own lineage.
pub(super) fn origin_of(plan: &Plan, cut: &Cut) -> Option<Origin> {
    let (backup, incarnation) = (plan.backup, plan.incarnation);
    plan.source.map(|cluster| Origin { backup, cluster, cut: cut.clone(), incarnation })
}

/// A cluster that no incarnation was opened of.
fn unopened(cluster: Cluster, members: Members) -> Footing {
    let opened = Opened {
        branch: None,
        membership: members.membership,
        origin: None,
        opened_ms: cluster.created_ms,
        scn_floor: Scn::ZERO,
        scn_offset_ms: 0,
    };
    Footing { cluster, members, incarnation: FIRST, opened, next: FIRST, two_phase: false, stamped: false }
}
