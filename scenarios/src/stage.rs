//! The vocabulary of the stories: a domain verb a line.

mod afar;
mod between;
mod copy;
mod damage;
mod direct;
mod draw;
mod hole;
mod in_doubt;
mod incremental;
mod loss;
mod moved;
mod over;
mod skew;
mod strife;
mod trials;
mod voyage;

pub use damage::Victims;
pub use in_doubt::Comes;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sheetanchor_core::compression::Compression;
use sheetanchor_core::error::Result as Outcome;
use sheetanchor_core::format::catalog::{Method, Point};
use sheetanchor_core::identity::{OperationId, PointName};
use sheetanchor_core::plan::{Aim, Target};
use sheetanchor_core::refusal::Code;
use sheetanchor_core::scn::Scn;
use sheetanchor_core::views::points::PointState;
use sheetanchor_engine::coordinator::{ClusterStatus, Coordinator, Planned, Restored, Sealed};
use sheetanchor_engine::database::Storage;
use sheetanchor_engine::env::Env;
use sheetanchor_sim::chance::{Chance, Concern};
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::oracle::ledger::{History, LedgerState, Recorder, check_restored, check_restored_by_scn};
use sheetanchor_sim::plan::{CrashPolicy, Plan};
use sheetanchor_sim::world::{Failure, Promise, Repository, World};

use crate::cluster::{LEASE, NODES, Pace, host, operator, run_node, wipe};
use crate::workload::{Load, create_accounts, create_separate_accounts, read_back, read_separate, transfer};

/// The host of the clients.
pub const CLIENTS: &str = "clients";

/// How often folders are wiped at most: as often as a plan may have faults for that.
const WIPES_MAX: usize = 4;

/// How often a node that ends is started again before it counts as one that cannot start.
const STARTS_MAX: usize = 5;

/// Longer than any operation may take once nothing goes wrong any more.
const BOUND: Duration = Duration::from_mins(3);

/// Judges what a restored database holds, against the history and the cut.
pub(crate) type Check = fn(&History, Scn, &LedgerState) -> Result<(), Violation>;

/// What a story is told on.
pub struct Stage {
    world: World,
    chance: Chance,
    /// The draws of silent damage.
    damage: Chance,
    /// Draws of crashes amid writes: none of them moves what a story draws besides.
    amid: Chance,
    /// Draws of what befalls connections and clocks: so do these.
    links: Chance,
    /// Draws of how backups are packed: so do these.
    packing: Chance,
    load: Load,
    storage: Storage,
    /// Whether what spans databases is committed by two-phase commit.
    two_phase: bool,
    /// The nodes that send their files to backups themselves.
    senders: BTreeSet<u16>,
    recorder: Recorder,
    stop: Arc<AtomicBool>,
    clients: Option<Promise<()>>,
    waves: u64,
    operators: u32,
    /// How often each node's agent has begun to listen, as far as a story waited for it.
    listened: BTreeMap<u16, usize>,
    /// What was read last, and at which cut.
    read: Option<(Scn, LedgerState)>,
    /// How often each host had passed the gate when faults began to strike.
    swept_from: BTreeMap<String, u64>,
    /// Restores that have ended well: whoever takes one up leaves these alone.
    restored: BTreeSet<OperationId>,
    /// Whether faults are drawn where a story wants some. They are not, if the run was given a plan.
    draws: bool,
    /// The faults that were drawn.
    drawn: Plan,
    /// The most sessions that clients work with.
    sessions_max: Option<u64>,
    /// How often nodes do what they do again and again.
    pace: Pace,
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Stage").field("load", &self.load).finish_non_exhaustive()
    }
}

/// An operation that an operator has begun.
#[derive(Debug)]
pub struct Begun<T> {
    /// The operator's host.
    pub operator: String,
    promise: Promise<Outcome<T>>,
}

