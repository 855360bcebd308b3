//! The runner of the stories, which `cargo xtask sim` calls: stories by seeds, the planted bugs that they must see, what a
//! failure leaves (`artefact`) and how it is run again (`replay`), and whole nights of all of it (`night`).
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that talks to whoever runs it")]
#![cfg_attr(test, allow(clippy::as_conversions, clippy::wildcard_enum_match_arm, reason = "tests may be blunt"))]

mod agree;
mod artefact;
mod backends;
mod bench;
mod case;
mod corpus;
mod failure;
mod mutants;
mod night;
mod parallel;
mod replay;
mod runs;
mod shrink;
mod swarm;
mod sweep;
mod table;
mod traces;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use sheetanchor_core::planted;
use sheetanchor_scenarios::{ALL, LONG, Scenario};

use backends::Simulator;
use case::Case;

/// A fifth of a run was malloc. Which memory a run gets has no say in what happens in it.
#[global_allocator]
static MEMORY: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs the stories of the simulator.
#[derive(Debug, Parser)]
#[command(name = "sheetanchor-nightly", bin_name = "cargo xtask", version, after_help = planted::MARKER)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Tell stories, each with its own seed or with many, and all seeds that ever failed.
    Sim(Sim),
    /// Plant each known bug in turn, in a process of its own, and run each story that claims to see it: one that is not seen
    /// is a failure, and so is a kill rate far below the kept one.
    Mutants(mutants::Mutants),
    /// Hunt one planted bug in one story, in this process; prints JSON.
    #[command(hide = true)]
    Hunt(mutants::Here),
    /// Crash each host at every pass of the gate, under every policy.
    Sweep {
        #[command(flatten)]
        trial: Trial,
        /// Crash at every so many passes.
        #[arg(long, default_value_t = 1)]
        stride: u64,
        /// 2: crash some of the runs a second time, while they recover.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
        depth: u8,
    },
    /// Tell one story, or the general ones in turn, with many seeds, each with faults of its own; count what was reached.
    Swarm {
        #[command(flatten)]
        trial: Trial,
        /// So many seeds.
        #[arg(long, default_value_t = 200, conflicts_with = "time")]
        seeds: u64,
        /// As many as fit into a time such as `10m`.
        #[arg(long = "for")]
        time: Option<String>,
    },
    /// Run a plan file or a seed again, and write the folder that shows what happened.
    Replay(replay::Replay),
    /// Make a failure smaller: fewer and simpler faults and fewer sessions, and the same invariant violated.
    Shrink(shrink::Shrink),
    /// Measure how fast the simulator is, beside the goals that were set.
    Bench(bench::Bench),
    /// Run new seeds, all that ever failed, and all planted bugs, within a time, and write a report with trends.
    Nightly(night::Nightly),
    /// Write what every run came to, for `cargo xtask traces`, which compares two builds.
    #[command(hide = true)]
    Traces(traces::Traces),
}

/// The story of sweeps, and of swarms on all simulators.
const TRIAL: &str = "a-backup-ends-in-a-restore-whatever-strikes";

/// What `--backend` calls all simulators.
const EVERY: &str = "all";

/// What is swept, or told by the swarm.
#[derive(Debug, clap::Args)]
struct Trial {
    /// The story: one that has a place for faults. If none is named a swarm on one simulator tells the general ones in turn;
    /// else it is the shortest of them.
    scenario: Option<String>,
    /// Which simulator; `all` (of a swarm): plans are drawn on each in turn, taken to the others, and verdicts compared.
    #[arg(long, default_value = "own")]
    backend: String,
    /// The first seed; the story's own if none is given.
    #[arg(long)]
    seed: Option<u64>,
    /// Plant one bug, by name, in this process: some run must fail.
    #[arg(long)]
    planted: Option<String>,
}

impl Trial {
    fn chosen(&self) -> Result<(Scenario, Simulator, u64)> {
        let (scenarios, simulator) = self.chosen_of(&[TRIAL])?;
        let Some(scenario) = scenarios.first().copied() else { bail!("there are no stories") };
        Ok((scenario, simulator, self.seed.unwrap_or_else(|| scenario.seed())))
    }

    /// The story that was named, or all of these.
    fn chosen_of(&self, all: &[&str]) -> Result<(Vec<Scenario>, Simulator)> {
        let simulator = Simulator::named(&self.backend)?;
        let named = self.scenario.as_deref();
        let stories = named.as_ref().map_or(all, core::slice::from_ref);
        let mut scenarios = Vec::new();
        for story in stories {
            scenarios.extend(chosen(Some(story))?);
        }
        if let Some(name) = &self.planted {
            known_bug(name)?;
            planted::plant(name);
        }
        Ok((scenarios, simulator))
    }
}

/// Which stories, and how often.
#[derive(Debug, clap::Args)]
struct Sim {
    /// The story; all of them if none is named.
    scenario: Option<String>,
    /// The first seed; each story's own if none is given.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// So many runs in all, round robin over the stories, each with a seed of its own; every story at least once.
    #[arg(long)]
    seeds: Option<u64>,
    /// Which simulator: `own`, `turmoil` or `madsim`; through `cargo xtask sim` also `all`.
    #[arg(long, default_value = "own")]
    backend: String,
    /// Plant one bug, by name, in this process: the run must fail.
    #[arg(long)]
    planted: Option<String>,
    /// Stop at the first run that fails.
    #[arg(long)]
    until_failure: bool,
    /// Show the timeline of every run.
    #[arg(long)]
    timeline: bool,
    /// Where the folder of the first failure goes; `target/sim/STORY-SEED` if none is named.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Write no folder for a failure.
    #[arg(long, conflicts_with = "out")]
    no_artefacts: bool,
}

