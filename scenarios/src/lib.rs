//! Stories: given a cluster under load, when something happens, then what was promised holds. Each ends in restore,
//! recover, read, compare, and runs unchanged on every backend.
//!
//! Reading order: `cluster` (who runs where), `workload` (what clients do meanwhile), `stage` (the vocabulary), `stories`.
#![forbid(unsafe_code)]
#![allow(clippy::missing_errors_doc, reason = "every verb of a story fails in one way: with the failure of the run")]
#![cfg_attr(test, allow(clippy::as_conversions, clippy::wildcard_enum_match_arm, reason = "tests may be blunt"))]

mod cluster;
mod judge;
mod registry;
mod stage;
mod stories;
mod workload;

use std::collections::BTreeMap;
use std::ops::Range;

use sheetanchor_core::planted::Bug;
use sheetanchor_sim::backend::Backend;
use sheetanchor_sim::plan::Plan;
use sheetanchor_sim::recording::Recording;
use sheetanchor_sim::world::{Failure, Settings, World};

pub use registry::{ALL, LONG};
pub use stage::Stage;

/// One story.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name: what it shows, in words, and how it is asked for on the command line.
    pub name: &'static str,
    /// The story.
    pub story: fn(&mut Stage) -> Result<(), Failure>,
    /// The planted bugs that turn it red.
    pub sees: &'static [Bug],
}

impl std::fmt::Debug for Scenario {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Scenario({})", self.name)
    }
}

impl Scenario {
    /// The seed that a run without one starts from: of the name, never of chance.
    pub fn seed(&self) -> u64 {
        self.name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
            >> 40
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Report {
    /// What went wrong, if anything did.
    pub verdict: Result<(), Failure>,
    /// The hash over every event.
    pub trace_hash: String,
    /// What was planned to go wrong: as it was told, or else drawn from the seed. Told with it, and nothing drawn, it is the
    /// same run again. What the story itself brings about is not in it.
    pub plan: Plan,
    /// How many of those faults have not struck: the run did not come to where they would.
    pub unstruck: usize,
    /// From where on faults strike, and until where: for each host the numbers of its passes of the gate.
    pub passes: BTreeMap<String, Range<u64>>,
    /// How many events there were.
    pub events: u64,
    /// Simulated time at the end.
    pub elapsed: std::time::Duration,
    /// All milestones as a table.
    pub timeline: String,
    /// The last events as a table, if the run was recorded in full.
    pub last_events: String,
}

/// How many events a failure shows.
const EVENTS_SHOWN: usize = 40;

/// How a story is told, but for its seed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Telling {
    /// Faults on top of those that the story itself tells of.
    pub plan: Plan,
    /// Whether faults are drawn from the seed where the story has a place for them.
    pub draws: bool,
    /// The most sessions that clients work with; as many as the story says if none is given.
    pub sessions_max: Option<u64>,
}

/// Runs one story in a world of its own. Faults are drawn from the seed, if the story has any.
pub fn run(scenario: &Scenario, seed: u64, backend: Box<dyn Backend>) -> Report {
    run_told(scenario, seed, &Telling { draws: true, ..Telling::default() }, backend)
}

/// The same with these faults and no others, but for those that the story itself tells of.
pub fn run_with(scenario: &Scenario, seed: u64, plan: Plan, backend: Box<dyn Backend>) -> Report {
    run_told(scenario, seed, &Telling { plan, ..Telling::default() }, backend)
}

/// The same, told in any way.
pub fn run_told(scenario: &Scenario, seed: u64, telling: &Telling, backend: Box<dyn Backend>) -> Report {
    tell(scenario, World::new(Settings::of(seed).with(telling.plan.clone()), backend), telling).0
}

/// The same with these faults, or without any plan as they are drawn from the seed, recorded in full.
pub fn run_recorded(scenario: &Scenario, seed: u64, plan: Plan, backend: Box<dyn Backend>) -> (Report, Recording) {
    let draws = plan.faults.is_empty();
    run_told_recorded(scenario, seed, &Telling { plan, draws, sessions_max: None }, backend)
}

/// The same, told in any way.
pub fn run_told_recorded(
    scenario: &Scenario,
    seed: u64,
    telling: &Telling,
    backend: Box<dyn Backend>,
) -> (Report, Recording) {
    let mut world = World::new(Settings::of(seed).with(telling.plan.clone()), backend);
    world.record_in_full();
    let (report, world) = tell(scenario, world, telling);
    (report, world.recording())
}

fn tell(scenario: &Scenario, world: World, telling: &Telling) -> (Report, World) {
    let mut stage = Stage::new(world, telling.draws, telling.sessions_max);
    let told = (scenario.story)(&mut stage);
    let swept_from = stage.swept_from().clone();
    let mut plan = telling.plan.clone();
    plan.faults.extend(stage.drawn().faults.iter().cloned());
    let world = stage.into_world();
    // First what was done wrong on the way: what the story met afterwards may only follow from it.
    let verdict = judge::judge(&world)
        .map_err(Failure::Violated)
        .and(told)
        .and_then(|()| world.failure().cloned().map_or(Ok(()), Err));
    let report = Report {
        verdict,
        trace_hash: world.trace_hash(),
        plan,
        unstruck: world.unstruck(),
        passes: swept(&swept_from, world.all_passes()),
        events: world.events(),
        elapsed: world.elapsed(),
        timeline: world.timeline(),
        last_events: world.last_events(EVENTS_SHOWN),
    };
    (report, world)
}

/// The passes at which a fault can strike: nowhere, in a story in which none do.
fn swept(from: &BTreeMap<String, u64>, until: BTreeMap<String, u64>) -> BTreeMap<String, Range<u64>> {
    if from.is_empty() {
        return BTreeMap::new();
    }
    let range = |(host, passes): (String, u64)| (from.get(&host).copied().unwrap_or(0) + 1..passes + 1, host);
    until.into_iter().map(range).map(|(passes, host)| (host, passes)).collect()
}
