//! Makes databases that run into one cluster.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use futures_util::future::try_join_all;
use sheetanchor_core::error::Result;
use sheetanchor_core::format::catalog::{Cluster, IncarnationObject, IncarnationState, Members, Opened};
use sheetanchor_core::format::keys;
use sheetanchor_core::identity::{ClusterId, Incarnation, Membership, NodeId};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Description, Request};
use sheetanchor_core::scn::Scn;

use super::{Coordinator, Footing};
use crate::agent::state_word;
use crate::database::State;
use crate::env::FaultKind;
use crate::repository::Created;

/// A node may have to create its database, or to wait for the one that does.
const JOIN_PATIENCE: Duration = Duration::from_mins(2);

impl Coordinator {
    /// Creates the cluster in the repository and has every node join it. Run again after a crash, it goes on.
    ///
    /// # Errors
    /// `SA103` if the repository holds another cluster, `SA107` if two nodes are one database, `SA104` if a node belongs
    /// to another cluster, `SA113` if it has become another database, `SA112` if it is down and cannot be told from others,
    /// `SA201` if one does not answer.
    pub async fn init(&self) -> Result<ClusterId> {
        let mut seen = BTreeMap::new();
        for (node, description) in self.describe_all().await {
            seen.insert(node, description?);
        }
        check_identities(&seen)?;
        let (cluster, members) = match self.repository.find::<Cluster>(keys::CLUSTER).await? {
            Some(cluster) => (cluster, None),
            None => (self.new_cluster(), Some(self.new_members(&seen)?)),
        };
        if cluster.name != self.setup.name {
            let message = format!("the repository holds cluster `{}`", cluster.name);
            return Err(Refusal::new(Code::AlreadyInitialised, message).into());
        }
        if let Some((node, other)) =
            seen.iter().find_map(|(node, seen)| Some((node, seen.cluster.filter(|own| *own != cluster.id)?)))
        {
            return Err(Refusal::new(Code::OtherCluster, format!("node {node} belongs to cluster {other}")).into());
        }
        if members.is_some() {
            self.check_repository_is_empty().await?;
            if let Created::Theirs(theirs) = self.repository.create(keys::CLUSTER, &cluster).await? {
                let message = format!("the repository has just become that of cluster `{}`", theirs.name);
                return Err(Refusal::new(Code::AlreadyInitialised, message).into());
            }
        }
        let members = match members {
            Some(members) => members,
            None => self.new_members(&seen)?,
        };
        if let Created::Theirs(theirs) = self.repository.create(&keys::members(members.membership), &members).await? {
            for (node, description) in &seen {
                theirs.check_identity(*node, &description.system)?;
            }
        }
        self.repository.create(&keys::incarnation(Incarnation::new(1)), &self.first_incarnation()).await?;
        self.join_all().await?;
        tracing::info!(target: "sheetanchor::phase", cluster = %cluster.id, phase = "initialised");
        Ok(cluster.id)
    }

    async fn join_all(&self) -> Result<()> {
        let footing: Footing = self.footing().await?;
        let nodes: Vec<NodeId> = footing.members.nodes.keys().copied().collect();
        let joins = nodes.iter().map(|node| {
            let (header, request) = (footing.header(*node, None), Request::Join { nodes: nodes.clone() });
            async move { self.caller.ask_within(JOIN_PATIENCE, &header, &request).await }
        });
        try_join_all(joins).await?;
        Ok(())
    }

    pub(super) async fn check_repository_is_empty(&self) -> Result<()> {
        match self.repository.bucket().list("").await {
            Ok(keys) => match keys.first() {
                None => Ok(()),
                Some(key) => {
                    Err(Refusal::new(Code::AlreadyInitialised, format!("the repository is not empty: it holds {key}"))
                        .into())
                }
            },
            Err(fault) if fault.kind == FaultKind::NotFound => Ok(()),
            Err(fault) => Err(fault.into()),
        }
    }

    fn new_cluster(&self) -> Cluster {
        Cluster {
            created_ms: self.env.clock.wall(),
            id: ClusterId::new(self.env.entropy.word()),
            name: self.setup.name.clone(),
            nonce: self.nonce(),
        }
    }

    fn new_members(&self, seen: &BTreeMap<NodeId, Description>) -> Result<Members> {
        let none = || Refusal::new(Code::ConfigInvalid, "the cluster file lists no nodes");
        let first = seen.values().next().ok_or_else(none)?;
        if let Some(other) = seen.values().find(|other| other.engine != first.engine || other.shared != first.shared) {
            let message =
                format!("node {} runs {}, node {} runs {}", first.node, first.engine, other.node, other.engine);
            return Err(Refusal::new(Code::ConfigInvalid, message).into());
        }
        Ok(Members {
            engine: first.engine.clone(),
            membership: Membership::new(1),
            nodes: seen.iter().map(|(node, seen)| (*node, seen.system.clone())).collect(),
            nonce: self.nonce(),
            shared: first.shared,
        })
    }

    fn first_incarnation(&self) -> IncarnationObject {
        let opened = Opened {
            branch: None,
            membership: Membership::new(1),
            origin: None,
            opened_ms: self.env.clock.wall(),
            scn_floor: Scn::ZERO,
            scn_offset_ms: 0,
        };
        let state = IncarnationState::Opened(opened);
        IncarnationObject { incarnation: Incarnation::new(1), nonce: self.nonce(), restore: None, state }
    }
}

/// Two nodes must never be one database. An engine that is still empty has no identifier yet; one that is there and has not
/// said which it is could be any.
fn check_identities(seen: &BTreeMap<NodeId, Description>) -> Result<()> {
    if let Some((node, _)) =
        seen.iter().find(|(_, seen)| seen.system.is_empty() && seen.state == state_word(State::Down))
    {
        let message = format!("the database of node {node} is down, and has not said yet which it is");
        return Err(Refusal::new(Code::DatabaseDown, message).into());
    }
    let mut systems: BTreeMap<&String, NodeId> = BTreeMap::new();
    for (node, description) in seen.iter().filter(|(_, description)| !description.system.is_empty()) {
        if let Some(twin) = systems.insert(&description.system, *node) {
            let message = format!("nodes {twin} and {node} are both database {}", description.system);
            return Err(Refusal::new(Code::DuplicateIdentity, message).into());
        }
    }
    Ok(())
}
