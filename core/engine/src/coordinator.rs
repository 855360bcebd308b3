//! The coordinator of one operation at a time. Anybody may be one: what it needs lies in the repository, and what it
//! leaves behind ends by itself or is ended by whoever takes over.

mod backup;
mod copy;
mod expire;
mod in_doubt;
mod init;
mod look;
mod plan;
mod point;
mod proof;
mod restore;
mod schedule;
mod views;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use futures_util::future::{join_all, try_join_all};
use sheetanchor_core::compression::Compression;
use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::format::catalog::{Abort, Cluster, Ending, Members, Opened, Outcome, Registered};
use sheetanchor_core::identity::{
    Epoch, HoldId, Incarnation, Membership, NodeId, Nonce, OperationId, OperationKind, PointName,
};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Answer, Description, Header, Request};
use sheetanchor_core::throttle::Rate;
use sheetanchor_core::{backup as backup_machine, point as point_machine, restore as restore_machine};

pub use backup::Sealed;
pub use expire::Expired;
pub use look::{ClusterStatus, NodeStatus};
pub use plan::Planned;
pub use proof::{ReadBack, Verified};
pub use restore::{Manner, Restored};
pub use schedule::{Every, Tick};

use crate::caller::Caller;
use crate::env::{Bucket, Env};
use crate::pump::{Cancel, Watcher};
use crate::repository::Repository;
use crate::watched::Watched;

/// What the cluster file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// What the cluster is called.
    pub name: String,
    /// Where each node's agent listens.
    pub addresses: BTreeMap<NodeId, String>,
}

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of a restore point.
    pub point: point_machine::Limits,
    /// Of a backup.
    pub backup: backup_machine::Limits,
    /// Of a restore.
    pub restore: restore_machine::Limits,
    /// How long a fence that is busy, or that failed at the end of a backup, is tried again.
    pub retry: Duration,
    /// How far apart the nodes' clocks may be: what the engine's drift bound is. Plans state it with a time.
    pub clock_bound: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            point: point_machine::Limits::default(),
            backup: backup_machine::Limits::default(),
            restore: restore_machine::Limits::default(),
            retry: Duration::from_secs(20),
            clock_bound: Duration::from_mins(1),
        }
    }
}

/// Runs operations over one cluster.
#[derive(Clone)]
pub struct Coordinator {
    env: Env,
    repository: Repository,
    caller: Arc<Caller>,
    setup: Setup,
    limits: Limits,
    cancel: Cancel,
    watcher: Option<Arc<dyn Watcher>>,
    /// The repository that clones are made from.
    source: Option<Arc<dyn Bucket>>,
    read_back: ReadBack,
    /// How fast a backup may read each node's files, and a restore put them in place.
    rate: Option<Rate>,
    /// How what a backup copies is packed.
    compression: Compression,
}

impl core::fmt::Debug for Coordinator {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.debug_struct("Coordinator").field("setup", &self.setup).finish_non_exhaustive()
    }
}

/// What every operation stands on, read from the repository once at its start.
#[derive(Clone, Debug)]
struct Footing {
    cluster: Cluster,
    members: Members,
    incarnation: Incarnation,
    opened: Opened,
    next: Incarnation,
    /// Whether every node has said that transactions over several nodes are committed by two-phase commit.
    two_phase: bool,
    /// Whether every node has said that its WAL carries SCNs.
    stamped: bool,
}

impl Footing {
    fn header(&self, node: NodeId, term: Option<Term>) -> Header {
        Header {
            cluster: self.cluster.id,
            membership: self.members.membership,
            incarnation: self.incarnation,
            node,
            operation: term.map(|term| term.operation),
            epoch: term.map(|term| term.epoch).unwrap_or_default(),
        }
    }
}

/// One operation, as its coordinator speaks of it.
#[derive(Clone, Copy, Debug)]
struct Term {
    operation: OperationId,
    epoch: Epoch,
    nonce: Nonce,
}

impl Coordinator {
    /// A coordinator for the cluster that `setup` describes. `cancel` never asks for an end unless
    /// [`Coordinator::cancelled_by`] says who may.
    pub fn new(env: Env, setup: Setup, limits: Limits) -> Self {
        let (repository, caller) = (Repository::new(&env), Caller::new(env.clone(), setup.addresses.clone()));
        let cancel = Arc::new(Watched::new(false));
        let (watcher, source, read_back, rate) = (None, None, ReadBack::default(), None);
        let compression = Compression::default();
        Self { env, repository, caller, setup, limits, cancel, watcher, source, read_back, rate, compression }
    }

