//! `agent`: serves one node.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use sheetanchor_core::identity::{ByteCount, NodeId};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::agent::{Agent, Config};
use sheetanchor_engine::database::Database;
use sheetanchor_engine::env::Env;
use sheetanchor_engine::read_only::ReadOnly;
use sheetanchor_native::postgres::{PostgresConfig, PostgresDatabase, WalBack};
use sheetanchor_refdb as refdb;

use crate::args::AgentArguments;
use crate::config::{ClusterFile, EngineSetup, NodeSetup};
use crate::connect::{environment, source};
use crate::interrupt::Interrupts;
use crate::report::Result;
use crate::screen::Screen;

/// How many pages of rows the embedded database is created with: room for about fifty thousand rows.
const REFDB_PAGES: u64 = 2048;

/// Serves one node until it is told to end.
///
/// # Errors
/// `SA105` if the cluster file does not list the node; what its engine and its state folder are refused for; faults.
pub async fn serve(file: &Path, screen: &Screen, arguments: &AgentArguments) -> Result<()> {
    let cluster = ClusterFile::read(file)?;
    let node = NodeId::new(arguments.node);
    let Some(setup) = cluster.nodes.get(&node) else {
        let message = format!("{} lists no node {node}", file.display());
        return Err(Refusal::new(Code::OtherMembership, message).into());
    };
    let env = environment(&cluster);
    let mut interrupts = Interrupts::listen()?;
    // The address is taken first: a second agent of the same node must not touch the database.
    let listener = env.net.listen(&setup.agent).await?;
    let (database, embedded) = open(&env, &cluster, node, setup).await?;
    // The source's bucket is wrapped here, and from here on there is no way to write through it.
    let source = source(&cluster).map(ReadOnly::new);
    let mut config = Config::new(node, &setup.agent, &setup.state);
    config.wal_kept_max = setup.wal_kept_max;
    let agent = Agent::load_clone(env, config, database, source).await?;
    let engine = match &setup.engine {
        EngineSetup::Postgres { .. } => "postgres",
        EngineSetup::Refdb { .. } => "refdb",
    };
    let place = setup.data.as_ref().map_or_else(|| "from afar".to_owned(), |data| format!("in {data}"));
    let ready = format!("node {node} of {}: agent at {}, {engine} {place}\n", cluster.name, setup.agent);
    let value = json!({ "node": node.get(), "cluster": cluster.name, "agent": setup.agent, "engine": engine });
    screen.result(&ready, &value)?;
    let served = tokio::select! {
        biased;
        served = agent.serve_on(listener) => served,
        () = interrupts.next() => Ok(()),
    };
    if let Some(embedded) = embedded {
        embedded.shutdown().await;
    }
    Ok(served?)
}

/// The node's database; the second one is the embedded node that runs in this process and must be ended with it.
async fn open(
    env: &Env,
    cluster: &ClusterFile,
    node: NodeId,
    setup: &NodeSetup,
) -> Result<(Arc<dyn Database>, Option<Arc<refdb::Node>>)> {
    match &setup.engine {
        EngineSetup::Postgres { connection, bin, run_as, wal, wal_in_place, tablespaces, two_phase } => {
            let config = PostgresConfig {
                node,
                data: setup.data.clone(),
                connection: connection.clone(),
                bin: bin.clone(),
                run_as: run_as.clone(),
                log: format!("{}/postgres.log", setup.state),
                wal: *wal,
                wal_back: wal_back(*wal_in_place),
                tablespaces: tablespaces.clone(),
                two_phase: *two_phase,
            };
            Ok((Arc::new(PostgresDatabase::new(config)?), None))
        }
        EngineSetup::Refdb { address } => {
            let data = setup.data.as_deref().unwrap_or_default();
            let mut config = refdb::Config::new(node, address, data);
            config.data_pages = REFDB_PAGES;
            config.peers = peers(cluster, node);
            let started = refdb::Node::start(env.clone(), config).await?;
            Ok((started.clone(), Some(started)))
        }
    }
}

/// This very program is what a server fetches WAL with.
fn wal_back(beyond: ByteCount) -> WalBack {
    let program = std::env::current_exe().ok().and_then(|path| path.into_os_string().into_string().ok());
    program.map_or_else(WalBack::default, |program| WalBack::Fetched { beyond, program })
}

fn peers(cluster: &ClusterFile, node: NodeId) -> std::collections::BTreeMap<NodeId, String> {
    let address = |setup: &NodeSetup| match &setup.engine {
        EngineSetup::Refdb { address } => Some(address.clone()),
        EngineSetup::Postgres { .. } => None,
    };
    let others = cluster.nodes.iter().filter(|(other, _)| **other != node);
    others.filter_map(|(other, setup)| Some((*other, address(setup)?))).collect()
}
