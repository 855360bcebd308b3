//! The agent beside one node: listens, admits requests by the machine of `sheetanchor_core::agent`, performs them with
//! the database and the repository, and answers every one.

pub mod archive;
mod archived_wal;
pub mod capture;
mod capture_stream;
mod delta;
mod hole;
pub mod in_doubt;
mod incremental;
mod missed;
pub mod perform;
mod put;
mod rate;
pub mod stage;
pub mod state;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use sheetanchor_core::agent::{Agent as Machine, Belonging, Effect, Event, Ticket};
use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::exposure::Exposure;
use sheetanchor_core::format::hole::Hole;
use sheetanchor_core::hole::Gauge;
use sheetanchor_core::identity::{ByteCount, Incarnation, NodeId, OperationId};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Answer, Failure, Header, Progress, Request};
use sheetanchor_core::scn::Scn;
use sheetanchor_core::throttle::Throttle;
use sheetanchor_core::wire::{Answered, Asked};
use tokio::sync::{Mutex, Notify, watch};

use crate::database::Database;
use crate::env::{Env, Listener, Stream, TaskGroup};
use crate::frames;
use crate::read_only::ReadOnly;
use crate::repository::Repository;
use crate::watched::Watched;
use archive::ArchiveState;
pub(crate) use perform::{state_word, without_fence};
use state::Memory;

/// How an agent is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node that it serves.
    pub node: NodeId,
    /// Where it listens.
    pub listen: String,
    /// The folder for what it must remember.
    pub state: String,
    /// How often it looks whether the cluster was opened in another incarnation.
    pub lineage_interval: Duration,
    /// How often durable WAL is shipped.
    pub archive_interval: Duration,
    /// At most so much WAL in one piece.
    pub archive_piece: ByteCount,
    /// At most so much WAL may wait for the archive. With more of it the agent declares a hole and lets go; without a bound
    /// WAL is kept for as long as it takes.
    pub wal_kept_max: Option<ByteCount>,
    /// A request to wait for the archive is answered after this, one way or the other.
    pub archive_patience: Duration,
    /// A pin that was found at the start goes after this, unless it is renewed.
    pub pin_lease: Duration,
    /// At most so much data in one pack.
    pub pack: ByteCount,
    /// Bytes of a file that are read, hashed and stored as one chunk: a multiple of 64 KiB, and of every size of page. An
    /// incremental backup reads chunks anew where it differs from that of the backup before.
    pub piece: ByteCount,
}

impl Config {
    /// The defaults for `node`.
    pub fn new(node: NodeId, listen: impl Into<String>, state: impl Into<String>) -> Self {
        Self {
            node,
            listen: listen.into(),
            state: state.into(),
            lineage_interval: Duration::from_mins(1),
            archive_interval: Duration::from_secs(1),
            archive_piece: ByteCount::new(1 << 20),
            wal_kept_max: None,
            archive_patience: Duration::from_mins(15),
            pin_lease: Duration::from_mins(1),
            pack: ByteCount::new(16 << 20),
            piece: ByteCount::new(1 << 20),
        }
    }
}

/// How many connections an agent serves at once.
const CONNECTIONS_MAX: usize = 256;