    /// Lets an operator end the operations that are started from here on.
    #[must_use]
    pub fn cancelled_by(mut self, cancel: Cancel) -> Self {
        self.cancel = cancel;
        self
    }

    /// Shows phases as they come.
    #[must_use]
    pub fn watched_by(mut self, watcher: Arc<dyn Watcher>) -> Self {
        self.watcher = Some(watcher);
        self
    }

    /// How much of a backup is read again before it is sealed; everything if nothing is said.
    #[must_use]
    pub fn reading_back(mut self, read_back: ReadBack) -> Self {
        self.read_back = read_back;
        self
    }

    /// How fast a backup may read each node's files, and a restore put them in place; as fast as they can if nothing is said.
    /// A restore that is taken up goes on at the rate that its nodes know, unless another one is said.
    #[must_use]
    pub fn at_rate(mut self, rate: Option<Rate>) -> Self {
        self.rate = rate;
        self
    }

    /// How what a backup copies is packed; by zstd if nothing is said.
    #[must_use]
    pub fn packing_by(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// The repository that it works with.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    async fn footing(&self) -> Result<Footing> {
        let footing = self.footing_of_any_name().await?;
        if footing.cluster.name != self.setup.name {
            let (name, wanted) = (&footing.cluster.name, &self.setup.name);
            let message = format!("the repository is of cluster `{name}`, the cluster file of `{wanted}`");
            return Err(Refusal::new(Code::OtherCluster, message).into());
        }
        Ok(footing)
    }

    async fn footing_of_any_name(&self) -> Result<Footing> {
        let (cluster, members) = (self.repository.cluster().await?, self.repository.members().await?);
        let (incarnation, opened, next) = self.repository.current_incarnation().await?;
        if !members.nodes.keys().eq(self.setup.addresses.keys()) {
            let list = |nodes: Vec<&NodeId>| nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let (wanted, given) = (list(members.nodes.keys().collect()), list(self.setup.addresses.keys().collect()));
            let message = format!("the cluster has nodes {wanted}, the cluster file lists {given}");
            return Err(Refusal::new(Code::OtherMembership, message).into());
        }
        Ok(Footing { cluster, members, incarnation, opened, next, two_phase: false, stamped: false })
    }

    /// Every node's description, or why there is none.
    pub async fn describe_all(&self) -> BTreeMap<NodeId, Result<Description>> {
        let asked = self.setup.addresses.keys().map(|node| async move { (*node, self.describe(*node).await) });
        join_all(asked).await.into_iter().collect()
    }

    async fn describe(&self, node: NodeId) -> Result<Description> {
        let header = Header {
            cluster: sheetanchor_core::identity::ClusterId::default(),
            membership: Membership::default(),
            incarnation: Incarnation::default(),
            node,
            operation: None,
            epoch: Epoch::default(),
        };
        let answer = self.caller.ask_within(self.limits.point.patience, &header, &Request::Describe).await?;
        let Answer::Described(description) = answer else {
            return Err(Error::Bug(format!("node {node} described itself as {answer:?}")));
        };
        if description.node == node {
            return Ok(*description);
        }
        let address = self.setup.addresses.get(&node).cloned().unwrap_or_default();
        let message = format!("the agent at {address} is of node {}, the cluster file says {node}", description.node);
        Err(Refusal::new(Code::OtherNode, message).into())
    }

    /// Every node's description, all of them of this cluster: the check before anything is changed.
    async fn survey(&self, footing: &Footing) -> Result<BTreeMap<NodeId, Description>> {
        let mut seen = BTreeMap::new();
        for (node, description) in self.describe_all().await {
            let description = description?;
            if let Some(cluster) = description.cluster.filter(|cluster| *cluster != footing.cluster.id) {
                let message = format!("node {node} belongs to cluster {cluster}, this is {}", footing.cluster.id);
                return Err(Refusal::new(Code::OtherCluster, message).into());
            }
            footing.members.check_identity(node, &description.system)?;
            seen.insert(node, description);
        }
        Ok(seen)
    }

