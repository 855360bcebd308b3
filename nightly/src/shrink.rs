//! `cargo xtask shrink`: the smallest case that still fails in the same way, searched on the own executor and then run on
//! the other simulators.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use sheetanchor_scenarios::Report;
use sheetanchor_sim::plan::{Fault, Trigger};

use crate::agree::Agreement;
use crate::artefact::{self, Recorded};
use crate::backends::Simulator;
use crate::case::Case;
use crate::replay::{self, Replay};

mod search;

pub use search::Found;

/// What to make smaller.
#[derive(Debug, clap::Args)]
pub struct Shrink {
    /// A plan file, as in the folder of a failure, or a seed.
    what: String,
    /// With a seed: the story; the first one that fails with it if none is named.
    story: Option<String>,
    /// With a seed: the bug to plant, by name.
    #[arg(long)]
    planted: Option<String>,
    /// The folder to write into; `target/sim/STORY-SEED.shrunk` if none is named.
    #[arg(long)]
    out: Option<PathBuf>,
    /// So many runs of the search at most.
    #[arg(long, default_value_t = RUNS_MAX)]
    runs: u64,
}

/// Runs of a search, unless somebody wants more.
pub const RUNS_MAX: u64 = 300;

/// What a search has made of a case.
#[derive(Debug)]
pub struct Shrunk {
    /// The case that it began with, its faults written down.
    pub from: Case,
    /// How that ended.
    pub report: Report,
    /// What was found.
    pub found: Found,
    /// How many times the story was told: by the search, and before it, to see that there is something to search.
    pub runs: u64,
    /// How long the search took.
    pub took: Duration,
}

/// Makes a failure smaller, writes its folder, and says what the other simulators make of it. False: it did not fail.
pub fn shrink(asked: &Shrink) -> Result<bool> {
    let Some(shrunk) = first_that_fails(asked)? else {
        println!("nothing to shrink: it passes");
        return Ok(false);
    };
    let case = &shrunk.found.case;
    let folder = asked.out.clone().unwrap_or_else(|| artefact::folder(case).with_extension("shrunk"));
    let last = Recorded::of(case)?;
    last.write(&folder)?;
    let (invariant, ..) = artefact::judged(&last.report.verdict);
    println!("{} seed {} on {}: {invariant}", case.story, case.seed, case.backend);
    let sessions =
        case.sessions_max.map_or_else(|| "as many as the story says".into(), |most| format!("{most} at most"));
    println!("  faults    {} -> {}", shrunk.from.plan.faults.len(), case.plan.faults.len());
    println!("  sessions  {sessions}");
    println!("  events    {} -> {}", shrunk.report.events, last.report.events);
    let end =
        if shrunk.found.minimal { "no single step makes it smaller" } else { "the budget of runs ended the search" };
    println!("  {} runs, {:.1}s: {end}", shrunk.runs, shrunk.took.as_secs_f64());
    for line in elsewhere(&last, &invariant)? {
        println!("  {line}");
    }
    println!("  cargo xtask replay {}/plan.json", folder.display());
    Ok(true)
}

fn first_that_fails(asked: &Shrink) -> Result<Option<Shrunk>> {
    let replay = Replay {
        what: asked.what.clone(),
        story: asked.story.clone(),
        backend: None,
        planted: asked.planted.clone(),
        out: None,
    };
    for case in replay::cases(&replay)? {
        if let Some(shrunk) = smaller(&case, asked.runs)? {
            return Ok(Some(shrunk));
        }
    }
    Ok(None)
}

/// Searches for the smallest case that violates what `case` violates. On the own executor, if it fails there, too. `None` if
/// it fails nowhere.
pub fn smaller(case: &Case, runs_max: u64) -> Result<Option<Shrunk>> {
    let mut candidates = vec![case.carried_to(Simulator::Own)?];
    if case.backend != Simulator::Own.name() {
        candidates.push(case.on(case.cast()?.simulator));
    }
    let mut before = 0;
    for case in candidates {
        let report = case.judge()?;
        before += 1;
        if report.verdict.is_err() {
            return shrunk(&case, report, before, runs_max).map(Some);
        }
    }
    Ok(None)
}

