//! The gate that every disk, bucket and network operation of every host passes twice: before its effect and after it.
//! Each pass is numbered, traced and hashed, and the fault plan is asked. When a crash strikes, the host's life is over
//! at that very pass: neither this operation nor any later one of that life completes or has an effect. The backend
//! drops the host's tasks at the end of the current step.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use sheetanchor_core::error::FaultKind;
use sheetanchor_engine::env::Stream;

use crate::atlas::{Atlas, Harm};
use crate::host::{HostId, locked};
use crate::plan::{CrashPolicy, Damage, Plan};
use crate::trace::{self, Detail, Event, Flow, Trace};

mod life;
mod pause;
mod polls;
mod requests;
mod said;
mod silent;
mod strikes;
mod waits;
mod wires;

pub use life::Life;
use pause::Paused;
use polls::Polls;
pub use requests::{Request, RequestMet};
pub use said::{Object, Opened, Outcome, Said};
use strikes::Strikes;
pub(crate) use strikes::says;
pub(crate) use wires::{End, Wires};

/// Simulated time, readable from inside and outside of hosts.
pub trait SimTime: Send + Sync {
    /// Since the start of the run.
    fn elapsed(&self) -> Duration;
}

/// What an operation does, as far as the fault plan cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Reads bytes or names.
    Read,
    /// Asks how much space is left.
    Space,
    /// Needs space.
    Write,
    /// Changes names or removes.
    Name,
    /// Makes durable.
    Sync,
    /// Writes an object to the simulated bucket.
    BucketPut,
    /// Uses the network.
    Net,
}

impl Kind {
    /// The word in records of a run.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Space => "space",
            Self::Write => "write",
            Self::Name => "name",
            Self::Sync => "sync",
            Self::BucketPut => "bucket-put",
            Self::Net => "net",
        }
    }
}

/// An operation on its way through the gate.
#[derive(Clone, Copy, Debug)]
pub struct Operation<'a> {
    /// What the fault plan sees.
    pub kind: Kind,
    /// The volume it is about.
    pub volume: Volume<'a>,
    /// What the trace shows.
    pub said: Said<'a>,
}

/// The volume that an operation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Volume<'a> {
    /// The host's own disk: [`own_volume`].
    Own,
    /// One that all hosts share, by its mount point; or the simulated bucket.
    Named(&'a str),
    /// None: it uses the network.
    Elsewhere,
}

/// What meets an operation on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// It fails.
    Fails(FaultKind),
    /// It does less than it was asked to, and says so.
    Short,
    /// It goes wrong and says that it did well. Which bit, or which place, a number tells.
    Silent(Damage, u64),
}

/// An operation that has passed the gate before its effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// What its effect meets, if anything.
    pub met: Option<Met>,
    /// How much longer it takes.
    pub stall: Duration,
}

/// What may meet an object that is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutTrouble {
    /// It is not written, and its writer is told that time ran out.
    TimesOutBefore,
    /// It is written, and its writer is told that time ran out.
    TimesOutAfter,
    /// It is written, and its writer is told that there was one before.
    Echoes,
    /// Its writer is told that time ran out, and it lands only when somebody writes to that key next, just before.
    LandsLater,
    /// Its writer stands still for so long before it begins.
    Waits(Duration),
}

/// Time that an operation takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Until its effect.
    pub before: Duration,
    /// From its effect until it is answered.
    pub after: Duration,
}

/// What the world has to do on behalf of the plan, once the current step is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Drop the tasks of a host whose life is over, and take its unsynced bytes by `policy`.
    Kill {
        /// Which host.
        host: HostId,
        /// What survives.
        policy: CrashPolicy,
        /// When to start it again.
        restart_after: Option<Duration>,
    },
    /// Wake a host that stands still.
    Wake {
        /// Which host.
        host: HostId,
        /// For how long it stands still.
        length: Duration,
    },
    /// Hold all traffic between two hosts.
    Hold {
        /// One of them.
        one: String,
        /// The other.
        other: String,
        /// For how long.
        length: Duration,
    },
    /// Break every connection between two hosts.
    Reset {
        /// One of them.
        one: String,
        /// The other.
        other: String,
    },
    /// Hold what one host sends to another.
    Clog {
        /// Who sends.
        from: String,
        /// Who does not hear it.
        to: String,
        /// For how long.
        length: Duration,
    },
    /// Set a host's wall clock.
    Clock {
        /// Which host's.
        host: String,
        /// By how much it jumps, in milliseconds.
        by_ms: i64,
        /// How much too fast it runs from then on, in millionths.
        drift_ppm: i64,
    },
}