fn main() -> ExitCode {
    let good = do_chore(Arguments::parse().chore);
    match good {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn do_chore(chore: Chore) -> Result<bool> {
    match chore {
        Chore::Sim(sim) => tell(&sim),
        Chore::Mutants(asked) => {
            asked.planted.iter().try_for_each(|name| known_bug(name)).and_then(|()| mutants::hunt(&asked))
        }
        Chore::Hunt(asked) => mutants::here(&asked),
        Chore::Sweep { trial, stride, depth } => {
            let (scenario, simulator, seed) = trial.chosen()?;
            let sweep = sweep::Sweep { scenario, seed, stride, depth_two: depth == 2 };
            sweep::sweep(&sweep, simulator, trial.planted.as_deref())
        }
        Chore::Swarm { trial, seeds, time } => {
            let budget = time.as_deref().map_or(Ok(swarm::Budget::Seeds(seeds)), swarm::Budget::of)?;
            if trial.backend == EVERY {
                agree::all_are_here()?;
                let one = Trial { backend: Simulator::DEFAULT.name().into(), ..trial };
                let (scenario, _, seed) = one.chosen()?;
                return agree::swarm(&scenario, seed, budget, one.planted.as_deref());
            }
            let (scenarios, simulator) = trial.chosen_of(&mutants::GENERAL)?;
            swarm::swarm(&scenarios, simulator, trial.seed, budget, trial.planted.as_deref())
        }
        Chore::Replay(asked) => replay::replay(&asked),
        Chore::Shrink(asked) => shrink::shrink(&asked),
        Chore::Bench(asked) => bench::bench(&asked),
        Chore::Nightly(asked) => night::run(&asked),
        Chore::Traces(asked) => traces::write(&asked),
    }
}

/// Runs what was asked for, and says whether all of it passed.
fn tell(sim: &Sim) -> Result<bool> {
    let simulator = Simulator::named(&sim.backend)?;
    let scenarios = chosen(sim.scenario.as_deref())?;
    if let Some(name) = &sim.planted {
        known_bug(name)?;
        planted::plant(name);
    }
    let mut plan = runs::plan(&scenarios, sim.seed, sim.seeds);
    if sim.seed.is_none() {
        plan.extend(corpus::of(&scenarios));
    }
    let results = runs::run_all(simulator, &plan, sim.until_failure);
    if sim.timeline {
        for result in &results {
            println!("{} seed {}\n{}", result.scenario.name, result.seed, result.report.timeline);
        }
    }
    println!("{}", table::render(&results));
    let failed: Vec<&runs::Run> = results.iter().filter(|result| !result.passed()).collect();
    if let Some(first) = failed.first() {
        eprintln!("{}", failure::describe(first, sim.planted.as_deref()));
        if !sim.no_artefacts {
            let case = Case::of(first.scenario.name, first.seed, first.simulator, sim.planted.as_deref());
            let folder = sim.out.clone().unwrap_or_else(|| artefact::folder(&case));
            artefact::Recorded::of(&case)?.write(&folder)?;
            eprintln!("all of it:\n  {}", folder.display());
        }
    }
    Ok(failed.is_empty())
}

fn known_bug(name: &str) -> Result<()> {
    let known: Vec<&str> = planted::Bug::ALL.iter().map(|(name, _)| *name).collect();
    if known.contains(&name) {
        return Ok(());
    }
    bail!("there is no planted bug `{name}`: {}", nearest(name, &known))
}

fn chosen(name: Option<&str>) -> Result<Vec<Scenario>> {
    let Some(name) = name else { return Ok(ALL.to_vec()) };
    let every = || ALL.iter().chain(LONG);
    if let Some(scenario) = every().find(|scenario| scenario.name == name) {
        return Ok(vec![*scenario]);
    }
    let known: Vec<&str> = every().map(|scenario| scenario.name).collect();
    bail!("there is no scenario `{name}`: {}", nearest(name, &known))
}

/// The known name that shares the most words' beginnings with a mistyped one, and all the others.
fn nearest(name: &str, known: &[&str]) -> String {
    let likeness = |other: &&&str| {
        let letters = |text: &str| -> Vec<(u8, u8)> { text.bytes().zip(text.bytes().skip(1)).collect() };
        let (ours, theirs) = (letters(name), letters(other));
        // Of two that are as alike the one of about the same length.
        (ours.iter().filter(|pair| theirs.contains(pair)).count(), std::cmp::Reverse(name.len().abs_diff(other.len())))
    };
    let near = known.iter().max_by_key(likeness).copied().unwrap_or_default();
    format!("did you mean `{near}`? There are {}", known.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_name_is_answered_with_the_nearest() {
        let answer = chosen(Some("a-backup-is-restord")).unwrap_err().to_string();
        assert!(answer.contains("did you mean `a-backup-is-restored-and-read`"), "{answer}");
    }

    #[test]
    fn every_story_has_a_name_of_its_own() {
        let mut names: Vec<&str> = ALL.iter().map(|scenario| scenario.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
