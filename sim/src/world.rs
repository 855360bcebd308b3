//! What a scenario holds: hosts that run programs on a backend, the faults that meet them, and what is known about it.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use sheetanchor_engine::env::Env;
use thiserror::Error;
use tracing::subscriber::DefaultGuard;

use crate::atlas::{Atlas, Harm};
use crate::backend::Backend;
use crate::bucket::Objects;
use crate::chance::{Chance, Concern};
use crate::clock::WallOffset;
use crate::disk::Disks;
use crate::gate::{Action, Gate, Life, PutTrouble};
use crate::host::{HostId, locked};
use crate::milestone;
use crate::oracle::Violation;
use crate::panics;
use crate::plan::{CrashPolicy, Plan};
use crate::recording::{self, CrashView, Recording};
use crate::trace::Event;

mod hosts;

use hosts::{Ground, Slot};

/// How to build a world.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where all chance of the run comes from.
    pub seed: u64,
    /// What goes wrong.
    pub plan: Plan,
    /// How far a host's wall clock may be off, either way.
    pub clock_skew_max_ms: u64,
    /// Where the repository is.
    pub repository: Repository,
}

/// What stands behind the `Bucket` port of every host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repository {
    /// The engine's own folder bucket at [`REPOSITORY`] on the volume that all hosts share: a missing fsync shows.
    Folder,
    /// The simulated object store, durable at once.
    Store,
}

/// A condition of a scenario is looked at again after that much time, also if nothing has happened.
const STEP_MAX: Duration = Duration::from_millis(100);

/// The folder of [`Repository::Folder`].
pub const REPOSITORY: &str = "/repo";

impl Settings {
    /// A peaceful world of that seed, whose clocks are up to 50 ms off and whose repository is a folder.
    pub const fn of(seed: u64) -> Self {
        Self { seed, plan: Plan::peaceful(), clock_skew_max_ms: 50, repository: Repository::Folder }
    }

    /// These settings, with that plan.
    #[must_use]
    pub fn with(self, plan: Plan) -> Self {
        Self { plan, ..self }
    }
}

/// The folders that all hosts share: the volume of a shared-storage database, and the repository.
pub const SHARED: [&str; 2] = ["/shared", REPOSITORY];

/// Why a run failed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Failure {
    /// What a scenario waited for did not come.
    #[error("waited {waited:?} of simulated time for {what}")]
    Stuck {
        /// What it was.
        what: String,
        /// How long.
        waited: Duration,
    },
    /// A program panicked.
    #[error("panic: {0}")]
    Panicked(String),
    /// An oracle objected.
    #[error(transparent)]
    Violated(#[from] Violation),
    /// The backend itself failed.
    #[error("the backend failed: {0}")]
    Backend(String),
}

/// The result of a program that was launched. Clones share it.
#[derive(Debug)]
pub struct Promise<T> {
    value: Arc<Mutex<Option<T>>>,
    host: String,
}

impl<T> Promise<T> {
    /// Whether the result is there.
    pub fn is_kept(&self) -> bool {
        locked(&self.value).is_some()
    }

    /// Takes the result, if it is there.
    pub fn take(&self) -> Option<T> {
        locked(&self.value).take()
    }
}

impl<T> Clone for Promise<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), host: self.host.clone() }
    }
}

/// What is held on the network for a while.
enum Held {
    /// All traffic between two hosts.
    Between(String, String),
    /// What the one sends to the other.
    From(String, String),
}

/// A simulated world, driven on one thread. The same settings, backend and calls give the same run, event by event.
pub struct World {
    backend: Box<dyn Backend>,
    gate: Gate,
    ground: Arc<Ground>,
    slots: BTreeMap<String, Slot>,
    crash_chance: Chance,
    restarts: Vec<(Duration, String)>,
    releases: Vec<(Duration, Held)>,
    wakes: Vec<(Duration, HostId)>,
    failure: Option<Failure>,
    /// What each crash did, if the run is recorded in full.
    crashes: Option<Vec<CrashView>>,
    _milestones: DefaultGuard,
}

impl World {
    /// A world without hosts.
    pub fn new(settings: Settings, backend: Box<dyn Backend>) -> Self {
        let gate = Gate::new(settings.plan, backend.time());
        let ground = Ground {
            seed: settings.seed,
            clock_skew_max_ms: settings.clock_skew_max_ms,
            repository: settings.repository,
            gate: gate.clone(),
            disks: Disks::new(&SHARED),
            objects: Objects::default(),
            disk_chance: Chance::of(settings.seed, Concern::Disk),
            bucket_chance: Chance::of(settings.seed, Concern::Bucket),
            net_chance: Chance::of(settings.seed, Concern::Net),
        };
        Self {
            backend,
            gate,
            crash_chance: Chance::of(settings.seed, Concern::Crash),
            ground: Arc::new(ground),
            slots: BTreeMap::new(),
            restarts: Vec::new(),
            releases: Vec::new(),
            wakes: Vec::new(),
            failure: None,
            crashes: None,
            _milestones: milestone::capture(),
        }
    }