/// The gate of one world. Clones are the same gate.
#[derive(Clone)]
pub struct Gate {
    state: Arc<Mutex<State>>,
    time: Arc<dyn SimTime>,
    paused: Paused,
    polls: Polls,
    wires: Wires,
}

struct State {
    trace: Trace,
    plan: Plan,
    strikes: Strikes,
    hosts: Vec<Host>,
    actions: Vec<Action>,
    /// Streams of hosts that lost power: never closed, so that their peers hear nothing.
    silenced: Vec<Box<dyn Stream>>,
    /// Objects whose writer was told that time ran out, and which land when somebody writes to their key next.
    late_objects: Vec<(String, Bytes)>,
    /// The timeline leaves out milestones from here on: the numbers of events.
    hushed_from: Option<u64>,
    hushed: Vec<Range<u64>>,
}

struct Host {
    name: Arc<str>,
    life: u32,
    over: bool,
    ended: bool,
    silent: bool,
    passes: u64,
    /// Its disks and its bucket answer nothing before this.
    stalled_until: Duration,
}

impl Gate {
    /// The gate of a world with that plan.
    pub fn new(plan: Plan, time: Arc<dyn SimTime>) -> Self {
        let state = State {
            trace: Trace::new(),
            strikes: Strikes::new(plan.clone()),
            plan,
            hosts: Vec::new(),
            actions: Vec::new(),
            silenced: Vec::new(),
            late_objects: Vec::new(),
            hushed_from: None,
            hushed: Vec::new(),
        };
        let (paused, polls, wires) = (Paused::default(), Polls::default(), Wires::default());
        Self { state: Arc::new(Mutex::new(state)), time, paused, polls, wires }
    }

    /// Simulated time since the start of the run.
    pub fn elapsed(&self) -> Duration {
        self.time.elapsed()
    }

    /// The host of that name, if it was ever started.
    pub fn host(&self, name: &str) -> Option<HostId> {
        let state = locked(&self.state);
        let index = state.hosts.iter().position(|host| *host.name == *name)?;
        u16::try_from(index).ok().map(HostId::new)
    }

    /// A name for the host, also if there is none of that number.
    pub fn name(&self, host: HostId) -> String {
        locked(&self.state)
            .hosts
            .get(usize::from(host.number()))
            .map_or_else(|| host.to_string(), |host| host.name.to_string())
    }

    /// Begins a new life of the host called `name`. Every earlier one is over.
    pub fn begin_life(&self, name: &str) -> Life {
        let id = self.host(name);
        let mut state = locked(&self.state);
        let id = id.unwrap_or_else(|| {
            let number = u16::try_from(state.hosts.len()).unwrap_or(u16::MAX);
            assert!(number < u16::MAX, "a world holds fewer than 65535 hosts");
            state.hosts.push(Host {
                name: name.into(),
                life: 0,
                over: true,
                ended: true,
                silent: false,
                passes: 0,
                stalled_until: Duration::ZERO,
            });
            HostId::new(number)
        });
        let Some(host) = state.hosts.get_mut(usize::from(id.number())) else {
            unreachable!("the host was just found or made")
        };
        host.life += 1;
        host.over = false;
        host.ended = false;
        host.silent = false;
        self.paused.forget(id);
        Life { gate: self.clone(), host: id, number: host.life }
    }

    /// Ends the current life of a host at once, from outside.
    pub fn end_life(&self, host: HostId, silent: bool) {
        self.paused.forget(host);
        if let Some(host) = locked(&self.state).hosts.get_mut(usize::from(host.number())) {
            host.over = true;
            host.silent = silent;
        }
    }

    /// Ends every life: what still runs while a world is taken down has no effect.
    pub fn end_all(&self) {
        for host in &mut locked(&self.state).hosts {
            host.over = true;
        }
    }

    /// Whether the program of the host's current life has returned.
    pub fn has_ended(&self, host: HostId) -> bool {
        locked(&self.state).hosts.get(usize::from(host.number())).is_none_or(|host| host.ended)
    }

