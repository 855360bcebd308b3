//! The story on the embedded database.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde_json::json;
use sheetanchor_core::format::catalog::{Method, Point};
use sheetanchor_core::identity::{ByteCount, NodeId, OperationId, OperationKind, PointName};
use sheetanchor_core::plan::Target;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;
use sheetanchor_core::views::points::PointState;
use sheetanchor_engine::coordinator::Coordinator;
use sheetanchor_engine::env::{Env, TaskGroup};
use sheetanchor_engine::pump::Watcher;
use sheetanchor_refdb::{Contents, Ledger, Outcome as Told, Session, Transfer};

use super::broken;
use super::compare::{Fate, compare};
use super::house::{House, NodeText, free_addresses, kill_now, wipe};
use super::journal::{Journal, Outcome, Sent};
use super::steps::Steps;
use crate::command::backup::promise;
use crate::config::ClusterFile;
use crate::connect::environment;
use crate::progress::Progress;
use crate::report::Result;
use crate::screen::{Screen, bytes};

const NODES: u16 = 3;

/// Accounts of each node; one in eight transfers goes to an account of another node.
const ACCOUNTS_PER_NODE: u64 = 20;

const ACCOUNTS: u64 = ACCOUNTS_PER_NODE * 3;

const BALANCE: i64 = 1_000;

/// Sessions on each node.
const WRITERS_PER_NODE: usize = 2;

/// How long a session tries a transfer before it goes on to another.
const PATIENCE: Duration = Duration::from_millis(300);

/// How long anything else may be tried again.
const BUDGET: Duration = Duration::from_secs(20);

/// How long a transfer after another.
const PAUSE: Duration = Duration::from_millis(8);

/// The node that is killed in the middle of the second backup.
const VICTIM: NodeId = NodeId::new(3);

/// The restore point that is restored, made after the backup.
const POINT: &str = "after-the-crash";

/// The cluster of the story.
struct Stage<'a> {
    screen: &'a Screen,
    steps: &'a Steps,
    house: &'a mut House,
    file: ClusterFile,
    addresses: Vec<String>,
    env: Env,
    coordinator: Coordinator,
    journal: Arc<Journal<Scn>>,
}

/// Plays it.
///
/// # Errors
/// A bug if what is read back is not what was committed; whatever goes wrong on the way.
pub async fn play(screen: &Screen, steps: &Steps, house: &mut House) -> Result<()> {
    steps.expect(14);
    let mut stage = Stage::set(screen, steps, house).await?;
    let writing = Writing::start(&stage);
    stage.first_backup(&writing).await?;
    stage.interrupted_backup().await?;
    stage.restart_victim().await?;
    let point = stage.point(POINT, "a restore point after the backup").await?;
    stage.write_on("writing goes on, and is to be lost", Duration::from_millis(1_500)).await;
    stage.lose_everything(writing).await?;
    stage.restore().await?;
    let contents = stage.read_back().await?;
    stage.prove(&point, &contents)
}

impl<'a> Stage<'a> {
    async fn set(screen: &'a Screen, steps: &'a Steps, house: &'a mut House) -> Result<Self> {
        let step = steps.begin("three nodes start");
        let addresses = free_addresses(usize::from(NODES) * 2)?;
        let (agents, databases) = addresses.split_at(usize::from(NODES));
        let data = house.path("shared");
        let described = nodes().zip(agents.iter().zip(databases)).map(|(node, (agent, database))| NodeText {
            node,
            agent: agent.clone(),
            engine: "refdb",
            data: data.clone(),
            connection: database.clone(),
        });
        let file = house.furnish(described)?;
        let env = environment(&file);
        let coordinator = Coordinator::new(env.clone(), file.setup(), file.limits);
        let (journal, addresses) = (Arc::new(Journal::new()), databases.to_vec());
        let stage = Self { screen, steps, house, file, addresses, env, coordinator, journal };
        for node in nodes() {
            stage.house.start_agent(node).await?;
        }
        let cluster = stage.coordinator.init().await?;
        let accounts = stage.ledger(0).create(ACCOUNTS, BALANCE).await;
        accounts.map_err(sheetanchor_core::error::Error::from)?;
        step.done(&format!("{NODES} nodes run as processes of their own; cluster {cluster}, {ACCOUNTS} accounts"));
        Ok(stage)
    }

