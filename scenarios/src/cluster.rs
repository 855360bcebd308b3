//! Who runs where: three nodes, each with its database and its agent in one process, on one shared volume or each on its
//! own disk; operators on hosts of their own. The repository is the world's own: a folder on a second shared volume, which shows missing syncs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sheetanchor_core::error::Result;
use sheetanchor_core::identity::{ByteCount, NodeId};
use sheetanchor_core::{backup, point, restore};
use sheetanchor_engine::agent::{self, Agent};
use sheetanchor_engine::coordinator::{Coordinator, Limits, Setup};
use sheetanchor_engine::database::Storage;
use sheetanchor_engine::env::disk::parent;
use sheetanchor_engine::env::{EntryKind, Env, Fault, OpenMode};
use sheetanchor_engine::folder_bucket::FolderBucket;
use sheetanchor_engine::read_only::ReadOnly;
use sheetanchor_refdb::{Config, Node};

use crate::workload::PAGE_KINDS;

/// The nodes' numbers.
pub const NODES: [u16; 3] = [1, 2, 3];

/// A fence's lease.
pub const LEASE: Duration = Duration::from_secs(2);

/// A pin's lease.
pub const PIN_LEASE: Duration = Duration::from_secs(6);

/// The database's folder, on the volume that all nodes share.
pub const DATA: &str = "/shared/db";
/// A database's folder on its node's own disk, where nodes share nothing.
pub const OWN_DATA: &str = "/db";
/// An agent's folder, on its own disk.
const STATE: &str = "/state";

/// How much WAL may wait for the archive where there is little room: far more than waits while all goes well.
const LITTLE_ROOM: ByteCount = ByteCount::new(96 << 10);

/// How often nodes do what they do again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Several times a second: all of it happens in a story of some seconds.
    Brisk,
    /// The same, and files are captured in chunks of 16 pages.
    BriskInSmallChunks,
    /// Several times a second, and little WAL may wait for the archive.
    BriskWithLittleRoom,
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

fn database_config(node: u16, storage: Storage, pace: Pace, two_phase: bool) -> Config {
    let data = if storage == Storage::Shared { DATA } else { OWN_DATA };
    let mut config = Config::new(NodeId::new(node), database_address(node), data);
    config.storage = storage;
    config.two_phase = two_phase;
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
    if pace == Pace::BriskInSmallChunks {
        config.piece = ByteCount::new(64 << 10);
    }
    if pace == Pace::BriskWithLittleRoom {
        config.wal_kept_max = Some(LITTLE_ROOM);
    }
    if pace == Pace::Leisurely {
        config.archive_interval = Duration::from_secs(20);
    }
    config
}

/// One node's process, from its start until it is killed. `two_phase`: clients commit what spans databases by two-phase
/// commit. `sends`: it sends its files to backups itself.
pub async fn run_node(env: Env, node: u16, storage: Storage, pace: Pace, two_phase: bool, sends: bool) {
    if let Err(error) = serve(env, node, storage, pace, two_phase, sends).await {
        // As a process would: it ends with a message, and somebody restarts it or does not.
        tracing::info!(target: "sheetanchor::node", node, %error, "ended");
    }
}

async fn serve(env: Env, node: u16, storage: Storage, pace: Pace, two_phase: bool, sends: bool) -> Result<()> {
    let config = Config { sends_files: sends, ..database_config(node, storage, pace, two_phase) };
    let database = Node::start(env.clone(), config).await?;
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
    Coordinator::new(env, Setup { name: "ledger".into(), addresses }, limits())
}

fn limits() -> Limits {
    Limits {
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
    }
}

/// The new host of a node whose old one is believed to be lost.
pub fn new_host(node: u16) -> String {
    format!("m{node}")
}

/// Where clients reach the database of a node on its new host.
pub fn moved_database_address(node: u16) -> String {
    format!("m{node}:7100")
}

/// A node's process on its new host: it shares nothing with any other.
pub async fn run_moved_node(env: Env, node: u16) {
    let served = async {
        let mut config = database_config(node, Storage::PerNode, Pace::Brisk, false);
        config.listen = moved_database_address(node);
        let database = Node::start(env.clone(), config).await?;
        let config = agent::Config { listen: format!("m{node}:7000"), ..agent_config(node, Pace::Brisk) };
        Agent::load(env, config, database).await?.serve().await
    };
    let served: Result<()> = served.await;
    if let Err(error) = served {
        tracing::info!(target: "sheetanchor::node", node, %error, "ended");
    }
}

/// An operator whose cluster file knows that node 3 has moved.
pub fn operator_of_the_moved(env: Env) -> Coordinator {
    let address = |node: &u16| if *node == 3 { format!("m{node}:7000") } else { agent_address(*node) };
    let addresses = NODES.iter().map(|node| (NodeId::new(*node), address(node))).collect();
    Coordinator::new(env, Setup { name: "ledger".into(), addresses }, limits())
}

