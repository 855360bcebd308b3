//! The cluster file, read into values that are valid because they exist.

mod check;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use sheetanchor_core::identity::{ByteCount, NodeId};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::coordinator::{Limits, Setup};
use sheetanchor_native::postgres::WalRoad;
use toml::Spanned;

use crate::report::{Result, Trouble};

/// What the cluster file says.
#[derive(Clone, Debug)]
pub struct ClusterFile {
    /// What the cluster is called.
    pub name: String,
    /// The folder of the repository, absolute.
    pub repository: String,
    /// The folder of the repository of another cluster, which this one is or will be a clone of. It is only read.
    pub source: Option<String>,
    /// Every node.
    pub nodes: BTreeMap<NodeId, NodeSetup>,
    /// How long things may take.
    pub limits: Limits,
}

/// What the cluster file says of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSetup {
    /// Where its agent listens.
    pub agent: String,
    /// The folder for what its agent must remember.
    pub state: String,
    /// The folder that holds its database; none for one that sends its files over its connection.
    pub data: Option<String>,
    /// How much WAL may wait for the archive before it is let go of; none for as much as comes.
    pub wal_kept_max: Option<ByteCount>,
    /// What kind of database that is, and how to reach it.
    pub engine: EngineSetup,
}

/// A database engine and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineSetup {
    /// A PostgreSQL server.
    Postgres {
        /// As libpq takes it.
        connection: String,
        /// The folder with PostgreSQL's programs.
        bin: Option<String>,
        /// The user that a restored server runs as.
        run_as: Option<String>,
        /// How its WAL comes into the archive.
        wal: WalRoad,
        /// How much WAL a restore puts into the server's folder before it starts; the rest is fetched while it recovers.
        wal_in_place: ByteCount,
        /// Where a restore puts tablespaces that were elsewhere.
        tablespaces: BTreeMap<String, String>,
        /// Whether clients commit what spans nodes in two phases, under one gid.
        two_phase: bool,
    },
    /// A node of the embedded database, which runs in the agent's process.
    Refdb {
        /// Where clients and the other nodes reach it.
        address: String,
    },
}

impl ClusterFile {
    /// Reads the cluster file at `path`.
    ///
    /// # Errors
    /// `SA101`, `SA107`, `SA111` for what is wrong with it, before anything is done.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| {
            Trouble::from(Refusal::new(Code::ConfigInvalid, format!("cannot read the cluster file {name}: {error}")))
        })?;
        Self::parse(&name, &text)
    }

    /// Parses `text`, which file `name` holds.
    ///
    /// # Errors
    /// Those of [`ClusterFile::read`].
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let written: Written = toml::from_str(text).map_err(|error| {
            let span = error.span().unwrap_or(0..0);
            refused(name, text, &span, Code::ConfigInvalid, &error.message().replace('\n', ", "))
        })?;
        check::checked(&written).map_err(|Wrong { code, message, span }| refused(name, text, &span, code, &message))
    }

    /// Refuses a restore where a node has no folder to restore into.
    ///
    /// # Errors
    /// `SA415`.
    pub fn check_restorable(&self) -> std::result::Result<(), Refusal> {
        match self.nodes.iter().find(|(_, setup)| setup.data.is_none()) {
            Some((node, _)) => {
                let message = format!("node {node} sends its files over its connection, and has no `data` here");
                Err(Refusal::new(Code::NoDataFolder, message))
            }
            None => Ok(()),
        }
    }

    /// What a coordinator needs of it.
    pub fn setup(&self) -> Setup {
        let addresses = self.nodes.iter().map(|(node, setup)| (*node, setup.agent.clone())).collect();
        Setup { name: self.name.clone(), addresses }
    }
}

fn refused(name: &str, text: &str, span: &Range<usize>, code: Code, message: &str) -> Trouble {
    let line = text.get(..span.start).unwrap_or_default().matches('\n').count() + 1;
    let refusal = Refusal::new(code, format!("{name}, line {line}: {message}"));
    Trouble::at(refusal, name, text, span.clone())
}

/// Something wrong with what is written at `span`.
struct Wrong {
    code: Code,
    message: String,
    span: Range<usize>,
}

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    cluster: Spanned<WrittenCluster>,
    #[serde(default)]
    node: Vec<Spanned<WrittenNode>>,
    #[serde(default)]
    limits: WrittenLimits,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenCluster {
    name: Spanned<String>,
    repository: Spanned<String>,
    source: Option<Spanned<String>>,
    two_phase: Option<Spanned<bool>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenNode {
    id: Spanned<u16>,
    agent: Spanned<String>,
    state: Spanned<String>,
    engine: Spanned<String>,
    data: Option<Spanned<String>>,
    capture: Option<Spanned<String>>,
    connection: Spanned<String>,
    bin: Option<Spanned<String>>,
    run_as: Option<Spanned<String>>,
    wal: Option<Spanned<String>>,
    rpo_s: Option<Spanned<u64>>,
    wal_in_place_mib: Option<Spanned<u64>>,
    wal_kept_max_mib: Option<Spanned<u64>>,
    #[serde(default)]
    tablespaces: BTreeMap<String, Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLimits {
    lease_ms: Option<Spanned<u64>>,
    drain_ms: Option<Spanned<u64>>,
}

impl WrittenLimits {
    fn checked(&self) -> std::result::Result<Limits, Wrong> {
        let mut limits = Limits::default();
        let bounded = |given: &Spanned<u64>, what: &str| {
            if (1..=600_000).contains(given.get_ref()) {
                return Ok(Duration::from_millis(*given.get_ref()));
            }
            let message = format!("{what} is {}, and must be between 1 and 600000", given.get_ref());
            Err(Wrong { code: Code::ConfigInvalid, message, span: given.span() })
        };
        if let Some(lease) = &self.lease_ms {
            limits.point.lease = bounded(lease, "lease_ms")?;
        }
        if let Some(drain) = &self.drain_ms {
            limits.point.drain = bounded(drain, "drain_ms")?;
        }
        if let (Some(drain), true) = (&self.drain_ms, limits.point.drain > limits.point.lease) {
            let message = "the drain deadline is longer than the lease of the fence".to_owned();
            return Err(Wrong { code: Code::ConfigInvalid, message, span: drain.span() });
        }
        Ok(limits)
    }
}
