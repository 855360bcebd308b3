//! The sweep: a story is told once in peace; then each host that takes part is crashed at every pass of the gate, under every
//! policy. At depth two, some of those runs are crashed a second time, while they recover from the first.

use std::time::Instant;

use anyhow::{Result, bail};
use sheetanchor_scenarios::{Report, Scenario};
use sheetanchor_sim::plan::{CrashPolicy, Fault, Plan, When};

use crate::artefact;
use crate::backends::Simulator;
use crate::case::Case;
use crate::parallel::{self, Next};

/// What to sweep, and how finely.
#[derive(Clone, Copy, Debug)]
pub struct Sweep {
    /// The story.
    pub scenario: Scenario,
    /// Its seed.
    pub seed: u64,
    /// Every how many passes a host is crashed.
    pub stride: u64,
    /// Whether it is crashed a second time, at as many passes again.
    pub depth_two: bool,
}

const POLICIES: [CrashPolicy; 4] =
    [CrashPolicy::DropAll, CrashPolicy::KeepAll, CrashPolicy::TornPrefix, CrashPolicy::ProcessOnly];

/// Second crashes for each first one that is looked at, and every how many first ones that is.
const SECOND_CRASHES: u64 = 6;
const FIRST_CRASHES: usize = 16;

/// How long a crashed host stays down.
const DOWN_MS: u64 = 120;

/// Failed runs that are kept with everything about them.
const KEPT_MAX: usize = 5;

/// Sweeps, prints what was found, and says whether every run held.
pub fn sweep(sweep: &Sweep, simulator: Simulator, planted: Option<&str>) -> Result<bool> {
    let Sweep { scenario, seed, .. } = *sweep;
    let started = Instant::now();
    let base = simulator.tell_with(&scenario, seed, &Plan::peaceful());
    if let Err(failure) = &base.verdict {
        bail!("the story fails in peace, too: {failure}\n{}", base.timeline);
    }
    if base.passes.is_empty() {
        bail!("{} has no place for faults: sweep a story that has, such as `{}`", scenario.name, crate::TRIAL);
    }
    let mut runs = tell_all(sweep, simulator, &first_crashes(sweep, &base));
    if sweep.depth_two {
        let seconds: Vec<Plan> = runs.iter().step_by(FIRST_CRASHES).flat_map(second_crashes).collect();
        runs.extend(tell_all(sweep, simulator, &seconds));
    }
    let failed: Vec<&Run> = runs.iter().filter(|run| run.report.verdict.is_err()).collect();
    for run in failed.iter().take(KEPT_MAX) {
        let case = Case { plan: run.plan.clone(), ..Case::of(scenario.name, seed, simulator, planted) };
        let folder = artefact::folder(&case).with_extension(&run.report.trace_hash);
        artefact::Recorded::of(&case)?.write(&folder)?;
        println!("FAILED: {}", run.report.verdict.as_ref().err().map_or_else(String::new, ToString::to_string));
        println!("  cargo xtask replay {}/plan.json", folder.display());
    }
    let seconds = started.elapsed().as_secs_f64();
    let rate = f64::from(u32::try_from(runs.len()).unwrap_or(u32::MAX)) / seconds;
    for (host, passes) in &base.passes {
        println!("{host:>12}: passes {} to {}", passes.start, passes.end.saturating_sub(1));
    }
    println!(
        "{} crash runs of {}, {seconds:.1}s, {rate:.0} a second; {} failed",
        runs.len(),
        scenario.name,
        failed.len()
    );
    Ok(failed.is_empty())
}

struct Run {
    plan: Plan,
    report: Report,
}

fn tell_all(sweep: &Sweep, simulator: Simulator, plans: &[Plan]) -> Vec<Run> {
    parallel::each(plans, |plan| {
        let report = simulator.tell_with(&sweep.scenario, sweep.seed, plan);
        (Run { plan: plan.clone(), report }, Next::More)
    })
}

/// The plans of a sweep's first crashes, and the story told in peace.
pub fn plans(sweep: &Sweep, simulator: Simulator) -> (Report, Vec<Plan>) {
    let base = simulator.tell_with(&sweep.scenario, sweep.seed, &Plan::peaceful());
    let plans = first_crashes(sweep, &base);
    (base, plans)
}

/// Clients are not crashed: what they know of their own commits is what the oracle judges by.
fn takes_part(host: &str) -> bool {
    host.starts_with('n') || host.starts_with("operator")
}

fn crash(host: &str, pass: u64, policy: CrashPolicy) -> Fault {
    // Every second loss of power is one that no peer hears of.
    let silent = policy != CrashPolicy::ProcessOnly && pass.is_multiple_of(2);
    Fault::Crash { at: When::pass(host, pass), policy, restart_after_ms: Some(DOWN_MS), silent }
}

fn first_crashes(sweep: &Sweep, base: &Report) -> Vec<Plan> {
    let stride = usize::try_from(sweep.stride.max(1)).unwrap_or(1);
    let hosts = base.passes.iter().filter(|(host, _)| takes_part(host));
    let places = hosts.flat_map(|(host, passes)| passes.clone().step_by(stride).map(move |pass| (host, pass)));
    places.flat_map(|(host, pass)| POLICIES.map(|policy| Plan::peaceful().and(crash(host, pass, policy)))).collect()
}

/// A run with a crash, crashed again at a few passes spread over what came after it.
fn second_crashes(run: &Run) -> Vec<Plan> {
    let Some(Fault::Crash { at, .. }) = run.plan.faults.first() else { return Vec::new() };
    let sheetanchor_sim::plan::Trigger::Pass(first) = at.event else { return Vec::new() };
    let hosts = run.report.passes.iter().filter(|(host, _)| takes_part(host));
    hosts
        .flat_map(|(host, passes)| {
            let from = if *host == at.host { first + 1 } else { passes.start };
            let step = passes.end.saturating_sub(from) / SECOND_CRASHES;
            (0..SECOND_CRASHES).filter(move |_| step > 0).map(move |number| (host, from + number * step))
        })
        .zip(POLICIES.into_iter().cycle())
        .map(|((host, pass), policy)| run.plan.clone().and(crash(host, pass, policy)))
        .collect()
}
