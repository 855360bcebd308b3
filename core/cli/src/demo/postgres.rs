//! The story on PostgreSQL servers. Where the commit fence is installed all nodes have one cut, and a session that goes from
//! server to server shows that no effect is there without its cause; else each node has a cut of its own. Each node's ledger
//! is a ledger for itself.

mod chain;

mod ledger;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use rustix::process::Pid;
use serde_json::json;
use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::identity::{ByteCount, NodeId, OperationId, ThreadId};
use sheetanchor_core::plan::Target;
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::Code;
use sheetanchor_engine::coordinator::{Coordinator, Sealed};
use sheetanchor_engine::env::{Env, TaskGroup};
use sheetanchor_engine::pump::Watcher;
use sheetanchor_native::env::native_env;
use sheetanchor_native::postgres::install::Install;
use sheetanchor_native::postgres::postmaster::{Postmaster, StopMode};
use sheetanchor_native::postgres::server::{Server, ServerPlan};
use sheetanchor_refdb::Transfer;

use super::broken;
use super::compare::{Fate, Verdict, compare};
use super::house::{House, NodeText, free_addresses, kill_now, wipe};
use super::journal::{Journal, Outcome, Sent};
use super::steps::Steps;
use crate::command::backup::promise;
use crate::config::ClusterFile;
use crate::connect::environment;
use crate::progress::Progress;
use crate::report::{Result, Trouble};
use crate::screen::{Screen, bytes};
use chain::Links;
use ledger::{ACCOUNTS, BALANCE, Session, Wal};

const NODES: u16 = 3;

/// The port of every server: it is only part of a socket's name, and each has a socket folder of its own.
const PORT: u16 = 5432;

/// The node whose server is killed in the middle of the second backup.
const VICTIM: NodeId = NodeId::new(3);

/// How long a node may take to commit again after a crash.
const PATIENCE: Duration = Duration::from_secs(30);

/// The cluster of the story.
struct Stage<'a> {
    screen: &'a Screen,
    steps: &'a Steps,
    house: &'a mut House,
    servers: &'a [Server],
    file: ClusterFile,
    env: Env,
    coordinator: Coordinator,
    journals: Vec<Arc<Journal<Wal>>>,
    /// How cuts are taken: under the fence, if the servers have it.
    method: Method,
}

/// Plays it.
///
/// # Errors
/// `SA101` if there is no PostgreSQL; a bug if what is read back is not what was committed; whatever goes wrong.
pub async fn play(screen: &Screen, steps: &Steps, house: &mut House) -> Result<()> {
    let install = Install::find(None, None).await;
    let install = install.map_err(|error| {
        Trouble::from(error).hinting("install PostgreSQL; on Debian or Ubuntu: apt-get install postgresql")
    })?;
    steps.expect(12);
    let step = steps.begin("initdb and start of three servers");
    let servers = try_join_all(nodes().map(|node| Server::init(plan(house, node)))).await?;
    try_join_all(servers.iter().map(Server::start)).await?;
    let fenced = fence(&servers).await?;
    let with = if fenced { "with the commit fence" } else { "without the commit fence" };
    step.done(&format!("{NODES} PostgreSQL {} servers of their own, {with}", install.version()));
    let method = if fenced { Method::Fence } else { Method::Alone };
    let outcome = story(screen, steps, house, &servers, method).await;
    let stopped = try_join_all(servers.iter().map(|server| server.stop(StopMode::Immediate))).await;
    outcome?;
    stopped?;
    Ok(())
}

/// Loads the commit fence into each server, if it is installed on this machine.
async fn fence(servers: &[Server]) -> Result<bool> {
    let env = native_env(String::new());
    for server in servers {
        let session = Session::connect(&env, server).await?;
        if !session.has_fence().await? {
            return Ok(false);
        }
        session.run("ALTER SYSTEM SET shared_preload_libraries = 'sheetanchor_fence'").await?;
        server.stop(StopMode::Fast).await?;
        server.start().await?;
        Session::connect(&env, server).await?.run("CREATE EXTENSION sheetanchor_fence").await?;
    }
    Ok(true)
}