    /// Whether the host's current life is over by a crash, or it never had one.
    pub fn is_down(&self, host: HostId) -> bool {
        locked(&self.state).hosts.get(usize::from(host.number())).is_none_or(|host| host.over)
    }

    /// How often the host has passed the gate, over all of its lives.
    pub fn passes(&self, host: HostId) -> u64 {
        locked(&self.state).hosts.get(usize::from(host.number())).map_or(0, |host| host.passes)
    }

    /// Adds faults to the plan.
    pub fn arm(&self, more: Plan) {
        let mut state = locked(&self.state);
        state.plan.faults.extend(more.faults.iter().cloned());
        state.strikes.arm(more);
    }

    /// From now on silent damage strikes where `atlas` allows, and nowhere else. What has struck before stays known to it.
    pub fn chart(&self, atlas: Atlas) {
        locked(&self.state).strikes.silent.chart(atlas);
    }

    /// The silent damage that has struck, in order.
    pub fn harm(&self) -> Vec<Harm> {
        locked(&self.state).strikes.silent.harm().to_vec()
    }

    /// The whole plan, with what was added.
    pub fn plan(&self) -> Plan {
        locked(&self.state).plan.clone()
    }

    /// How many faults of the plan have not struck.
    pub fn unstruck(&self) -> usize {
        locked(&self.state).strikes.waiting()
    }

    /// Every host and how often it has passed the gate.
    pub fn all_passes(&self) -> Vec<(String, u64)> {
        locked(&self.state).hosts.iter().map(|host| (host.name.to_string(), host.passes)).collect()
    }

    /// Whether the plan wants something done.
    pub fn has_actions(&self) -> bool {
        !locked(&self.state).actions.is_empty()
    }

    /// Whether a host's last life ended without a word to anybody.
    pub fn is_silent(&self, host: HostId) -> bool {
        locked(&self.state).hosts.get(usize::from(host.number())).is_some_and(|host| host.silent)
    }

    /// Whether a host has reached, in any of its lives, a milestone that says all of `words`.
    pub fn has_reached(&self, host: HostId, words: &str) -> bool {
        let state = locked(&self.state);
        state.trace.milestones().iter().any(|event| event.host == Some(host) && says(&event.what, words))
    }

    /// What the plan wants done; empties the list.
    pub fn take_actions(&self) -> Vec<Action> {
        core::mem::take(&mut locked(&self.state).actions)
    }

    /// From now on, what the disks and the bucket of a host are asked for begins only at `until`.
    pub fn stall(&self, host: HostId, until: Duration) {
        if let Some(host) = locked(&self.state).hosts.get_mut(usize::from(host.number())) {
            host.stalled_until = until;
        }
    }

    /// From now on a host stands still, until it is woken.
    pub fn pause(&self, host: HostId, length: Duration) {
        let at = self.elapsed();
        locked(&self.state).pause(host, at, length, &self.paused);
    }

    /// Wakes a host that stands still: it goes on with what it was doing.
    pub fn wake(&self, host: HostId) {
        let at = self.elapsed();
        let sleepers = self.paused.end(host);
        if let Some(sleepers) = sleepers {
            locked(&self.state).trace.milestone(at, Some(host), "woken".into());
            sleepers.into_iter().for_each(Waker::wake);
        }
    }

    /// The next sync of a host fails, and its dirty pages are lost.
    pub fn fail_next_sync(&self, host: HostId) {
        let mut state = locked(&self.state);
        let name = state.name(host);
        state.strikes.arm_sync(name);
    }

    /// The next object that a host writes meets this.
    pub fn trouble_next_put(&self, host: HostId, trouble: PutTrouble) {
        let mut state = locked(&self.state);
        let name = state.name(host);
        state.strikes.requests.trouble_next_put(name, trouble);
    }

    /// Whether the timeline leaves out what comes from now on. Everything is hashed and judged all the same.
    pub fn hush(&self, hushed: bool) {
        let mut state = locked(&self.state);
        let next = state.trace.len().saturating_add(1);
        match (hushed, state.hushed_from.take()) {
            (true, from) => state.hushed_from = Some(from.unwrap_or(next)),
            (false, Some(from)) => state.hushed.push(from..next),
            (false, None) => {}
        }
    }

    /// Adds a line of the world's own to the timeline.
    pub fn note(&self, what: impl Into<String>) {
        let at = self.elapsed();
        locked(&self.state).trace.milestone(at, None, what.into());
    }

