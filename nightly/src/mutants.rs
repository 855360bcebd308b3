//! The simulator's own sight: each planted bug must be seen.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};
use sheetanchor_core::planted::Bug;
use sheetanchor_scenarios::ALL;

/// One hunt: a bug, and the story that must see it.
#[derive(Debug)]
pub struct Hunt {
    /// How many runs it took, in words.
    pub runs: String,
    /// How long, in seconds.
    pub seconds: f64,
    /// The story and the invariant in words, if it was seen.
    pub seen: Option<(String, String)>,
}

/// Plants each known bug in a process of its own, once for each story that claims to see it, prints what was seen, and says
/// whether every claim held. A bug that no story claims is hunted with all of them, and counts as not seen.
pub fn hunt(only: Option<&str>, seeds: u64) -> Result<bool> {
    let bugs = || Bug::ALL.iter().filter(|(name, _)| only.is_none_or(|only| only == *name));
    let width = bugs().map(|(name, _)| name.len()).max().unwrap_or(0);
    println!("{:width$}  {:>8}  {:>6}  seen by", "planted bug", "runs", "took");
    let (mut hunts, mut survivors) = (0, 0);
    for (name, bug) in bugs() {
        let claimants: Vec<&str> =
            ALL.iter().filter(|scenario| scenario.sees.contains(bug)).map(|scenario| scenario.name).collect();
        let stories =
            if claimants.is_empty() { vec![None] } else { claimants.iter().map(|name| Some(*name)).collect() };
        for story in stories {
            let hunt = hunt_one(name, story, seeds)?;
            hunts += 1;
            let words = match (&hunt.seen, story) {
                (Some((by, invariant)), Some(_)) => format!("{by}: {invariant}"),
                (Some((by, invariant)), None) => {
                    survivors += 1;
                    format!("{by}, though no story claims to see it: {invariant}")
                }
                (None, story) => {
                    survivors += 1;
                    format!("NOBODY{}", story.map(|story| format!(", not by {story}")).unwrap_or_default())
                }
            };
            println!("{name:width$}  {:>8}  {:>5.1}s  {words}", hunt.runs, hunt.seconds);
        }
    }
    println!("{} planted bugs, {hunts} hunts, {survivors} not as claimed", bugs().count());
    Ok(hunts > 0 && survivors == 0)
}

/// Runs one story, or all, with the bug, until it is seen.
pub fn hunt_one(bug: &str, story: Option<&str>, seeds: u64) -> Result<Hunt> {
    let ourselves = std::env::current_exe().context("cannot find this program")?;
    let started = Instant::now();
    let output = Command::new(&ourselves)
        .arg("sim")
        .args(story)
        .args(["--until-failure", "--no-artefacts", "--planted", bug, "--seeds", &seeds.to_string()])
        .output()
        .with_context(|| format!("cannot run {}", ourselves.display()))?;
    let (report, runs) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    let runs = runs.lines().last().and_then(|line| line.split(' ').next()).unwrap_or("?").to_string();
    // The report names the story in its first line and the invariant in its third.
    let mut lines = report.lines().filter(|line| !line.is_empty());
    let seen = match (output.status.code(), lines.next(), lines.next()) {
        (Some(1), Some(by), Some(invariant)) => {
            Some((by.trim_start_matches("FAILED ").to_string(), invariant.trim().chars().take(110).collect()))
        }
        _ => None,
    };
    Ok(Hunt { runs, seconds: started.elapsed().as_secs_f64(), seen })
}
