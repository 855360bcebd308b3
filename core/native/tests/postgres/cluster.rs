//! Three primaries and their agents: backed up while they work, lost, restored, opened together, and read.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::identity::NodeId;
use sheetanchor_core::incremental::Extent;
use sheetanchor_core::plan::Target;
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::Code;
use sheetanchor_engine::agent::{Agent, Config};
use sheetanchor_engine::coordinator::{Coordinator, Limits, Setup};
use sheetanchor_engine::env::{Env, Task};
use sheetanchor_engine::read_only::ReadOnly;
use sheetanchor_native::env::native_env;
use sheetanchor_native::postgres::postmaster::{Postmaster, StopMode};

use crate::bench::{Bench, Running, code, eventually, number};

/// One text that tells what is in a table.
pub const CONTENTS: &str = "SELECT md5(string_agg(n || t, ',' ORDER BY n)) FROM rows";

pub const NODES: [u16; 3] = [1, 2, 3];

/// Servers, an agent beside each, and a coordinator.
pub struct Cluster {
    pub bench: Bench,
    pub servers: Vec<Running>,
    pub coordinator: Coordinator,
    env: Env,
    addresses: BTreeMap<NodeId, String>,
    agents: Vec<Box<dyn Task>>,
}

impl Cluster {
    /// Servers without the commit fence.
    pub async fn new(test: &str) -> Self {
        Self::of(Bench::new(test), false).await
    }

    /// Servers with it.
    pub async fn fenced(test: &str) -> Self {
        Self::of(Bench::new(test), true).await
    }

    /// Servers on a bench of one's own.
    pub async fn of(bench: Bench, fenced: bool) -> Self {
        let env = native_env(bench.path("repository"));
        let (mut servers, mut agents, mut addresses) = (Vec::new(), Vec::new(), BTreeMap::new());
        for node in NODES {
            let name = format!("n{node}");
            servers.push(if fenced { bench.fenced(&name, &[]).await } else { bench.server(&name, &[]).await });
            let (agent, address) = agent(&bench, &env, NodeId::new(node), "127.0.0.1:0").await;
            agents.push(agent);
            addresses.insert(NodeId::new(node), address);
        }
        let setup = Setup { name: "ledger".to_owned(), addresses: addresses.clone() };
        let coordinator = Coordinator::new(env.clone(), setup, Limits::default());
        Self { bench, servers, coordinator, env, addresses, agents }
    }

    /// A cluster that is made from `source`: folders for its servers, an agent for each, and a coordinator.
    pub async fn clone_on(bench: Bench, source: &Bench) -> Self {
        let (env, bucket) = (native_env(bench.path("repository")), native_env(source.path("repository")).bucket);
        let (mut agents, mut addresses) = (Vec::new(), BTreeMap::new());
        for node in NODES {
            bench.own_folder(&format!("n{node}.s")).await;
            let source = Some(ReadOnly::new(bucket.clone()));
            let (agent, address) = serve(&bench, &env, NodeId::new(node), "127.0.0.1:0", source).await;
            agents.push(agent);
            addresses.insert(NodeId::new(node), address);
        }
        let setup = Setup { name: "copy".to_owned(), addresses: addresses.clone() };
        let coordinator = Coordinator::new(env.clone(), setup, Limits::default()).cloning_from(bucket);
        Self { bench, servers: Vec::new(), coordinator, env, addresses, agents }
    }

    /// Ends its servers, also those that a restore has started.
    pub async fn stop(&self, mode: StopMode) {
        for node in NODES {
            if let Some(server) = Postmaster::of(&self.bench.path(&format!("n{node}"))).unwrap() {
                server.stop(mode).await.unwrap();
            }
        }
    }

    /// Ends the agent of a node, and starts another where it listened.
    pub async fn restart_agent(&mut self, node: NodeId) {
        let place = self.addresses[&node].clone();
        let old = &mut self.agents[usize::from(node.get()) - 1];
        old.cancel();
        old.join().await;
        *old = agent(&self.bench, &self.env, node, &place).await.0;
    }
}

async fn agent(bench: &Bench, env: &Env, node: NodeId, place: &str) -> (Box<dyn Task>, String) {
    serve(bench, env, node, place, None).await
}

async fn serve(
    bench: &Bench,
    env: &Env,
    node: NodeId,
    place: &str,
    source: Option<ReadOnly>,
) -> (Box<dyn Task>, String) {
    let listener = eventually(async || env.net.listen(place).await.ok()).await;
    let address = listener.address();
    let state = bench.path(&format!("state{node}"));
    fs::create_dir_all(&state).unwrap();
    let database = Arc::new(bench.node(&format!("n{node}"), node));
    let mut config = Config::new(node, &address, state);
    config.wal_kept_max = bench.wal_kept_max;
    let agent = Agent::load_clone(env.clone(), config, database, source).await.unwrap();
    let serving = async move {
        agent.serve_on(listener).await.unwrap();
    };
    (env.tasks.spawn("agent", Box::pin(serving)), address)
}

