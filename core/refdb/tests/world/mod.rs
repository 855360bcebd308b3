//! A small world for the database's own tests: one thread, virtual time, a volume in memory, pipes for a network.

#![allow(dead_code, reason = "each test file uses its part of it")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "here the ports are implemented")]

pub mod disk;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sheetanchor_core::identity::{ByteCount, ClusterId, HoldId, Incarnation, NodeId, ThreadId, TimelineId};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::scn::Scn;
use sheetanchor_core::time::{Moment, WallMillis};
use sheetanchor_engine::database::{
    Begun, CutMade, Database, Joining, Opening, Recovery, SourceKind, Span, ThreadRange, WalPiece, WalSource,
};
use sheetanchor_engine::env::{
    Bucket, Clock, Entropy, Env, Fault, FaultKind, Listener, Net, Put, Stream, Task, Tasks, Work,
};
use sheetanchor_refdb::{Config, Ledger, Node, Session, Transfer};
use tokio::sync::mpsc;

use disk::{Loss, Mount, Volume};

/// The lease of every fence here.
pub const LEASE: Duration = Duration::from_secs(2);

pub const DATA: &str = "/shared/db";
pub const CLUSTER: ClusterId = ClusterId::new(0xC1);

/// Runs a story in virtual time.
pub fn run<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_mins(10), story).await.unwrap() })
}

pub async fn pause(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

struct WorldClock {
    started: tokio::time::Instant,
    wall_ahead_ms: Arc<AtomicU64>,
}

#[async_trait]
impl Clock for WorldClock {
    fn now(&self) -> Moment {
        Moment::from_nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap())
    }

    fn wall(&self) -> WallMillis {
        WallMillis::new(1_700_000_000_000 + self.now().nanos() / 1_000_000 + self.wall_ahead_ms.load(Ordering::SeqCst))
    }

    async fn sleep_until(&self, moment: Moment) {
        tokio::time::sleep_until(self.started + Duration::from_nanos(moment.nanos())).await;
    }
}

struct Seeded(Mutex<u64>);

impl Entropy for Seeded {
    fn word(&self) -> u64 {
        disk::next(&mut self.0.lock().unwrap())
    }
}

struct Spawner;

impl Tasks for Spawner {
    fn spawn(&self, _name: &'static str, future: futures_util::future::BoxFuture<'static, ()>) -> Box<dyn Task> {
        Box::new(Spawned(tokio::spawn(future)))
    }
}

struct Spawned(tokio::task::JoinHandle<()>);

#[async_trait]
impl Task for Spawned {
    fn cancel(&self) {
        self.0.abort();
    }

    fn has_ended(&self) -> bool {
        self.0.is_finished()
    }

    async fn join(&mut self) {
        if let Err(error) = (&mut self.0).await {
            assert!(error.is_cancelled(), "a task panicked");
        }
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

type Listeners = Arc<Mutex<BTreeMap<String, mpsc::UnboundedSender<tokio::io::DuplexStream>>>>;

#[derive(Clone, Default)]
struct Pipes(Listeners);

#[async_trait]
impl Net for Pipes {
    async fn connect(&self, address: &str) -> Result<Box<dyn Stream>, Fault> {
        tokio::time::sleep(Duration::from_micros(100)).await;
        let listener = self.0.lock().unwrap().get(address).cloned();
        let (near, far) = tokio::io::duplex(1 << 16);
        let refused = || Fault::new(FaultKind::Unreachable, "connect", "refused");
        listener.ok_or_else(refused)?.send(far).map_err(|_| refused())?;
        Ok(Box::new(near))
    }

    async fn listen(&self, address: &str) -> Result<Box<dyn Listener>, Fault> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.0.lock().unwrap().insert(address.into(), sender);
        Ok(Box::new(Pipe { address: address.into(), receiver }))
    }
}

struct Pipe {
    address: String,
    receiver: mpsc::UnboundedReceiver<tokio::io::DuplexStream>,
}

#[async_trait]
impl Listener for Pipe {
    fn address(&self) -> String {
        self.address.clone()
    }

