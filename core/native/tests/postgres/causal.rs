//! Points under the fence: three servers, clients that commit on one after the other, and no effect without its cause.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sheetanchor_core::format::catalog::{Guarantee, Method};
use sheetanchor_core::identity::{NodeId, ThreadId};
use sheetanchor_core::plan::Target;
use sheetanchor_core::position::Lsn;
use sheetanchor_core::views::points::PointState;
use sheetanchor_native::postgres::postmaster::StopMode;
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;

use crate::bench::{Bench, eventually};
use crate::cluster::{Cluster, NODES};

const CLIENTS: i32 = 3;
const POINTS: u32 = 6;

/// A commit that was acknowledged: on which node, and between which positions its record lies.
#[derive(Clone, Copy)]
struct Commit {
    node: u16,
    before: Lsn,
    after: Lsn,
}

/// Clients that each take one step on every node in turn, each step only after the one before it was acknowledged.
struct Walkers {
    over: Arc<AtomicBool>,
    journals: Vec<Arc<Mutex<Vec<Commit>>>>,
    walking: Vec<JoinHandle<()>>,
}

impl Walkers {
    fn start(bench: &Bench) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let journals: Vec<Arc<Mutex<Vec<Commit>>>> = (0..CLIENTS).map(|_| Arc::default()).collect();
        let connections: Vec<String> = NODES.map(|node| bench.client(&format!("n{node}")).connection).into();
        let walk = |(client, journal): (i32, &Arc<Mutex<Vec<Commit>>>)| {
            tokio::spawn(walk(client, connections.clone(), journal.clone(), over.clone()))
        };
        let walking = (0..CLIENTS).zip(&journals).map(walk).collect();
        Self { over, journals, walking }
    }

    async fn stop(self) -> Vec<Vec<Commit>> {
        self.over.store(true, Ordering::SeqCst);
        for walking in self.walking {
            walking.await.unwrap();
        }
        self.journals.iter().map(|journal| journal.lock().unwrap().clone()).collect()
    }
}

async fn walk(client: i32, connections: Vec<String>, journal: Arc<Mutex<Vec<Commit>>>, over: Arc<AtomicBool>) {
    let mut sessions = Vec::new();
    for connection in connections {
        let (session, driver) = tokio_postgres::connect(&connection, NoTls).await.unwrap();
        tokio::spawn(async move { drop(driver.await) });
        sessions.push(session);
    }
    let mut step = 0_i64;
    while !over.load(Ordering::SeqCst) {
        for (node, session) in NODES.into_iter().zip(&sessions) {
            let position = "SELECT pg_current_wal_insert_lsn()::text";
            let before = session.query_one(position, &[]).await.unwrap().get::<_, String>(0);
            session.execute("INSERT INTO step VALUES ($1, $2)", &[&client, &step]).await.unwrap();
            let after = session.query_one(position, &[]).await.unwrap().get::<_, String>(0);
            let commit = Commit { node, before: before.parse().unwrap(), after: after.parse().unwrap() };
            journal.lock().unwrap().push(commit);
        }
        step += 1;
    }
}

/// How many clients have a commit in the cut, and an earlier one of theirs not.
fn torn(journals: &[Vec<Commit>], cut: &BTreeMap<u16, Lsn>) -> usize {
    let is_torn = |journal: &&Vec<Commit>| {
        let last_inside = journal.iter().rposition(|commit| commit.after <= cut[&commit.node]);
        let first_outside = journal.iter().position(|commit| commit.before >= cut[&commit.node]);
        matches!((last_inside, first_outside), (Some(inside), Some(outside)) if outside < inside)
    };
    journals.iter().filter(is_torn).count()
}

#[tokio::test]
async fn under_the_fence_no_effect_is_there_without_its_cause() {
    let cluster = Cluster::fenced("causal").await;
    let (bench, coordinator) = (&cluster.bench, &cluster.coordinator);
    coordinator.init().await.unwrap();
    for server in &cluster.servers {
        server.sql("CREATE TABLE step (client int, step bigint)").await;
    }
    let walkers = Walkers::start(bench);
    let sealed = coordinator.backup(None, Method::Fence).await.unwrap();
    assert_eq!(sealed.seal.guarantee, Guarantee::Causal);
    let threads = |cut: &sheetanchor_core::format::catalog::Cut| -> BTreeMap<u16, Lsn> {
        NODES.map(|node| (node, cut.threads[&ThreadId::of(NodeId::new(node))].until)).into()
    };
    let mut cuts = vec![threads(&sealed.seal.cut)];
    let mut stalls = Vec::new();
    for number in 0..POINTS {
        let begun = Instant::now();
        let (_, point) = coordinator.create_point(format!("point-{number}").parse().unwrap()).await.unwrap();
        stalls.push(begun.elapsed());
        assert_eq!(point.guarantee, Guarantee::Causal);
        cuts.push(threads(&point.cut));
    }
    // The same servers cut without the fence, one by one: what the fence is for.
    let mut unfenced = Vec::new();
    for number in 0..POINTS {
        let mut cut = BTreeMap::new();
        for node in NODES {
            let sql = format!("SELECT pg_create_restore_point('unfenced-{number}')::text");
            cut.insert(node, bench.client(&format!("n{node}")).column(&sql).await[0].parse().unwrap());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        unfenced.push(cut);
    }
    let journals = walkers.stop().await;
    eprintln!("points took {stalls:?}; {} commits", journals.iter().map(Vec::len).sum::<usize>());
    for cut in &cuts {
        assert_eq!(torn(&journals, cut), 0, "torn at {cut:?}");
    }
    assert!(unfenced.iter().any(|cut| torn(&journals, cut) > 0), "nothing here could have been torn");

    // Lost, and restored to a point after the backup.
    let last = format!("point-{}", POINTS - 1);
    let reached = async || {
        let points = coordinator.points().await.unwrap();
        points
            .iter()
            .any(|point| {
                point.name.as_ref().is_some_and(|name| name.to_string() == last) && point.state == PointState::Reachable
            })
            .then_some(())
    };
    eventually(reached).await;
    for (server, node) in cluster.servers.iter().zip(NODES) {
        server.server.stop(StopMode::Kill).await.unwrap();
        fs::remove_dir_all(bench.path(&format!("n{node}"))).unwrap();
    }
    coordinator.restore(&Target::Name(last.parse().unwrap())).await.unwrap();
    for client in 0..CLIENTS {
        let mut counts = Vec::new();
        for node in NODES {
            let sql = format!("SELECT count(*)::text FROM step WHERE client = {client}");
            counts.push(crate::bench::number(&bench.client(&format!("n{node}")).column(&sql).await[0]));
        }
        // One step further on the first nodes, at most: that is where the client stood.
        assert!(
            counts.is_sorted_by(|one, next| one >= next) && counts[0] - counts[2] <= 1,
            "client {client}: {counts:?}"
        );
        let committed = journals[usize::try_from(client).unwrap()].len();
        assert!(usize::try_from(counts[2]).unwrap() * NODES.len() < committed, "what came after the point is gone");
    }
    // The restored servers hold commits back like the first ones.
    coordinator.create_point("after".parse().unwrap()).await.unwrap();
}
