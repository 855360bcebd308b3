//! The project's own chores: `cargo xtask ci | tidy | sim | mutants | sweep | swarm | replay | traces | bench | pg`.
//!
//! By absence: nothing here depends on a crate of ours, so the gate still runs when they do not compile.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that talks to whoever runs it")]
#![cfg_attr(test, allow(clippy::wildcard_enum_match_arm, reason = "tests may be blunt"))]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};

mod ci;
mod fence;
mod postgres;
mod programs;
mod tidy;
mod traces;

/// The project's own chores.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Run every check and every test, as CI does; the last lines say what failed and count the tests.
    Ci {
        /// Leave out what needs real PostgreSQL servers.
        #[arg(long, value_enum)]
        without: Vec<Without>,
        /// Run these steps alone, in the order of the whole run.
        #[arg(long, value_delimiter = ',', value_parser = ci::step_names())]
        only: Vec<String>,
    },
    /// Check the rules of this tree that neither the compiler nor clippy knows.
    Tidy,
    /// Run scenarios in the simulator; everything after `sim` goes to its runner, as in `sim --seeds 200`.
    #[command(disable_help_flag = true)]
    Sim {
        /// What the runner understands: `cargo xtask sim --help` asks it.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        forwarded: Vec<String>,
    },
    /// Plant each known bug and run scenarios until it is seen; everything after `mutants` goes to the runner.
    #[command(disable_help_flag = true)]
    Mutants {
        /// What the runner understands: `cargo xtask mutants --help` asks it.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        forwarded: Vec<String>,
    },
    /// Crash each host of a story at every operation; everything after `sweep` goes to the runner.
    #[command(disable_help_flag = true)]
    Sweep {
        /// What the runner understands: `cargo xtask sweep --help` asks it.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        forwarded: Vec<String>,
    },
    /// Tell one story with many seeds and random faults; everything after `swarm` goes to the runner.
    #[command(disable_help_flag = true)]
    Swarm {
        /// What the runner understands: `cargo xtask swarm --help` asks it.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        forwarded: Vec<String>,
    },
    /// Run a failure again from its plan file or its seed; everything after `replay` goes to the runner.
    #[command(disable_help_flag = true)]
    Replay {
        /// What the runner understands: `cargo xtask replay --help` asks it.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        forwarded: Vec<String>,
    },
    /// Make a failure smaller, from its plan file or its seed; everything after `shrink` goes to the runner.
    #[command(disable_help_flag = true)]
    Shrink {
        /// What the runner understands: `cargo xtask shrink --help` asks it.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        forwarded: Vec<String>,
    },
    /// Measure a part of the project beside the goals that were set for it.
    #[command(disable_help_flag = true)]
    Bench {
        /// What is measured: `sim` or `pg`. The rest goes to the runner: `cargo xtask bench pg --help` asks it.
        #[arg(value_enum)]
        part: Measured,
        /// What the runner understands.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        forwarded: Vec<String>,
    },
    /// Run new seeds, old failures and planted bugs within a time, and write a report; `nightly --help` asks the runner.
    #[command(disable_help_flag = true)]
    Nightly {
        /// What the runner understands, as in `nightly --for 10m`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        forwarded: Vec<String>,
    },
    /// Tell stories in a debug and in a release build of the simulator, and compare the traces.
    Traces {
        /// So many runs on each simulator, round robin over the stories; every story at least once.
        #[arg(long, default_value_t = 1)]
        seeds: u64,
        /// The simulators, of those that every build has.
        #[arg(long, default_value = "own,turmoil")]
        backends: String,
    },
    /// Find PostgreSQL's servers and headers, or install them as root on Debian and Ubuntu.
    Pg {
        /// Fetch PostgreSQL 17 and 18, too, and run the bridge's tests on them.
        #[arg(long)]
        releases: bool,
        /// Run servers, agents and coordinators under a nemesis, and hold what is restored against what clients saw.
        #[arg(long)]
        nemesis: bool,
        /// With `--nemesis`: for how long, as in `20m`.
        #[arg(long = "for", value_name = "TIME", requires = "nemesis", default_value = "20m", value_parser = postgres::nemesis::length)]
        length: Duration,
        /// With `--nemesis`: what everything is drawn from.
        #[arg(long, requires = "nemesis", default_value_t = 1)]
        seed: u64,
        /// With `--nemesis`: end once so many cuts were restored, and fail if they were fewer in the end.
        #[arg(long, value_name = "N", requires = "nemesis")]
        cuts: Option<usize>,
        /// With `--nemesis`: how many servers.
        #[arg(long, requires = "nemesis", default_value_t = 3, value_parser = clap::value_parser!(u16).range(3..=5))]
        nodes: u16,
    },
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Measured {
    /// The simulator.
    Sim,
    /// Backup, restore, archiving and fencing of real PostgreSQL servers, beside other tools.
    Pg,
}

/// Parts of the run that a machine may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Without {
    /// Real PostgreSQL servers.
    Pg,
}

fn main() -> ExitCode {
    run(Arguments::parse().chore).unwrap_or_else(|error| {
        // One line that says what to do; a backtrace of ours would bury it.
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(chore: Chore) -> Result<ExitCode> {
    let root = root()?;
    let done = match chore {
        Chore::Ci { without, only } => {
            ci::run(&ci::Options { root, without_postgres: without.contains(&Without::Pg), only })
        }
        Chore::Tidy => tidy::run(&root),
        Chore::Sim { forwarded } => return programs::simulator(&root, "sim", &forwarded),
        Chore::Mutants { forwarded } => return programs::simulator(&root, "mutants", &forwarded),
        Chore::Sweep { forwarded } => return programs::simulator(&root, "sweep", &forwarded),
        Chore::Swarm { forwarded } => return programs::simulator(&root, "swarm", &forwarded),
        Chore::Nightly { forwarded } => return programs::simulator(&root, "nightly", &forwarded),
        Chore::Replay { forwarded } => return programs::simulator(&root, "replay", &forwarded),
        Chore::Bench { part: Measured::Sim, forwarded } => return programs::bench_simulator(&root, &forwarded),
        Chore::Bench { part: Measured::Pg, forwarded } => return postgres::measured::run(&root, &forwarded),
        Chore::Shrink { forwarded } => return programs::simulator(&root, "shrink", &forwarded),
        Chore::Traces { seeds, backends } => traces::compare(&root, seeds, &backends).map(|()| true),
        Chore::Pg { releases, nemesis, length, seed, cuts, nodes } => postgres::ensure().and_then(|servers| {
            println!("{servers}");
            println!("{}", fence::ensure(&root, &servers, None)?);
            if releases {
                postgres::releases::test(&root)?;
            }
            if nemesis {
                postgres::nemesis::run(&root, &postgres::nemesis::Wanted { length, seed, cuts, nodes })?;
            }
            Ok(true)
        }),
    }?;
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The folder of the workspace: the one above this package's.
fn root() -> Result<PathBuf> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().map(Path::to_owned).context("the xtask package lies at the root of a file system")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_and_the_seed_of_a_nemesis_need_one() {
        let read = |words: &str| Arguments::try_parse_from(words.split(' ')).is_ok();
        assert!(read("xtask pg") && read("xtask pg --releases") && read("xtask pg --nemesis --for 5m --seed 2"));
        assert!(read("xtask pg --nemesis --cuts 200 --nodes 5") && !read("xtask pg --nemesis --nodes 6"));
        assert!(!read("xtask pg --for 5m") && !read("xtask pg --releases --seed 2") && !read("xtask pg --cuts 2"));
    }
}
