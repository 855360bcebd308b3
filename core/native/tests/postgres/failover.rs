//! A standby takes its primary's place: the same system identifier, another timeline, another life. The archive goes on
//! with what the old timeline still lacks, then with the new one; what cannot be continued is refused.

use std::fs;

use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::identity::{ByteCount, Incarnation, NodeId, TimelineId};
use sheetanchor_core::plan::{Aim, Target};
use sheetanchor_core::refusal::Code;
use sheetanchor_core::views::points::PointState;
use sheetanchor_engine::database::{Database, State};
use sheetanchor_native::postgres::install::{Account, Install};
use sheetanchor_native::postgres::postmaster::{Launch, Postmaster, StopMode};

use crate::bench::{Bench, Client, code, eventually};
use crate::cluster::{Cluster, NODES};

/// A standby of `n2` in a folder and at a socket of its own.
struct Standby<'a> {
    bench: &'a Bench,
}

impl<'a> Standby<'a> {
    async fn of_n2(bench: &'a Bench) -> Self {
        let (install, account) = (Install::find(None, None).await.unwrap(), Account::to_run_as(None).await.unwrap());
        let data = bench.own_folder("standby").await;
        let sockets = bench.own_folder("standby.s").await;
        fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let mut command = std::process::Command::new(install.program("pg_basebackup"));
        command.args(["-h", &bench.path("n2.s"), "-U", "postgres", "-D", &data, "-R", "-X", "stream", "-c", "fast"]);
        if let Some(Account { uid, gid }) = account {
            std::os::unix::process::CommandExt::gid(&mut command, gid);
            std::os::unix::process::CommandExt::uid(&mut command, uid);
        }
        let said = command.current_dir("/").output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        let settings = [("unix_socket_directories", sockets)];
        let launch =
            Launch { install: &install, account, data: &data, log: &bench.path("standby.log"), settings: &settings };
        drop(launch.start().unwrap());
        let standby = Self { bench };
        standby.catches_up().await;
        standby
    }

    /// Returns once it has all that the primary has.
    async fn catches_up(&self) {
        let sql = "SELECT count(*)::text FROM pg_stat_replication \
            WHERE application_name = 'walreceiver' AND flush_lsn >= pg_current_wal_flush_lsn()";
        let up = async || (self.bench.client("n2").column(sql).await == ["1"]).then_some(());
        eventually(up).await;
    }

    async fn stop(&self) {
        Postmaster::of(&self.bench.path("standby")).unwrap().unwrap().stop(StopMode::Fast).await.unwrap();
    }

    /// The primary is killed; the standby gets its folder, its socket, and its role.
    async fn takes_over(self, cluster: &Cluster) {
        cluster.servers[1].server.stop(StopMode::Kill).await.unwrap();
        if Postmaster::of(&self.bench.path("standby")).unwrap().is_some() {
            self.stop().await;
        }
        fs::rename(self.bench.path("n2"), self.bench.path("n2.dead")).unwrap();
        fs::rename(self.bench.path("standby"), self.bench.path("n2")).unwrap();
        cluster.servers[1].start().await;
        assert_eq!(self.bench.client("n2").column("SELECT pg_promote()::text").await, ["true"]);
    }
}

/// The old primary comes back in its successor's place, and takes writes: nothing of it is archived, and nothing is built on
/// it. Once the rightful one serves again, all goes on.
async fn an_old_primary_comes_back(cluster: &Cluster) {
    let (bench, n2) = (&cluster.bench, &cluster.servers[1]);
    n2.server.stop(StopMode::Fast).await.unwrap();
    fs::rename(bench.path("n2"), bench.path("n2.rightful")).unwrap();
    fs::rename(bench.path("n2.dead"), bench.path("n2")).unwrap();
    n2.start().await;
    n2.sql("INSERT INTO kept VALUES ('nowhere')").await;
    let trouble = async || {
        let status = cluster.coordinator.status().await.unwrap();
        status.nodes[1].description.as_ref().ok().and_then(|seen| seen.archive_trouble.clone())
    };
    let said = eventually(async || trouble().await.filter(|said| said.contains("SA502"))).await;
    assert!(said.contains("of a later timeline than"), "{said}");
    assert_eq!(
        code(cluster.coordinator.backup(None, Method::Fence).await),
        Code::NotMonotonic,
        "it cuts behind its successor"
    );
    n2.server.stop(StopMode::Kill).await.unwrap();
    fs::rename(bench.path("n2"), bench.path("n2.dead")).unwrap();
    fs::rename(bench.path("n2.rightful"), bench.path("n2")).unwrap();
    n2.start().await;
    eventually(async || trouble().await.is_none().then_some(())).await;
}

