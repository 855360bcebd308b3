//! The simulator's own executor: one thread, a list of tasks that are ready, and an agenda of what will happen when. It
//! knows no idle time: when nothing is ready it goes on at the next appointment. A host can be stopped between any two
//! polls, so a crash at a pass of the [gate](crate::gate) takes effect at that very pass.
//!
//! Reading order: here (hosts and turns), `agenda` (time), `tasks`, `wire` (what travels between hosts), `net` (the ports
//! to it), `clock`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::backend::{Backend, Ports, Program};
use crate::chance::{Chance, Concern};
use crate::gate::SimTime;
use crate::host::locked;

mod agenda;
mod clock;
mod net;
mod tasks;
mod wire;

use agenda::{Agenda, Entry};
use clock::HostClock;
use net::HostNet;
use tasks::{Crew, HostTasks, Roster, Running};
use wire::{HostIndex, Wire};

/// A world on the simulator's own executor; all of its chance comes from `seed`.
pub fn backend(seed: u64) -> Box<dyn Backend> {
    Box::new(Own::new(seed))
}

/// How far one turn advances the world at most, beyond the first thing that happens in it.
const TURN: Duration = Duration::from_millis(1);

/// More polls and appointments than any turn needs, and more polls than the [gate](crate::gate) lets pass without time: what
/// comes to this is no program that never rests, but this executor.
const POLLS_MAX: u64 = 2_000_000;

/// What tasks reach of the executor. No lock is held while code of a host runs or is dropped.
struct Shared {
    agenda: Mutex<Agenda>,
    crew: Mutex<Crew>,
    wire: Mutex<Wire>,
}

impl Shared {
    fn now(&self) -> Duration {
        locked(&self.agenda).now()
    }
}

impl SimTime for Shared {
    fn elapsed(&self) -> Duration {
        self.now()
    }
}

struct Own {
    shared: Arc<Shared>,
    schedule: Chance,
    hosts: BTreeMap<String, (HostIndex, Program)>,
    tasks: Roster,
}

impl Own {
    fn new(seed: u64) -> Self {
        let shared = Shared {
            agenda: Mutex::new(Agenda::default()),
            crew: Mutex::new(Crew::default()),
            wire: Mutex::new(Wire::new(Chance::of(seed, Concern::Latency))),
        };
        Self {
            shared: Arc::new(shared),
            schedule: Chance::of(seed, Concern::Schedule),
            hosts: BTreeMap::new(),
            tasks: Roster::default(),
        }
    }

    fn index(&self, host: &str) -> Option<HostIndex> {
        self.hosts.get(host).map(|(index, _)| *index)
    }

    /// Runs a host's program from its start, in a new life.
    fn begin(&self, host: &str) {
        let Some((index, program)) = self.hosts.get(host) else { return };
        let life = locked(&self.shared.wire).begin_life(*index);
        let tasks = HostTasks::new(self.shared.clone(), *index, life);
        let ports = Ports {
            clock: Arc::new(HostClock::new(self.shared.clone())),
            tasks: Arc::new(tasks.clone()),
            net: Arc::new(HostNet::new(self.shared.clone(), host, *index, life)),
        };
        tasks.start("program", program(ports));
    }

    /// Ends the life of a host and drops its tasks, in the order in which they were spawned.
    fn end(&mut self, index: HostIndex, silent: bool) {
        self.on_wire(|wire, agenda| wire.end_life(index, silent, agenda));
        self.admit();
        let left = self.tasks.extract(|task| task.host() == index);
        self.dismiss(left);
    }

    /// Ends tasks, in that order. Their places are free only then: what a destructor spawns is another task.
    fn dismiss(&self, left: Vec<Running>) {
        for task in left {
            let place = task.place();
            task.end();
            locked(&self.shared.crew).give_back(place);
        }
    }

    /// Takes over what was spawned since the last look.
    fn admit(&mut self) {
        for task in locked(&self.shared.crew).take_spawned() {
            self.tasks.put(task);
        }
    }