async fn story(screen: &Screen, steps: &Steps, house: &mut House, servers: &[Server], method: Method) -> Result<()> {
    let mut stage = Stage::set(screen, steps, house, servers, method).await?;
    let writing = Writing::start(&stage);
    stage.write_on("transfers on every node", Duration::from_millis(1_500)).await;
    match method {
        Method::Fence => stage.point().await?,
        Method::Alone | Method::Scn => stage.refused_without_fence().await?,
    }
    let sealed = stage.first_backup().await?;
    stage.write_on("writing goes on, and is to be lost", Duration::from_millis(1_500)).await;
    stage.interrupted_backup().await?;
    stage.restart_victim().await?;
    stage.lose_everything(writing).await?;
    stage.restore(&sealed).await?;
    let verdict = stage.read_back(&sealed).await?;
    stage.prove(&sealed, &verdict)
}

impl<'a> Stage<'a> {
    async fn set(
        screen: &'a Screen,
        steps: &'a Steps,
        house: &'a mut House,
        servers: &'a [Server],
        method: Method,
    ) -> Result<Self> {
        let step = steps.begin("three agents start");
        let addresses = free_addresses(usize::from(NODES))?;
        let described = nodes().zip(addresses.into_iter().zip(servers)).map(|(node, (agent, server))| NodeText {
            node,
            agent,
            engine: "postgres",
            data: server.plan().data.clone(),
            connection: server.connection(),
        });
        let file = house.furnish(described)?;
        let env = environment(&file);
        let coordinator = Coordinator::new(env.clone(), file.setup(), file.limits);
        let journals = nodes().map(|_| Arc::new(Journal::new())).collect();
        for node in nodes() {
            house.start_agent(node).await?;
        }
        let cluster = coordinator.init().await?;
        try_join_all(servers.iter().map(|server| ledger::create(&env, server))).await?;
        step.done(&format!("an agent beside each; cluster {cluster}, {ACCOUNTS} accounts on each node"));
        Ok(Self { screen, steps, house, servers, file, env, coordinator, journals, method })
    }

    fn acknowledged(&self) -> usize {
        self.journals.iter().map(|journal| journal.acknowledged()).sum()
    }

    /// Lets the writers write, and shows how many commits there are.
    async fn write_on(&self, what: &str, wait: Duration) {
        let step = self.steps.begin(what);
        let (begun, before) = (Instant::now(), self.acknowledged());
        while begun.elapsed() < wait {
            self.env.clock.sleep(Duration::from_millis(100)).await;
            step.going(&format!("{what}: {} commits", self.acknowledged()));
        }
        let after = self.acknowledged();
        step.done(&format!("{what}: {} more commits, {after} in all", after.saturating_sub(before)));
    }

    /// What this engine cannot do yet is refused, and not done by halves.
    async fn refused_without_fence(&self) -> Result<()> {
        let step = self.steps.begin("a cluster-wide restore point");
        let point = self.coordinator.create_point("cluster-wide".parse()?).await.err();
        let backup = self.coordinator.backup(None, Method::Fence).await.err();
        for refused in [point, backup] {
            let code = refused.as_ref().and_then(|error| error.refusal()).map(|refusal| refusal.code);
            if code != Some(Code::NotSupported) {
                return Err(broken(format!("without a commit fence, 0A000 was due and not {refused:?}")).into());
            }
        }
        step.done(
            "a cluster-wide restore point is refused (0A000): no commit fence here; `cargo xtask pg` or docs/postgres.md \
             installs it",
        );
        Ok(())
    }

    /// A point of all servers, while they write.
    async fn point(&self) -> Result<()> {
        let step = self.steps.begin("a cluster-wide restore point");
        let (_, point) = self.coordinator.create_point("cluster-wide".parse()?).await?;
        step.done(&format!(
            "a restore point of all servers, under the commit fence; guarantee {}",
            point.guarantee.word()
        ));
        Ok(())
    }

    async fn first_backup(&self) -> Result<Sealed> {
        let cut = if self.method == Method::Fence { "at one cut" } else { "each cut by itself" };
        let step = self.steps.begin(&format!("a backup of all nodes, {cut}, while they write"));
        let progress = Arc::new(Progress::new(self.screen).quietly());
        let watched = self.coordinator.clone().watched_by(progress.clone());
        let sealed = progress.during(&self.env, &watched, watched.backup(None, self.method)).await?;
        let copied = ByteCount::new(sealed.manifest.units.values().map(|unit| unit.bytes.get()).sum());
        step.done(&format!("backup sealed: {}; guarantee {}", bytes(copied), sealed.seal.guarantee.word()));
        Ok(sealed)
    }