async fn insert(bench: &Bench, what: &str) {
    for node in NODES {
        let sql = format!("INSERT INTO kept VALUES ('{what}')");
        bench.client(&format!("n{node}")).sql(&sql).await;
    }
}

/// Until the agent has seen what became of its server, and its fence is proven again.
async fn make_point(cluster: &Cluster, name: &str) {
    eventually(async || cluster.coordinator.create_point(name.parse().unwrap()).await.ok()).await;
}

async fn state_of(cluster: &Cluster, name: &str) -> (PointState, String) {
    let points = cluster.coordinator.points().await.unwrap();
    let row = points.iter().find(|row| row.name.as_ref().is_some_and(|known| known.to_string() == name)).unwrap();
    (row.state, row.reason.clone().unwrap_or_default())
}

async fn becomes(cluster: &Cluster, name: &str, wanted: PointState) -> String {
    let seen = async || {
        let (state, reason) = state_of(cluster, name).await;
        (state == wanted).then_some(reason)
    };
    eventually(seen).await
}

async fn lose_and_restore(cluster: &Cluster, aim: Aim, expected: &[&str]) {
    for (server, node) in cluster.servers.iter().zip(NODES) {
        server.server.stop(StopMode::Kill).await.unwrap();
        fs::remove_dir_all(cluster.bench.path(&format!("n{node}"))).unwrap();
    }
    cluster.coordinator.restore(aim).await.unwrap();
    for node in NODES {
        let client: Client = cluster.bench.client(&format!("n{node}"));
        assert_eq!(client.column("SELECT what FROM kept ORDER BY ctid").await, expected, "node {node}");
    }
}

#[tokio::test]
async fn the_archive_goes_on_over_a_failover_and_both_sides_of_it_are_restored() {
    let cluster = Cluster::fenced("failover").await;
    let (bench, coordinator) = (&cluster.bench, &cluster.coordinator);
    coordinator.init().await.unwrap();
    for node in NODES {
        bench.client(&format!("n{node}")).sql("CREATE TABLE kept (what text)").await;
    }
    coordinator.backup(None, Method::Fence).await.unwrap();
    // What the archive lacks of the old timeline must be there still.
    cluster.servers[1].sql("ALTER SYSTEM SET wal_keep_size = '1GB'; SELECT pg_reload_conf()").await;
    let standby = Standby::of_n2(bench).await;
    insert(bench, "one").await;
    // The newest checkpoint lies some segments before the fork.
    for _ in 0..3 {
        cluster.servers[1]
            .sql("SELECT pg_logical_emit_message(true, 'fill', repeat('x', 100000)); SELECT pg_switch_wal()")
            .await;
    }
    make_point(&cluster, "before").await;
    insert(bench, "two").await;
    standby.catches_up().await;
    let node = bench.node("n2", NodeId::new(2));
    let first = node.status().await.unwrap();
    standby.takes_over(&cluster).await;
    let second = eventually(async || node.status().await.ok().filter(|status| status.state == State::Open)).await;
    assert_ne!(first.life, second.life);
    assert_eq!((first.end.timeline, second.end.timeline), (TimelineId::new(1), TimelineId::new(2)));

    becomes(&cluster, "before", PointState::Reachable).await;
    make_point(&cluster, "between").await;
    let reason = becomes(&cluster, "between", PointState::Lost).await;
    assert!(reason.contains("no backup"), "{reason}");
    let refused = coordinator.plan_restore(&Target::Name("between".parse().unwrap())).await;
    assert_eq!(code(refused), Code::NoBackup, "what was copied on one timeline is not recovered on another");
    let sealed = coordinator.backup(None, Method::Fence).await.unwrap();
    insert(bench, "three").await;
    make_point(&cluster, "after").await;
    insert(bench, "four").await;
    becomes(&cluster, "after", PointState::Reachable).await;
    becomes(&cluster, "before", PointState::Reachable).await;
    an_old_primary_comes_back(&cluster).await;

    lose_and_restore(&cluster, Aim::from(&Target::Name("after".parse().unwrap())), &["one", "two", "three"]).await;
    let first = Incarnation::new(1);
    let before = Aim::from(&Target::Name("before".parse().unwrap())).of_incarnation(first);
    lose_and_restore(&cluster, before, &["one"]).await;
    let backup = Aim::from(&Target::Backup(sealed.operation)).of_incarnation(first);
    lose_and_restore(&cluster, backup, &["one", "two"]).await;
}

