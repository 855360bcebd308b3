//! The simulator's own sight: each planted bug must be seen.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};
use sheetanchor_core::planted::Bug;

/// Plants each known bug in a process of its own, prints who saw it, and says whether every one was seen.
pub fn hunt(seeds: u64) -> Result<bool> {
    let ourselves = std::env::current_exe().context("cannot find this program")?;
    let width = Bug::ALL.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    println!("{:width$}  {:>8}  {:>6}  seen by", "planted bug", "runs", "took");
    let mut survivors = 0;
    for (name, _) in Bug::ALL {
        let started = Instant::now();
        let output = Command::new(&ourselves)
            .args(["sim", "--until-failure", "--planted", name, "--seeds", &seeds.to_string()])
            .output()
            .with_context(|| format!("cannot run {}", ourselves.display()))?;
        let (report, runs) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        let runs = runs.lines().last().and_then(|line| line.split(' ').next()).unwrap_or("?").to_string();
        // The report names the story in its first line and the invariant in its third.
        let mut lines = report.lines().filter(|line| !line.is_empty());
        let told = (output.status.code(), lines.next(), lines.next());
        let seen_by = if let (Some(1), Some(story), Some(invariant)) = told {
            let invariant: String = invariant.trim().chars().take(110).collect();
            format!("{}: {invariant}", story.trim_start_matches("FAILED "))
        } else {
            survivors += 1;
            "NOBODY".to_string()
        };
        println!("{name:width$}  {runs:>8}  {:>5.1}s  {seen_by}", started.elapsed().as_secs_f64());
    }
    println!("{} planted bugs, {survivors} not seen", Bug::ALL.len());
    Ok(survivors == 0)
}