/// A server that is told to stop waits for its archive: the agent takes what comes last, its shutdown checkpoint included.
#[tokio::test]
async fn what_a_server_writes_last_is_archived_by_its_agent() {
    let cluster = Cluster::new("last-wal").await;
    let (bench, coordinator) = (&cluster.bench, &cluster.coordinator);
    coordinator.init().await.unwrap();
    let archived = async || {
        let status = coordinator.status().await.unwrap();
        status.nodes[0]
            .description
            .as_ref()
            .ok()
            .map(|seen| (seen.state.clone(), seen.archived, seen.archive_trouble.clone()))
    };
    let server = &cluster.servers[0];
    server.sql("CREATE TABLE t AS SELECT 1 AS n").await;
    let durable: Lsn = server.client.column("SELECT pg_current_wal_flush_lsn()::text").await[0].parse().unwrap();
    eventually(async || archived().await.filter(|(_, until, _)| *until >= durable)).await;
    server.sql("INSERT INTO t VALUES (2)").await;
    let begun = Instant::now();
    server.server.stop(StopMode::Fast).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "its archive held it up for {:?}", begun.elapsed());
    let said = crate::bench::said("pg_controldata", &["-D", &bench.path("n1")]).await;
    let last = said.lines().find_map(|line| line.strip_prefix("Latest checkpoint location:")).unwrap();
    let last: Lsn = last.trim().parse().unwrap();
    let (state, until, trouble) = eventually(async || archived().await.filter(|(state, ..)| *state == "down")).await;
    assert!(until > last, "{until} of {last}, {state}, {trouble:?}");
    // Whoever answers after that is looked at anew, and goes on.
    server.start().await;
    server.sql("INSERT INTO t VALUES (3)").await;
    let durable: Lsn = server.client.column("SELECT pg_current_wal_flush_lsn()::text").await[0].parse().unwrap();
    eventually(async || archived().await.filter(|(_, until, _)| *until >= durable)).await;
}

#[tokio::test]
async fn three_loaded_primaries_are_backed_up_lost_restored_and_read() {
    let cluster = Cluster::new("cluster").await;
    let (bench, coordinator) = (&cluster.bench, &cluster.coordinator);
    coordinator.init().await.unwrap();
    for server in &cluster.servers {
        server.sql("CREATE TABLE mark (what text); INSERT INTO mark VALUES ('before')").await;
        server.sql("CREATE TABLE rows AS SELECT n, md5(n::text) AS t FROM generate_series(1, 100000) n").await;
        server.pgbench(&["-i", "-s", "2", "-q"]).await;
    }
    let fenced = coordinator.backup(None, Method::Fence).await;
    assert_eq!(code(fenced), Code::NotSupported, "these have no commit fence");

    let mut loads = Vec::new();
    for server in &cluster.servers {
        loads.push(server.load().await);
    }
    let full = coordinator.backup(None, Method::Alone).await.unwrap();
    let mut contents = Vec::new();
    for server in &cluster.servers {
        server.sql("INSERT INTO mark VALUES ('between')").await;
        server.sql("UPDATE rows SET t = t || 'x' WHERE n % 10007 = 1").await;
        contents.push(server.client.column(CONTENTS).await);
    }
    let sealed = coordinator.backup_of(Extent::Incremental, None, Method::Alone).await.unwrap();
    for (node, unit) in &sealed.manifest.units {
        let whole = full.manifest.units[node].stored.get();
        assert_eq!((unit.base, unit.why_full.as_deref()), (Some(full.operation), None), "node {node}");
        assert!(unit.stored.get() < whole, "node {node}: {} of {whole}", unit.stored);
    }
    loads.into_iter().for_each(crate::bench::Load::stop);
    for server in &cluster.servers {
        server.sql("INSERT INTO mark VALUES ('after')").await;
    }
    for pins in coordinator.pins().await.unwrap().values() {
        let names: Vec<&str> = pins.iter().map(|pin| pin.name.as_str()).collect();
        assert_eq!(names, ["archive"], "the backup's own pin is gone");
    }

    for (server, node) in cluster.servers.iter().zip(NODES) {
        server.server.stop(StopMode::Kill).await.unwrap();
        fs::remove_dir_all(bench.path(&format!("n{node}"))).unwrap();
    }
    coordinator.restore(&Target::Backup(sealed.operation)).await.unwrap();

    for node in NODES {
        let name = format!("n{node}");
        let client = bench.client(&name);
        assert_eq!(client.column("SELECT what FROM mark").await, ["before", "between"]);
        assert_eq!(client.column(CONTENTS).await, contents[usize::from(node) - 1]);
        assert!(number(&client.column("SELECT count(*)::text FROM pgbench_history").await[0]) > 0);
        let sums = "SELECT s::text FROM (SELECT sum(abalance) s FROM pgbench_accounts UNION \
            SELECT sum(tbalance) FROM pgbench_tellers UNION SELECT sum(bbalance) FROM pgbench_branches UNION \
            SELECT sum(delta) FROM pgbench_history) sums";
        assert_eq!(client.column(sums).await.len(), 1, "transactions were torn on {name}");
        bench.amcheck(&name).await;
    }
    // The new incarnation can be backed up at once.
    let again = coordinator.backup_of(Extent::Incremental, None, Method::Alone).await.unwrap();
    assert_eq!(again.manifest.base(), None, "what it could go on from is of another incarnation");
    for (server, node) in cluster.servers.iter().zip(NODES) {
        server.server.stop(StopMode::Fast).await.unwrap();
        bench.page_checksums(&format!("n{node}")).await;
    }
}
