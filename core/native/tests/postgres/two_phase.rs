//! Transactions over several servers, committed in two phases under one gid: at every cut each is on all servers that it
//! touches or on none, and nobody else's prepared transactions are decided.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use sheetanchor_core::format::catalog::{Guarantee, Method};
use sheetanchor_core::identity::Incarnation;
use sheetanchor_core::in_doubt::{Verdict, Why};
use sheetanchor_core::plan::{Aim, Target};
use sheetanchor_core::views::points::PointState;
use sheetanchor_engine::coordinator::Restored;
use sheetanchor_native::postgres::postmaster::StopMode;
use tokio::task::JoinSet;
use tokio_postgres::NoTls;

use crate::bench::{Bench, Client, LEAST, eventually};
use crate::cluster::{Cluster, NODES};

const MOVERS: usize = 3;

/// Points under load.
const POINTS: usize = 4;

/// A gid as a JDBC driver makes it of XA's.
const XA: &str = "131077_MzE=_MQ==";

async fn declared(test: &str, two_phase: bool) -> Cluster {
    let mut bench = Bench::new(test);
    bench.two_phase = two_phase;
    // What others have prepared is ended by no role but theirs and superusers: a restore knows how to become one.
    bench.role = LEAST;
    let cluster = Cluster::of(bench, true).await;
    cluster.coordinator.init().await.unwrap();
    for server in &cluster.servers {
        server.sql("CREATE TABLE moved (gid text PRIMARY KEY)").await;
    }
    cluster
}

fn client(cluster: &Cluster, node: u16) -> Client {
    cluster.bench.client(&format!("n{node}"))
}

async fn prepare(cluster: &Cluster, node: u16, gid: &str) {
    client(cluster, node).sql(&format!("BEGIN; INSERT INTO moved VALUES ('{gid}'); PREPARE TRANSACTION '{gid}'")).await;
}

async fn point(cluster: &Cluster, name: &str) -> Guarantee {
    cluster.coordinator.create_point(name.parse().unwrap()).await.unwrap().1.guarantee
}

async fn is_reachable(cluster: &Cluster, name: &str) {
    let reached = async || {
        let points = cluster.coordinator.points().await.unwrap();
        points
            .iter()
            .any(|view| {
                view.name.as_ref().is_some_and(|own| own.as_str() == name) && view.state == PointState::Reachable
            })
            .then_some(())
    };
    eventually(reached).await;
}

/// Everything is lost, and restored to a point of the first incarnation: what every node holds then.
async fn restored(cluster: &Cluster, name: &str) -> (Restored, BTreeMap<u16, BTreeSet<String>>) {
    restored_to(cluster, Target::Name(name.parse().unwrap())).await
}

async fn restored_to(cluster: &Cluster, target: Target) -> (Restored, BTreeMap<u16, BTreeSet<String>>) {
    for (server, node) in cluster.servers.iter().zip(NODES) {
        server.server.stop(StopMode::Kill).await.unwrap();
        fs::remove_dir_all(cluster.bench.path(&format!("n{node}"))).unwrap();
    }
    let aim = Aim::from(&target).of_incarnation(Incarnation::new(1));
    let restored = cluster.coordinator.restore(aim).await.unwrap();
    let mut held = BTreeMap::new();
    for node in NODES {
        let gids = client(cluster, node).column("SELECT gid FROM moved").await;
        held.insert(node, gids.into_iter().collect());
    }
    (restored, held)
}

async fn prepared(cluster: &Cluster, node: u16) -> Vec<String> {
    client(cluster, node).column("SELECT gid FROM pg_prepared_xacts ORDER BY gid").await
}

/// Clients that write one row on two servers each, in one transaction.
struct Movers {
    over: Arc<AtomicBool>,
    moved: Arc<AtomicUsize>,
    moving: JoinSet<()>,
}

