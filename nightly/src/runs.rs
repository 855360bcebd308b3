//! Which runs there are, and running them on all cores. Every run is done twice: the same seed must give the same trace.

use std::time::{Duration, Instant};

use sheetanchor_scenarios::{Report, Scenario};

use crate::backends::Simulator;
use crate::parallel::{self, Next};

/// One run, done.
#[derive(Clone, Debug)]
pub struct Run {
    /// The story.
    pub scenario: Scenario,
    /// The simulator that ran it.
    pub simulator: Simulator,
    /// Its seed.
    pub seed: u64,
    /// How it ended.
    pub report: Report,
    /// The trace hash of the second run, if it differs.
    pub differs: Option<String>,
    /// How long both took.
    pub took: Duration,
}

impl Run {
    /// Whether the story held, twice in the same way.
    pub fn passed(&self) -> bool {
        self.report.verdict.is_ok() && self.differs.is_none()
    }
}

/// Which stories with which seeds: round robin, every story at least once.
pub fn plan(scenarios: &[Scenario], seed: Option<u64>, seeds: Option<u64>) -> Vec<(Scenario, u64)> {
    let Some(seeds) = seeds else {
        return scenarios.iter().map(|scenario| (*scenario, seed.unwrap_or_else(|| scenario.seed()))).collect();
    };
    let stories = u64::try_from(scenarios.len()).unwrap_or(1).max(1);
    let rounds = seeds.max(stories).div_ceil(stories);
    let all = (0..rounds).flat_map(|round| scenarios.iter().map(move |scenario| (*scenario, round)));
    let runs = usize::try_from(seeds.max(stories)).unwrap_or(usize::MAX);
    // The first of each story is its own; the others count from there.
    all.take(runs).map(|(scenario, round)| (scenario, scenario.seed().wrapping_add(round))).collect()
}

/// Runs everything, as many at once as there are cores, and returns it in the order of the plan; or stops at the first
/// failure, and returns what was run until then.
pub fn run_all(simulator: Simulator, plan: &[(Scenario, u64)], until_failure: bool) -> Vec<Run> {
    let done = parallel::each(plan, |(scenario, seed)| {
        let run = run_twice(simulator, scenario, *seed);
        let then = if until_failure && !run.passed() { Next::Stop } else { Next::More };
        (run, then)
    });
    assert!(until_failure || done.len() == plan.len(), "every run has a result");
    done
}

fn run_twice(simulator: Simulator, scenario: &Scenario, seed: u64) -> Run {
    let started = Instant::now();
    let tell = || simulator.tell(scenario, seed);
    let (report, again) = (tell(), tell());
    let differs = (report.trace_hash != again.trace_hash).then_some(again.trace_hash);
    Run { scenario: *scenario, simulator, seed, report, differs, took: started.elapsed() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheetanchor_scenarios::ALL;

    #[test]
    fn every_story_is_told_at_least_once_and_no_seed_twice() {
        for seeds in [1, 5, 7, 200] {
            let plan = plan(ALL, None, Some(seeds));
            assert_eq!(plan.len(), usize::try_from(seeds).unwrap().max(ALL.len()));
            for scenario in ALL {
                assert!(plan.iter().any(|(told, _)| told.name == scenario.name), "{}", scenario.name);
            }
            let mut runs: Vec<_> = plan.iter().map(|(scenario, seed)| (scenario.name, *seed)).collect();
            runs.sort_unstable();
            runs.dedup();
            assert_eq!(runs.len(), plan.len());
        }
    }
}