fn shrunk(case: &Case, report: Report, before: u64, runs_max: u64) -> Result<Shrunk> {
    let started = Instant::now();
    // From here on faults are what is written down, and nothing is drawn.
    let from = Case { plan: report.plan.clone(), only_plan: true, ..case.clone() };
    let (invariant, ..) = artefact::judged(&report.verdict);
    let after_all_began = strikes_where_faults_do(&from, &report);
    let same = |case: &Case| {
        let report = case.judge()?;
        let there = !after_all_began || strikes_where_faults_do(case, &report);
        Ok(there && report.verdict.is_err() && artefact::judged(&report.verdict).0 == invariant)
    };
    if !same(&from)? {
        bail!("with its faults written down, {} seed {} does not fail in the same way", case.story, case.seed);
    }
    let found = search::search(from.clone(), runs_max, same)?;
    let runs = before + 1 + found.runs;
    Ok(Shrunk { from, report, found, runs, took: started.elapsed() })
}

/// Whether the run came to where its story lets faults strike, and none of its faults struck before. What strikes while a
/// cluster is set up fails as well, in words that may be the same, and has nothing to do with what is looked for.
fn strikes_where_faults_do(case: &Case, report: &Report) -> bool {
    let begun = |fault: &Fault| match &fault.at().event {
        Trigger::Pass(pass) => report.passes.get(&fault.at().host).is_none_or(|passes| *pass >= passes.start),
        Trigger::Milestone { .. } | Trigger::Place { .. } => true,
    };
    !report.passes.is_empty() && case.plan.faults.iter().all(begun)
}

/// What becomes of a run on the other simulators of this build: its faults, told by places, carry over.
fn elsewhere(run: &Recorded, invariant: &str) -> Result<Vec<String>> {
    let agreement = Agreement::of_run(run)?;
    let planned = agreement.plan.faults.len();
    let mut lines = Vec::new();
    for (simulator, report) in agreement.told.iter().filter(|(simulator, _)| simulator.name() != run.case.backend) {
        let (there, ..) = artefact::judged(&report.verdict);
        let words = match &report.verdict {
            Ok(()) => "passes".to_string(),
            Err(_) if there == invariant => "fails in the same way".to_string(),
            Err(_) => format!("fails otherwise: {there}"),
        };
        let struck = planned.saturating_sub(report.unstruck);
        lines.push(format!("on {:<8} {words} ({struck} of {planned} faults struck)", simulator.name()));
    }
    if !Simulator::present().contains(&Simulator::Madsim) {
        lines.push("on madsim   not run: this build has none".into());
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheetanchor_sim::plan::{CrashPolicy, Plan, When};

    #[test]
    fn a_fault_while_a_cluster_is_set_up_is_told_from_one_that_the_story_lets_strike() {
        let (host, policy) = ("n1".to_string(), CrashPolicy::DropAll);
        let crashed_at = |pass| {
            let fault = Fault::Crash { at: When::pass(&host, pass), policy, restart_after_ms: Some(50), silent: false };
            let plan = Plan::peaceful().and(fault);
            let case = Case { plan, only_plan: true, ..Case::of(crate::TRIAL, 3, Simulator::Own, None) };
            let report = case.judge().unwrap();
            (strikes_where_faults_do(&case, &report), report)
        };
        // So far nobody comes: nothing is struck.
        let first = crashed_at(1_000_000).1.passes.get(&host).unwrap().start;
        let (begun, report) = crashed_at(first + 100);
        assert!(begun && report.verdict.is_ok(), "{:?}", report.verdict);
        assert!(!crashed_at(1).0 && !crashed_at(first - 1).0 && crashed_at(first).0, "{first}");
    }

    #[test]
    fn a_planted_bug_is_shrunk_to_the_same_violation() {
        let story = crate::TRIAL;
        let shrunk = (1..200).find_map(|seed| {
            let case = Case::of(story, seed, Simulator::Own, Some("no-fsync-before-seal"));
            smaller(&case, 120).unwrap()
        });
        let shrunk = shrunk.expect("a planted bug is seen");
        let (before, ..) = artefact::judged(&shrunk.report.verdict);
        let again = shrunk.found.case.judge().unwrap();
        assert_eq!(artefact::judged(&again.verdict).0, before);
        let faults = |case: &Case| case.plan.faults.len();
        assert!(shrunk.found.minimal || faults(&shrunk.found.case) < faults(&shrunk.from), "{:?}", shrunk.found);
        assert_eq!(shrunk.runs, shrunk.found.runs + 2);
        // What is left needs the bug.
        let mended = Case { planted: None, ..shrunk.found.case.clone() };
        assert!(mended.judge().unwrap().verdict.is_ok());
    }
}
