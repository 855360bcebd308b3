//! The swarm: one story or a few in turn, many seeds, each with faults of its own; what was reached is counted.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use sheetanchor_core::planted;
use sheetanchor_core::refusal::Code;
use sheetanchor_scenarios::{Report, Scenario};

use crate::artefact;
use crate::backends::Simulator;
use crate::case::Case;
use crate::parallel::{self, Next};

mod batches;
mod edges;

pub use batches::Batches;
use edges::Edges;

/// How much is told.
#[derive(Clone, Copy, Debug)]
pub enum Budget {
    /// So many seeds.
    Seeds(u64),
    /// As many as fit into that time.
    Time(Duration),
}

impl Budget {
    /// `90s`, `10m` or `2h`.
    pub fn of(text: &str) -> Result<Self> {
        let unit = text.chars().last().unwrap_or_default();
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            _ => bail!("`{text}` is no time: write `90s`, `10m` or `2h`"),
        };
        let number: u64 = text
            .trim_end_matches(unit)
            .parse()
            .with_context(|| format!("`{text}` is no time: write `90s` or `10m`"))?;
        Ok(Self::Time(Duration::from_secs(number.saturating_mul(seconds))))
    }
}

/// Every so many runs one is made twice, to be sure that a seed says everything.
const TWICE_EVERY: u64 = 16;

/// Seeds that are begun before the clock is looked at.
const BATCH: u64 = 64;

/// Failed runs that are kept with everything about them.
const KEPT_MAX: usize = 5;

/// Tells the stories in turn with seeds from `first` on, or each from its own, prints what was reached, and says whether every
/// run held.
pub fn swarm(
    scenarios: &[Scenario],
    simulator: Simulator,
    first: Option<u64>,
    budget: Budget,
    bug: Option<&str>,
) -> Result<bool> {
    let many = u64::try_from(scenarios.len()).unwrap_or(1).max(1);
    // From the first seed on, so that it is noticed if none is left.
    let begin = first.unwrap_or(0);
    let told = |number: u64| {
        let nth = number.saturating_sub(begin);
        let scenario = scenarios.get(usize::try_from(nth % many).unwrap_or(0))?;
        Some((nth, *scenario, first.unwrap_or_else(|| scenario.seed()).wrapping_add(nth / many)))
    };
    let mut batches = Batches::of(begin, budget, BATCH);
    let mut reached = Reached::default();
    let mut failed = 0;
    for numbers in batches.by_ref() {
        let told: Vec<(u64, Scenario, u64)> = numbers.into_iter().filter_map(told).collect();
        let runs = parallel::each(&told, |(number, scenario, seed)| {
            let report = simulator.tell(scenario, *seed);
            let differs =
                number.is_multiple_of(TWICE_EVERY) && simulator.tell(scenario, *seed).trace_hash != report.trace_hash;
            ((*scenario, *seed, report, differs), Next::More)
        });
        for (scenario, seed, report, differs) in &runs {
            reached.count(report);
            if report.verdict.is_ok() && !differs {
                continue;
            }
            failed += 1;
            let words = report.verdict.as_ref().err().map_or_else(|| "two runs differ".into(), ToString::to_string);
            println!("FAILED: {} with seed {seed}: {words}", scenario.name);
            if failed <= KEPT_MAX {
                let case = Case::of(scenario.name, *seed, simulator, bug);
                let folder = artefact::folder(&case);
                artefact::Recorded::of(&case)?.write(&folder)?;
                // To run one case is to take its bug out again.
                planted::plant(bug.unwrap_or_default());
                println!("  cargo xtask replay {}/plan.json", folder.display());
            }
        }
    }
    let (runs, seconds) = batches.done()?;
    let rate = f64::from(u32::try_from(runs).unwrap_or(u32::MAX)) / seconds;
    let names: Vec<&str> = scenarios.iter().map(|scenario| scenario.name).collect();
    println!("{reached}\n{runs} runs of {}, {seconds:.1}s, {rate:.0} a second; {failed} failed", names.join(", "));
    Ok(failed == 0)
}

/// What the runs came across.
#[derive(Default)]
struct Reached {
    faults: BTreeMap<&'static str, u64>,
    codes: BTreeMap<String, u64>,
    edges: Edges,
}

impl Reached {
    fn count(&mut self, report: &Report) {
        for fault in &report.plan.faults {
            *self.faults.entry(fault.class()).or_default() += 1;
        }
        self.edges.count(&report.timeline);
        for code in codes(&report.timeline) {
            *self.codes.entry(code.into()).or_default() += 1;
        }
    }
}

impl std::fmt::Display for Reached {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |counts: Vec<String>| if counts.is_empty() { "none".into() } else { counts.join(", ") };
        let faults = self.faults.iter().map(|(class, count)| format!("{class} {count}")).collect();
        let codes = self.codes.iter().map(|(code, count)| format!("{code} {count}")).collect();
        let (reached, all) = (self.codes.len(), Code::ALL.len());
        write!(
            out,
            "faults planned: {}\n{reached} of {all} refusals on timelines: {}\n{}",
            list(faults),
            list(codes),
            self.edges
        )
    }
}

/// The codes of our refusals in a timeline.
fn codes(timeline: &str) -> impl Iterator<Item = &str> {
    timeline.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| {
        word.len() == 5 && word.strip_prefix("SA").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_number_and_a_unit() {
        assert!(matches!(Budget::of("10m"), Ok(Budget::Time(time)) if time == Duration::from_mins(10)));
        assert!(Budget::of("10").is_err() && Budget::of("m").is_err() && Budget::of("").is_err());
    }

    #[test]
    fn codes_are_found_in_a_timeline() {
        assert_eq!(codes("ended error=SA204: gone, SA2041 XSA204 (SA101)").collect::<Vec<_>>(), ["SA204", "SA101"]);
    }
}
