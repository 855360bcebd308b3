//! What the commit fence costs on real PostgreSQL servers: a commit when nothing is fenced, and the stall of commits while
//! a restore point of three servers is taken. `cargo bench -p sheetanchor-native --bench postgres_fence -- [ROUNDS [POINTS]]`;
//! the servers need the extension, which `cargo xtask pg` installs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::as_conversions,
    clippy::wildcard_enum_match_arm,
    reason = "a program that talks to whoever runs it, and times the real world"
)]
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "the tests' servers are borrowed, not all of which is used here"
)]

#[path = "../tests/postgres/bench.rs"]
mod bench;
#[path = "../tests/postgres/cluster.rs"]
mod cluster;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sheetanchor_core::identity::OperationId;
use sheetanchor_engine::pump::Watcher;
use tokio::task::JoinSet;

use crate::bench::{Bench, Running};
use crate::cluster::{Cluster, NODES};

const ROUNDS: usize = 1_000;
const POINTS: usize = 200;
const WORKERS: usize = 8;

/// Commits of a round, of one small row each: little hides what the hook costs.
const COMMITS: u32 = 2_000;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|word| word != "--bench");
    let mut count = |otherwise| arguments.next().map_or(otherwise, |word| word.parse().expect("a number"));
    let (rounds, points) = (count(ROUNDS), count(POINTS));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        hook(rounds).await;
        stall(points).await;
    });
}

/// What a commit costs a server's process, with and without the extension, round by round in turn. Time on the processor is
/// counted, not time on the clock: other work on the machine hardly shows.
async fn hook(rounds: usize) {
    let bench = Bench::new("bench-hook");
    let settings = [("fsync", "off"), ("synchronous_commit", "off"), ("autovacuum", "off"), ("max_wal_size", "8GB")];
    let plain = Backend::of(&bench, "plain", bench.server("plain", &settings).await).await;
    let fenced = Backend::of(&bench, "fenced", bench.fenced("fenced", &settings).await).await;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        // Whoever is second finds a warmer machine, or a tired one.
        let (plain, fenced) = if round % 2 == 0 {
            let plain = plain.commit_ns().await;
            (plain, fenced.commit_ns().await)
        } else {
            let fenced = fenced.commit_ns().await;
            (plain.commit_ns().await, fenced)
        };
        // The first round warms both up.
        if round > 0 {
            without.push(plain);
            with.push(fenced);
        }
    }
    let costs = with.iter().zip(&without).map(|(with, without)| with - without).collect();
    println!("ns of processor a commit, without the extension: {}", spread(without));
    println!("ns of processor a commit, with it:               {}", spread(with));
    println!("the difference, round by round:                  {}", spread(costs));
}

/// One session, and the process that serves it.
struct Backend {
    client: tokio_postgres::Client,
    pid: i32,
    _server: Running,
}

