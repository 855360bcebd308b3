//! The chore behind `cargo xtask traces`: what every run came to, line by line, for another build of this program to be held
//! against. A run is of its seed, and never of how the code was compiled.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use sheetanchor_scenarios::{ALL, Scenario};

use crate::backends::Simulator;
use crate::parallel::{self, Next};
use crate::runs;

/// Which runs, and where their lines go.
#[derive(Debug, clap::Args)]
pub struct Traces {
    /// So many runs on each simulator, round robin over the stories; every story at least once.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// The simulators.
    #[arg(long, value_delimiter = ',', default_value = "own,turmoil")]
    backends: Vec<String>,
    /// The file that is written.
    #[arg(long)]
    out: PathBuf,
}

/// Tells the stories, and writes a line for each run.
pub fn write(asked: &Traces) -> Result<bool> {
    let simulators: Result<Vec<Simulator>> = asked.backends.iter().map(|name| Simulator::named(name)).collect();
    let plan = runs::plan(ALL, None, Some(asked.seeds));
    let mut lines = Vec::new();
    for simulator in simulators? {
        lines.extend(parallel::each(&plan, |(scenario, seed)| (line(simulator, scenario, *seed), Next::More)));
    }
    if let Some(folder) = asked.out.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let text = lines.join("\n") + "\n";
    fs::write(&asked.out, text).with_context(|| format!("cannot write {}", asked.out.display()))?;
    println!("{} runs: {}", lines.len(), asked.out.display());
    Ok(true)
}

/// Simulator, story, seed, hash over every event, how many they were, and the verdict: what it is about is said elsewhere.
fn line(simulator: Simulator, scenario: &Scenario, seed: u64) -> String {
    let report = simulator.tell(scenario, seed);
    let verdict = if report.verdict.is_ok() { "passed" } else { "FAILED" };
    format!("{} {} {seed} {} {} {verdict}", simulator.name(), scenario.name, report.trace_hash, report.events)
}