/// What the tasks of one agent share.
pub struct Agent {
    pub(crate) env: Env,
    pub(crate) config: Config,
    pub(crate) database: Arc<dyn Database>,
    pub(crate) repository: Repository,
    /// The repository of the cluster that this one is cloned from: only to be read.
    pub(crate) source: Option<Repository>,
    machine: Mutex<Machine>,
    /// The machine's deadline may have changed.
    changed: Notify,
    tickets: core::sync::atomic::AtomicU64,
    pub(crate) archive: Watched<ArchiveState>,
    /// Since when the archive does not hold all that the database has written.
    pub(crate) exposure: Mutex<Exposure>,
    /// Ship what is durable now, without waiting for the interval.
    pub(crate) ship: Notify,
    pub(crate) belonging: Watched<Option<Belonging>>,
    /// What the state folder says.
    memory: Watched<Memory>,
    /// Held while that is written.
    remembering: Mutex<()>,
    /// The newest hole that the archive went on behind, as far as this life of the agent knows.
    shown: Mutex<Option<Hole>>,
    /// How much WAL waits for the archive, where that is bounded.
    gauge: Mutex<Gauge>,
    /// The incarnation that the cluster was opened in without this node.
    pub(crate) missed: Watched<Option<Incarnation>>,
    /// Copies and recoveries in progress. Removing a copy from here ends it.
    pub(crate) copies: Mutex<BTreeMap<OperationId, watch::Receiver<Progress>>>,
    /// How fast operations may read, where that was told.
    pub(crate) rates: Mutex<BTreeMap<OperationId, Throttle>>,
    /// Backups that this life has captured, so that a repeated request gets the same answer.
    pub(crate) captured: Mutex<BTreeMap<OperationId, Answer>>,
    /// Only one request at a time changes the data folder.
    pub(crate) folder: Mutex<()>,
    /// Held while a pin comes or goes: what is told of it is told in the order in which it took place.
    pub(crate) pinning: Mutex<()>,
}

impl core::fmt::Debug for Agent {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.debug_struct("Agent").field("node", &self.config.node).finish_non_exhaustive()
    }
}

impl Agent {
    /// Reads what the agent of this node must remember.
    ///
    /// # Errors
    /// `SA002` if its state is damaged, `SA113` if it belongs to another node.
    pub async fn load(env: Env, config: Config, database: Arc<dyn Database>) -> Result<Arc<Self>> {
        Self::load_clone(env, config, database, None).await
    }

    /// The same for a node that may be staged from the repository of another cluster, which it cannot write to.
    ///
    /// # Errors
    /// Those of [`Agent::load`].
    pub async fn load_clone(
        env: Env,
        config: Config,
        database: Arc<dyn Database>,
        source: Option<ReadOnly>,
    ) -> Result<Arc<Self>> {
        let memory = state::load(&env, &config).await?;
        let belonging = memory.belonging;
        Ok(Arc::new(Self {
            repository: Repository::new(&env),
            source: source.map(|source| Repository::read_only(source, &env)),
            machine: Mutex::new(Machine::new(config.node, belonging)),
            changed: Notify::new(),
            tickets: core::sync::atomic::AtomicU64::new(1),
            archive: Watched::new(ArchiveState::default()),
            exposure: Mutex::default(),
            ship: Notify::new(),
            belonging: Watched::new(belonging),
            memory: Watched::new(memory),
            remembering: Mutex::new(()),
            shown: Mutex::default(),
            gauge: Mutex::default(),
            missed: Watched::new(None),
            copies: Mutex::default(),
            rates: Mutex::default(),
            captured: Mutex::default(),
            folder: Mutex::new(()),
            pinning: Mutex::new(()),
            env,
            config,
            database,
        }))
    }

    /// Serves until dropped: answers requests, keeps leases, ships WAL.
    ///
    /// # Errors
    /// A fault if it cannot listen.
    pub async fn serve(self: Arc<Self>) -> Result<()> {
        let listener = self.env.net.listen(&self.config.listen).await?;
        self.serve_on(listener).await
    }