impl Stage {
    /// A stage in a world without hosts. `draws`: where a story wants faults, they are drawn from the seed. With
    /// `sessions_max` clients work with so many sessions at most.
    pub fn new(world: World, draws: bool, sessions_max: Option<u64>) -> Self {
        let (chance, damage) = (world.workload_chance(), world.damage_chance());
        let amid = Chance::of(!world.seed(), Concern::Workload);
        let links = Chance::of(world.seed(), Concern::Links);
        let packing = Chance::of(world.seed(), Concern::Packing);
        let stop = Arc::new(AtomicBool::new(false));
        let (load, recorder) = (Load::SPREAD, Recorder::default());
        Self {
            world,
            chance,
            damage,
            amid,
            links,
            packing,
            load,
            storage: Storage::Shared,
            two_phase: false,
            senders: BTreeSet::new(),
            recorder,
            stop,
            clients: None,
            waves: 0,
            operators: 0,
            listened: BTreeMap::new(),
            read: None,
            swept_from: BTreeMap::new(),
            restored: BTreeSet::new(),
            draws,
            drawn: Plan::peaceful(),
            sessions_max,
            pace: Pace::Brisk,
        }
    }

    /// What was drawn to go wrong, beside what the story itself brings about.
    pub const fn drawn(&self) -> &Plan {
        &self.drawn
    }

    /// Faults that were drawn strike from here on, if this run draws any.
    fn arm_if_drawn(&mut self, plan: Plan) {
        if self.draws {
            self.drawn.faults.extend(plan.faults.iter().cloned());
            self.world.arm(plan);
        }
    }

    /// Gives the world back.
    pub fn into_world(self) -> World {
        self.world
    }

    /// The world, for faults that a story brings about itself.
    pub fn world(&mut self) -> &mut World {
        &mut self.world
    }

    /// The draws that a story makes.
    pub fn chance(&self) -> &Chance {
        &self.chance
    }

    /// What clients asked for and were told.
    pub fn history(&self) -> History {
        self.recorder.history()
    }

    /// Given: a repository in an object store, and not in a folder.
    pub fn given_an_object_store(&mut self) {
        self.world.keep_repository_in(Repository::Store);
    }

    /// Given: three nodes, one cluster, and accounts with balances.
    pub fn given_a_cluster(&mut self, load: Load) -> Result<(), Failure> {
        let load = self.sessions_max.map_or(load, |most| load.with_sessions(most));
        self.load = load;
        self.recorder = Recorder::new(load.opening());
        self.start_nodes()?;
        let init = self.operate(|operator| async move { operator.init().await });
        self.succeeds("init", &init)?;
        let created = match self.storage {
            Storage::Shared => self.world.launch(CLIENTS, move |env| create_accounts(env, load)),
            Storage::PerNode => self.world.launch(CLIENTS, move |env| create_separate_accounts(env, load)),
        };
        let created = self.world.finish(&created, BOUND)?;
        self.expect("accounts are created", created)
    }

    /// Given: three nodes with a database each, which share nothing; one cluster, and accounts with balances.
    pub fn given_separate_databases(&mut self, load: Load) -> Result<(), Failure> {
        self.storage = Storage::PerNode;
        self.given_a_cluster(load)
    }

    /// Given: the same, of nodes that take their time, for a story that lasts a day.
    pub fn given_a_cluster_at_leisure(&mut self, load: Load) -> Result<(), Failure> {
        self.pace = Pace::Leisurely;
        self.given_a_cluster(load)
    }

    fn start_nodes(&mut self) -> Result<(), Failure> {
        let (storage, pace, two_phase) = (self.storage, self.pace, self.two_phase);
        for node in NODES {
            let sends = self.senders.contains(&node);
            self.world.start(&host(node), move |env| run_node(env, node, storage, pace, two_phase, sends));
        }
        for node in NODES {
            self.is_listening(node)?;
        }
        Ok(())
    }

    /// Waits until a node's agent listens in its present life. One that a failing disk ends before is started again, as a
    /// supervisor does; each fault strikes once.
    fn is_listening(&mut self, node: u16) -> Result<(), Failure> {
        let listening = move |world: &World| {
            let milestones = world.milestones(&host(node));
            milestones.iter().filter(|event| event.what.contains("listening")).count()
        };
        let before = self.listened.get(&node).copied().unwrap_or(0);
        let name = host(node);
        for _ in 0..STARTS_MAX {
            let ended = name.clone();
            let comes = move |world: &World| listening(world) > before || world.has_ended(&ended);
            self.world.run_until(comes, Duration::from_secs(30))?;
            if listening(&self.world) > before {
                break;
            }
            self.world.crash(&name, CrashPolicy::ProcessOnly);
            self.world.restart(&name);
        }
        let listens = listening(&self.world) > before;
        self.holds(listens, Violation::new("a node starts", format!("{name} ended {STARTS_MAX} times")))?;
        self.listened.insert(node, listening(&self.world));
        Ok(())
    }