#[tokio::test]
async fn a_failover_in_the_middle_of_a_backup_ends_it_and_leaves_nothing() {
    let cluster = Cluster::fenced("midst").await;
    let (bench, coordinator) = (&cluster.bench, &cluster.coordinator);
    coordinator.init().await.unwrap();
    for node in NODES {
        bench
            .client(&format!("n{node}"))
            .sql("CREATE TABLE kept AS SELECT repeat(md5(n::text), 30) FROM generate_series(1, 60000) n")
            .await;
    }
    let standby = Standby::of_n2(bench).await;
    let failover = async {
        let begun = "SELECT count(*)::text FROM pg_stat_activity WHERE application_name LIKE 'sheetanchor backup %'";
        eventually(async || (bench.client("n2").column(begun).await == ["1"]).then_some(())).await;
        standby.takes_over(&cluster).await;
    };
    let (backup, ()) = tokio::join!(coordinator.backup(None, Method::Fence), failover);
    let said = backup.expect_err("its session on node 2 is gone");
    // Its session is gone, or nobody answers yet, or a pin is to be renewed: pins are slots, which a standby does not have.
    let expected = [Code::LifeChanged, Code::DatabaseDown, Code::PinLost];
    let refused = said.refusal().is_some_and(|refusal| expected.contains(&refusal.code));
    // Or the server was heard to end in the midst of a call.
    assert!(refused || said.to_string().contains("57P01"), "{said}");
    assert_eq!(coordinator.status().await.unwrap().unfinished, [], "failure is its outcome");
    eventually(async || coordinator.backup(None, Method::Fence).await.ok()).await;
    let only_the_archives = async || {
        let pins = coordinator.pins().await.ok()?;
        pins.values().all(|pins| pins.iter().all(|pin| pin.name == "archive")).then_some(())
    };
    eventually(only_the_archives).await;
}

/// How much WAL may wait for the archive.
const ROOM: ByteCount = ByteCount::new(32 << 20);

/// WAL of node 2 has no way into the archive. Whatever else the repository holds is at hand.
struct NoWay {
    folder: String,
    away: String,
}

impl NoWay {
    fn for_n2(bench: &Bench) -> Self {
        let (folder, away) = (bench.path("repository/wal/0000000001/00002"), bench.path("away"));
        fs::rename(&folder, &away).unwrap();
        fs::write(&folder, "what is no folder").unwrap();
        Self { folder, away }
    }

    fn ends(self) {
        fs::remove_file(&self.folder).unwrap();
        fs::rename(&self.away, &self.folder).unwrap();
    }
}

