//! The commands on real PostgreSQL servers, with pgbench running on each while the backup is taken.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "tests may be blunt"
)]
#![allow(clippy::format_push_string, reason = "tests may be blunt")]

mod site;

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sheetanchor_core::position::Lsn;
use sheetanchor_native::postgres::postmaster::{Postmaster, StopMode};
use sheetanchor_native::postgres::server::{Server, ServerPlan};
use site::{NodeText, Site, free_addresses};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

/// Servers and their agents. Dropped in this order: load, servers, folder.
struct Town {
    load: Vec<Child>,
    servers: Vec<Server>,
    site: Site,
}

impl Town {
    async fn new(test: &str, count: u16) -> Self {
        let mut site = Site::empty(test);
        let mut servers = Vec::new();
        for (id, agent) in (1..=count).zip(free_addresses(usize::from(count))) {
            let server = Server::init(ServerPlan {
                data: site.path(&format!("pg-{id}")),
                socket_folder: site.path(&format!("s{id}")),
                port: 5432,
                log: site.path(&format!("pg-{id}.log")),
                bin: None,
                run_as: None,
                settings: vec![("shared_buffers".into(), "16MB".into()), ("autovacuum_naptime".into(), "1s".into())],
            });
            let server = server.await.unwrap();
            server.start().await.unwrap();
            site.nodes.push(NodeText {
                id,
                agent,
                state: site.path(&format!("state-{id}")),
                engine: "postgres",
                data: server.plan().data.clone(),
                connection: server.connection(),
            });
            servers.push(server);
        }
        site.write_cluster_file();
        site.start_agents();
        Self { load: Vec::new(), servers, site }
    }

    fn program(server: &Server, name: &str) -> Command {
        let mut command = Command::new(server.install().program(name));
        command.env("PGHOST", &server.plan().socket_folder).env("PGPORT", "5432").env("PGUSER", "postgres");
        command.env("PGDATABASE", "postgres").stdin(Stdio::null());
        command
    }

    fn check(server: &Server, name: &str, arguments: &[&str]) {
        let said = Self::program(server, name).args(arguments).output().unwrap();
        assert!(said.status.success(), "{name}: {}", String::from_utf8_lossy(&said.stderr));
    }

    fn start_load(&mut self) {
        for server in &self.servers {
            let mut pgbench = Self::program(server, "pgbench");
            pgbench.args(["-n", "-c", "2", "-T", "300"]).stdout(Stdio::null()).stderr(Stdio::null());
            self.load.push(pgbench.spawn().unwrap());
        }
    }