    /// A session on the `index`th node.
    fn ledger(&self, index: usize) -> Ledger {
        let address = self.addresses.get(index).map(String::as_str).unwrap_or_default();
        Ledger::new(&self.env, address, Session::Causal, BUDGET)
    }

    /// Lets the writers write, and shows how many commits there are.
    async fn write_on(&self, what: &str, wait: Duration) {
        let step = self.steps.begin(what);
        let (begun, before) = (Instant::now(), self.journal.acknowledged());
        while begun.elapsed() < wait {
            self.env.clock.sleep(Duration::from_millis(100)).await;
            step.going(&format!("{what}: {} commits", self.journal.acknowledged()));
        }
        let after = self.journal.acknowledged();
        step.done(&format!("{what}: {} more commits, {after} in all", after.saturating_sub(before)));
    }

    fn watched(&self, watcher: Arc<dyn Watcher>) -> Coordinator {
        self.coordinator.clone().watched_by(watcher)
    }

    async fn first_backup(&self, _writing: &Writing) -> Result<()> {
        self.write_on("transfers on every node", Duration::from_millis(1_500)).await;
        let step = self.steps.begin("a backup of all nodes, while they write");
        let progress = Arc::new(Progress::new(self.screen).quietly());
        let watched = self.watched(progress.clone());
        let label: PointName = "first".parse()?;
        let sealed = progress.during(&self.env, &watched, watched.backup(Some(label), Method::Fence)).await?;
        let copied: u64 = sealed.manifest.units.values().map(|unit| unit.bytes.get()).sum();
        step.done(&format!(
            "backup sealed: {} at SCN {}; guarantee {}",
            bytes(ByteCount::new(copied)),
            sealed.seal.cut.scn,
            sealed.seal.guarantee.word(),
        ));
        self.point("before-the-crash", "a restore point").await?;
        self.write_on("writing goes on", Duration::from_secs(1)).await;
        Ok(())
    }

    /// A second backup, whose fence is closed on every node when one of them dies.
    async fn interrupted_backup(&self) -> Result<()> {
        let step = self.steps.begin("a second backup, and kill -9 of a node in the middle");
        let watcher = Arc::new(Killer { victim: self.house.process(VICTIM)?, killed: OnceLock::new() });
        let sealed = self.watched(watcher.clone()).backup(None, Method::Fence).await;
        let Err(error) = sealed else {
            return Err(broken("a backup was sealed although a node died under its fence").into());
        };
        let Some(refusal) = error.refusal() else {
            return Err(broken(format!("the second backup ended as no refusal: {error}")).into());
        };
        let Some(killed) = watcher.killed.get().copied() else {
            return Err(broken(format!("the second backup ended before its fence was closed: {error}")).into());
        };
        step.done(&format!(
            "kill -9 of node {VICTIM} under the fence: backup refused ({}), nothing published",
            refusal.code
        ));
        let step = self.steps.begin("commits flow again");
        let lease = self.file.limits.point.lease;
        let mut longest = Duration::ZERO;
        for node in nodes().filter(|node| *node != VICTIM) {
            let silence = loop {
                if let Some(silence) = self.journal.silence_after(killed, node) {
                    break silence;
                }
                if killed.elapsed() > lease.saturating_mul(3) {
                    break killed.elapsed();
                }
                self.env.clock.sleep(Duration::from_millis(5)).await;
            };
            longest = longest.max(silence);
        }
        if longest > lease {
            let (longest, lease) = (longest.as_millis(), lease.as_millis());
            return Err(broken(format!(
                "commits flow again only {longest} ms after the kill; the lease is {lease} ms"
            ))
            .into());
        }
        step.done(&format!(
            "commits flow again on the other nodes {} ms after the kill (the lease is {} ms)",
            longest.as_millis(),
            lease.as_millis()
        ));
        Ok(())
    }