impl Backend {
    async fn of(bench: &Bench, name: &str, server: Running) -> Self {
        let (client, driver) =
            tokio_postgres::connect(&bench.client(name).connection, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(driver);
        client.batch_execute("CREATE UNLOGGED TABLE t (n int)").await.unwrap();
        let pid = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        Self { client, pid, _server: server }
    }

    async fn commit_ns(&self) -> f64 {
        self.client.batch_execute("TRUNCATE t").await.unwrap();
        let before = self.ran_ns();
        let block =
            format!("DO $$ BEGIN FOR i IN 1..{COMMITS} LOOP INSERT INTO t VALUES (1); COMMIT; END LOOP; END $$");
        self.client.batch_execute(&block).await.unwrap();
        (self.ran_ns() - before) / f64::from(COMMITS)
    }

    /// Nanoseconds that the process has run so far, as Linux counts them.
    fn ran_ns(&self) -> f64 {
        let counted = fs::read_to_string(format!("/proc/{}/schedstat", self.pid)).expect("Linux, and our own servers");
        counted.split(' ').next().unwrap().parse().unwrap()
    }
}

fn spread(mut figures: Vec<f64>) -> String {
    figures.sort_by(f64::total_cmp);
    let middle = figures[figures.len() / 2];
    let digits = if middle < 10.0 { 3 } else { 0 };
    format!("{middle:.digits$} ({:.digits$} to {:.digits$})", figures[0], figures[figures.len() - 1])
}

/// When a point was in its fence.
#[derive(Default)]
struct Fenced(Mutex<Vec<(&'static str, Instant)>>);

impl Watcher for Fenced {
    fn phase(&self, _operation: OperationId, phase: &'static str) {
        self.0.lock().unwrap().push((phase, Instant::now()));
    }
}

impl Fenced {
    /// When each of [`PHASES`] began, in their order.
    fn phases(&self) -> [Instant; PHASES.len()] {
        let seen = std::mem::take(&mut *self.0.lock().unwrap());
        PHASES.map(|phase| seen.iter().find(|(seen, _)| *seen == phase).expect("each phase is said").1)
    }
}

/// From asking all nodes to close until all have answered that they are released.
const PHASES: [&str; 5] = ["closing", "draining", "drained", "cut", "released"];

type Commits = Arc<Mutex<Vec<(Instant, Instant)>>>;

/// The longest commit that each of many points met, and the longest in as many windows of the same length without one.
async fn stall(points: usize) {
    let cluster = Cluster::fenced("bench-stall").await;
    cluster.coordinator.init().await.unwrap();
    let fenced = Arc::new(Fenced::default());
    let coordinator = cluster.coordinator.clone().watched_by(fenced.clone());
    let (commits, over) = (Commits::default(), Arc::new(AtomicBool::new(false)));
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        let name = format!("n{}", NODES[worker % NODES.len()]);
        if worker < NODES.len() {
            cluster.bench.client(&name).sql("CREATE TABLE t (n int)").await;
        }
        workers.spawn(work(cluster.bench.client(&name).connection, commits.clone(), over.clone()));
    }
    let (mut windows, mut quiet, mut phases) = (Vec::new(), Vec::new(), Vec::new());
    for point in 0..points {
        coordinator.create_point(format!("point-{point}").parse().unwrap()).await.expect("a point");
        let seen = fenced.phases();
        let (from, until) = (seen[0], seen[PHASES.len() - 1]);
        windows.push((from, until));
        phases.push(seen);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = Instant::now();
        quiet.push((now.checked_sub(until - from).unwrap(), now));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    over.store(true, Ordering::SeqCst);
    while workers.join_next().await.is_some() {}
    let commits = commits.lock().unwrap();
    let seconds = (commits.last().unwrap().1 - commits[0].0).as_secs_f64();
    println!("{} commits in {seconds:.0} s, {WORKERS} workers on {} servers", commits.len(), NODES.len());
    let held = windows.iter().map(|(from, until)| millis(*until - *from)).collect();
    println!("close to release, ms: {}", percentiles(held));
    for (number, answered) in ["all closed", "all drained", "all cut", "all released"].into_iter().enumerate() {
        let took = phases.iter().map(|seen| millis(seen[number + 1] - seen[number])).collect();
        println!("until {answered}, ms: {}", percentiles(took));
    }
    println!("longest commit that met a point, ms: {}", percentiles(longest(&commits, &windows)));
    println!("longest commit in as long a window without one, ms: {}", percentiles(longest(&commits, &quiet)));
    println!("every commit, ms: {}", percentiles(commits.iter().map(|(from, until)| millis(*until - *from)).collect()));
}

async fn work(connection: String, commits: Commits, over: Arc<AtomicBool>) {
    let (client, driver) = tokio_postgres::connect(&connection, tokio_postgres::NoTls).await.unwrap();
    let driver = tokio::spawn(driver);
    let insert = client.prepare("INSERT INTO t VALUES (1)").await.unwrap();
    while !over.load(Ordering::SeqCst) {
        let from = Instant::now();
        client.execute(&insert, &[]).await.expect("a commit under the fence waits, and does not fail");
        commits.lock().unwrap().push((from, Instant::now()));
    }
    drop(client);
    drop(driver.await);
}

fn longest(commits: &[(Instant, Instant)], windows: &[(Instant, Instant)]) -> Vec<f64> {
    let met = |(from, until): &(Instant, Instant)| {
        let met = commits.iter().filter(|(begun, ended)| begun < until && ended > from);
        met.map(|(begun, ended)| millis(*ended - *begun)).fold(0.0, f64::max)
    };
    windows.iter().map(met).collect()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn percentiles(mut figures: Vec<f64>) -> String {
    figures.sort_by(f64::total_cmp);
    let at = |percent: usize| figures[(figures.len() * percent / 100).min(figures.len() - 1)];
    format!("p50 {:.2}, p99 {:.2}, most {:.2}", at(50), at(99), figures[figures.len() - 1])
}