    fn nonce(&self) -> Nonce {
        Nonce::new(self.env.entropy.word())
    }

    fn hold(&self) -> HoldId {
        HoldId::new(self.env.entropy.word())
    }

    fn new_id(&self, kind: OperationKind) -> OperationId {
        let word = u32::try_from(self.env.entropy.word() >> 32).unwrap_or_default();
        OperationId::new(kind, self.env.clock.wall().get(), word)
    }

    /// Begins an operation: from here on it exists, whatever becomes of this coordinator.
    async fn register(
        &self,
        footing: &Footing,
        kind: OperationKind,
        incarnation: Incarnation,
        label: Option<PointName>,
    ) -> Result<Term> {
        let (operation, nonce) = (self.new_id(kind), self.nonce());
        let membership = footing.members.membership;
        let registered = Registered { incarnation, label, membership, nonce, operation };
        let epoch = self.repository.register(&registered).await?;
        tracing::info!(target: "sheetanchor::phase", operation = %operation, phase = "registered");
        Ok(Term { operation, epoch, nonce })
    }

    /// Makes failure the outcome of a backup or a restore point.
    async fn abort_outcome(&self, term: Term, why: &Error) -> Result<()> {
        let result = Ending::Aborted(abort_of(why));
        self.repository.decide(&Outcome { nonce: term.nonce, operation: term.operation, result }).await
    }

    /// Ends an operation that nobody carries on, and what it has left on the nodes. Says what was done.
    ///
    /// # Errors
    /// `SA208` if there is no such operation, `SA207` if it was completed.
    pub async fn abort(&self, operation: OperationId) -> Result<String> {
        let footing = self.footing_or_unopened().await?;
        let registered = self.repository.registered(operation).await?;
        let nonce = self.nonce();
        let epoch = self.repository.take_over(operation, nonce).await?;
        let term = Term { operation, epoch, nonce };
        let why = Error::from(Refusal::new(Code::Cancelled, "aborted by an operator"));
        let request = match operation.kind() {
            OperationKind::Restore => {
                self.bury(&registered, term, &why).await?;
                match self.repository.newest_plan(operation).await {
                    Ok((_, plan)) => self.settle_source(&plan, false).await?,
                    // One that came to no plan has staged nothing, and holds nothing.
                    Err(error) if error.refusal().is_some_and(|why| why.code == Code::OutOfOrder) => {}
                    Err(error) => return Err(error),
                }
                Request::Discard
            }
            OperationKind::Clone => {
                self.abort_outcome(term, &why).await?;
                return Ok(format!("{operation} holds nothing here any more"));
            }
            OperationKind::Backup | OperationKind::Point => {
                self.abort_outcome(term, &why).await?;
                Request::Unpin
            }
        };
        let nodes = self.setup.addresses.keys().map(|node| {
            let (header, request) = (footing.header(*node, Some(term)), request.clone());
            async move { (*node, self.caller.ask_within(self.limits.backup.patience, &header, &request).await) }
        });
        let silent: Vec<String> = join_all(nodes)
            .await
            .into_iter()
            .filter_map(|(node, answer)| answer.err().map(|why| format!("node {node}: {why}")))
            .collect();
        if silent.is_empty() {
            return Ok(format!("{operation} is aborted on every node"));
        }
        Ok(format!("{operation} is aborted; what it left ends with its leases on {}", silent.join("; ")))
    }

    /// Asks every node the same at once; the first error wins.
    async fn ask_all(&self, footing: &Footing, request: &Request) -> Result<BTreeMap<NodeId, Answer>> {
        let asked = self.setup.addresses.keys().map(|node| {
            let header = footing.header(*node, None);
            async move {
                self.caller
                    .ask_within(self.limits.backup.patience, &header, request)
                    .await
                    .map(|answer| (*node, answer))
            }
        });
        Ok(try_join_all(asked).await?.into_iter().collect())
    }
}

fn abort_of(why: &Error) -> Abort {
    let code = why.refusal().map_or_else(|| "FAULT".to_string(), |refusal| refusal.code.to_string());
    let message = match why {
        Error::Refusal(refusal) => refusal.message.clone(),
        Error::Fault(_) | Error::Bug(_) => why.to_string(),
    };
    Abort { code, message }
}