    async fn restart_victim(&mut self) -> Result<()> {
        let step = self.steps.begin("the node starts again");
        self.house.kill(VICTIM).await?;
        let started = Instant::now();
        self.house.start_agent(VICTIM).await?;
        while self.journal.silence_after(started, VICTIM).is_none() {
            if started.elapsed() > BUDGET {
                return Err(broken(format!("node {VICTIM} commits nothing after its restart")).into());
            }
            self.env.clock.sleep(Duration::from_millis(20)).await;
        }
        step.done(&format!("node {VICTIM} has recovered from its crash and commits again"));
        self.write_on("writing goes on, on every node", Duration::from_secs(1)).await;
        Ok(())
    }

    async fn point(&self, name: &str, what: &str) -> Result<Point> {
        let step = self.steps.begin(what);
        let (operation, point) = self.coordinator.create_point(name.parse()?).await?;
        let begun = Instant::now();
        step.going("waiting until the archive has passed it");
        loop {
            let points = self.coordinator.points().await?;
            match points.into_iter().find(|point| point.point_id == operation) {
                Some(point) if point.state == PointState::Reachable => break,
                Some(point) if begun.elapsed() > BUDGET => {
                    let why = point.reason.unwrap_or_default();
                    return Err(
                        Refusal::new(Code::ArchiveBehind, format!("{operation} is no target yet: {why}")).into()
                    );
                }
                Some(_) => self.env.clock.sleep(Duration::from_millis(50)).await,
                None => return Err(broken(format!("{operation} was published and is not listed")).into()),
            }
        }
        step.done(&format!("{what}: {name} at SCN {}; guarantee {}; archived", point.cut.scn, point.guarantee.word()));
        Ok(point)
    }

    async fn lose_everything(&mut self, mut writing: Writing) -> Result<()> {
        let step = self.steps.begin("kill -9 of every node");
        for node in nodes() {
            self.house.kill(node).await?;
        }
        writing.stop().await;
        for setup in self.file.nodes.values() {
            for folder in setup.data.iter().chain([&setup.state]) {
                wipe(folder).await?;
            }
        }
        step.done("kill -9 of every node; all data and state folders wiped, only the repository is left");
        Ok(())
    }

    async fn restore(&mut self) -> Result<()> {
        let step = self.steps.begin("agents start on empty folders");
        for node in nodes() {
            self.house.start_agent(node).await?;
        }
        let progress = Arc::new(Progress::new(self.screen).quietly());
        let watched = self.watched(progress.clone());
        step.going("all nodes are restored");
        let target = Target::Name(POINT.parse()?);
        let restored = progress.during(&self.env, &watched, watched.restore(&target)).await?;
        let plan = &restored.plan;
        let pieces: usize = plan.threads.values().flat_map(|thread| &thread.spans).map(|span| span.pieces.len()).sum();
        step.done(&format!(
            "restored to {POINT}: a backup and {pieces} pieces of WAL of {} threads; incarnation {} is open",
            plan.threads.len(),
            plan.opens,
        ));
        Ok(())
    }

    /// Reads through the last node: it restored nothing itself.
    async fn read_back(&self) -> Result<Contents> {
        let step = self.steps.begin("everything is read back");
        let contents = self.ledger(usize::from(NODES) - 1).read_all().await;
        let contents = contents.map_err(sheetanchor_core::error::Error::from)?;
        let highest = self.journal.all().iter().filter_map(acknowledged_at).max().unwrap_or(Scn::ZERO);
        // A restored cluster must write, and never issue an SCN that its history has used.
        let transfer = Transfer { id: 1 << 40, from: 0, to: 1, amount: 1 };
        let Told::Acknowledged(scn) = self.ledger(0).transfer(transfer).await else {
            return Err(broken("the restored cluster does not commit").into());
        };
        if scn <= highest {
            return Err(broken(format!("the restored cluster issued SCN {scn}, its past had reached {highest}")).into());
        }
        step.done(&format!(
            "read back {} transfers; a new commit is stamped above all of the past",
            contents.transfers.len()
        ));
        Ok(contents)
    }

