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

const ROUNDS: usize = 7;
const POINTS: usize = 200;
const WORKERS: usize = 8;
const ROUND_SECONDS: &str = "4";

/// One small row a commit: nothing hides what the hook costs.
const SCRIPT: &str = "INSERT INTO t VALUES (1);\n";

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

/// Commits a second with and without the extension, round by round in turn.
async fn hook(rounds: usize) {
    let bench = Bench::new("bench-hook");
    let settings = [("fsync", "off"), ("synchronous_commit", "off"), ("autovacuum", "off"), ("max_wal_size", "8GB")];
    let script = bench.path("script.sql");
    fs::write(&script, SCRIPT).unwrap();
    let plain = bench.server("plain", &settings).await;
    let fenced = bench.fenced("fenced", &settings).await;
    for server in [&plain, &fenced] {
        server.sql("CREATE UNLOGGED TABLE t (n int)").await;
        commits_a_second(server, &script).await;
    }
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // Whoever is second finds a warmer machine, or a tired one.
        let (first, second) = if round % 2 == 0 { (&plain, &fenced) } else { (&fenced, &plain) };
        let (one, other) = (commits_a_second(first, &script).await, commits_a_second(second, &script).await);
        let (plain, fenced) = if round % 2 == 0 { (one, other) } else { (other, one) };
        println!("round {round}: {plain:.0} commits/s without, {fenced:.0} with");
        without.push(plain);
        with.push(fenced);
    }
    let ratios = with.iter().zip(&without).map(|(with, without)| with / without).collect();
    println!("commits/s without the extension: {}", spread(without));
    println!("commits/s with it:               {}", spread(with));
    println!("with over without, by round:     {}", spread(ratios));
}

async fn commits_a_second(server: &Running, script: &str) -> f64 {
    let said = server.pgbench_says(&["-n", "-c", "2", "-M", "prepared", "-T", ROUND_SECONDS, "-f", script]).await;
    let line = said.lines().find_map(|line| line.strip_prefix("tps = ")).expect("pgbench says its tps");
    line.split(' ').next().unwrap().parse().unwrap()
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
    fn window(&self) -> (Instant, Instant) {
        let seen = std::mem::take(&mut *self.0.lock().unwrap());
        let at = |phase| seen.iter().find(|(seen, _)| *seen == phase).expect("each phase is said").1;
        (at("closing"), at("released"))
    }
}

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
    let (mut windows, mut quiet) = (Vec::new(), Vec::new());
    for point in 0..points {
        coordinator.create_point(format!("point-{point}").parse().unwrap()).await.expect("a point");
        let (from, until) = fenced.window();
        windows.push((from, until));
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
