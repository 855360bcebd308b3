//! What a node is told before it starts.

use std::collections::BTreeMap;
use std::time::Duration;

use sheetanchor_core::identity::NodeId;
use sheetanchor_engine::database::Storage;

/// One node's settings. [`Config::new`] has a default for all that need not differ between clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Whether all nodes share one database, or each has its own, as PostgreSQL servers do: then nothing ties them together
    /// but their clients and the protocol, and a node needs no peers.
    pub storage: Storage,
    /// Whether clients commit what spans several databases by two-phase commit. Nothing here can tell; a guarantee rests
    /// on it.
    pub two_phase: bool,
    /// Whether the node sends its files to a backup itself, as a server does that nobody can stand beside.
    pub sends_files: bool,
    /// The other nodes, and where they listen. One that is missing here cannot be reached.
    pub peers: BTreeMap<NodeId, String>,
    /// Where clients and peers reach this node, `host:port`.
    pub listen: String,
    /// The folder, absolute: shared by all nodes, or this node's own.
    pub data: String,
    /// A segment that has grown this large is followed by another.
    pub segment_bytes: u64,
    /// Pages kept in memory after a checkpoint; twice as many is the bound between checkpoints.
    pub cache_pages_max: usize,
    /// How many pages hold rows (26 each). Counts when the database is created, and never again.
    pub data_pages: u64,
    /// Time between checkpoints.
    pub checkpoint_interval: Duration,
    /// How far a message's SCN may lie ahead of this node's clock, and this node's wall clock from its monotonic one.
    pub drift_max: Duration,
    /// How far ahead of the clock a node reserves stamps. A restart may put it that far ahead of its wall clock.
    pub reserve: Duration,
    /// A node that has logged nothing for so long logs a barrier, so that the archive's reach moves on.
    pub barrier_interval: Duration,
    /// How long one request to another node may take.
    pub call_timeout: Duration,
    /// How long one statement may take, waiting for pages included.
    pub statement_timeout: Duration,
    /// How long a commit waits for a fence to open.
    pub commit_timeout: Duration,
    /// How long a write to the log may take before its outcome is called unknown.
    pub flush_timeout: Duration,
    /// How long a node waits for the lowest one to create the database.
    pub join_timeout: Duration,
    /// A connection that says nothing for so long is closed.
    pub idle_timeout: Duration,
    /// Connections served at once; more are turned away.
    pub connections_max: usize,
}

impl Config {
    /// The settings of `node`, with defaults; the peers are to be filled in.
    pub fn new(node: NodeId, listen: impl Into<String>, data: impl Into<String>) -> Self {
        Self {
            node,
            storage: Storage::Shared,
            two_phase: false,
            sends_files: false,
            peers: BTreeMap::new(),
            listen: listen.into(),
            data: data.into(),
            segment_bytes: 1 << 20,
            cache_pages_max: 4096,
            data_pages: 256,
            checkpoint_interval: Duration::from_secs(5),
            drift_max: Duration::from_mins(1),
            reserve: Duration::from_secs(2),
            barrier_interval: Duration::from_secs(5),
            call_timeout: Duration::from_secs(1),
            statement_timeout: Duration::from_secs(3),
            commit_timeout: Duration::from_secs(10),
            flush_timeout: Duration::from_secs(30),
            join_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_mins(5),
            connections_max: 256,
        }
    }

    /// Those of the cluster's nodes that share this node's database.
    pub(crate) fn sharing(&self, cluster: &[NodeId]) -> Vec<NodeId> {
        match self.storage {
            Storage::Shared => cluster.to_vec(),
            Storage::PerNode => cluster.iter().copied().filter(|node| *node == self.node).collect(),
        }
    }

    /// All nodes of the database as this node knows it, ascending.
    pub fn nodes(&self) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = self.peers.keys().copied().chain([self.node]).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }
}