    async fn accept(&mut self) -> Result<Box<dyn Stream>, Fault> {
        Ok(Box::new(self.receiver.recv().await.unwrap()))
    }
}

struct NoBucket;

#[async_trait]
impl Bucket for NoBucket {
    async fn put_new(&self, _key: &str, _body: Bytes) -> Result<Put, Fault> {
        unreachable!("the database has no bucket")
    }
    async fn get(&self, _key: &str) -> Result<Vec<u8>, Fault> {
        unreachable!("the database has no bucket")
    }
    async fn get_range(&self, _key: &str, _from: u64, _length: u64) -> Result<Vec<u8>, Fault> {
        unreachable!("the database has no bucket")
    }
    async fn head(&self, _key: &str) -> Result<Option<ByteCount>, Fault> {
        unreachable!("the database has no bucket")
    }
    async fn list(&self, _prefix: &str) -> Result<Vec<String>, Fault> {
        unreachable!("the database has no bucket")
    }
    async fn folders(&self, _prefix: &str) -> Result<Vec<String>, Fault> {
        unreachable!("the database has no bucket")
    }
    async fn delete(&self, _key: &str) -> Result<(), Fault> {
        unreachable!("the database has no bucket")
    }
}

struct InPlace;

impl Work for InPlace {
    fn start(&self, job: Box<dyn FnOnce() + Send>) {
        job();
    }
}

/// Three nodes on one volume.
pub struct World {
    pub volume: Volume,
    pub nodes: BTreeMap<NodeId, Arc<Node>>,
    pub mounts: BTreeMap<NodeId, Arc<Mount>>,
    pub data_pages: u64,
    pub segment_bytes: u64,
    /// Whether nodes send their files to backups themselves.
    pub sends_files: bool,
    /// How far all wall clocks are ahead.
    pub wall_ahead_ms: Arc<AtomicU64>,
    net: Pipes,
    started: tokio::time::Instant,
    mounted: u64,
}

pub fn node(number: u16) -> NodeId {
    NodeId::new(number)
}

impl World {
    /// The nodes' processes, on an empty volume.
    pub fn new() -> Self {
        Self {
            volume: Volume::default(),
            nodes: BTreeMap::new(),
            mounts: BTreeMap::new(),
            data_pages: 12,
            segment_bytes: 16 * 1024,
            sends_files: false,
            wall_ahead_ms: Arc::default(),
            net: Pipes::default(),
            started: tokio::time::Instant::now(),
            mounted: 0,
        }
    }

    /// Three nodes that serve, on a fresh database.
    pub async fn created() -> Self {
        let mut world = Self::new();
        world.start_all().await;
        world.join_all().await;
        world
    }

    pub async fn start_all(&mut self) {
        for number in 1..=3 {
            self.start(number, u64::MAX).await.unwrap();
        }
    }

    pub async fn join_all(&self) {
        let joining =
            Joining { cluster: CLUSTER, nodes: (1..=3).map(node).collect(), incarnation: Incarnation::new(1) };
        for outcome in futures_util::future::join_all(self.nodes.values().map(|node| node.join(&joining))).await {
            outcome.unwrap();
        }
        // Nobody grants a page before all have said what they own.
        pause(500).await;
    }

    pub fn env(&self, number: u16) -> Env {
        Env {
            clock: Arc::new(WorldClock { started: self.started, wall_ahead_ms: Arc::clone(&self.wall_ahead_ms) }),
            entropy: Arc::new(Seeded(Mutex::new(u64::from(number)))),
            tasks: Arc::new(Spawner),
            net: Arc::new(self.net.clone()),
            disk: self.volume.mount(number, u64::MAX, u64::MAX),
            bucket: Arc::new(NoBucket),
            work: Arc::new(InPlace),
        }
    }

    pub fn config(&self, number: u16) -> Config {
        let mut config = Config::new(node(number), address(number), DATA);
        config.peers = (1..=3).filter(|peer| *peer != number).map(|peer| (node(peer), address(peer))).collect();
        config.data_pages = self.data_pages;
        config.segment_bytes = self.segment_bytes;
        config.checkpoint_interval = Duration::from_millis(500);
        config.sends_files = self.sends_files;
        config
    }

    /// Starts a node's process; it loses power at the disk operation `crash_at`.
    pub async fn start(&mut self, number: u16, crash_at: u64) -> sheetanchor_core::error::Result<()> {
        self.mounted += 1;
        let mount = self.volume.mount(number, self.mounted, crash_at);
        self.mounts.insert(node(number), Arc::clone(&mount));
        let env = Env { disk: mount, ..self.env(number) };
        self.nodes.insert(node(number), Node::start(env, self.config(number)).await?);
        Ok(())
    }

    /// Cuts a node's power.
    pub async fn crash(&mut self, number: u16, loss: Loss) {
        self.ends(number, |volume, mount| volume.crash(mount, loss)).await;
    }

    /// Kills a node's process.
    pub async fn kill(&mut self, number: u16) {
        self.ends(number, Volume::kill).await;
    }