    /// Polls one of the tasks that are ready, drawn by chance. False: none is.
    fn poll_one(&mut self) -> bool {
        self.admit();
        let Some(place) = locked(&self.shared.crew).draw(&self.schedule) else { return false };
        // While it is polled the task is ours: a panic drops it, and its place stays empty.
        if let Some(task) = self.tasks.take(place) {
            match task.poll() {
                Some(pending) => self.tasks.put(pending),
                None => locked(&self.shared.crew).give_back(place),
            }
        }
        true
    }

    /// Does the next thing on the agenda, if it is due by `until`.
    fn next_appointment(&self, until: Duration) -> bool {
        let Some(entry) = locked(&self.shared.agenda).take_due(until) else { return false };
        match entry {
            Entry::Wake(waker) => waker.wake(),
            Entry::Deliver(packet) => self.on_wire(|wire, agenda| wire.deliver(packet, agenda)),
            Entry::Redial(end) => self.on_wire(|wire, agenda| wire.redial(end, agenda)),
        }
        true
    }

    fn on_wire(&self, act: impl FnOnce(&mut Wire, &mut Agenda)) {
        act(&mut locked(&self.shared.wire), &mut locked(&self.shared.agenda));
    }

    /// Who is there, for the message about a host that never rests.
    fn roll(&self) -> String {
        let names: BTreeSet<&str> = self.tasks.all().map(Running::name).collect();
        names.into_iter().collect::<Vec<_>>().join(", ")
    }
}

impl Backend for Own {
    fn name(&self) -> &'static str {
        "own"
    }

    fn time(&self) -> Arc<dyn SimTime> {
        self.shared.clone()
    }

    fn add_host(&mut self, host: &str, program: Program) {
        let index = locked(&self.shared.wire).add_host(host);
        self.hosts.insert(host.into(), (index, program));
        self.begin(host);
    }

    fn kill(&mut self, host: &str, silent: bool) {
        if let Some(index) = self.index(host) {
            self.end(index, silent);
        }
    }

    fn restart(&mut self, host: &str) {
        if let Some(index) = self.index(host) {
            self.end(index, false);
            self.begin(host);
        }
    }

    fn hold(&mut self, one: &str, other: &str) {
        if let (Some(one), Some(other)) = (self.index(one), self.index(other)) {
            locked(&self.shared.wire).hold(one, other);
        }
    }

    fn release(&mut self, one: &str, other: &str) {
        if let (Some(one), Some(other)) = (self.index(one), self.index(other)) {
            self.on_wire(|wire, agenda| wire.release(one, other, agenda));
        }
    }

    fn step(&mut self, until: Duration, interrupted: &dyn Fn() -> bool) -> Result<(), String> {
        // Idle time is passed over, but not at the end of a turn in which something has happened: whoever waits for that
        // shall see it first.
        let mut end = None;
        for _ in 0..POLLS_MAX {
            if self.poll_one() {
                end.get_or_insert_with(|| self.shared.now() + TURN);
                if interrupted() {
                    return Ok(());
                }
                continue;
            }
            let first = || locked(&self.shared.agenda).next_at();
            let end = *end.get_or_insert_with(|| first().unwrap_or(until) + TURN);
            if !self.next_appointment(end.min(until)) {
                locked(&self.shared.agenda).advance(end.min(until));
                return Ok(());
            }
        }
        Err(format!("no time passes: {POLLS_MAX} polls and more was ready; there are {}", self.roll()))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // Tasks hold the executor's shared half, and that half what they spawned: this is where the circle is cut.
        for (index, _) in self.hosts.values() {
            self.on_wire(|wire, agenda| wire.end_life(*index, true, agenda));
        }
        self.admit();
        let left = self.tasks.extract(|_| true);
        self.dismiss(left);
        let left = locked(&self.shared.agenda).clear();
        drop(left);
    }
}