    fn stop_load(&mut self) {
        for mut child in self.load.drain(..) {
            assert_eq!(child.try_wait().unwrap(), None, "the load ran all the while");
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Town {
    fn drop(&mut self) {
        for child in &mut self.load {
            child.kill().ok();
            child.wait().ok();
        }
        let data: Vec<String> = self.servers.iter().map(|server| server.plan().data.clone()).collect();
        // Each ends its server, also one that an agent has started in its folder since.
        self.servers.clear();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(10)
            && data.iter().any(|data| matches!(Postmaster::of(data), Ok(Some(_))))
        {
            std::thread::sleep(Duration::from_millis(20));
        }
        if std::thread::panicking() {
            for node in &self.site.nodes {
                let log = std::fs::read_to_string(format!("{}/postgres.log", node.state)).unwrap_or_default();
                eprintln!("--- restored server {}\n{log}", node.id);
            }
        }
    }
}

/// A connection, driven until it is dropped.
struct Session {
    client: Client,
    _driver: JoinSet<Result<(), tokio_postgres::Error>>,
}

impl std::ops::Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

async fn connect(connection: &str) -> Session {
    let (client, connection) = tokio_postgres::connect(connection, NoTls).await.unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    Session { client, _driver: driver }
}

async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

async fn wal_end(client: &Client) -> Lsn {
    let row = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
    row.get::<_, &str>(0).parse().unwrap()
}

/// Numbered rows, each with the positions between which its commit record lies.
async fn mark(connection: String, over: Arc<AtomicBool>) -> Vec<(i64, Lsn, Lsn)> {
    let client = connect(&connection).await;
    let mut marks = Vec::new();
    let mut id = 0;
    while !over.load(Ordering::SeqCst) {
        id += 1;
        client.batch_execute(&format!("BEGIN; INSERT INTO marks VALUES ({id})")).await.unwrap();
        let before = wal_end(&client).await;
        client.batch_execute("COMMIT").await.unwrap();
        marks.push((id, before, wal_end(&client).await));
    }
    marks
}

#[tokio::test(flavor = "multi_thread")]
async fn three_primaries_under_pgbench_restore_to_their_own_cuts() {
    let mut town = Town::new("pgbench", 3).await;
    town.site.run(&["init"]).done();
    for server in &town.servers {
        Town::check(server, "pgbench", &["-i", "-q", "-s", "2"]);
        connect(&server.connection()).await.batch_execute("CREATE TABLE marks (id bigint PRIMARY KEY)").await.unwrap();
    }
    town.site.run(&["backup"]).refused("0A000");
    town.site.run(&["restore-point", "create", "a"]).refused("0A000");
    town.start_load();
    let over = Arc::new(AtomicBool::new(false));
    let mut marking = JoinSet::new();
    for (index, server) in town.servers.iter().enumerate() {
        let marks = mark(server.connection(), over.clone());
        marking.spawn(async move { (index, marks.await) });
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let sealed = town.site.run(&["--json", "backup", "--cut", "per-node"]).json();
    assert_eq!(sealed["seal"]["guarantee"], "node");
    assert_eq!(sealed["method"], "alone");
    tokio::time::sleep(Duration::from_millis(500)).await;
    over.store(true, Ordering::SeqCst);
    town.stop_load();
    let marks: BTreeMap<usize, _> = marking.join_all().await.into_iter().collect();
    town.site.run(&["verify", sealed["backup"].as_str().unwrap()]).done();

    for server in &town.servers {
        server.stop(StopMode::Kill).await.unwrap();
    }
    town.site.kill_all();
    tokio::time::sleep(Duration::from_secs(1)).await;
    town.site.wipe();
    town.site.start_agents();
    let restored = town.site.run(&["restore"]).done();
    assert!(restored.contains("guarantee node: each node by itself"), "{restored}");

    for (index, server) in town.servers.iter().enumerate() {
        let until = sealed["seal"]["cut"]["threads"][(index + 1).to_string()]["until"].as_str().unwrap();
        let until: Lsn = until.parse().unwrap();
        check_cut(server, &marks[&index], until).await;
        Town::check(server, "pg_amcheck", &["--install-missing", "--heapallindexed", "postgres"]);
    }
    town.site.kill_all();
    for server in &town.servers {
        server.stop(StopMode::Fast).await.unwrap();
        Town::check(server, "pg_checksums", &["--check", "-D", &server.plan().data]);
    }
}

/// Everything committed before the cut is there, nothing after it, and pgbench's books balance.
async fn check_cut(server: &Server, marks: &[(i64, Lsn, Lsn)], until: Lsn) {
    let client = connect(&server.connection()).await;
    let rows = client.query("SELECT id FROM marks", &[]).await.unwrap();
    let found: BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    let (mut inside, mut outside) = (0, 0);
    for (id, before, after) in marks {
        if *after <= until {
            assert!(found.contains(id), "mark {id} ended at {after}, before the cut at {until}, and is lost");
            inside += 1;
        } else if *before >= until {
            assert!(!found.contains(id), "mark {id} was committed after {before}, beyond the cut at {until}");
            outside += 1;
        }
    }
    assert!(inside > 0 && outside > 0, "{inside} marks before the cut, {outside} after it");
    let sum = number(&client, "SELECT coalesce(sum(delta), 0)::bigint FROM pgbench_history").await;
    for (table, column) in [("accounts", "abalance"), ("tellers", "tbalance"), ("branches", "bbalance")] {
        let sql = format!("SELECT sum({column})::bigint FROM pgbench_{table}");
        assert_eq!(number(&client, &sql).await, sum, "{table}");
    }
    assert!(number(&client, "SELECT count(*) FROM pgbench_history").await > 0, "pgbench had written before the cut");
    client.batch_execute("INSERT INTO marks VALUES (-1)").await.unwrap();
}

/// So much WAL may wait for the archive, in MiB: what the cluster file of the next test says.
const ROOM_MIB: i64 = 64;

/// Writes so much WAL.
async fn fill(client: &Client, mib: i64) {
    let sql =
        "SELECT count(pg_logical_emit_message(true, 'fill', repeat('x', 1048576))) FROM generate_series(1, $1::int8)";
    for _ in 0..mib / 8 {
        client.query_one(sql, &[&8_i64]).await.unwrap();
    }
}

/// How much WAL a server has once it has let go of what it may, in MiB.
async fn wal_mib(client: &Client) -> i64 {
    client.batch_execute("CHECKPOINT").await.unwrap();
    number(client, "SELECT sum(size)::bigint / 1048576 FROM pg_ls_waldir()").await
}

/// Waits until the holes behind which no backup was taken have these reasons, as `status` shows them.
async fn holes_are(site: &Site, reasons: &[&str]) {
    let begun = Instant::now();
    loop {
        let status = site.run(&["--json", "status"]).json();
        let holes: Vec<&str> =
            status["holes"].as_array().unwrap().iter().map(|hole| hole["reason"].as_str().unwrap()).collect();
        if holes == reasons {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{reasons:?} are due: {status}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The repository is gone while whole segments are read from the server's folder.
async fn the_bound_holds_by_the_folder(town: &mut Town, client: &Client) {
    let (repository, away) = (town.site.repository(), town.site.path("away"));
    town.site.kill_all();
    town.site.node_lines = "wal_kept_max_mib = 64\nwal = \"folder\"\n";
    town.site.write_cluster_file();
    town.site.start_agents();
    std::fs::rename(&repository, &away).unwrap();
    std::fs::write(&repository, "what is no folder").unwrap();
    fill(client, ROOM_MIB * 2).await;
    let remembered = || std::fs::read_to_string(town.site.path("state-1/agent.json")).unwrap();
    let begun = Instant::now();
    while !remembered().contains("\"reason\": \"bound\"") {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", remembered());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    std::fs::remove_file(&repository).unwrap();
    std::fs::rename(&away, &repository).unwrap();
    holes_are(&town.site, &["bound"]).await;
    town.site.run(&["backup", "--cut", "per-node"]).done();
    holes_are(&town.site, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_gone_does_not_fill_the_disk() {
    let mut town = Town::new("hole", 1).await;
    town.site.kill_all();
    town.site.node_lines = "wal_kept_max_mib = 64\n";
    town.site.write_cluster_file();
    town.site.start_agents();
    let client = connect(&town.servers[0].connection()).await;
    for setting in ["min_wal_size = '32MB'", "max_wal_size = '64MB'"] {
        client.batch_execute(&format!("ALTER SYSTEM SET {setting}")).await.unwrap();
    }
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    town.site.run(&["init"]).done();
    Town::check(&town.servers[0], "pgbench", &["-i", "-q", "-s", "1"]);
    town.site.run(&["backup", "--cut", "per-node"]).done();

    let (repository, away) = (town.site.repository(), town.site.path("away"));
    std::fs::rename(&repository, &away).unwrap();
    std::fs::write(&repository, "what is no folder").unwrap();
    town.start_load();
    fill(&client, ROOM_MIB * 4).await;
    let begun = Instant::now();
    while wal_mib(&client).await > ROOM_MIB * 5 / 2 {
        assert!(begun.elapsed() < Duration::from_secs(30), "{} MiB are kept", wal_mib(&client).await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let remembered = std::fs::read_to_string(town.site.path("state-1/agent.json")).unwrap();
    assert!(remembered.contains("\"reason\": \"bound\""), "{remembered}");

    std::fs::remove_file(&repository).unwrap();
    std::fs::rename(&away, &repository).unwrap();
    holes_are(&town.site, &["bound"]).await;
    let shown = town.site.run(&["status"]).done();
    assert!(shown.contains("take a new backup") && shown.contains("bytes of WAL waited for the archive"), "{shown}");
    let shown = town.site.run(&["pitr-status"]).done();
    assert!(shown.contains("is missing from") && shown.contains(": declared at"), "{shown}");
    town.site.run(&["backup", "--cut", "per-node"]).done();
    holes_are(&town.site, &[]).await;
    town.stop_load();

    the_bound_holds_by_the_folder(&mut town, &client).await;

    // The server's own bound takes the slot away while nobody is there.
    town.site.kill_all();
    // More than a backup writes, which by the folder was three whole segments.
    client.batch_execute("ALTER SYSTEM SET max_slot_wal_keep_size = '64MB'").await.unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    fill(&client, ROOM_MIB * 2).await;
    wal_mib(&client).await;
    town.site.start_agents();
    holes_are(&town.site, &["lost"]).await;
    client.batch_execute("CREATE TABLE after AS SELECT 7::bigint AS n").await.unwrap();
    town.site.run(&["backup", "--cut", "per-node"]).done();
    holes_are(&town.site, &[]).await;

    let history = number(&client, "SELECT count(*) FROM pgbench_history").await;
    drop(client);
    town.servers[0].stop(StopMode::Kill).await.unwrap();
    town.site.kill_all();
    tokio::time::sleep(Duration::from_secs(1)).await;
    town.site.wipe();
    town.site.start_agents();
    town.site.run(&["restore"]).done();
    let client = connect(&town.servers[0].connection()).await;
    assert_eq!(number(&client, "SELECT n FROM after").await, 7);
    assert_eq!(number(&client, "SELECT count(*) FROM pgbench_history").await, history);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_that_are_one_server_are_refused() {
    let mut town = Town::new("one-server", 1).await;
    let (site, first) = (&mut town.site, town.servers[0].plan().data.clone());
    let link = site.path("pg-2");
    std::os::unix::fs::symlink(&first, &link).unwrap();
    let twin = NodeText {
        id: 2,
        agent: free_addresses(1).remove(0),
        state: site.path("state-2"),
        data: link,
        ..site.nodes[0].clone()
    };
    site.nodes.push(twin);
    site.write_cluster_file();
    site.start_agent(2);
    site.run(&["init"]).refused("SA107");
    assert!(site.repository_contents().is_empty(), "nothing was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_says_what_to_run_and_then_the_cluster_is_cut_as_one() {
    let mut town = Town::new("doctor", 2).await;
    let said = town.site.run(&["doctor"]);
    for step in
        ["add sheetanchor_fence to shared_preload_libraries and restart", "`CREATE EXTENSION sheetanchor_fence`"]
    {
        assert_eq!(said.out.matches(step).count(), 2, "{}", said.out);
    }
    said.refused("0A000");
    for server in &town.servers {
        let preload = "ALTER SYSTEM SET shared_preload_libraries = 'sheetanchor_fence'";
        connect(&server.connection()).await.batch_execute(preload).await.unwrap();
        server.stop(StopMode::Fast).await.unwrap();
        assert!(town.site.run(&["doctor"]).out.contains("down"));
        server.start().await.expect("it starts; `cargo xtask pg` installs the fence");
        let session = connect(&server.connection()).await;
        session.batch_execute("CREATE EXTENSION sheetanchor_fence; CREATE TABLE kept (what text)").await.unwrap();
    }
    // What the doctor says of a server is at most some seconds old.
    site::eventually(|| {
        std::thread::sleep(Duration::from_millis(100));
        town.site.run(&["doctor"]).status.eq(&0).then_some(())
    });
    let said = town.site.run(&["doctor"]).done();
    assert_eq!(said.matches("the commit fence holds").count(), 2, "{said}");

    town.site.run(&["init"]).done();
    let sealed = town.site.run(&["--json", "backup", "--compression", "lz4"]).json();
    assert_eq!(sealed["seal"]["guarantee"], "causal");
    let insert = async |what: &str| {
        for server in &town.servers {
            let sql = format!("INSERT INTO kept VALUES ('{what}')");
            connect(&server.connection()).await.batch_execute(&sql).await.unwrap();
        }
    };
    insert("before").await;
    town.site.run(&["restore-point", "create", "here"]).done();
    insert("after").await;
    site::eventually(|| {
        std::thread::sleep(Duration::from_millis(100));
        town.site.run(&["restore", "--to", "name:here", "--dry-run"]).status.eq(&0).then_some(())
    });
    for server in &town.servers {
        server.stop(StopMode::Kill).await.unwrap();
    }
    town.site.kill_all();
    town.site.wipe();
    town.site.start_agents();
    town.site.run(&["restore", "--to", "name:here"]).done();
    for server in &town.servers {
        let session = connect(&server.connection()).await;
        let rows = session.query("SELECT what FROM kept", &[]).await.unwrap();
        let kept: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(kept, ["before"]);
    }
    town.site.run(&["doctor"]).done();
}