    async fn ends(&mut self, number: u16, end: impl FnOnce(&Volume, &Mount)) {
        drop(self.nodes.remove(&node(number)));
        if let Some(mount) = self.mounts.get(&node(number)) {
            end(&self.volume, mount);
        }
        self.net.0.lock().unwrap().remove(&address(number));
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    pub fn ledger(&self, number: u16) -> Ledger {
        Ledger::new(&self.env(number + 100), &address(number), Session::Plain, Duration::from_secs(20))
    }

    pub fn database(&self, number: u16) -> &Node {
        &self.nodes[&node(number)]
    }
}

pub fn address(number: u16) -> String {
    format!("node-{number}:5000")
}

/// The transfer number `id`, between two of `accounts`.
pub fn transfer(id: u64, accounts: u64) -> Transfer {
    let mut seed = id;
    let from = disk::next(&mut seed) % accounts;
    let to = (from + 1 + disk::next(&mut seed) % (accounts - 1)) % accounts;
    Transfer { id, from, to, amount: 1 + disk::next(&mut seed) % 50 }
}

/// A captured backup, and archived WAL, in memory.
#[derive(Default, Clone)]
pub struct Archive {
    pub files: BTreeMap<String, Vec<u8>>,
    pub begun: BTreeMap<NodeId, Begun>,
    pub pieces: BTreeMap<(ThreadId, Lsn), WalPiece>,
    /// How far recoveries have said that they are.
    pub told: Arc<Mutex<Vec<Position>>>,
}

impl Archive {
    /// Begins a backup on all nodes, and copies the files.
    pub async fn capture(world: &World, label: &str) -> Self {
        let mut archive = Self::default();
        for (node, database) in &world.nodes {
            archive.begun.insert(*node, database.begin_backup(label).await.unwrap());
        }
        let database = world.database(1);
        for file in database.files().await.unwrap() {
            if let SourceKind::File { .. } = file.kind {
                let bytes = world.volume.bytes(&format!("{DATA}/{}", file.name));
                archive.files.insert(file.name, bytes);
            }
            pause(3).await;
        }
        for database in world.nodes.values() {
            database.end_backup(label).await.unwrap();
        }
        archive
    }

    /// Fetches each thread's WAL up to the cut's proof.
    pub async fn fetch(&mut self, world: &World, cut: &Cut) {
        for (node, made) in &cut.made {
            let database = &world.nodes[node];
            let mut from = self.begun[node].start;
            while from.lsn < made.proof {
                let piece = database.durable_wal(from, ByteCount::new(10_000)).await.unwrap().unwrap();
                assert_eq!(piece.from, from);
                from = Position { lsn: piece.until, ..from };
                self.pieces.insert((piece.from.thread, piece.from.lsn), piece);
            }
        }
    }

    /// What recovery to `cut` is asked for.
    pub fn recovery(&self, cut: &Cut) -> Recovery {
        let range = |(node, made): (&NodeId, &CutMade)| {
            let start = self.begun[node].start;
            let span = Span { timeline: start.timeline, from: start.lsn, until: made.proof, scn: cut.scn };
            (ThreadId::of(*node), ThreadRange { spans: vec![span], until: made.until.lsn, proof: made.proof })
        };
        Recovery {
            record: cut.name.clone(),
            scn: cut.scn,
            sought: false,
            begun_scn: self.begun.values().map(|begun| begun.scn).max().unwrap(),
            threads: cut.made.iter().map(range).collect(),
        }
    }

    /// Puts the files where a restore would.
    pub fn stage(&self, world: &World) {
        for (name, bytes) in &self.files {
            world.volume.put(&format!("{DATA}/{name}"), bytes.clone());
        }
    }
}

#[async_trait]
impl WalSource for Archive {
    async fn piece(&self, from: Position) -> sheetanchor_core::error::Result<Option<WalPiece>> {
        tokio::time::sleep(Duration::from_micros(20)).await;
        Ok(self.pieces.get(&(from.thread, from.lsn)).cloned())
    }

    fn replayed(&self, at: Position) {
        self.told.lock().unwrap().push(at);
    }
}

/// A fenced cut of all nodes.
#[derive(Clone, Debug)]
pub struct Cut {
    pub name: String,
    pub scn: Scn,
    pub made: BTreeMap<NodeId, CutMade>,
}

impl Cut {
    pub async fn make(world: &World, name: &str, hold: u64) -> Self {
        let hold = HoldId::new(hold);
        for database in world.nodes.values() {
            database.close(hold, LEASE).await.unwrap();
        }
        let mut scn = Scn::ZERO;
        for database in world.nodes.values() {
            scn = scn.max(database.drain(hold).await.unwrap().0);
        }
        let mut made = BTreeMap::new();
        for (node, database) in &world.nodes {
            made.insert(*node, database.cut(hold, scn, name).await.unwrap());
        }
        for database in world.nodes.values() {
            database.release(hold).await.unwrap();
        }
        for (node, made) in &made {
            world.nodes[node].flush(made.proof).await.unwrap();
        }
        Self { name: name.into(), scn, made }
    }
}

pub fn opening(floor: Scn) -> Opening {
    Opening {
        cluster: CLUSTER,
        nodes: (1..=3).map(node).collect(),
        incarnation: Incarnation::new(2),
        scn_floor: floor,
        scn_offset_ms: 0,
    }
}

pub fn timeline(incarnation: u32) -> TimelineId {
    TimelineId::new(incarnation)
}
