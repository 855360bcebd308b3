//! One plan on every simulator. It is found on one of them, told by places instead of pass numbers
//! ([`portable`](sheetanchor_sim::place::portable)), run again where it was found, which must give the same run event by event, and then on the
//! others. The verdict is compared: the invariant that was violated, or none. A verdict that differs is a failure itself,
//! on one side of the engine's code or in one of the simulators.

use anyhow::{Result, bail};
use sheetanchor_core::planted;
use sheetanchor_scenarios::{Report, Scenario, Telling};
use sheetanchor_sim::plan::Plan;
use sheetanchor_sim::recording::Recording;

use crate::artefact::{self, Recorded};
use crate::backends::Simulator;
use crate::case::{Case, Cast};
use crate::parallel::{self, Next};
use crate::swarm::{Batches, Budget};

/// How one plan ended on each simulator, the one that it was found on first.
#[derive(Debug)]
pub struct Agreement {
    /// The plan, told by places.
    pub plan: Plan,
    /// How the run where it was found ended, and each of the others.
    pub told: Vec<(Simulator, Report)>,
    /// The hash of the plan as it was found, if the same plan told by places gave another run there.
    pub lost: Option<String>,
}

impl Agreement {
    /// Takes a case that was recorded to every simulator of this build. Its bug is planted already, if it has one: others may
    /// run beside it.
    pub fn of(case: &Case, found: &Report, recording: &Recording) -> Result<Self> {
        let Cast { scenario, simulator: origin } = case.cast()?;
        let plan = sheetanchor_sim::place::portable(&found.plan, recording);
        let telling = Telling { plan: plan.clone(), draws: false, sessions_max: case.sessions_max };
        let others = Simulator::present().into_iter().filter(|simulator| *simulator != origin);
        let told: Vec<(Simulator, Report)> = std::iter::once(origin)
            .chain(others)
            .map(|simulator| (simulator, simulator.told(&scenario, case.seed, &telling)))
            .collect();
        let same = told.first().is_some_and(|(_, again)| again.trace_hash == found.trace_hash);
        Ok(Self { plan, told, lost: (!same).then(|| found.trace_hash.clone()) })
    }

    /// The same with a run alone in this process: its bug is planted, and taken out again.
    pub fn of_run(run: &Recorded) -> Result<Self> {
        planted::plant(run.case.planted.as_deref().unwrap_or_default());
        let agreement = Self::of(&run.case, &run.report, &run.recording);
        planted::plant("");
        agreement
    }

    /// The violated invariant, if all simulators agree on it or on none; `Err` if they do not.
    pub fn verdict(&self) -> Result<Option<String>, ()> {
        let verdicts: Vec<Option<String>> = self.told.iter().map(|(_, report)| verdict(report)).collect();
        match verdicts.split_first() {
            Some((first, others)) if others.iter().all(|other| other == first) => Ok(first.clone()),
            Some(_) | None => Err(()),
        }
    }

    /// Whether nothing was violated anywhere, and the plan carried over.
    pub fn is_good(&self) -> bool {
        self.lost.is_none() && self.verdict() == Ok(None)
    }

    /// Each simulator and how the run ended there.
    pub fn lines(&self) -> Vec<String> {
        let planned = self.plan.faults.len();
        let line = |(simulator, report): &(Simulator, Report)| {
            let verdict = verdict(report).map_or_else(|| "passed".into(), |invariant| format!("FAILED: {invariant}"));
            let struck = planned.saturating_sub(report.unstruck);
            format!("{:>8}: {verdict} ({struck} of {planned} planned faults struck)", simulator.name())
        };
        let mut lines: Vec<String> = self.told.iter().map(line).collect();
        if self.verdict().is_err() {
            lines.push("the verdicts differ: that is a failure, whichever of them is right".into());
        }
        if let Some(found) = &self.lost {
            lines.push(format!("told by places, the plan gave another run where it was found: {found} it was"));
        }
        lines
    }
}

fn verdict(report: &Report) -> Option<String> {
    report.verdict.is_err().then(|| artefact::judged(&report.verdict).0)
}

/// That this build has all simulators.
pub fn all_are_here() -> Result<()> {
    if Simulator::present().len() < Simulator::COUNT {
        bail!("this build has no madsim; `cargo xtask replay FILE --backend all` makes one that does");
    }
    Ok(())
}

/// Replays a recorded run on every simulator. Answers whether it passed on all of them.
pub fn replay(run: &Recorded) -> Result<bool> {
    let agreement = Agreement::of_run(run)?;
    for line in agreement.lines() {
        println!("{line}");
    }
    Ok(agreement.is_good())
}

/// Failed plans that are kept with everything about them.
const KEPT_MAX: usize = 5;
/// Seeds that are begun before the clock is looked at.
const BATCH: u64 = 24;