    /// A second backup, whose files are being copied when a server dies.
    async fn interrupted_backup(&self) -> Result<()> {
        let step = self.steps.begin("a second backup, and kill -9 of a server in the middle");
        let data = self.file.nodes.get(&VICTIM).and_then(|setup| setup.data.clone()).unwrap_or_default();
        let postmaster = Postmaster::of(&data)?.and_then(|server| Pid::from_raw(server.pid()));
        let victim = postmaster.ok_or_else(|| broken(format!("the server of node {VICTIM} does not run")))?;
        let watcher = Arc::new(Killer { victim, killed: OnceLock::new() });
        let sealed = self.coordinator.clone().watched_by(watcher.clone()).backup(None, self.method).await;
        let Err(error) = sealed else {
            return Err(broken("a backup was sealed although a server died while it was copied").into());
        };
        let (Some(refusal), Some(killed)) = (error.refusal(), watcher.killed.get().copied()) else {
            return Err(broken(format!("the second backup ended as no refusal of a killed server: {error}")).into());
        };
        step.done(&format!("kill -9 of server {VICTIM} while its files are copied: backup refused ({})", refusal.code));
        let step = self.steps.begin("commits go on elsewhere");
        let mut longest = Duration::ZERO;
        for (node, journal) in nodes().zip(&self.journals).filter(|(node, _)| *node != VICTIM) {
            longest = longest.max(self.commits_again(node, journal, killed).await?);
        }
        step.done(&format!("commits go on on every other server, {} ms after the kill", longest.as_millis()));
        Ok(())
    }

    async fn commits_again(&self, node: NodeId, journal: &Journal<Wal>, since: Instant) -> Result<Duration> {
        loop {
            if let Some(silence) = journal.silence_after(since, node) {
                return Ok(silence);
            }
            if since.elapsed() > PATIENCE {
                return Err(broken(format!("node {node} does not commit any more")).into());
            }
            self.env.clock.sleep(Duration::from_millis(5)).await;
        }
    }

    async fn restart_victim(&self) -> Result<()> {
        let step = self.steps.begin("the server starts again");
        let begun = Instant::now();
        for (node, (server, journal)) in nodes().zip(self.servers.iter().zip(&self.journals)) {
            server.start().await?;
            self.commits_again(node, journal, begun).await?;
        }
        step.done(&format!("server {VICTIM} has recovered from its crash and commits again"));
        Ok(())
    }

    async fn lose_everything(&mut self, mut writing: Writing) -> Result<()> {
        let step = self.steps.begin("kill -9 of every server and agent");
        for (node, server) in nodes().zip(self.servers) {
            server.stop(StopMode::Kill).await?;
            self.house.kill(node).await?;
        }
        writing.stop().await;
        for setup in self.file.nodes.values() {
            for folder in setup.data.iter().chain([&setup.state]) {
                wipe(folder).await?;
            }
        }
        step.done("kill -9 of every server and agent; every data and state folder is wiped");
        Ok(())
    }

    async fn restore(&mut self, sealed: &Sealed) -> Result<()> {
        let step = self.steps.begin("agents start on empty folders");
        for node in nodes() {
            self.house.start_agent(node).await?;
        }
        let progress = Arc::new(Progress::new(self.screen).quietly());
        let watched = self.coordinator.clone().watched_by(progress.clone());
        step.going("all nodes are restored");
        let target = Target::Backup(sealed.operation);
        let restored = progress.during(&self.env, &watched, watched.restore(&target)).await?;
        step.done(&format!(
            "each node restored to its cut, and all promoted together as incarnation {}",
            restored.plan.opens
        ));
        Ok(())
    }