/// The repository of a clone, on the volume that all nodes share.
const CLONE_REPOSITORY: &str = "/shared/clone/repository";
/// The database's folder of a clone, on the same volume.
const CLONE_DATA: &str = "/shared/clone/db";

/// The host of a clone's node.
pub fn clone_host(node: u16) -> String {
    format!("c{node}")
}

/// Where clients and peers reach the database of a clone's node.
pub fn clone_database_address(node: u16) -> String {
    format!("c{node}:7100")
}

/// The ports of a clone's host: its repository is its own.
fn clone_env(env: &Env) -> Env {
    let bucket = FolderBucket::new(env.disk.clone(), env.entropy.clone(), CLONE_REPOSITORY);
    Env { bucket: Arc::new(bucket), ..env.clone() }
}

/// The process of a clone's node, whose source is the cluster's repository. `mistaken`: its cluster file was changed, and
/// names the source's repository as its own.
pub async fn run_clone_node(env: Env, node: u16, mistaken: bool) {
    if let Err(error) = serve_clone(env, node, mistaken).await {
        tracing::info!(target: "sheetanchor::node", node, %error, "ended");
    }
}

async fn serve_clone(env: Env, node: u16, mistaken: bool) -> Result<()> {
    let source = ReadOnly::new(env.bucket.clone());
    let own = if mistaken { env.clone() } else { clone_env(&env) };
    let mut config = database_config(node, Storage::Shared, Pace::Brisk, false);
    config.listen = clone_database_address(node);
    config.data = CLONE_DATA.into();
    let peers = NODES.iter().filter(|peer| **peer != node);
    config.peers = peers.map(|peer| (NodeId::new(*peer), clone_database_address(*peer))).collect();
    let database = Node::start(own.clone(), config).await?;
    let config = agent::Config { listen: format!("c{node}:7000"), ..agent_config(node, Pace::Brisk) };
    Agent::load_clone(own, config, database, Some(source)).await?.serve().await
}

/// An operator of the clone at a host of its own.
pub fn clone_operator(env: &Env) -> Coordinator {
    let addresses = NODES.iter().map(|node| (NodeId::new(*node), format!("c{node}:7000"))).collect();
    let source = env.bucket.clone();
    let setup = Setup { name: "copy".into(), addresses };
    Coordinator::new(clone_env(env), setup, limits()).cloning_from(source)
}

/// What became of a closed database's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disorder {
    /// What makes them a database was put aside.
    NoDatabase,
    /// They are where they were, and some are damaged, and others are among them.
    Damaged,
}

/// What makes a folder a database, and the names under which that is put aside.
pub const AWAY: [(&str, &str); 2] = [("control", "control.away"), ("pages", "pages.away")];

/// The files that a disorder leaves in the folder that `node` sees, and no backup has.
pub fn left_behind(node: u16) -> Vec<String> {
    let wal = format!("nodes/{node}/wal/00000001/left");
    vec!["closed".into(), "left".into(), "nodes/9/deep/left".into(), wal]
}

/// Closes the database in `root`, and puts its files out of order. Nobody runs there.
pub async fn disturb(env: Env, root: &'static str, node: u16, disorder: Disorder, draw: u64) -> Result<(), Fault> {
    let (disk, path) = (&env.disk, |name: &str| format!("{root}/{name}"));
    for (name, away) in AWAY {
        let (from, to) = if disorder == Disorder::NoDatabase { (name, away) } else { (away, name) };
        if disk.metadata(&path(from)).await?.is_some() {
            disk.rename(&path(from), &path(to)).await?;
        }
    }
    let mut left = left_behind(node);
    if disorder == Disorder::NoDatabase {
        left.truncate(1);
    } else {
        let pages = disk.open(&path("pages"), OpenMode::Write).await?;
        let length = pages.length().await?.get();
        let at = draw.checked_rem(length).unwrap_or(0);
        let rotten = pages.read_at(at, 1).await?.into_iter().map(|byte| byte ^ 1).collect();
        pages.write_at(at, rotten).await?;
        match draw % 4 {
            0 => pages.truncate(at).await?,
            1 => pages.write_at(length, vec![7; 5_000].into()).await?,
            _ => {}
        }
        pages.sync().await?;
    }
    for name in left {
        if disk.metadata(&path(&name)).await?.is_none() {
            disk.create_durable_folder(parent(&path(&name))).await?;
            let file = disk.open(&path(&name), OpenMode::CreateNew).await?;
            file.write_at(0, b"left".to_vec().into()).await?;
            file.sync().await?;
            disk.sync_dir(parent(&path(&name))).await?;
        }
    }
    disk.sync_dir(root).await
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