impl Movers {
    fn start(cluster: &Cluster) -> Self {
        let (over, moved, mut moving) = (Arc::new(AtomicBool::new(false)), Arc::default(), JoinSet::new());
        for number in 0..MOVERS {
            let connections: Vec<String> = NODES.map(|node| client(cluster, node).connection).into();
            moving.spawn(transfers(number, connections, over.clone(), Arc::clone(&moved)));
        }
        Self { over, moved, moving }
    }

    async fn stop(self) -> usize {
        self.over.store(true, Ordering::SeqCst);
        self.moving.join_all().await;
        self.moved.load(Ordering::SeqCst)
    }
}

/// The servers that a transaction touches are in its gid.
fn gid_of(mover: usize, step: usize, first: usize, second: usize) -> String {
    format!("move {mover}.{step} {} {}", NODES[first], NODES[second])
}

async fn transfers(mover: usize, connections: Vec<String>, over: Arc<AtomicBool>, count: Arc<AtomicUsize>) {
    let (mut sessions, mut drivers) = (Vec::new(), JoinSet::new());
    for connection in connections {
        let (session, driver) = tokio_postgres::connect(&connection, NoTls).await.unwrap();
        drivers.spawn(driver);
        sessions.push(session);
    }
    let mut step = 0;
    while !over.load(Ordering::SeqCst) {
        let (first, second) = ((mover + step) % 3, (mover + step + 1 + step % 2) % 3);
        let gid = gid_of(mover, step, first, second);
        for place in [first, second] {
            let sql = format!("BEGIN; INSERT INTO moved VALUES ('{gid}')");
            sessions[place].batch_execute(&sql).await.unwrap();
        }
        for place in [first, second] {
            sessions[place].batch_execute(&format!("PREPARE TRANSACTION '{gid}'")).await.unwrap();
        }
        sessions[first].batch_execute(&format!("COMMIT PREPARED '{gid}'")).await.unwrap();
        // A cut falls between the two halves more often than not. Each mover has its own pace: a fence lets all go on at once, and
        // in step with the points that follow none of them would be cut in half.
        tokio::time::sleep(Duration::from_millis(20 + 7 * mover as u64)).await;
        sessions[second].batch_execute(&format!("COMMIT PREPARED '{gid}'")).await.unwrap();
        count.fetch_add(1, Ordering::SeqCst);
        step += 1;
    }
}

/// The transactions of movers that are on one server that they touch, and not on the other.
fn torn(held: &BTreeMap<u16, BTreeSet<String>>) -> Vec<String> {
    let all: BTreeSet<&String> = held.values().flatten().filter(|gid| gid.starts_with("move ")).collect();
    let is_torn = |gid: &&String| {
        let mut nodes = gid.split(' ').skip(2).map(|node| node.parse::<u16>().unwrap());
        !nodes.all(|node| held[&node].contains(*gid))
    };
    all.into_iter().filter(is_torn).cloned().collect()
}

