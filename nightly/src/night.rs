//! `cargo xtask nightly`: within a time, all seeds that ever failed, then new ones on every simulator of this build, and
//! planted bugs; with a report, trends over many nights, and an exit status.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use sheetanchor_core::planted::Bug;
use sheetanchor_scenarios::{ALL, Scenario};

use crate::artefact::{self, Recorded};
use crate::backends::Simulator;
use crate::case::Case;
use crate::runs::{self, Run};
use crate::{corpus, mutants};

mod history;

mod report;

use history::{Failed, Hunted, Night};

/// How long, from which seed, and where to.
#[derive(Debug, clap::Args)]
pub struct Nightly {
    /// The time that may be used, such as `90s`, `10m` or `2h`: half of it for seeds, the rest for planted bugs.
    #[arg(long = "for", default_value = "10m", value_parser = budget)]
    budget: Duration,
    /// The first new seed; of today's date if none is given.
    #[arg(long)]
    from: Option<u64>,
    /// Where the report and the folders of failures go.
    #[arg(long, default_value = "target/nightly")]
    out: PathBuf,
    /// The file that keeps one line for each night; `history.jsonl` beside the report if none is named.
    #[arg(long)]
    history: Option<PathBuf>,
}

/// Folders of failures that one night writes: the first ones.
const FOLDERS_MAX: usize = 10;
/// Seeds with which a planted bug is hunted in each story that claims to see it.
const HUNT_SEEDS: u64 = 800;

