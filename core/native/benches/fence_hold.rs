//! How long a fenced restore point holds commits back, beside what it is made of: the flush of one record, and a round trip.
//! Three nodes of the embedded database with their agents, on loopback TCP and files that are really synced, under load:
//! `cargo bench -p sheetanchor-native --bench fence_hold -- [POINTS]`. Every tenth point is followed by one by SCN.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program that talks to whoever runs it, and times the real world"
)]

use std::collections::BTreeMap;
use std::fmt;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::identity::{
    ClusterId, Epoch, Incarnation, Membership, NodeId, OperationId, OperationKind, PointName,
};
use sheetanchor_core::request::{Header, Request};
use sheetanchor_engine::agent::{self, Agent};
use sheetanchor_engine::caller::Caller;
use sheetanchor_engine::coordinator::{Coordinator, Limits, Setup};
use sheetanchor_engine::env::{DiskFile, Env, OpenMode, Stream, TaskGroup};
use sheetanchor_engine::pump::Watcher;
use sheetanchor_native::env::native_env;
use sheetanchor_refdb::{Config, Ledger, Node, Outcome, Session, Transfer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing::field::{Field, Visit};

const NODES: u16 = 3;
const CLIENTS_PER_NODE: u64 = 2;
const ACCOUNTS: u64 = 60;
const PAUSE: Duration = Duration::from_millis(8);
const POINTS: usize = 1_000;
const BY_SCN_EVERY: usize = 10;

/// About what a commit's record and a request take.
const SMALL: usize = 128;

/// When each node's fence closed and was released, as `refdb` says it.
#[derive(Clone, Default)]
struct Fences(Arc<Mutex<Vec<(NodeText, Change, Instant)>>>);

type NodeText = String;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Closed,
    Released,
}

#[derive(Default)]
struct Said {
    node: NodeText,
    message: String,
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "node" => self.node = format!("{value:?}"),
            "message" => self.message = format!("{value:?}"),
            _ => {}
        }
    }
}