#[tokio::test]
async fn what_is_prepared_at_a_cut_ends_alike_on_every_server() {
    let cluster = declared("two-phase", true).await;
    let movers = Movers::start(&cluster);
    // Nobody has taken a point: the backup's own cut is decided by what it has begun with.
    let sealed = cluster.coordinator.backup(None, Method::Fence).await.unwrap();
    assert_eq!(sealed.seal.guarantee, Guarantee::Atomic);
    for number in 0..POINTS {
        assert_eq!(point(&cluster, &format!("under-load-{number}")).await, Guarantee::Atomic);
    }
    let moved = movers.stop().await;

    // Prepared everywhere and committed on one; prepared on one only; ended otherwise after the cut.
    for node in NODES {
        prepare(&cluster, node, "sure").await;
    }
    client(&cluster, 1).sql("COMMIT PREPARED 'sure'").await;
    prepare(&cluster, 2, "it'' is \\ alone").await;
    point(&cluster, "doubtful").await;
    client(&cluster, 2).sql("COMMIT PREPARED 'sure'").await;
    client(&cluster, 2).sql("COMMIT PREPARED 'it'' is \\ alone'").await;
    // Of a manager that gives each half a name of its own.
    prepare(&cluster, 2, XA).await;
    point(&cluster, "strange").await;
    is_reachable(&cluster, "strange").await;

    let mut in_doubt = 0;
    for number in 0..POINTS {
        // The backup's own cut is one of them.
        let target = match number {
            0 => Target::Backup(sealed.operation),
            _ => Target::Name(format!("under-load-{number}").parse().unwrap()),
        };
        let (restored, held) = restored_to(&cluster, target).await;
        assert_eq!(restored.guarantee(), Guarantee::Atomic, "{:?}", restored.in_doubt);
        assert_eq!(torn(&held), [""; 0], "torn at point {number}: {:?}", restored.in_doubt);
        assert!(held[&1].len() < moved, "what came after the point is gone");
        for node in NODES {
            assert_eq!(prepared(&cluster, node).await, [""; 0], "node {node}");
        }
        in_doubt += restored.in_doubt.len();
    }
    assert!(in_doubt > 0, "no cut fell between two halves: nothing was seen");

    let (doubtful, held) = restored(&cluster, "doubtful").await;
    let verdicts: Vec<(u16, &str, Verdict)> =
        doubtful.in_doubt.iter().map(|half| (half.node.get(), half.gid.as_str(), half.verdict)).collect();
    let expected =
        [(2, "sure", Verdict::Commit), (2, "it' is \\ alone", Verdict::Rollback), (3, "sure", Verdict::Commit)];
    assert_eq!(verdicts, expected);
    for node in NODES {
        assert!(held[&node].contains("sure"), "node {node}");
        assert!(!held[&node].contains("it' is \\ alone"));
        assert_eq!(prepared(&cluster, node).await, [""; 0], "node {node}");
    }
    // The restored servers hold such ends back like the first ones, and say so.
    assert_eq!(point(&cluster, "after").await, Guarantee::Atomic);

    let (strange, held) = restored(&cluster, "strange").await;
    assert_eq!(strange.guarantee(), Guarantee::Causal);
    let left = |half: &&sheetanchor_core::in_doubt::Resolved| half.verdict == Verdict::Left(Why::Family);
    assert_eq!(strange.in_doubt.iter().filter(left).map(|half| half.gid.as_str()).collect::<Vec<_>>(), [XA]);
    assert!(held.values().all(|gids| !gids.contains(XA)) && held[&3].contains("sure"));
    assert_eq!(prepared(&cluster, 2).await, [XA]);
    client(&cluster, 2).sql(&format!("COMMIT PREPARED '{XA}'")).await;
}

#[tokio::test]
async fn what_nobody_has_declared_is_not_decided() {
    let cluster = declared("undeclared", false).await;
    assert_eq!(point(&cluster, "first").await, Guarantee::Causal);
    for node in [1, 2] {
        prepare(&cluster, node, "whose").await;
    }
    let sealed = cluster.coordinator.backup(None, Method::Fence).await.unwrap();
    assert_eq!(sealed.seal.guarantee, Guarantee::Causal);
    client(&cluster, 1).sql("COMMIT PREPARED 'whose'").await;
    point(&cluster, "one-ended").await;
    is_reachable(&cluster, "one-ended").await;
    let (restored, held) = restored(&cluster, "one-ended").await;
    let halves: Vec<_> = restored.in_doubt.iter().map(|half| (half.node.get(), half.verdict)).collect();
    assert_eq!(halves, [(2, Verdict::Left(Why::Family))]);
    assert_eq!(restored.guarantee(), Guarantee::Causal);
    assert!(held[&1].contains("whose") && !held[&2].contains("whose"));
    assert_eq!(prepared(&cluster, 2).await, ["whose"]);
}