    /// Puts the repository elsewhere, before anybody has come to use it.
    pub fn keep_repository_in(&mut self, repository: Repository) {
        let ground = Arc::get_mut(&mut self.ground);
        assert!(ground.is_some() && self.slots.is_empty(), "no host has started yet");
        if let Some(ground) = ground {
            ground.repository = repository;
        }
    }

    /// Records the run in full from here on, for [`World::recording`]. The run itself stays the same, event by event.
    pub fn record_in_full(&mut self) {
        self.gate.keep_all();
        self.crashes.get_or_insert_default();
    }

    /// What was recorded in full.
    pub fn recording(&self) -> Recording {
        let (hosts, events) = self.gate.kept();
        Recording { hosts, events, crashes: self.crashes.clone().unwrap_or_default() }
    }

    /// The backend's name, for snapshots: `scenario@backend`.
    pub fn backend_name(&self) -> &'static str {
        self.backend.name()
    }

    /// The seed of the run.
    pub fn seed(&self) -> u64 {
        self.ground.seed
    }

    /// The stream of draws for what the scenario's workload does.
    pub fn workload_chance(&self) -> Chance {
        Chance::of(self.ground.seed, Concern::Workload)
    }

    /// The stream of draws for silent damage.
    pub fn damage_chance(&self) -> Chance {
        Chance::of(self.ground.seed, Concern::Damage)
    }

    /// Runs a program on a host, and again whenever the host restarts. A host that runs another program is stopped first,
    /// as by `kill -9`.
    pub fn start<F>(&mut self, host: &str, program: impl Fn(Env) -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.run_program(host, Arc::new(move |env, _| Box::pin(program(env))));
    }

    /// Runs a program on a host and promises its result. As with [`World::start`], a restart of the host runs it again, and
    /// the first result counts. What a crashed host's program returns is nobody's.
    pub fn launch<T, F>(&mut self, host: &str, program: impl Fn(Env) -> F + Send + Sync + 'static) -> Promise<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let promise = Promise { value: Arc::new(Mutex::new(None)), host: host.into() };
        let outbox = promise.value.clone();
        let run = move |env: Env, life: Life| -> BoxFuture<'static, ()> {
            let future = program(env);
            let outbox = outbox.clone();
            Box::pin(async move {
                let value = future.await;
                if !life.is_over() {
                    locked(&outbox).get_or_insert(value);
                }
            })
        };
        self.run_program(host, Arc::new(run));
        promise
    }

    /// Steps until the promise is kept.
    ///
    /// # Errors
    /// [`Failure::Stuck`] after `limit` of simulated time, or what else went wrong.
    pub fn finish<T>(&mut self, promise: &Promise<T>, limit: Duration) -> Result<T, Failure> {
        self.wait_for(|| format!("the program on {} to return", promise.host), |_| promise.is_kept(), limit)?;
        promise.take().ok_or_else(|| Failure::Stuck { what: "a promise that was taken".into(), waited: Duration::ZERO })
    }

    /// Steps until `condition` holds.
    ///
    /// # Errors
    /// [`Failure::Stuck`] after `limit` of simulated time, or what else went wrong.
    pub fn run_until(&mut self, condition: impl Fn(&Self) -> bool, limit: Duration) -> Result<(), Failure> {
        self.wait_for(|| "a condition of the scenario".into(), condition, limit)
    }

    /// The same; `what` says what is waited for, if it does not come.
    fn wait_for(
        &mut self,
        what: impl Fn() -> String,
        condition: impl Fn(&Self) -> bool,
        limit: Duration,
    ) -> Result<(), Failure> {
        let from = self.gate.elapsed();
        loop {
            if let Some(failure) = &self.failure {
                return Err(failure.clone());
            }
            if condition(self) {
                return Ok(());
            }
            let waited = self.gate.elapsed().saturating_sub(from);
            if waited >= limit {
                return Err(Failure::Stuck { what: format!("{}; {}", what(), self.gate.waits()), waited });
            }
            self.step_until(from + limit);
        }
    }

    /// Steps for that much simulated time.
    ///
    /// # Errors
    /// What went wrong.
    pub fn run_for(&mut self, length: Duration) -> Result<(), Failure> {
        let until = self.gate.elapsed() + length;
        while self.failure.is_none() && self.gate.elapsed() < until {
            self.step_until(until);
        }
        self.failure.clone().map_or(Ok(()), Err)
    }

    /// Steps until a host reaches a milestone that says all of `words` (separated by blanks).
    ///
    /// # Errors
    /// [`Failure::Stuck`] after `limit` of simulated time, or what else went wrong.
    pub fn run_until_milestone(&mut self, host: &str, words: &str, limit: Duration) -> Result<(), Failure> {
        self.wait_for(|| format!("{host} to reach {words}"), |world| world.has_reached(host, words), limit)
    }

    /// Stops a host now. It stays down until [`World::restart`].
    pub fn crash(&mut self, host: &str, policy: CrashPolicy) {
        let Some(id) = self.gate.host(host).filter(|id| !self.gate.is_down(*id)) else { return };
        self.gate.note(format!("crash {host} policy={}", policy.word()));
        self.gate.end_life(id, false);
        self.bury(host, id, policy);
    }

    /// Stops every host at once, as a power cut does.
    pub fn power_off_all(&mut self, policy: CrashPolicy) {
        let hosts: Vec<String> = self.slots.keys().cloned().collect();
        for host in hosts {
            self.crash(&host, policy);
        }
    }

    /// Starts the program of a host that is down.
    pub fn restart(&mut self, host: &str) {
        assert!(self.slots.contains_key(host), "host {host} never ran a program");
        if self.is_down(host) {
            self.gate.note(format!("restart {host}"));
            self.begin(host);
        }
    }

    /// Holds all traffic between two hosts until [`World::release`]. Nothing is held where one of them never ran a program, or
    /// both are the same: a plan may name any.
    pub fn hold(&mut self, one: &str, other: &str) {
        self.gate.note(format!("hold {one} {other}"));
        if self.are_two(one, other) {
            self.backend.hold(one, other);
        }
    }

    /// Delivers what was held between two hosts.
    pub fn release(&mut self, one: &str, other: &str) {
        self.gate.note(format!("release {one} {other}"));
        if self.are_two(one, other) {
            self.backend.release(one, other);
        }
    }

    fn are_two(&self, one: &str, other: &str) -> bool {
        one != other && self.slots.contains_key(one) && self.slots.contains_key(other)
    }

    /// The disks and the bucket of a host answer nothing for a while; its timers and its network go on.
    pub fn stall(&mut self, host: &str, length: Duration) {
        self.gate.note(format!("stall {host} for_ms={}", length.as_millis()));
        if let Some(id) = self.gate.host(host) {
            self.gate.stall(id, self.gate.elapsed() + length);
        }
    }

    /// A host stands still for a while: none of its code runs. Then it wakes, and carries on as if nothing had been.
    pub fn pause(&mut self, host: &str, length: Duration) {
        if let Some(id) = self.gate.host(host) {
            self.gate.pause(id, length);
        }
    }

    /// The next sync of a host fails, and its dirty pages are lost.
    pub fn fail_next_sync(&mut self, host: &str) {
        self.gate.note(format!("next sync of {host} fails"));
        if let Some(id) = self.gate.host(host) {
            self.gate.fail_next_sync(id);
        }
    }

    /// The next object that a host writes to a repository in a folder meets this.
    pub fn trouble_next_put(&mut self, host: &str, trouble: PutTrouble) {
        self.gate.note(format!("next object of {host}: {trouble:?}"));
        if let Some(id) = self.gate.host(host) {
            self.gate.trouble_next_put(id, trouble);
        }
    }

    /// Whether the timeline leaves out what comes from now on; it is hashed and judged all the same.
    pub fn hush(&mut self, hushed: bool) {
        self.gate.hush(hushed);
    }

    /// Makes a host's wall clock jump, to `ahead_ms` ahead of true time.
    pub fn set_wall_clock(&mut self, host: &str, ahead_ms: i64) {
        self.gate.note(format!("clock {host} ahead_ms={ahead_ms}"));
        if let Some(slot) = self.slots.get(host) {
            slot.offset().set(ahead_ms);
        }
    }

    /// Makes a host's wall clock jump by `by_ms`, and gain `drift_ppm` millionths from then on.
    pub fn shift_wall_clock(&mut self, host: &str, by_ms: i64, drift_ppm: i64) {
        self.gate.note(format!("clock {host} by_ms={by_ms} drift_ppm={drift_ppm}"));
        if let Some(slot) = self.slots.get(host) {
            let now_ms = u64::try_from(self.gate.elapsed().as_millis()).unwrap_or(u64::MAX);
            slot.offset().shift(now_ms, by_ms, drift_ppm);
        }
    }

    /// Fails the run if an oracle objected.
    ///
    /// # Errors
    /// The violation, now and at every later step.
    pub fn judge(&mut self, verdict: Result<(), Violation>) -> Result<(), Failure> {
        if let Err(violation) = verdict {
            self.failure.get_or_insert(Failure::Violated(violation));
        }
        self.failure.clone().map_or(Ok(()), Err)
    }

    /// What has gone wrong, if anything has.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Simulated time since the start of the run.
    pub fn elapsed(&self) -> Duration {
        self.gate.elapsed()
    }

    /// Whether a host is down: crashed, or never started.
    pub fn is_down(&self, host: &str) -> bool {
        self.gate.host(host).is_none_or(|id| self.gate.is_down(id))
    }

    /// Whether the program of a host has returned.
    pub fn has_ended(&self, host: &str) -> bool {
        self.gate.host(host).is_some_and(|id| self.gate.has_ended(id))
    }

    /// Whether a host has reached, in any of its lives, a milestone that says all of `words`.
    pub fn has_reached(&self, host: &str, words: &str) -> bool {
        self.gate.host(host).is_some_and(|id| self.gate.has_reached(id, words))
    }

    /// All milestones of a host.
    pub fn milestones(&self, host: &str) -> Vec<Event> {
        self.gate.host(host).map(|id| self.gate.milestones(id)).unwrap_or_default()
    }

    /// How often a host has passed the gate: the numbers at which a sweep can crash it.
    pub fn passes(&self, host: &str) -> u64 {
        self.gate.host(host).map_or(0, |id| self.gate.passes(id))
    }

    /// How often each host has passed the gate.
    pub fn all_passes(&self) -> BTreeMap<String, u64> {
        self.gate.all_passes().into_iter().collect()
    }

    /// Adds faults to the plan of the run. A pass that has gone by does not come back.
    pub fn arm(&self, plan: Plan) {
        self.gate.arm(plan);
    }

    /// From now on silent damage strikes where `atlas` allows. Until a story says so, it strikes nowhere.
    pub fn chart(&self, atlas: Atlas) {
        self.gate.chart(atlas);
    }

    /// The silent damage that has struck, in order.
    pub fn harm(&self) -> Vec<Harm> {
        self.gate.harm()
    }

    /// What goes wrong in this run, as far as it was planned.
    pub fn plan(&self) -> Plan {
        self.gate.plan()
    }

    /// How many of the faults that were planned have not struck.
    pub fn unstruck(&self) -> usize {
        self.gate.unstruck()
    }

    /// The bytes of a file as `host` would read them now.
    pub fn peek(&self, host: &str, path: &str) -> Option<Vec<u8>> {
        self.ground.disks.peek(self.gate.host(host)?, path)
    }

    /// The hash over every event so far: equal for equal runs.
    pub fn trace_hash(&self) -> String {
        self.gate.trace_hash()
    }

    /// How many events there were.
    pub fn events(&self) -> u64 {
        self.gate.events()
    }

    /// The last `count` events as a table: nothing, unless the run is recorded in full.
    pub fn last_events(&self, count: usize) -> String {
        self.gate.last_events(count)
    }

    /// All milestones as a table: what snapshots of scenarios hold.
    pub fn timeline(&self) -> String {
        self.gate.timeline()
    }

    /// Adds a line of the scenario's own to the timeline.
    pub fn note(&self, what: impl Into<String>) {
        self.gate.note(what);
    }

    /// Advances the world by a little, and not beyond `limit`. What goes wrong is found in [`World::failure`].
    fn step_until(&mut self, limit: Duration) {
        let now = self.gate.elapsed();
        let restarts = self.restarts.iter().map(|(at, _)| *at);
        let releases = self.releases.iter().map(|(at, _)| *at);
        let due = restarts.chain(releases).chain(self.wakes.iter().map(|(at, _)| *at)).min();
        let until = limit.min(due.unwrap_or(limit)).min(now + STEP_MAX);
        let (backend, gate) = (&mut self.backend, &self.gate);
        let (result, panics) = panics::recorded(|| backend.step(until, &|| gate.has_actions()));
        self.record(result, panics);
        if self.gate.time_stands_still() {
            let what = format!("time to pass: somebody is polled again and again; {}", self.gate.waits());
            self.failure.get_or_insert(Failure::Stuck { what, waited: Duration::ZERO });
        }
        for action in self.gate.take_actions() {
            match action {
                Action::Kill { host, policy, restart_after } => {
                    let name = self.gate.name(host);
                    self.bury(&name, host, policy);
                    if let Some(length) = restart_after {
                        self.restarts.push((self.gate.elapsed() + length, name));
                    }
                }
                Action::Wake { host, length } => self.wakes.push((self.gate.elapsed() + length, host)),
                Action::Hold { one, other, length } => {
                    self.hold(&one, &other);
                    self.releases.push((self.gate.elapsed() + length, Held::Between(one, other)));
                }
                Action::Reset { one, other } => self.gate.reset(&one, &other),
                Action::Clog { from, to, length } => {
                    self.gate.clog(&from, &to);
                    self.releases.push((self.gate.elapsed() + length, Held::From(from, to)));
                }
                Action::Clock { host, by_ms, drift_ppm } => self.shift_wall_clock(&host, by_ms, drift_ppm),
            }
        }
        let now = self.gate.elapsed();
        for (_, held) in self.releases.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
            match held {
                Held::Between(one, other) => self.release(&one, &other),
                Held::From(from, to) => self.gate.clear(&from, &to),
            }
        }
        for (_, host) in self.wakes.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
            self.gate.wake(host);
        }
        for (_, host) in self.restarts.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
            self.restart(&host);
        }
    }

    fn record(&mut self, result: Option<Result<(), String>>, panics: Vec<String>) {
        if let Some(panic) = panics.into_iter().next() {
            self.failure.get_or_insert(Failure::Panicked(panic));
            return;
        }
        let why = match result {
            Some(Ok(())) => return,
            Some(Err(why)) => why,
            None => "it panicked without a message".into(),
        };
        self.failure.get_or_insert(Failure::Backend(why));
    }

    fn run_program(&mut self, host: &str, program: hosts::Run) {
        let is_new = !self.slots.contains_key(host);
        if is_new {
            let slot = Slot::new(program, self.skew(host));
            self.slots.insert(host.into(), slot);
        } else {
            if let Some(id) = self.gate.host(host) {
                self.gate.end_life(id, false);
                self.bury(host, id, CrashPolicy::ProcessOnly);
            }
            if let Some(slot) = self.slots.get(host) {
                slot.set(program);
            }
        }
        self.gate.note(format!("start {host}"));
        if is_new {
            self.add(host);
        } else {
            self.begin(host);
        }
    }

    fn add(&mut self, host: &str) {
        let Some(slot) = self.slots.get(host) else { return };
        let life = self.gate.begin_life(host);
        let program = slot.on(self.ground.clone(), life);
        let backend = &mut self.backend;
        let (added, panics) = panics::recorded(|| backend.add_host(host, program));
        self.record(added.map(Ok), panics);
    }

    fn begin(&mut self, host: &str) {
        let Some(slot) = self.slots.get(host) else { return };
        let life = self.gate.begin_life(host);
        slot.live(life);
        let backend = &mut self.backend;
        let (restarted, panics) = panics::recorded(|| backend.restart(host));
        self.record(restarted.map(Ok), panics);
    }

    /// Drops the tasks of a host whose life is over, and takes its unsynced bytes.
    fn bury(&mut self, host: &str, id: HostId, policy: CrashPolicy) {
        let backend = &mut self.backend;
        let silent = self.gate.is_silent(id);
        let (killed, panics) = panics::recorded(|| backend.kill(host, silent));
        self.record(killed.map(Ok), panics);
        let before = self.crashes.is_some().then(|| self.ground.disks.survey(id));
        self.ground.disks.crash(id, policy, &self.crash_chance);
        if let (Some(before), Some(crashes)) = (before, &mut self.crashes) {
            let (files, untouched) = recording::fates(before, self.ground.disks.survey(id));
            let (event, at) = (self.gate.events(), self.gate.elapsed());
            crashes.push(CrashView { event, at, host: host.into(), policy, files, untouched });
        }
    }

    fn skew(&self, host: &str) -> WallOffset {
        let id = self.gate.host(host).unwrap_or(HostId::new(u16::try_from(self.slots.len()).unwrap_or(u16::MAX)));
        let bound = self.ground.clock_skew_max_ms;
        let draw =
            Chance::of_life(self.ground.seed, Concern::Clock, id, 0).below(bound.saturating_mul(2).saturating_add(1));
        WallOffset::new(i64::try_from(draw).unwrap_or(0).saturating_sub_unsigned(bound))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // What the destructors of the hosts' tasks do has no effect any more.
        self.gate.end_all();
    }
}

impl core::fmt::Debug for World {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.debug_struct("World")
            .field("seed", &self.ground.seed)
            .field("elapsed", &self.elapsed())
            .finish_non_exhaustive()
    }
}