/// Node 2 writes more than may wait, and declares a hole, on itself alone.
async fn a_hole_is_declared_on_n2(bench: &Bench) {
    let sql =
        "SELECT count(pg_logical_emit_message(true, 'fill', repeat('x', 1048576)))::text FROM generate_series(1, 12)";
    for _ in 0..4 {
        bench.client("n2").column(sql).await;
    }
    let remembered = || fs::read_to_string(bench.path("state2/agent.json")).unwrap_or_default();
    eventually(async || remembered().contains("\"reason\": \"bound\"").then_some(())).await;
}

/// The repository shows so many holes that no backup lies behind.
async fn holes_are(cluster: &Cluster, timelines: &[u32]) {
    let shown = async || {
        let scene = cluster.coordinator.scene().await.ok()?;
        let holes = scene.holes_without_backup();
        let seen: Vec<u32> = holes.iter().map(|hole| hole.timeline.get()).collect();
        (seen == timelines).then_some(())
    };
    eventually(shown).await;
}

/// A point whose record was let go of is no target, and the refusal tells of the hole.
async fn nothing_passes(cluster: &Cluster, name: &str) {
    let reason = becomes(cluster, name, PointState::Lost).await;
    assert!(reason.contains("hole"), "{reason}");
    let refused = cluster.coordinator.plan_restore(&Target::Name(name.parse().unwrap())).await;
    let said = refused.expect_err("it lies in a hole");
    assert_eq!(said.refusal().map(|why| why.code), Some(Code::WalGap), "{said}");
    assert!(said.to_string().contains("is a hole, declared at"), "{said}");
}

/// A hole is declared on the old timeline, beyond where a standby takes over, and is not shown yet when it does; a second one
/// is declared on the new timeline.
#[tokio::test]
async fn no_restore_passes_a_hole_on_either_side_of_a_failover_and_the_archive_goes_on() {
    let mut bench = Bench::new("hole-fork");
    bench.wal_kept_max = Some(ROOM);
    let cluster = Cluster::of(bench, true).await;
    let (bench, coordinator) = (&cluster.bench, &cluster.coordinator);
    coordinator.init().await.unwrap();
    for node in NODES {
        bench.client(&format!("n{node}")).sql("CREATE TABLE kept (what text)").await;
    }
    coordinator.backup(None, Method::Fence).await.unwrap();
    let standby = Standby::of_n2(bench).await;
    insert(bench, "one").await;
    make_point(&cluster, "before").await;
    becomes(&cluster, "before", PointState::Reachable).await;
    standby.catches_up().await;
    standby.stop().await;

    let no_way = NoWay::for_n2(bench);
    make_point(&cluster, "within").await;
    a_hole_is_declared_on_n2(bench).await;
    standby.takes_over(&cluster).await;
    no_way.ends();
    holes_are(&cluster, &[1]).await;
    nothing_passes(&cluster, "within").await;
    eventually(async || coordinator.backup(None, Method::Fence).await.ok()).await;
    holes_are(&cluster, &[]).await;
    insert(bench, "two").await;
    make_point(&cluster, "after").await;
    becomes(&cluster, "after", PointState::Reachable).await;

    let no_way = NoWay::for_n2(bench);
    make_point(&cluster, "within-2").await;
    a_hole_is_declared_on_n2(bench).await;
    no_way.ends();
    holes_are(&cluster, &[2]).await;
    nothing_passes(&cluster, "within-2").await;
    coordinator.backup(None, Method::Fence).await.unwrap();
    holes_are(&cluster, &[]).await;
    insert(bench, "three").await;
    make_point(&cluster, "last").await;
    becomes(&cluster, "last", PointState::Reachable).await;
    for name in ["before", "after"] {
        assert_eq!(state_of(&cluster, name).await.0, PointState::Reachable, "{name} lies before a hole");
    }

    lose_and_restore(&cluster, Aim::from(&Target::Latest), &["one", "two", "three"]).await;
    let before = Aim::from(&Target::Name("before".parse().unwrap())).of_incarnation(Incarnation::new(1));
    lose_and_restore(&cluster, before, &["one"]).await;
}
