//! The whole gate: every step runs, also after one has failed; the last lines name what failed and count the tests.

use std::cmp::max;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::builder::PossibleValuesParser;

use crate::{fence, postgres};

mod counts;
mod shipped;
mod steps;

use counts::Counts;

/// What a run is told.
#[derive(Debug)]
pub struct Options {
    /// The workspace's folder.
    pub root: PathBuf,
    /// Leave out what needs real PostgreSQL servers.
    pub without_postgres: bool,
    /// The steps to run; all of them if empty.
    pub only: Vec<String>,
}

/// One step of the gate.
struct Step {
    name: &'static str,
    /// What it proves, for the header.
    proves: &'static str,
    needs_postgres: Postgres,
    run: fn(&mut Run) -> Result<Outcome>,
}

/// What a step does with real PostgreSQL servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Postgres {
    /// Nothing.
    Unused,
    /// Part of it runs on them.
    Partly,
    /// It is about them.
    Wholly,
}

/// How a step ended, if it did not fail.
enum Outcome {
    Passed,
    /// It did not run, and why.
    LeftOut(&'static str),
}

/// What the steps share.
struct Run {
    root: PathBuf,
    without_postgres: bool,
    tests: Counts,
}

/// A step that is over.
struct Ended {
    name: &'static str,
    verdict: String,
    failed: bool,
    took: Duration,
}

/// The names that `--only` takes.
pub fn step_names() -> PossibleValuesParser {
    PossibleValuesParser::new(steps::ALL.iter().map(|step| step.name))
}

/// Runs the chosen steps in order. True if none failed.
pub fn run(options: &Options) -> Result<bool> {
    let chosen = |step: &&Step| options.only.is_empty() || options.only.iter().any(|name| name == step.name);
    let steps: Vec<&Step> = steps::ALL.iter().filter(chosen).collect();
    if !options.without_postgres && steps.iter().any(|step| step.needs_postgres != Postgres::Unused) {
        // Before anything else: a machine that lacks it is told so at once, not after half an hour.
        let servers = postgres::ensure()?;
        println!("{servers}");
        println!("{}", fence::ensure(&options.root, &servers, None)?);
    }
    let mut run =
        Run { root: options.root.clone(), without_postgres: options.without_postgres, tests: Counts::default() };
    let mut ended = Vec::new();
    for (number, step) in (1..).zip(&steps) {
        println!("\n==> [{number}/{}] {}: {}", steps.len(), step.name, step.proves);
        let begun = Instant::now();
        let outcome = if step.needs_postgres == Postgres::Wholly && options.without_postgres {
            Ok(Outcome::LeftOut("--without pg"))
        } else {
            (step.run)(&mut run)
        };
        let (verdict, failed) = match outcome {
            Ok(Outcome::Passed) => ("passed".to_owned(), false),
            Ok(Outcome::LeftOut(why)) => (format!("left out: {why}"), false),
            Err(error) => {
                println!("{}: {error:#}", step.name);
                ("FAILED".to_owned(), true)
            }
        };
        ended.push(Ended { name: step.name, verdict, failed, took: begun.elapsed() });
    }
    print!("{}", table(&ended));
    let failed: Vec<&str> = ended.iter().filter(|step| step.failed).map(|step| step.name).collect();
    if failed.is_empty() {
        println!("every step passed or says why it was left out");
    } else {
        println!("failed: {} (again alone: cargo xtask ci --only {})", failed.join(", "), failed.join(","));
    }
    println!("{}", run.tests);
    Ok(failed.is_empty())
}

/// Step, verdict, seconds.
fn table(ended: &[Ended]) -> String {
    let name_width = ended.iter().fold(4, |width, step| max(width, step.name.len()));
    let verdict_width = ended.iter().fold(7, |width, step| max(width, step.verdict.len()));
    let row = |name: &str, verdict: &str, seconds: &str| {
        format!("{name:name_width$}  {verdict:verdict_width$}  {seconds:>7}\n")
    };
    let total: Duration = ended.iter().map(|step| step.took).sum();
    let mut table = format!("\n{}", row("step", "verdict", "seconds"));
    for step in ended {
        table.push_str(&row(step.name, &step.verdict, &format!("{:.1}", step.took.as_secs_f64())));
    }
    table.push_str(&row("total", "", &format!("{:.1}", total.as_secs_f64())));
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lines_up() {
        let ended = [
            Ended { name: "fmt", verdict: "passed".to_owned(), failed: false, took: Duration::from_millis(1_260) },
            Ended { name: "clippy", verdict: "FAILED".to_owned(), failed: true, took: Duration::from_secs(100) },
        ];
        let expected = "\nstep    verdict  seconds\nfmt     passed       1.3\nclippy  FAILED     100.0\ntotal              101.3\n";
        assert_eq!(table(&ended), expected);
    }

    #[test]
    fn steps_have_names_of_their_own() {
        let mut names: Vec<&str> = steps::ALL.iter().map(|step| step.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), steps::ALL.len());
    }
}