    /// Waits until every node's agent listens in its present life.
    pub fn nodes_are_back(&mut self) -> Result<(), Failure> {
        NODES.iter().try_for_each(|node| self.is_listening(*node))
    }

    /// Clients begin to transfer.
    pub fn transfers_begin(&mut self) {
        self.stop = Arc::new(AtomicBool::new(false));
        self.waves += 1;
        let (load, wave, recorder, stop) = (self.load, self.waves, self.recorder.clone(), self.stop.clone());
        let run = move |env| transfer(env, load, wave, recorder.clone(), stop.clone());
        self.clients = Some(self.world.launch(CLIENTS, run));
    }

    /// Clients finish what they are doing, and stop.
    pub fn transfers_end(&mut self) -> Result<(), Failure> {
        self.stop.store(true, Ordering::SeqCst);
        match self.clients.take() {
            Some(clients) => self.world.finish(&clients, BOUND),
            None => Ok(()),
        }
    }

    /// Time passes: between `from_ms` and `until_ms` milliseconds, drawn from the seed.
    pub fn meanwhile(&mut self, from_ms: u64, until_ms: u64) -> Result<(), Failure> {
        let length = Duration::from_millis(self.chance.between(from_ms, until_ms));
        self.world.run_for(length)
    }

    /// An operator begins something, at a host of its own.
    pub fn operate<T, F>(&mut self, act: impl Fn(Coordinator) -> F + Send + Sync + 'static) -> Begun<T>
    where
        T: Send + 'static,
        F: Future<Output = Outcome<T>> + Send + 'static,
    {
        self.operate_as(operator, act)
    }

    /// The same, by an operator who knows of these nodes. Which way backups of this operator are packed is drawn.
    fn operate_as<T, F>(
        &mut self,
        operator: impl Fn(Env) -> Coordinator + Send + Sync + 'static,
        act: impl Fn(Coordinator) -> F + Send + Sync + 'static,
    ) -> Begun<T>
    where
        T: Send + 'static,
        F: Future<Output = Outcome<T>> + Send + 'static,
    {
        self.operators += 1;
        let host = format!("operator{}", self.operators);
        let compression = self.packing.one_of(&Compression::ALL).unwrap_or_default();
        let promise = self.world.launch(&host, move |env| act(operator(env).packing_by(compression)));
        Begun { operator: host, promise }
    }

    /// An operator begins a backup.
    pub fn begin_backup(&mut self) -> Begun<Sealed> {
        self.operate(|operator| async move { operator.backup(None, Method::Fence).await })
    }

    /// An operator begins a restore point.
    pub fn begin_point(&mut self, name: &str) -> Begun<(OperationId, Point)> {
        let name: Result<PointName, _> = name.parse();
        self.operate(move |operator| {
            let name = name.clone();
            async move { operator.create_point(name?).await }
        })
    }

    /// An operator begins a restore point by SCN.
    pub fn begin_point_by_scn(&mut self, name: &str) -> Begun<(OperationId, Point)> {
        let name: Result<PointName, _> = name.parse();
        self.operate(move |operator| {
            let name = name.clone();
            async move { operator.create_point_by(name?, Method::Scn).await }
        })
    }

    /// A restore point is taken by SCN.
    pub fn a_point_is_taken_by_scn(&mut self, name: &str) -> Result<Point, Failure> {
        let begun = self.begin_point_by_scn(name);
        Ok(self.succeeds("a restore point by SCN succeeds", &begun)?.1)
    }

    /// An operator begins a restore.
    pub fn begin_restore(&mut self, aim: impl Into<Aim>) -> Begun<Restored> {
        let aim = aim.into();
        self.operate(move |operator| {
            let aim = aim.clone();
            async move { operator.restore(&aim).await }
        })
    }

    /// An operator asks what a restore would do.
    pub fn begin_plan(&mut self, aim: impl Into<Aim>) -> Begun<Planned> {
        let aim = aim.into();
        self.operate(move |operator| {
            let aim = aim.clone();
            async move { operator.plan_restore(&aim).await }
        })
    }

    /// Waits for the end of an operation, whatever it is.
    pub fn ends<T>(&mut self, begun: &Begun<T>) -> Result<Outcome<T>, Failure> {
        self.world.finish(&begun.promise, BOUND)
    }

    /// Waits for an operation that must succeed.
    pub fn succeeds<T>(&mut self, what: &str, begun: &Begun<T>) -> Result<T, Failure> {
        let outcome = self.ends(begun)?;
        self.expect(what, outcome)
    }

    /// Waits for an operation that must be refused.
    pub fn is_refused<T: std::fmt::Debug>(
        &mut self,
        what: &str,
        begun: &Begun<T>,
        codes: &[Code],
    ) -> Result<(), Failure> {
        let outcome = self.ends(begun)?;
        let refused = outcome
            .as_ref()
            .err()
            .and_then(|error| error.refusal())
            .is_some_and(|refusal| codes.contains(&refusal.code));
        let violation = Violation::new("what cannot be proven is refused", format!("{what} ended as {outcome:?}"));
        self.holds(refused, violation)
    }

    /// A backup is taken.
    pub fn a_backup_is_taken(&mut self) -> Result<Sealed, Failure> {
        let begun = self.begin_backup();
        self.succeeds("a backup without faults succeeds", &begun)
    }

    /// A restore point is taken.
    pub fn a_point_is_taken(&mut self, name: &str) -> Result<Point, Failure> {
        let begun = self.begin_point(name);
        Ok(self.succeeds("a restore point without faults succeeds", &begun)?.1)
    }

    /// What the operator sees of a restore point; nothing if it is not listed.
    pub fn point_is_listed_as(&mut self, name: &str) -> Result<Option<PointState>, Failure> {
        let wanted: Option<PointName> = name.parse().ok();
        let points = self.operate(|operator| async move { operator.points().await });
        let points = self.succeeds("points are listed", &points)?;
        Ok(points.iter().find(|point| point.name == wanted).map(|point| point.state))
    }

    /// Waits until the archive reaches a restore point on every node.
    pub fn the_point_becomes_reachable(&mut self, name: &str) -> Result<(), Failure> {
        for _ in 0..40 {
            if self.point_is_listed_as(name)? == Some(PointState::Reachable) {
                return Ok(());
            }
            self.world.run_for(Duration::from_millis(200))?;
        }
        let detail = format!("restore point `{name}` is still pending");
        self.holds(false, Violation::new("the archive reaches what was published", detail))
    }

    /// A node stops. `kill -9` or power loss, drawn from the seed.
    pub fn crash_node(&mut self, node: u16) {
        let policy = self.any_policy();
        self.world.crash(&host(node), policy);
    }

    /// A node starts again.
    pub fn restart_node(&mut self, node: u16) {
        self.world.restart(&host(node));
    }

    /// A way of stopping, drawn from the seed.
    pub fn any_policy(&self) -> CrashPolicy {
        self.any_of(&CrashPolicy::ALL).unwrap_or(CrashPolicy::DropAll)
    }

    /// Then: within the lease and a little, commits are acknowledged again.
    pub fn commits_flow_again_within_the_lease(&mut self) -> Result<(), Failure> {
        let (before, since) = (self.history().acknowledged_count(), self.world.elapsed());
        let recorder = self.recorder.clone();
        let slack = Duration::from_millis(700);
        let flows = self.world.run_until(move |_| recorder.history().acknowledged_count() > before, LEASE + slack);
        match flows {
            Err(Failure::Stuck { .. }) => {
                let detail = format!("no commit for {:?} from {since:?} on; the lease is {LEASE:?}", LEASE + slack);
                self.holds(false, Violation::new("commits flow again within the lease", detail))
            }
            flows => flows,
        }
    }

    /// When: an operator ends what nobody carries on.
    pub fn unfinished_operations_are_aborted(&mut self) -> Result<(), Failure> {
        for operation in self.status()?.unfinished {
            let aborted = self.operate(move |operator| async move { operator.abort(operation).await });
            self.succeeds("an unfinished operation is aborted", &aborted)?;
        }
        Ok(())
    }

    /// What the operator sees.
    pub fn status(&mut self) -> Result<ClusterStatus, Failure> {
        let begun = self.operate(|operator| async move { operator.status().await });
        self.succeeds("status is shown", &begun)
    }

    /// When: all power is lost, and every node with all that it had.
    pub fn everything_is_lost(&mut self) -> Result<(), Failure> {
        self.world.power_off_all(CrashPolicy::DropAll);
        for node in NODES {
            self.is_wiped(&host(node))?;
        }
        self.start_nodes()
    }

    /// When: a host that has no power loses everything on its disks.
    fn is_wiped(&mut self, host: &str) -> Result<(), Failure> {
        // Wiping is the story's own act: a fault that meets it strikes once, and is no news of the system.
        let mut wiped = Ok(());
        for _ in 0..WIPES_MAX {
            let wiping = self.world.launch(host, wipe);
            wiped = self.world.finish(&wiping, BOUND)?;
            if wiped.is_ok() {
                break;
            }
        }
        self.expect("folders are wiped", wiped)
    }

    /// Then: all nodes are restored, and what is read through every one of them is exactly what had been committed.
    pub fn is_restored(&mut self, aim: impl Into<Aim>) -> Result<Restored, Failure> {
        let begun = self.begin_restore(aim);
        let restored = self.succeeds("a restore without faults succeeds", &begun)?;
        self.holds_exactly_the_history_up_to(restored.plan.cut.scn)?;
        Ok(restored)
    }

    /// Then: a restore to a cut by SCN ends there, and the database holds what had been committed; what sessions that carry
    /// nothing tied together is not asked for.
    pub fn is_restored_by_scn(&mut self, target: Target) -> Result<Restored, Failure> {
        let begun = self.begin_restore(target);
        let restored = self.succeeds("a restore without faults succeeds", &begun)?;
        self.holds_the_history(restored.plan.cut.scn, check_restored_by_scn)?;
        Ok(restored)
    }

    /// Then: read through every node, the database is the committed history up to the cut.
    pub fn holds_exactly_the_history_up_to(&mut self, cut: Scn) -> Result<(), Failure> {
        self.holds_the_history(cut, check_restored)
    }

    fn holds_the_history(&mut self, cut: Scn, check: Check) -> Result<(), Failure> {
        if self.two_phase {
            return self.halves_hold_the_history(cut, check);
        }
        if self.storage == Storage::PerNode {
            let state = self.world.launch(CLIENTS, read_separate);
            let state = self.world.finish(&state, BOUND)?;
            let state: LedgerState = self.expect("the restored databases are read", state)?;
            let verdict = check(&self.history(), cut, &state);
            self.world.note(format!("all nodes hold {} transfers at cut {cut}", state.transfers.len()));
            self.read = Some((cut, state));
            return self.world.judge(verdict);
        }
        for node in NODES {
            let state = self.world.launch(CLIENTS, move |env| read_back(env, node));
            let state = self.world.finish(&state, BOUND)?;
            let state: LedgerState = self.expect("the restored database is read", state)?;
            let verdict = check(&self.history(), cut, &state);
            self.world.note(format!("node {node} holds {} transfers at cut {cut}", state.transfers.len()));
            self.world.judge(verdict)?;
            self.read = Some((cut, state));
        }
        Ok(())
    }

    /// Given: the restored database is the one that clients go on with.
    pub fn history_goes_on(&mut self) {
        if let Some((cut, state)) = self.read.take() {
            self.recorder.go_on_from(self.history().branched(cut, &state));
        }
    }

    /// Given: the cluster is about to be restored to somewhere in this history, which another branch may have left.
    pub fn history_is(&mut self, history: History) {
        self.recorder.go_on_from(history);
    }

    /// Fails the run unless `good`.
    pub fn holds(&mut self, good: bool, violation: Violation) -> Result<(), Failure> {
        self.world.judge(if good { Ok(()) } else { Err(violation) })
    }

    fn expect<T, E: std::fmt::Display>(&mut self, what: &str, outcome: Result<T, E>) -> Result<T, Failure> {
        match outcome {
            Ok(value) => Ok(value),
            Err(error) => {
                let violation =
                    Violation::new("what nothing stands in the way of succeeds", format!("{what}: {error}"));
                self.fails(violation)
            }
        }
    }

    /// Fails the run.
    fn fails<T>(&mut self, violation: Violation) -> Result<T, Failure> {
        self.world.judge(Err(violation.clone()))?;
        Err(Failure::Violated(violation))
    }
}