    /// Serves on a listener that is there already.
    ///
    /// # Errors
    /// None today; it returns only when dropped.
    pub async fn serve_on(self: Arc<Self>, mut listener: Box<dyn Listener>) -> Result<()> {
        self.find_pins().await;
        let mut tasks = TaskGroup::default();
        let finder = self.clone();
        tasks.add(self.env.tasks.spawn("pins", Box::pin(async move { finder.keep_finding_pins().await })));
        let leases = self.clone();
        tasks.add(self.env.tasks.spawn("leases", Box::pin(async move { leases.keep_leases().await })));
        let archiver = self.clone();
        tasks.add(self.env.tasks.spawn("archiver", Box::pin(async move { archiver.keep_archiving().await })));
        let watcher = self.clone();
        tasks.add(self.env.tasks.spawn("incarnations", Box::pin(async move { watcher.watch_incarnations().await })));
        tracing::info!(target: "sheetanchor::agent", node = %self.config.node, address = listener.address(), "listening");
        let mut connections = TaskGroup::default();
        loop {
            match listener.accept().await {
                Ok(stream) if connections.len() < CONNECTIONS_MAX => {
                    let agent = self.clone();
                    connections
                        .add(self.env.tasks.spawn("requests", Box::pin(async move { agent.converse(stream).await })));
                }
                // One too many: hanging up is the answer, and the caller says that the node is silent.
                Ok(_) => tracing::warn!(target: "sheetanchor::agent", "too many connections"),
                Err(fault) => {
                    tracing::warn!(target: "sheetanchor::agent", %fault, "cannot accept");
                    self.env.clock.sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// A pin may be there that no lease is kept of: its agent was started anew beside a database that did not answer, or it
    /// failed to let go of it.
    async fn keep_finding_pins(&self) {
        loop {
            self.env.clock.sleep(self.config.pin_lease / 2).await;
            self.find_pins().await;
        }
    }

    /// Pins outlive the agent; their leases start afresh.
    async fn find_pins(&self) {
        let Ok(pins) = self.database.pins().await else { return };
        let operations: Vec<OperationId> = pins.iter().filter_map(|pin| pin.name.parse().ok()).collect();
        let effects = self.step(Event::FoundPins(operations, self.config.pin_lease)).await;
        self.run(effects).await;
    }

    async fn step(&self, event: Event) -> Vec<Effect> {
        let now = self.env.clock.now();
        let effects = self.machine.lock().await.step(now, event);
        self.changed.notify_one();
        effects
    }

    /// Remembers that the node belongs to a cluster; durable once it returns.
    pub(crate) async fn remember(&self, belonging: Belonging) -> Result<()> {
        let _turn = self.remembering.lock().await;
        let next = Memory { belonging: Some(belonging), ..self.memory.get() };
        state::remember(&self.env, &self.config, &next).await?;
        self.memory.set(next);
        Ok(())
    }

    /// Tells the machine that the node belongs to a cluster, once that is durable.
    pub(crate) async fn belongs(&self, belonging: Belonging) {
        let effects = self.step(Event::Belongs(belonging)).await;
        self.run(effects).await;
        self.belonging.set(Some(belonging));
    }

    /// Performs what is not an answer to anybody.
    async fn run(&self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Free(hold) => {
                    tracing::warn!(target: "sheetanchor::agent", node = %self.config.node, "fence freed by its lease");
                    if let Err(error) = self.database.release(hold).await {
                        tracing::warn!(target: "sheetanchor::agent", %error, "cannot release the fence");
                    }
                }
                Effect::DropPin(operation) => {
                    tracing::warn!(target: "sheetanchor::agent", node = %self.config.node, %operation, "pin expired");
                    if let Err(error) = self.let_go(operation).await {
                        tracing::warn!(target: "sheetanchor::agent", %error, "cannot drop the pin");
                    }
                }
                Effect::Perform(..) | Effect::Reply(..) => {}
            }
        }
    }

    async fn keep_leases(&self) {
        loop {
            let deadline = self.machine.lock().await.deadline();
            let due = async {
                match deadline {
                    Some(deadline) => self.env.clock.sleep_until(deadline).await,
                    None => core::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = due => {
                    let effects = self.step(Event::Elapsed).await;
                    self.run(effects).await;
                }
                () = self.changed.notified() => {}
            }
        }
    }

    async fn converse(&self, mut stream: Box<dyn Stream>) {
        loop {
            let asked: Asked = match frames::receive(&mut stream).await {
                Ok(Some(asked)) => asked,
                Ok(None) => return,
                Err(error) => {
                    // After a damaged frame nothing more on this stream can be believed; the refusal is the goodbye.
                    if error.refusal().is_some() {
                        let answer = Err(Failure::from(error));
                        drop(frames::send(&mut stream, &Answered { number: 0, scn: Scn::ZERO, answer }).await);
                    }
                    return;
                }
            };
            let number = asked.number;
            let answer = self.answer(asked).await.map_err(Failure::from);
            if planted::is(Bug::RequestUnanswered) && matches!(answer, Err(Failure::Refused(..))) {
                continue;
            }
            let scn = self.scn().await;
            if frames::send(&mut stream, &Answered { number, scn, answer }).await.is_err() {
                return;
            }
        }
    }

    /// The highest SCN that the database knows. One that is open is not looked at for that: commits may be waiting.
    async fn scn(&self) -> Scn {
        match self.database.observe(Scn::ZERO).await {
            Ok(scn) => scn,
            Err(_) => self.database.status().await.map_or(Scn::ZERO, |status| status.scn),
        }
    }

    /// One request, from admission to its answer.
    async fn answer(&self, asked: Asked) -> Result<Answer> {
        let (word, node) = (asked.request.word(), self.config.node);
        // Only what is known to come from our own cluster may move our clock.
        let is_ours = self.belonging.get().is_some_and(|own| own.cluster == asked.header.cluster);
        if asked.scn > Scn::ZERO && (is_ours || planted::is(Bug::ObservedUnverified)) {
            match self.database.observe(asked.scn).await {
                Ok(_) => {}
                // A database that is not there has no clock to set.
                Err(Error::Refusal(refusal)) if refusal.code == Code::DatabaseDown => {}
                Err(error) => return Err(error),
            }
        }
        let ticket: Ticket = self.tickets.fetch_add(1, core::sync::atomic::Ordering::SeqCst);
        let operation = asked.header.operation;
        let mut effects = self.step(Event::Asked(ticket, asked.header, asked.request)).await;
        loop {
            let (own, others): (Vec<Effect>, Vec<Effect>) =
                effects.into_iter().partition(|effect| matches!(effect, Effect::Perform(..) | Effect::Reply(..)));
            self.run(others).await;
            match own.into_iter().next() {
                Some(Effect::Reply(_, outcome)) => {
                    if let Err(error) = &outcome {
                        tracing::info!(target: "sheetanchor::agent", %node, request = word, operation = operation.map(tracing::field::display), %error, "refused");
                    }
                    return outcome;
                }
                Some(Effect::Perform(ticket, header, request)) => {
                    let outcome = self.perform_in_time(&header, request).await;
                    effects = self.step(Event::Performed(ticket, outcome)).await;
                }
                Some(Effect::Free(_) | Effect::DropPin(_)) | None => {
                    return Err(Error::Bug(format!("`{word}` was neither performed nor answered")));
                }
            }
        }
    }

    /// Steps under the fence end with its lease: a drain that never finishes must still be answered.
    async fn perform_in_time(&self, header: &Header, request: Request) -> Result<Answer> {
        let fenced = matches!(request, Request::Close { .. } | Request::Drain { .. } | Request::Cut { .. });
        let deadline = if fenced { self.machine.lock().await.hold_deadline() } else { None };
        let lease = async {
            match deadline {
                Some(deadline) => self.env.clock.sleep_until(deadline).await,
                None => core::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            outcome = self.perform(header, request) => outcome,
            () = lease => Err(Refusal::new(Code::HoldLost, format!("the fence's lease on node {} ran out", self.config.node)).into()),
        }
    }

    /// What the machine knows of the fence, and of a pin's remaining time.
    pub(crate) async fn look(&self) -> (Option<OperationId>, BTreeMap<OperationId, Duration>) {
        let now = self.env.clock.now();
        let machine = self.machine.lock().await;
        (machine.fenced_by(), machine.pin_leases(now))
    }
}
