//! Who runs where: three nodes, each with its database and its agent in one process, on one shared volume or each on its
//! own disk; operators on hosts of their own. The repository is the world's own: a folder on a second shared volume, which shows missing syncs.

use std::collections::BTreeMap;
use std::time::Duration;

use sheetanchor_core::error::Result;
use sheetanchor_core::identity::{ByteCount, NodeId};
use sheetanchor_core::{backup, point, restore};
use sheetanchor_engine::agent::{self, Agent};
use sheetanchor_engine::coordinator::{Coordinator, Limits, Setup};
use sheetanchor_engine::database::Storage;
use sheetanchor_engine::env::{EntryKind, Env, Fault};
use sheetanchor_refdb::{Config, Node};

use crate::workload::PAGE_KINDS;

/// The nodes' numbers.
pub const NODES: [u16; 3] = [1, 2, 3];

/// A fence's lease.
pub const LEASE: Duration = Duration::from_secs(2);

/// A pin's lease.
pub const PIN_LEASE: Duration = Duration::from_secs(6);

/// The database's folder, on the volume that all nodes share.
const DATA: &str = "/shared/db";
/// A database's folder on its node's own disk, where nodes share nothing.
const OWN_DATA: &str = "/db";
/// An agent's folder, on its own disk.
const STATE: &str = "/state";

/// How often nodes do what they do again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Several times a second: all of it happens in a story of some seconds.
    Brisk,
    /// Several times an hour, as on real clusters: for a story of a day.
    Leisurely,
}

/// The host of a node.
pub fn host(node: u16) -> String {
    format!("n{node}")
}

/// Where clients and peers reach a node's database.
pub fn database_address(node: u16) -> String {
    format!("n{node}:7100")
}

/// Where a node's agent is asked.
pub fn agent_address(node: u16) -> String {
    format!("n{node}:7000")
}

fn database_config(node: u16, storage: Storage, pace: Pace) -> Config {
    let data = if storage == Storage::Shared { DATA } else { OWN_DATA };
    let mut config = Config::new(NodeId::new(node), database_address(node), data);
    config.storage = storage;
    let peers = NODES.iter().filter(|peer| **peer != node && storage == Storage::Shared);
    config.peers = peers.map(|peer| (NodeId::new(*peer), database_address(*peer))).collect();
    config.segment_bytes = 8 << 10;
    config.data_pages = 3 * PAGE_KINDS;
    config.checkpoint_interval = Duration::from_millis(400);
    config.barrier_interval = Duration::from_secs(1);
    if pace == Pace::Leisurely {
        config.segment_bytes = 64 << 10;
        config.data_pages = 40 * PAGE_KINDS;
        config.checkpoint_interval = Duration::from_mins(5);
        config.barrier_interval = Duration::from_secs(30);
        config.reserve = Duration::from_secs(40);
    }
    config
}

fn agent_config(node: u16, pace: Pace) -> agent::Config {
    let mut config = agent::Config::new(NodeId::new(node), agent_address(node), STATE);
    config.archive_interval = Duration::from_millis(200);
    config.archive_piece = ByteCount::new(64 << 10);
    config.pack = ByteCount::new(64 << 10);
    config.pin_lease = PIN_LEASE;
    if pace == Pace::Leisurely {
        config.archive_interval = Duration::from_secs(20);
    }
    config
}

/// One node's process, from its start until it is killed.
pub async fn run_node(env: Env, node: u16, storage: Storage, pace: Pace) {
    if let Err(error) = serve(env, node, storage, pace).await {
        // As a process would: it ends with a message, and somebody restarts it or does not.
        tracing::info!(target: "sheetanchor::node", node, %error, "ended");
    }
}

async fn serve(env: Env, node: u16, storage: Storage, pace: Pace) -> Result<()> {
    let database = Node::start(env.clone(), database_config(node, storage, pace)).await?;
    let agent = Agent::load(env, agent_config(node, pace), database).await?;
    agent.serve().await
}

/// An operator at a host of its own.
pub fn operator(env: Env) -> Coordinator {
    operator_of(env, &NODES)
}

/// An operator whose cluster file lists these nodes.
pub fn operator_of(env: Env, nodes: &[u16]) -> Coordinator {
    let addresses: BTreeMap<NodeId, String> =
        nodes.iter().map(|node| (NodeId::new(*node), agent_address(*node))).collect();
    let limits = Limits {
        point: point::Limits { lease: LEASE, drain: Duration::from_secs(1), patience: Duration::from_secs(3) },
        backup: backup::Limits {
            pin: PIN_LEASE,
            patience: Duration::from_secs(5),
            checkpoint: Duration::from_secs(20),
            capture: Duration::from_mins(1),
            archive: Duration::from_secs(20),
        },
        restore: restore::Limits {
            patience: Duration::from_secs(20),
            stage: Duration::from_mins(1),
            recover: Duration::from_mins(1),
            open: Duration::from_mins(1),
        },
        retry: Duration::from_secs(10),
        ..Limits::default()
    };
    Coordinator::new(env, Setup { name: "ledger".into(), addresses }, limits)
}

/// Removes everything that a host has of the cluster: its agent's folder, and its database or the one that all share.
pub async fn wipe(env: Env) -> Result<(), Fault> {
    for root in [STATE, DATA, OWN_DATA] {
        clear(&env, root).await?;
    }
    Ok(())
}

async fn clear(env: &Env, root: &str) -> Result<(), Fault> {
    let mut waiting = vec![root.to_string()];
    let mut folders = Vec::new();
    while let Some(folder) = waiting.pop() {
        if env.disk.metadata(&folder).await?.is_none() {
            continue;
        }
        for entry in env.disk.list(&folder).await? {
            let path = format!("{folder}/{}", entry.name);
            match entry.kind {
                EntryKind::Folder => waiting.push(path),
                EntryKind::File | EntryKind::Link | EntryKind::Other => env.disk.remove(&path).await?,
            }
        }
        folders.push(folder);
    }
    for folder in folders.iter().skip(1).rev() {
        env.disk.remove_folder(folder).await?;
    }
    match folders.first() {
        Some(folder) => env.disk.sync_dir(folder).await,
        None => Ok(()),
    }
}
