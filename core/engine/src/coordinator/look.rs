//! Looks at the cluster and its repository, and proves what is stored.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::format::catalog::{Cluster, IncarnationObject, Members, Point, Seal};
use sheetanchor_core::identity::{ByteCount, Incarnation, NodeId, OperationId, OperationKind};
use sheetanchor_core::lineage::{Lineage, Way};
use sheetanchor_core::plan::{Aim, Target, choices, is_stamped};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Answer, Description, PinSeen, Progress, Request};

use super::Coordinator;
use super::proof::{ReadBack, Verified};

/// The cluster at a glance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStatus {
    /// The cluster.
    pub cluster: Cluster,
    /// The members in force.
    pub members: Members,
    /// The incarnation in force.
    pub incarnation: Incarnation,
    /// Every incarnation's object.
    pub incarnations: Vec<IncarnationObject>,
    /// Each node.
    pub nodes: Vec<NodeStatus>,
    /// Sealed backups of this incarnation, oldest first.
    pub backups: Vec<(OperationId, Seal)>,
    /// Restore points of this incarnation, oldest first.
    pub points: Vec<(OperationId, Point)>,
    /// Operations that nobody has decided yet.
    pub unfinished: Vec<OperationId>,
    /// The restore that has opened the incarnation in force and not yet all of its nodes, and those.
    pub half_open: Option<(OperationId, Vec<NodeId>)>,
}

/// A node at a glance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Which.
    pub node: NodeId,
    /// Where its agent listens.
    pub address: String,
    /// What it says, or why it says nothing.
    pub description: Result<Description>,
}

impl Coordinator {
    /// The cluster at a glance. A node that does not answer is shown as such.
    ///
    /// # Errors
    /// `SA102`, `SA104`, `SA105`; `SA002` if the catalog is damaged.
    pub async fn status(&self) -> Result<ClusterStatus> {
        let footing = self.footing().await?;
        let catalog = self.repository.catalog_as_listed(footing.incarnation).await?;
        let nodes = self.describe_all().await.into_iter().map(|(node, description)| NodeStatus {
            node,
            address: self.setup.addresses.get(&node).cloned().unwrap_or_default(),
            description,
        });
        Ok(ClusterStatus {
            nodes: nodes.collect(),
            incarnation: footing.incarnation,
            incarnations: self.repository.incarnations().await?,
            backups: catalog.backups,
            points: catalog.points,
            unfinished: self.unfinished().await?,
            half_open: self.half_open(&footing).await?,
            cluster: footing.cluster,
            members: footing.members,
        })
    }

    /// How far each node is with what it is busy with; of nodes that answer.
    pub async fn progress(&self) -> BTreeMap<NodeId, Vec<Progress>> {
        let seen = self.describe_all().await.into_iter();
        seen.filter_map(|(node, description)| Some((node, description.ok()?.progress))).collect()
    }

    /// Operations that were begun and have no outcome yet, by kind and in order of time. One whose coordinator came no further
    /// than a folder for it has not begun: there is nothing that could be ended.
    pub(super) async fn unfinished(&self) -> Result<Vec<OperationId>> {
        let mut unfinished = Vec::new();
        for kind in [OperationKind::Backup, OperationKind::Point, OperationKind::Clone] {
            let ended: BTreeSet<OperationId> = self.repository.ended(kind).await?.into_iter().collect();
            let begun = self.repository.operations(kind).await?;
            for operation in begun.into_iter().filter(|operation| !ended.contains(operation)) {
                if self.repository.is_registered(operation).await? {
                    unfinished.push(operation);
                }
            }
        }
        let incarnations = self.repository.incarnations().await?;
        for operation in self.repository.operations(OperationKind::Restore).await? {
            let number = match self.repository.registered(operation).await {
                Ok(registered) => registered.incarnation,
                Err(error) if error.refusal().is_some_and(|why| why.code == Code::NotRegistered) => continue,
                Err(error) => return Err(error),
            };
            if !incarnations.iter().any(|object| object.incarnation == number) {
                unfinished.push(operation);
            }
        }
        Ok(unfinished)
    }

    /// Every node's pins.
    ///
    /// # Errors
    /// `SA201` if a node does not answer.
    pub async fn pins(&self) -> Result<BTreeMap<NodeId, Vec<PinSeen>>> {
        let footing = self.footing().await?;
        let answers = self.ask_all(&footing, &Request::Pins).await?;
        let pins_of = |(node, answer)| {
            let Answer::Pins(pins) = answer else {
                return Err(Error::Bug(format!("node {node} listed its pins as {answer:?}")));
            };
            Ok((node, pins))
        };
        answers.into_iter().map(pins_of).collect()
    }

    /// Drops a pin on every node that has it.
    ///
    /// # Errors
    /// `SA301` if no node has it.
    pub async fn drop_pin(&self, name: &str) -> Result<Vec<NodeId>> {
        let having: Vec<NodeId> = self
            .pins()
            .await?
            .into_iter()
            .filter(|(_, pins)| pins.iter().any(|pin| pin.name == name))
            .map(|(node, _)| node)
            .collect();
        if having.is_empty() {
            return Err(Refusal::new(Code::NoSuchTarget, format!("no node has a pin `{}`", name.escape_debug())).into());
        }
        self.ask_all(&self.footing().await?, &Request::DropPin { name: name.to_string() }).await?;
        Ok(having)
    }

    /// Reads a backup and its WAL as a restore would, and checks every hash. `progress` is told bytes done and in all.
    ///
    /// # Errors
    /// `SA301`; `SA002`, `SA003`, `SA006`, `SA303`, `SA504` for what is wrong with it.
    pub async fn verify(
        &self,
        backup: OperationId,
        progress: &(dyn Fn(ByteCount, ByteCount) + Sync),
    ) -> Result<Verified> {
        let footing = self.footing().await?;
        let catalog = self.repository.catalog(footing.incarnation).await?;
        let manifest = self.manifest_of(&catalog, backup).await?;
        let way = Way::within(manifest.incarnation);
        let archived = self.archive_of(&manifest).await?;
        let lineage = Lineage::of(&self.repository.incarnations().await?)?;
        let aim = Aim::from(&Target::Backup(backup));
        let choice = choices(&catalog, &lineage, &way, &aim, is_stamped(&archived.archive))?.into_iter().next();
        let Some(choice) = choice else {
            return Err(Refusal::new(Code::NoSuchTarget, format!("{backup} is no sealed backup")).into());
        };
        let replay = archived.replay(&manifest, &way, &choice)?;
        self.read_back(&manifest, &replay, ReadBack::All, progress).await
    }
}