    async fn read_back(&self, sealed: &Sealed) -> Result<Verdict> {
        let step = self.steps.begin("everything is read back");
        let mut verdict = Verdict::default();
        for (node, (server, journal)) in nodes().zip(self.servers.iter().zip(&self.journals)) {
            let Some(cut) = sealed.seal.cut.threads.get(&ThreadId::of(node)) else {
                return Err(broken(format!("the backup holds no cut of node {node}")).into());
            };
            let mut session = Session::connect(&self.env, server).await?;
            let contents = session.read_all().await?;
            let sent: Vec<(Transfer, Fate)> =
                journal.all().iter().map(|sent| (sent.transfer, fate(sent, cut.until))).collect();
            let own = compare(&sent, &contents, ACCOUNTS, BALANCE);
            if own.committed == 0 || own.absent == 0 {
                return Err(broken(format!("node {node} committed nothing before its cut, or nothing after it")).into());
            }
            verdict.add(&own);
            session.transfer(Transfer { id: 1 << 40, from: 0, to: 1, amount: 1 }).await?;
        }
        let links = Links::read(&self.env, self.servers).await?;
        let (begun, torn) = (links.begun, links.without_cause.len());
        if begun == 0 || (self.method == Method::Fence && torn > 0) {
            return Err(broken(format!("{torn} of {begun} effects are there without their cause: {links:?}")).into());
        }
        step.done(&format!(
            "read back {} transfers from {NODES} servers, each takes new ones; of {begun} commits that went from server to \
             server {torn} are there without their cause",
            verdict.restored
        ));
        Ok(verdict)
    }

    fn prove(&self, sealed: &Sealed, verdict: &Verdict) -> Result<()> {
        let took = self.steps.elapsed().as_secs_f64();
        self.steps.clear();
        let promise = promise(sealed.manifest.method, sealed.seal.guarantee);
        let text = format!("\n{}\n{promise}\n", verdict.table());
        let value =
            json!({ "verdict": verdict.json(), "backup": sealed.operation, "seal": sealed.seal, "seconds": took });
        self.screen.result(&text, &value)?;
        match verdict.differences.as_slice() {
            [] => {
                self.screen.note(&format!(
                    "what was restored on each node is what it had committed at its own cut, to the last transfer; {took:.1} s"
                ));
                Ok(())
            }
            [first, others @ ..] => Err(broken(format!("{first} (and {} more differences)", others.len())).into()),
        }
    }
}

fn nodes() -> impl Iterator<Item = NodeId> {
    (1..=NODES).map(NodeId::new)
}

fn plan(house: &House, node: NodeId) -> ServerPlan {
    let settings = [("shared_buffers", "16MB"), ("max_wal_senders", "4"), ("max_replication_slots", "8")];
    ServerPlan {
        data: house.path(&format!("server-{node}")),
        socket_folder: house.path(&format!("socket-{node}")),
        port: PORT,
        log: house.path(&format!("server-{node}.log")),
        bin: None,
        run_as: None,
        settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
    }
}

/// The commit record lies between two positions; the cut is exclusive.
fn fate(sent: &Sent<Wal>, until: Lsn) -> Fate {
    match sent.outcome {
        Outcome::Acknowledged(wal) if wal.after <= until => Fate::Inside,
        Outcome::Acknowledged(wal) if wal.before >= until => Fate::Outside,
        Outcome::Acknowledged(_) | Outcome::Unknown => Fate::Open,
        Outcome::Failed => Fate::Outside,
    }
}

/// Kills a server as soon as a backup copies its files.
struct Killer {
    victim: Pid,
    killed: OnceLock<Instant>,
}

impl Watcher for Killer {
    fn phase(&self, _operation: OperationId, phase: &'static str) {
        if phase == "capturing" && self.killed.get().is_none() {
            kill_now(self.victim);
            self.killed.get_or_init(Instant::now);
        }
    }
}

/// The sessions that write, one on each node.
struct Writing {
    sessions: TaskGroup,
    over: Arc<AtomicBool>,
}

impl Writing {
    fn start(stage: &Stage<'_>) -> Self {
        let (mut sessions, over) = (TaskGroup::default(), Arc::new(AtomicBool::new(false)));
        for (node, (server, journal)) in nodes().zip(stage.servers.iter().zip(&stage.journals)) {
            let (env, journal, over) = (stage.env.clone(), journal.clone(), over.clone());
            let writes = Box::pin(ledger::write(env, server.connection(), node, journal, over));
            sessions.add(stage.env.tasks.spawn("writer", writes));
        }
        let connections = stage.servers.iter().map(Server::connection).collect();
        let chain = Box::pin(chain::write(stage.env.clone(), connections, over.clone()));
        sessions.add(stage.env.tasks.spawn("chain", chain));
        Self { sessions, over }
    }

    async fn stop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        self.sessions.stop().await;
    }
}