impl tracing::Subscriber for Fences {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target() == "sheetanchor::refdb"
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let now = Instant::now();
        let mut said = Said::default();
        event.record(&mut said);
        let change = match said.message.as_str() {
            "fence closed" => Change::Closed,
            "fence released" => Change::Released,
            _ => return,
        };
        self.0.lock().unwrap().push((said.node, change, now));
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// When a point came to each phase.
#[derive(Default)]
struct Phases(Mutex<Vec<(&'static str, Instant)>>);

impl Watcher for Phases {
    fn phase(&self, operation: OperationId, phase: &'static str) {
        assert_eq!(operation.kind(), OperationKind::Point);
        self.0.lock().unwrap().push((phase, Instant::now()));
    }
}

/// Durations by what they are of.
#[derive(Default)]
struct Figures(BTreeMap<&'static str, Vec<Duration>>);

impl Figures {
    fn add(&mut self, what: &'static str, took: Duration) {
        self.0.entry(what).or_default().push(took);
    }

    /// The smallest that `percent` of all do not exceed.
    fn percentile(&self, what: &str, percent: usize) -> Duration {
        let mut all = self.0.get(what).unwrap().clone();
        all.sort_unstable();
        *all.get((all.len() * percent).div_ceil(100).saturating_sub(1)).unwrap()
    }

    fn print(&self) {
        println!("{:42} {:>6} {:>9} {:>9} {:>9}", "milliseconds", "count", "p50", "p99", "most");
        for (what, all) in &self.0 {
            let [half, most_of, all_of] = [50, 99, 100].map(|percent| millis(self.percentile(what, percent)));
            println!("{what:42} {:>6} {half:>9.3} {most_of:>9.3} {all_of:>9.3}", all.len());
        }
        let (hold, flush) = (self.percentile(HOLD, 99), self.percentile(FLUSH, 99));
        for round_trip in [REQUEST, ECHO] {
            let bound = flush + self.percentile(round_trip, 99) * 3;
            let ratio = hold.as_secs_f64() / bound.as_secs_f64();
            let verdict = if hold <= bound { "met" } else { "missed" };
            println!("hold p99 / (flush p99 + 3 * p99 of: {round_trip}) = {ratio:.2}: {verdict}");
        }
    }
}

const HOLD: &str = "hold: longest of the nodes";
const HOLD_EACH: &str = "hold: each node";
const FLUSH: &str = "flush of one record";
const REQUEST: &str = "round trip: a request (describe)";
const ECHO: &str = "round trip: bytes echoed";

/// The phases of a fenced point from asking all nodes to close until all have answered that they are released.
const PHASES: [(&str, &str, &str); 4] = [
    ("closing", "draining", "phase 1: all closed"),
    ("draining", "drained", "phase 2: all drained"),
    ("drained", "cut", "phase 3: all cut"),
    ("cut", "released", "phase 4: all released"),
];

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

struct Bench {
    env: Env,
    folder: String,
    agents: BTreeMap<NodeId, String>,
    databases: Vec<String>,
    tasks: TaskGroup,
    nodes: Vec<Arc<Node>>,
}

impl Bench {
    async fn start(folder: &str) -> Self {
        let env = native_env(format!("{folder}/repository"));
        let (mut agents, mut tasks, mut nodes) = (BTreeMap::new(), TaskGroup::default(), Vec::new());
        let databases = free_addresses();
        let peers: BTreeMap<NodeId, String> = (1..=NODES).map(NodeId::new).zip(databases.iter().cloned()).collect();
        for (node, address) in &peers {
            let mut config = Config::new(*node, address, format!("{folder}/shared"));
            config.data_pages = 1 << 14;
            config.peers = peers.clone();
            config.peers.remove(node);
            let database = Node::start(env.clone(), config).await.unwrap();
            nodes.push(database.clone());
            let listener = env.net.listen("127.0.0.1:0").await.unwrap();
            let address = listener.address();
            let config = agent::Config::new(*node, &address, format!("{folder}/state-{node}"));
            agents.insert(*node, address);
            let agent = Agent::load(env.clone(), config, database).await.unwrap();
            tasks.add(env.tasks.spawn("agent", Box::pin(async move { agent.serve_on(listener).await.unwrap() })));
        }
        Self { env, folder: folder.into(), agents, databases, tasks, nodes }
    }

    fn write(&mut self, over: &Arc<AtomicBool>, commits: &Arc<AtomicU64>) {
        for (index, address) in (0..).zip(&self.databases) {
            for client in 0..CLIENTS_PER_NODE {
                let ledger = Ledger::new(&self.env, address, Session::Causal, Duration::from_millis(300));
                let first = (index * CLIENTS_PER_NODE + client) << 32;
                let writes = transfers(self.env.clone(), ledger, index, first, over.clone(), commits.clone());
                self.tasks.add(self.env.tasks.spawn("client", Box::pin(writes)));
            }
        }
    }
}

/// Transfers mostly between the node's own accounts, one in eight to any other.
async fn transfers(
    env: Env,
    mut ledger: Ledger,
    node: u64,
    first: u64,
    over: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
) {
    let own = ACCOUNTS / u64::from(NODES);
    let mut id = first >> 16;
    while !over.load(Ordering::SeqCst) {
        let from = node * own + env.entropy.word() % own;
        let any = env.entropy.word();
        let to = if any.is_multiple_of(8) { any / 8 % ACCOUNTS } else { node * own + any / 8 % own };
        let to = if to == from { (to + 1) % ACCOUNTS } else { to };
        if let Outcome::Acknowledged(_) = ledger.transfer(Transfer { id, from, to, amount: 1 }).await {
            commits.fetch_add(1, Ordering::SeqCst);
        }
        id += 1;
        env.clock.sleep(PAUSE).await;
    }
}

fn free_addresses() -> Vec<String> {
    let taken: Vec<TcpListener> = (0..NODES).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    taken.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

/// What a fence cannot do without, measured while the same load runs.
struct Parts {
    file: Box<dyn DiskFile>,
    end: u64,
    caller: Arc<Caller>,
    stream: Box<dyn Stream>,
}

impl Parts {
    async fn new(bench: &mut Bench) -> Self {
        let path = format!("{}/flushed", bench.folder);
        let file = bench.env.disk.open(&path, OpenMode::CreateNew).await.unwrap();
        let mut listener = bench.env.net.listen("127.0.0.1:0").await.unwrap();
        let address = listener.address();
        let echo = async move {
            let mut stream = listener.accept().await.unwrap();
            let mut bytes = [0; SMALL];
            while stream.read_exact(&mut bytes).await.is_ok() && stream.write_all(&bytes).await.is_ok() {}
        };
        bench.tasks.add(bench.env.tasks.spawn("echo", Box::pin(echo)));
        let stream = bench.env.net.connect(&address).await.unwrap();
        Self { file, end: 0, caller: Caller::new(bench.env.clone(), bench.agents.clone()), stream }
    }

    async fn measure(&mut self, figures: &mut Figures) {
        let begun = Instant::now();
        self.file.write_at(self.end, vec![7; SMALL].into()).await.unwrap();
        self.file.sync().await.unwrap();
        figures.add(FLUSH, begun.elapsed());
        self.end += u64::try_from(SMALL).unwrap();
        let header = Header {
            cluster: ClusterId::default(),
            membership: Membership::default(),
            incarnation: Incarnation::default(),
            node: NodeId::new(1),
            operation: None,
            epoch: Epoch::default(),
        };
        let begun = Instant::now();
        self.caller.ask(&header, &Request::Describe).await.unwrap();
        figures.add(REQUEST, begun.elapsed());
        let mut bytes = [7; SMALL];
        let begun = Instant::now();
        self.stream.write_all(&bytes).await.unwrap();
        self.stream.read_exact(&mut bytes).await.unwrap();
        figures.add(ECHO, begun.elapsed());
    }
}

fn add_point(figures: &mut Figures, fences: &Fences, phases: &Phases) {
    let changes = std::mem::take(&mut *fences.0.lock().unwrap());
    let closed = changes.iter().filter(|(_, change, _)| *change == Change::Closed);
    let mut holds = Vec::new();
    for (node, _, from) in closed {
        let until = changes.iter().find(|(other, change, _)| other == node && *change == Change::Released).unwrap().2;
        holds.push(until - *from);
    }
    assert_eq!(holds.len(), usize::from(NODES), "every node was closed once");
    figures.add(HOLD, holds.iter().max().copied().unwrap());
    for hold in holds {
        figures.add(HOLD_EACH, hold);
    }
    let reached = std::mem::take(&mut *phases.0.lock().unwrap());
    let at = |phase| reached.iter().find(|(reached, _)| *reached == phase).unwrap().1;
    for (from, until, what) in PHASES {
        figures.add(what, at(until) - at(from));
    }
}

async fn measure(points: usize, folder: &str) {
    let fences = Fences::default();
    tracing::subscriber::set_global_default(fences.clone()).unwrap();
    let mut bench = Bench::start(folder).await;
    let phases = Arc::new(Phases::default());
    let setup = Setup { name: "bench".into(), addresses: bench.agents.clone() };
    let coordinator = Coordinator::new(bench.env.clone(), setup, Limits::default()).watched_by(phases.clone());
    coordinator.init().await.unwrap();
    let first = bench.databases.first().unwrap();
    Ledger::new(&bench.env, first, Session::Causal, Duration::from_secs(20)).create(ACCOUNTS, 1_000).await.unwrap();
    let (over, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    bench.write(&over, &commits);
    let mut parts = Parts::new(&mut bench).await;
    let mut figures = Figures::default();
    let mut again = 0;
    let start = Instant::now();
    for number in 0..points {
        parts.measure(&mut figures).await;
        let begun = Instant::now();
        let name: PointName = format!("fenced-{number}").parse().unwrap();
        if let Err(error) = coordinator.create_point(name).await {
            println!("point {number} failed and is not counted: {error}");
            again += 1;
            fences.0.lock().unwrap().clear();
            phases.0.lock().unwrap().clear();
            continue;
        }
        figures.add("point, fenced: from call to answer", begun.elapsed());
        add_point(&mut figures, &fences, &phases);
        if number % BY_SCN_EVERY == 0 {
            let begun = Instant::now();
            let name: PointName = format!("scn-{number}").parse().unwrap();
            coordinator.create_point_by(name, Method::Scn).await.unwrap();
            figures.add("point, by SCN: from call to answer", begun.elapsed());
            assert!(fences.0.lock().unwrap().is_empty(), "nobody was fenced");
            phases.0.lock().unwrap().clear();
        }
    }
    let (took, commits) = (start.elapsed().as_secs_f64(), commits.load(Ordering::SeqCst));
    println!("{points} fenced points in {took:.1} s, {again} failed; {commits} commits meanwhile");
    figures.print();
    over.store(true, Ordering::SeqCst);
    for node in &bench.nodes {
        node.shutdown().await;
    }
    bench.tasks.stop().await;
}

fn main() {
    let points = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(POINTS);
    let folder = format!("{}/fence_hold-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    std::fs::create_dir_all(&folder).unwrap();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(measure(points, &folder));
    std::fs::remove_dir_all(&folder).unwrap();
}