    /// Records a milestone of `life`, and lets the plan strike on it. Nothing, if that life is over.
    pub fn milestone(&self, life: &Life, what: &str) {
        let at = self.elapsed();
        let mut state = locked(&self.state);
        if state.is_over(life) {
            return;
        }
        state.trace.milestone(at, Some(life.host), what.into());
        let Some(name) = state.hosts.get(usize::from(life.host.number())).map(|host| host.name.clone()) else { return };
        let struck = state.strikes.milestone(&name, what);
        state.strike(life.host, at, struck, &self.paused);
    }

    /// Who is in the middle of what, host by host: those whose programs have not returned.
    pub fn waits(&self) -> String {
        let state = locked(&self.state);
        let mut said = Vec::new();
        for (number, host) in (0..).zip(&state.hosts) {
            let id = HostId::new(number);
            if host.ended && !host.over {
                continue;
            }
            let at = match (host.over, self.paused.is_paused(id)) {
                (true, _) => Some("is down".to_string()),
                (false, true) => Some("stands still".to_string()),
                (false, false) => waits::of(id, state.trace.kept(), state.trace.milestones()),
            };
            said.push(format!("{} {}", host.name, at.unwrap_or_else(|| "has done nothing lately".into())));
        }
        said.join("; ")
    }

    /// Whether so much was polled without any time passing that nothing is polled any more.
    pub fn time_stands_still(&self) -> bool {
        self.polls.were_too_many()
    }

    /// The hash over every event so far.
    pub fn trace_hash(&self) -> String {
        locked(&self.state).trace.hash()
    }

    /// How many events there were: the number of the latest, and so the order of things in this run.
    pub fn events(&self) -> u64 {
        locked(&self.state).trace.len()
    }

    /// The last `count` of the events that were kept, as a table: nothing without [`Gate::keep_all`].
    pub fn last_events(&self, count: usize) -> String {
        let state = locked(&self.state);
        let skipped = state.trace.kept().len().saturating_sub(count);
        trace::table(state.trace.kept().iter().skip(skipped), |host| state.name(host))
    }

    /// All milestones as a table.
    pub fn timeline(&self) -> String {
        let state = locked(&self.state);
        let shown = |event: &&Event| !state.hushed.iter().any(|range| range.contains(&event.number));
        trace::table(state.trace.milestones().iter().filter(shown), |host| state.name(host))
    }

    /// Keeps every event from here on, for [`Gate::kept`].
    pub fn keep_all(&self) {
        locked(&self.state).trace.keep_all();
    }

    /// The names of all hosts, in the order of their numbers, and every event that was kept.
    pub fn kept(&self) -> (Vec<String>, Vec<Event>) {
        let state = locked(&self.state);
        (state.hosts.iter().map(|host| host.name.to_string()).collect(), state.trace.kept().to_vec())
    }

    /// The connections that hosts have made.
    pub(crate) const fn wires(&self) -> &Wires {
        &self.wires
    }

    /// Breaks every connection between two hosts: both ends of each hear a reset.
    pub fn reset(&self, one: &str, other: &str) {
        self.note(format!("reset {one} {other}"));
        self.wires.reset(one, other);
    }

    /// Nothing that `from` sends arrives at `to` until [`Gate::clear`].
    pub fn clog(&self, from: &str, to: &str) {
        self.note(format!("clog {from} to {to}"));
        self.wires.clog(from, to);
    }

    /// Delivers what was clogged.
    pub fn clear(&self, from: &str, to: &str) {
        self.note(format!("clear {from} to {to}"));
        self.wires.clear(from, to);
    }

    /// All milestones of one host.
    pub fn milestones(&self, host: HostId) -> Vec<Event> {
        locked(&self.state).trace.milestones().iter().filter(|event| event.host == Some(host)).cloned().collect()
    }

    /// Takes a stream of a life that ended without a word. Answers it back if its peer shall see it close.
    pub(crate) fn silence(&self, life: &Life, stream: Box<dyn Stream>) -> Option<Box<dyn Stream>> {
        let mut state = locked(&self.state);
        let silent = state
            .hosts
            .get(usize::from(life.host.number()))
            .is_some_and(|host| host.silent && host.life == life.number);
        if silent {
            state.silenced.push(stream);
            return None;
        }
        Some(stream)
    }
}