fn budget(text: &str) -> Result<Duration> {
    let unit = text.trim_start_matches(|letter: char| letter.is_ascii_digit());
    let count: u64 = text.trim_end_matches(unit).parse().context("a time is a number and a unit, such as 10m")?;
    let seconds = match unit {
        "s" => Some(count),
        "m" => count.checked_mul(60),
        "h" => count.checked_mul(3_600),
        _ => bail!("a time ends in s, m or h, such as 10m"),
    };
    match seconds {
        Some(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => bail!("a time is above zero, such as 10m"),
    }
}

/// The first new seed of a day: a million for each.
fn seed_of(date: &str) -> u64 {
    let digits: String = date.chars().filter(char::is_ascii_digit).collect();
    digits.parse::<u64>().unwrap_or(0).saturating_mul(1_000_000)
}

/// Runs the night. Answers whether nothing failed, and every bug that was hunted was seen.
pub fn run(asked: &Nightly) -> Result<bool> {
    let started = Instant::now();
    fs::create_dir_all(&asked.out).with_context(|| format!("cannot make {}", asked.out.display()))?;
    let kept = asked.history.clone().unwrap_or_else(|| asked.out.join("history.jsonl"));
    // Before anything runs: a history that cannot be read is not overwritten after an hour of work.
    let mut nights = history::read(&kept)?;
    let date = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
    let from = asked.from.unwrap_or_else(|| seed_of(&date));
    let (old, new) = seeds(from, started, asked.budget / 2);
    let ran: Vec<&Run> = old.iter().chain(&new).collect();
    let failed = failures(&ran, &asked.out)?;
    let seeds_seconds = started.elapsed().as_secs_f64();
    let hunted = hunts(from, started, asked.budget)?;
    let night = Night {
        history_version: history::VERSION,
        date,
        commit: artefact::commit(),
        from,
        runs: ran.len(),
        old_seeds: old.len(),
        seconds: seeds_seconds,
        failed,
        hunted,
        claims: pairs().len(),
    };
    nights.push(night.clone());
    history::append(&kept, &night)?;
    let summary = report::summary(&night);
    write(&asked.out.join("report.html"), &report::page(&nights, &report::stories(&ran)))?;
    write(&asked.out.join("summary.md"), &summary)?;
    println!("{summary}\n{}", asked.out.join("report.html").display());
    Ok(night.is_good())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The seeds that once failed, and new ones, round after round over all stories and simulators, until the time is up.
fn seeds(from: u64, started: Instant, time: Duration) -> (Vec<Run>, Vec<Run>) {
    let simulators = Simulator::present();
    let old = corpus::of(ALL);
    let old = simulators.iter().flat_map(|simulator| runs::run_all(*simulator, &old, false)).collect();
    let mut new = Vec::new();
    for round in 0.. {
        // The fast one most often, and each of the others in turn.
        let others = simulators.len().saturating_sub(1).max(1);
        let other = usize::try_from(round / 4).unwrap_or(0) % others;
        let place = if round % 4 == 3 && simulators.len() > 1 { 1 + other } else { 0 };
        let Some(simulator) = simulators.get(place) else { break };
        let plan: Vec<(Scenario, u64)> = ALL.iter().map(|scenario| (*scenario, from.wrapping_add(round))).collect();
        new.extend(runs::run_all(*simulator, &plan, false));
        if started.elapsed() >= time {
            break;
        }
    }
    (old, new)
}

/// What failed; the first of them with a folder each.
fn failures(ran: &[&Run], out: &Path) -> Result<Vec<Failed>> {
    let mut failed = Vec::new();
    for run in ran.iter().filter(|run| !run.passed()) {
        let case = Case::of(run.scenario.name, run.seed, run.simulator, None);
        let invariant = match &run.differs {
            Some(_) if run.report.verdict.is_ok() => "the same seed gives the same run".to_string(),
            _ => artefact::judged(&run.report.verdict).0,
        };
        let folder = format!("{}-{}-{}", run.scenario.name, run.seed, run.simulator.name());
        let folder = (failed.len() < FOLDERS_MAX).then_some(folder);
        if let Some(folder) = &folder {
            Recorded::of(&case)?.write(&out.join(folder))?;
        }
        let (story, backend) = (case.story, case.backend);
        failed.push(Failed { story, seed: run.seed, backend, invariant, folder });
    }
    Ok(failed)
}

/// Each bug with each story that claims to see it, and with none if no story does.
fn pairs() -> Vec<(&'static str, Option<&'static str>)> {
    let mut pairs = Vec::new();
    for (name, bug) in Bug::ALL {
        let before = pairs.len();
        let claims = ALL.iter().filter(|scenario| scenario.sees.contains(bug));
        pairs.extend(claims.map(|scenario| (*name, Some(scenario.name))));
        if pairs.len() == before {
            pairs.push((*name, None));
        }
    }
    pairs
}

/// Hunts planted bugs until the time is up, another first one each night: what is not reached today is reached later.
fn hunts(from: u64, started: Instant, time: Duration) -> Result<Vec<Hunted>> {
    let mut pairs = pairs();
    let many = u64::try_from(pairs.len()).unwrap_or(1).max(1);
    pairs.rotate_left(usize::try_from((from / 1_000_000).wrapping_mul(7) % many).unwrap_or(0));
    let mut hunted = Vec::new();
    for (bug, story) in pairs {
        if started.elapsed() >= time {
            break;
        }
        // What no story claims is hunted in the general one that meets more, and counts as not seen as claimed.
        let told = story.unwrap_or(mutants::GENERAL[1]);
        let (hunt, seconds) = mutants::hunt_one(bug, told, mutants::Effort { rated: 1, at_most: HUNT_SEEDS })?;
        let seen = hunt.first.map(|_| hunt.invariant);
        hunted.push(Hunted {
            bug: bug.into(),
            story: story.map(Into::into),
            runs: hunt.first.unwrap_or(hunt.runs).to_string(),
            seconds,
            seen,
        });
    }
    Ok(hunted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit() {
        assert_eq!(budget("90s").unwrap(), Duration::from_secs(90));
        assert_eq!(budget("10m").unwrap(), Duration::from_mins(10));
        assert_eq!(budget("2h").unwrap(), Duration::from_hours(2));
        for wrong in ["", "10", "m", "10x", "0m", "-1m", "1m1m"] {
            assert!(budget(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn seeds_of_two_days_do_not_meet() {
        assert_eq!(seed_of("2026-11-22"), 20_261_122_000_000);
    }

    #[test]
    fn every_bug_is_hunted() {
        let pairs = pairs();
        assert!(Bug::ALL.iter().all(|(name, _)| pairs.iter().any(|(bug, _)| bug == name)));
    }
}