/// Draws a plan from each seed on one simulator, each in turn, and takes it to the others. Answers whether all verdicts
/// agree, and nothing failed.
pub fn swarm(scenario: &Scenario, first: u64, budget: Budget, bug: Option<&str>) -> Result<bool> {
    let mut batches = Batches::of(first, budget, BATCH);
    let present = Simulator::present();
    let (mut failed, mut differ, mut planned) = (0_usize, 0_usize, 0_usize);
    let mut struck: Vec<usize> = vec![0; present.len()];
    for seeds in batches.by_ref() {
        let runs = parallel::each(&seeds, |seed| {
            let place = usize::try_from(*seed).unwrap_or(0) % present.len();
            let origin = present.get(place).copied().unwrap_or(Simulator::DEFAULT);
            let (found, recording) = origin.record(scenario, *seed, &Plan::peaceful());
            let agreement = Agreement::of(&Case::of(scenario.name, *seed, origin, bug), &found, &recording);
            ((*seed, origin, agreement), Next::More)
        });
        for (seed, origin, agreement) in runs {
            let agreement = agreement?;
            planned += agreement.plan.faults.len();
            for (place, simulator) in present.iter().enumerate() {
                let told = agreement.told.iter().filter(|(told, _)| told == simulator);
                let many: usize =
                    told.map(|(_, report)| agreement.plan.faults.len().saturating_sub(report.unstruck)).sum();
                if let Some(count) = struck.get_mut(place) {
                    *count += many;
                }
            }
            differ += usize::from(agreement.verdict().is_err());
            if agreement.is_good() {
                continue;
            }
            failed += 1;
            println!("FAILED with seed {seed}, drawn on {}:\n{}", origin.name(), agreement.lines().join("\n"));
            if failed <= KEPT_MAX {
                keep(scenario, seed, &agreement, bug)?;
            }
        }
    }
    let (plans, seconds) = batches.done()?;
    for (simulator, count) in present.iter().zip(&struck) {
        println!("{:>8}: {count} of {planned} planned faults struck", simulator.name());
    }
    let names: Vec<&str> = present.iter().map(|simulator| simulator.name()).collect();
    println!(
        "{plans} plans of {}, each on {}, {seconds:.1}s; {failed} failed, {differ} verdicts differ",
        scenario.name,
        names.join(", ")
    );
    Ok(failed == 0)
}

/// Writes the folder of the first simulator on which the plan failed; of the first one if it failed on none.
fn keep(scenario: &Scenario, seed: u64, agreement: &Agreement, bug: Option<&str>) -> Result<()> {
    let red = agreement.told.iter().find(|(_, report)| report.verdict.is_err()).or_else(|| agreement.told.first());
    let simulator = red.map_or(Simulator::DEFAULT, |(simulator, _)| *simulator);
    let case = Case { plan: agreement.plan.clone(), only_plan: true, ..Case::of(scenario.name, seed, simulator, bug) };
    let folder = artefact::folder(&case);
    Recorded::of(&case)?.write(&folder)?;
    // To run one case is to take its bug out again.
    planted::plant(bug.unwrap_or_default());
    println!("  cargo xtask replay {}/plan.json --backend all", folder.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the workspace's own build on two simulators, with `--cfg madsim` on three.
    #[test]
    fn a_drawn_plan_carries_over_and_ends_alike_on_every_simulator() {
        let scenario = crate::chosen(Some(crate::TRIAL)).unwrap().remove(0);
        let (mut planned, mut unstruck) = (0, 0);
        for origin in Simulator::present() {
            for seed in 3..7 {
                let (found, recording) = origin.record(&scenario, seed, &Plan::peaceful());
                let case = Case::of(scenario.name, seed, origin, None);
                let agreement = Agreement::of(&case, &found, &recording).unwrap();
                assert!(agreement.is_good(), "seed {seed} of {}: {:#?}", origin.name(), agreement.lines());
                planned += agreement.plan.faults.len() * agreement.told.len();
                unstruck += agreement.told.iter().map(|(_, report)| report.unstruck).sum::<usize>();
            }
        }
        assert!(planned > 0 && unstruck * 4 <= planned, "{unstruck} of {planned} planned faults did not carry over");
    }

    #[test]
    fn a_case_of_fewer_sessions_carries_over_with_those() {
        let case = Case { sessions_max: Some(1), ..Case::of(crate::TRIAL, 3, Simulator::Own, None) };
        let run = Recorded::of(&case).unwrap();
        let all = Recorded::of(&Case { sessions_max: None, ..case }).unwrap();
        assert_ne!(run.report.trace_hash, all.report.trace_hash, "the story has more sessions");
        let agreement = Agreement::of_run(&run).unwrap();
        assert!(agreement.is_good(), "{:#?}", agreement.lines());
    }

    #[test]
    fn what_a_story_brings_about_itself_is_not_brought_about_twice() {
        let run = Recorded::of(&Case::of("an-unsure-repository-is-settled", 3, Simulator::Own, None)).unwrap();
        assert!(run.report.verdict.is_ok() && run.report.plan.faults.is_empty(), "{:?}", run.report.plan);
        let agreement = Agreement::of_run(&run).unwrap();
        assert!(agreement.is_good(), "{:#?}", agreement.lines());
    }

    #[test]
    fn verdicts_that_differ_are_no_agreement() {
        let scenario = crate::chosen(Some(crate::TRIAL)).unwrap().remove(0);
        let report = Simulator::Own.tell_with(&scenario, 3, &Plan::peaceful());
        let stuck = sheetanchor_sim::world::Failure::Stuck { what: "x".into(), waited: std::time::Duration::ZERO };
        let red = Report { verdict: Err(stuck), ..report.clone() };
        let told = |other: &Report| Agreement {
            plan: Plan::peaceful(),
            told: vec![(Simulator::Own, report.clone()), (Simulator::Turmoil, other.clone())],
            lost: None,
        };
        assert!(told(&report).is_good());
        assert!(told(&red).verdict().is_err() && !told(&red).is_good());
        let both = Agreement { told: vec![(Simulator::Own, red.clone()), (Simulator::Turmoil, red)], ..told(&report) };
        assert!(both.verdict().is_ok_and(|verdict| verdict.is_some()) && !both.is_good());
    }
}