impl core::fmt::Debug for Gate {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl State {
    fn name(&self, host: HostId) -> String {
        self.hosts.get(usize::from(host.number())).map_or_else(|| host.to_string(), |host| host.name.to_string())
    }

    fn is_over(&self, life: &Life) -> bool {
        self.hosts.get(usize::from(life.host.number())).is_none_or(|host| host.over || host.life != life.number)
    }

    fn strike(&mut self, id: HostId, at: Duration, struck: Vec<crate::plan::Fault>, paused: &Paused) {
        for fault in struck {
            let name = self.name(id);
            match fault {
                crate::plan::Fault::Crash { policy, restart_after_ms, silent, .. } => {
                    paused.forget(id);
                    if let Some(host) = self.hosts.get_mut(usize::from(id.number())) {
                        host.over = true;
                        host.silent = silent;
                    }
                    self.trace.milestone(at, None, format!("crash {name} policy={}", policy.word()));
                    let restart_after = restart_after_ms.map(Duration::from_millis);
                    self.actions.push(Action::Kill { host: id, policy, restart_after });
                }
                crate::plan::Fault::NoSpace { volume, for_ms, .. } => {
                    let volume = if volume == "/" { own_volume(&name) } else { volume };
                    self.trace.milestone(at, None, format!("full {volume} for_ms={for_ms}"));
                    self.strikes.fill(volume, at + Duration::from_millis(for_ms));
                }
                crate::plan::Fault::SyncFailed { .. } => self.strikes.arm_sync(name),
                crate::plan::Fault::Bucket { trouble, .. } => self.strikes.requests.arm(name, at, trouble),
                crate::plan::Fault::Io { trouble, .. } => self.strikes.arm_io(name, trouble),
                crate::plan::Fault::Silent { damage, draw, .. } => self.strikes.silent.arm(name, damage, draw),
                crate::plan::Fault::Pause { for_ms, .. } => self.pause(id, at, Duration::from_millis(for_ms), paused),
                crate::plan::Fault::Hold { one, other, for_ms, .. } => {
                    self.actions.push(Action::Hold { one, other, length: Duration::from_millis(for_ms) });
                }
                crate::plan::Fault::Reset { one, other, .. } => self.actions.push(Action::Reset { one, other }),
                crate::plan::Fault::Clog { from, to, for_ms, .. } => {
                    self.actions.push(Action::Clog { from, to, length: Duration::from_millis(for_ms) });
                }
                crate::plan::Fault::Clock { by_ms, drift_ppm, .. } => {
                    self.actions.push(Action::Clock { host: name, by_ms, drift_ppm });
                }
            }
        }
    }

    fn pause(&mut self, host: HostId, at: Duration, length: Duration, paused: &Paused) {
        self.trace.milestone(at, Some(host), format!("paused for_ms={}", length.as_millis()));
        self.actions.push(Action::Wake { host, length });
        paused.begin(host);
    }

    /// One pass of the gate. `None`: the life is over.
    fn pass(&mut self, life: &Life, at: Duration, passage: &Passage<'_>) -> Option<Arc<str>> {
        if self.is_over(life) {
            return None;
        }
        let host = self.hosts.get_mut(usize::from(life.host.number()))?;
        host.passes += 1;
        let (number, name) = (host.passes, host.name.clone());
        let Passage { operation, outcome, flow, payload } = *passage;
        let (kind, said) = (operation.kind, operation.said);
        self.trace.record(at, Some(life.host), (number, kind, said, outcome), payload, || {
            let after = outcome.map(|outcome| format!(" {outcome}")).unwrap_or_default();
            let detail = Detail::Pass { kind, outcome: outcome.map(|outcome| outcome.to_string()), flow };
            (format!("{number} {said}{after}"), detail)
        });
        let struck = self.strikes.pass(&name, number, operation, outcome.is_some());
        self.strike(life.host, at, struck, &life.gate.paused);
        if self.is_over(life) { None } else { Some(name) }
    }
}

/// What passes the gate.
struct Passage<'a> {
    operation: &'a Operation<'a>,
    /// After its effect only.
    outcome: Option<Outcome>,
    flow: Option<Flow>,
    payload: &'a [u8],
}

/// The volume of a host's own disk, as a plan that fills it names it.
pub fn own_volume(host: &str) -> String {
    format!("{host}:/")
}