    fn prove(&self, point: &Point, contents: &Contents) -> Result<()> {
        let sent: Vec<(Transfer, Fate)> =
            self.journal.all().iter().map(|sent| (sent.transfer, fate(sent, point.cut.scn))).collect();
        let verdict = compare(&sent, contents, ACCOUNTS, BALANCE);
        let took = self.steps.elapsed().as_secs_f64();
        self.steps.clear();
        let promise = promise(point.method, point.guarantee);
        let text = format!("\n{}\n{promise}\n", verdict.table());
        let value = json!({ "verdict": verdict.json(), "point": point, "seconds": took });
        self.screen.result(&text, &value)?;
        if verdict.committed == 0 || verdict.absent == 0 {
            return Err(
                broken("nothing was committed before the point, or nothing after it: this proves nothing").into()
            );
        }
        match verdict.differences.as_slice() {
            [] => {
                self.screen
                    .note(&format!("what was restored is what was committed, to the last transfer; {took:.1} s"));
                Ok(())
            }
            [first, others @ ..] => Err(broken(format!("{first} (and {} more differences)", others.len())).into()),
        }
    }
}

fn nodes() -> impl Iterator<Item = NodeId> {
    (1..=NODES).map(NodeId::new)
}

fn acknowledged_at(sent: &Sent<Scn>) -> Option<Scn> {
    match sent.outcome {
        Outcome::Acknowledged(scn) => Some(scn),
        Outcome::Failed | Outcome::Unknown => None,
    }
}

/// A cut holds what was committed at or below its SCN, and nothing else.
fn fate(sent: &Sent<Scn>, cut: Scn) -> Fate {
    match sent.outcome {
        Outcome::Acknowledged(scn) if scn <= cut => Fate::Inside,
        Outcome::Acknowledged(_) | Outcome::Failed => Fate::Outside,
        Outcome::Unknown => Fate::Open,
    }
}

/// Kills a node as soon as every node holds commits back for a backup's end.
struct Killer {
    victim: Pid,
    killed: OnceLock<Instant>,
}

impl Watcher for Killer {
    fn phase(&self, operation: OperationId, phase: &'static str) {
        if operation.kind() == OperationKind::Point && phase == "draining" && self.killed.get().is_none() {
            kill_now(self.victim);
            self.killed.get_or_init(Instant::now);
        }
    }
}

/// The sessions that write.
struct Writing {
    sessions: TaskGroup,
    over: Arc<AtomicBool>,
}

impl Writing {
    fn start(stage: &Stage<'_>) -> Self {
        let (mut sessions, over) = (TaskGroup::default(), Arc::new(AtomicBool::new(false)));
        for (node, address) in nodes().zip(&stage.addresses) {
            for _ in 0..WRITERS_PER_NODE {
                let (env, journal, over) = (stage.env.clone(), stage.journal.clone(), over.clone());
                let ledger = Ledger::new(&stage.env, address, Session::Causal, PATIENCE);
                let writes = Box::pin(write(env, ledger, node, journal, over));
                sessions.add(stage.env.tasks.spawn("writer", writes));
            }
        }
        Self { sessions, over }
    }

    async fn stop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        self.sessions.stop().await;
    }
}

async fn write(env: Env, mut ledger: Ledger, node: NodeId, journal: Arc<Journal<Scn>>, over: Arc<AtomicBool>) {
    while !over.load(Ordering::SeqCst) {
        let (from, to, amount) = pick(&env, node);
        let transfer = journal.send(node, from, to, amount);
        let outcome = match ledger.transfer(transfer).await {
            Told::Acknowledged(scn) => Outcome::Acknowledged(scn),
            Told::Failed(_) => Outcome::Failed,
            Told::Unknown(_) => Outcome::Unknown,
        };
        journal.settle(transfer, outcome);
        env.clock.sleep(PAUSE).await;
    }
}

/// An account of the node's own, another one, and an amount.
fn pick(env: &Env, node: NodeId) -> (u64, u64, u64) {
    let own = u64::from(node.get().saturating_sub(1)) * ACCOUNTS_PER_NODE;
    let from = own + env.entropy.word() % ACCOUNTS_PER_NODE;
    let elsewhere = env.entropy.word().is_multiple_of(8);
    let to = if elsewhere { env.entropy.word() % ACCOUNTS } else { own + env.entropy.word() % ACCOUNTS_PER_NODE };
    let to = if to == from { (to + 1) % ACCOUNTS } else { to };
    (from, to, 1 + env.entropy.word() % 9)
}
