//! The simulator's own sight: each planted bug must be seen by every story that claims to, and how well is kept beside the
//! snapshots, so that a change which blinds an oracle is noticed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_scenarios::{ALL, Scenario};

use crate::artefact;
use crate::backends::Simulator;
use crate::parallel::{self, Next};
use crate::{TRIAL, chosen};

/// The table of the last time that somebody looked at all of it, from the root of the repository.
const KEPT: &str = "snapshots/mutants/table.txt";

/// Stories that claim to see nothing in particular: what the swarm tells.
pub const GENERAL: [&str; 3] =
    [TRIAL, "every-history-is-kept-whatever-strikes", "nodes-that-fight-and-fail-lose-nothing"];

/// Runs that tell the kill rate in the kept table.
const RATED: u64 = 5;

/// How a bug is hunted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// So many runs count for the kill rate.
    pub rated: u64,
    /// And so many are made at most, until one sees it.
    pub at_most: u64,
}

/// What a hunt found: one bug in one story.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hunt {
    /// Runs that were made.
    pub runs: u64,
    /// How many of the rated ones saw it.
    pub kills: u64,
    /// The first that saw it, from 1.
    pub first: Option<u64>,
    /// The invariant that gave it away, in the first of them.
    pub invariant: String,
    /// Who judged.
    pub oracle: String,
}

/// Plants a bug in this process and tells a story with one seed after the other, each once. The caller is a process of its
/// own for this.
pub fn hunt_here(bug: &str, scenario: &Scenario, effort: Effort) -> Hunt {
    planted::plant(bug);
    let seeds: Vec<u64> = (0..effort.at_most.max(effort.rated)).collect();
    let kills = AtomicU64::new(0);
    let runs = parallel::each(&seeds, |number| {
        let report = Simulator::DEFAULT.tell(scenario, scenario.seed().wrapping_add(*number));
        let seen = report.verdict.is_err();
        kills.fetch_add(u64::from(seen), Ordering::SeqCst);
        let enough = number + 1 >= effort.rated && kills.load(Ordering::SeqCst) > 0;
        (seen.then(|| artefact::judged(&report.verdict)), if enough { Next::Stop } else { Next::More })
    });
    let rated = usize::try_from(effort.rated).unwrap_or(usize::MAX);
    let first = runs.iter().position(Option::is_some);
    let (invariant, _, oracle) =
        first.and_then(|place| runs.get(place).cloned().flatten()).unwrap_or((String::new(), String::new(), "nobody"));
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    Hunt {
        runs: count(runs.len()),
        kills: count(runs.iter().take(rated).filter(|seen| seen.is_some()).count()),
        first: first.map(|place| count(place + 1)),
        invariant,
        oracle: oracle.into(),
    }
}

/// The same in a process of its own: a bug is planted in all of it.
pub fn hunt_one(bug: &str, story: &str, effort: Effort) -> Result<(Hunt, f64)> {
    let ourselves = std::env::current_exe().context("cannot find this program")?;
    let started = Instant::now();
    let output = Command::new(&ourselves)
        .args(["hunt", bug, story, "--rated", &effort.rated.to_string(), "--at-most", &effort.at_most.to_string()])
        .output()
        .with_context(|| format!("cannot run {}", ourselves.display()))?;
    if !output.status.success() {
        bail!("hunting {bug} in {story}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let hunt = serde_json::from_slice(&output.stdout).with_context(|| format!("hunting {bug} in {story}"))?;
    Ok((hunt, started.elapsed().as_secs_f64()))
}

/// A bug, a story, and what was found.
struct Row {
    bug: &'static str,
    story: &'static str,
    hunt: Hunt,
}

/// What is asked of `cargo xtask mutants`.
#[derive(Debug, clap::Args)]
pub struct Mutants {
    /// One bug, by name; all of them if none is named.
    pub planted: Option<String>,
    /// So many runs for each bug and story, at most.
    #[arg(long, default_value_t = 800)]
    pub seeds: u64,
    /// So many of them tell the kill rate.
    #[arg(long, default_value_t = RATED)]
    pub rated: u64,
    /// Hunt each bug in the general stories, which claim to see none of them; a survivor is no failure here.
    #[arg(long)]
    pub general: bool,
    /// Keep the table as the one to compare with.
    #[arg(long, conflicts_with_all = ["planted", "general"])]
    pub keep: bool,
}

impl Mutants {
    /// All bugs, each in the stories that claim to see it.
    pub const fn all(seeds: u64) -> Self {
        Self { planted: None, seeds, rated: RATED, general: false, keep: false }
    }
}

/// Hunts, prints what was seen, and says whether every claim held and no kill rate has collapsed.
pub fn hunt(asked: &Mutants) -> Result<bool> {
    let bugs: Vec<(&'static str, Bug)> =
        Bug::ALL.iter().filter(|(name, _)| asked.planted.as_ref().is_none_or(|only| only == name)).copied().collect();
    let effort = Effort { rated: asked.rated.min(asked.seeds), at_most: asked.seeds };
    // Before anything runs: without a table nothing can be compared, and to keep one is to compare with none.
    let compared = !asked.general && !asked.keep && effort.rated == RATED;
    let kept = if compared { read(Path::new(KEPT))? } else { Vec::new() };
    let (mut rows, mut survivors) = (Vec::new(), Vec::new());
    println!("{:28} {:58} {:>8} {:>6} {:>7}  seen by", "planted bug", "story", "kills", "first", "took");
    for (name, bug) in &bugs {
        let mut seen = false;
        let claims: Vec<&'static str> = if asked.general {
            GENERAL.to_vec()
        } else {
            ALL.iter().filter(|scenario| scenario.sees.contains(bug)).map(|scenario| scenario.name).collect()
        };
        for story in &claims {
            // The next general story has its turn only if this one saw nothing.
            if asked.general && seen {
                continue;
            }
            let (hunt, seconds) = hunt_one(name, story, effort)?;
            seen |= hunt.first.is_some();
            println!("{} {seconds:>6.1}s  {}", cells(name, story, &hunt, effort), words(&hunt));
            if hunt.first.is_none() && !asked.general {
                survivors.push(format!("{name} in {story}"));
            }
            rows.push(Row { bug: name, story, hunt });
        }
        if !seen && (asked.general || claims.is_empty()) {
            survivors.push((*name).to_string());
        }
    }
    let hunts = rows.len();
    println!("{} planted bugs, {hunts} hunts, {} not seen", bugs.len(), survivors.len());
    if !survivors.is_empty() {
        println!("not seen: {}", survivors.join(", "));
    }
    if asked.keep {
        keep(Path::new(KEPT), &rows, effort)?;
    }
    let blinded = blinded(&kept, &rows);
    for line in &blinded {
        println!("{line}");
    }
    Ok(asked.general || (hunts > 0 && survivors.is_empty() && blinded.is_empty()))
}

fn cells(bug: &str, story: &str, hunt: &Hunt, effort: Effort) -> String {
    let first = hunt.first.map_or_else(|| "-".into(), |first| first.to_string());
    let rate = format!("{}/{}", hunt.kills, hunt.runs.min(effort.rated));
    format!("{bug:28} {story:58} {rate:>8} {first:>6}")
}

fn words(hunt: &Hunt) -> String {
    if hunt.first.is_none() {
        return "NOBODY".into();
    }
    let oracle = hunt.oracle.split(" (").next().unwrap_or_default();
    format!("{oracle}: {}", hunt.invariant)
}

/// Without the time that it took, which differs from machine to machine.
fn keep(path: &Path, rows: &[Row], effort: Effort) -> Result<()> {
    let folder = path.parent().map(PathBuf::from).unwrap_or_default();
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let head = format!("{:28} {:58} {:>8} {:>6}  seen by", "planted bug", "story", "kills", "first");
    let line = |row: &Row| format!("{}  {}", cells(row.bug, row.story, &row.hunt, effort), words(&row.hunt));
    let lines: Vec<String> = std::iter::once(head).chain(rows.iter().map(line)).collect();
    fs::write(path, lines.join("\n") + "\n").with_context(|| format!("cannot write {}", path.display()))
}

/// Bug, story and kills of a kept table.
fn read(path: &Path) -> Result<Vec<(String, String, u64)>> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read {}: `cargo xtask mutants --keep` writes it", path.display()))?;
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let (bug, story, rate) = (words.next()?, words.next()?, words.next()?);
        Some((bug.to_string(), story.to_string(), rate.split('/').next()?.parse().ok()?))
    };
    text.lines().skip(1).map(|line| row(line).with_context(|| format!("{}: {line}", path.display()))).collect()
}

/// The rows whose story saw the bug in most runs when it was last looked at, and sees it in hardly any now. Rarer sights come
/// and go with every change of the schedule.
fn blinded(kept: &[(String, String, u64)], rows: &[Row]) -> Vec<String> {
    let before = |row: &&Row| kept.iter().find(|(bug, story, _)| bug == row.bug && story == row.story);
    let line = |row: &Row| {
        let (.., kills) = before(&row)?;
        let fell = *kills + 1 >= RATED && row.hunt.kills <= 1;
        fell.then(|| format!("{} was seen {} times by {}, and now {}", row.bug, kills, row.story, row.hunt.kills))
    };
    rows.iter().filter_map(line).collect()
}

/// The chore behind [`hunt_one`].
#[derive(Debug, clap::Args)]
pub struct Here {
    /// The bug, by name.
    pub planted: String,
    /// The story.
    pub story: String,
    /// So many runs tell the kill rate.
    #[arg(long, default_value_t = 1)]
    pub rated: u64,
    /// So many runs at most.
    #[arg(long, default_value_t = 800)]
    pub at_most: u64,
}

/// Hunts in this process, and prints what was found as JSON.
pub fn here(asked: &Here) -> Result<bool> {
    crate::known_bug(&asked.planted)?;
    let Some(scenario) = chosen(Some(&asked.story))?.first().copied() else { bail!("there are no stories") };
    let hunt = hunt_here(&asked.planted, &scenario, Effort { rated: asked.rated, at_most: asked.at_most });
    println!("{}", serde_json::to_string(&hunt)?);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kills: u64) -> Row {
        let hunt = Hunt {
            runs: RATED,
            kills,
            first: Some(1),
            invariant: "x".into(),
            oracle: "the ledger, an oracle (y)".into(),
        };
        Row { bug: "no-fence", story: "a-story", hunt }
    }

    #[test]
    fn a_kill_rate_that_collapsed_is_noticed() {
        let path = std::env::temp_dir().join(format!("sheetanchor-mutants-{}.txt", std::process::id()));
        assert!(read(&path).unwrap_err().to_string().contains("mutants --keep"), "no table is no empty table");
        keep(&path, &[row(4)], Effort { rated: RATED, at_most: 400 }).unwrap();
        let kept = read(&path).unwrap();
        assert_eq!(kept, [("no-fence".to_string(), "a-story".to_string(), 4)]);
        assert_eq!(blinded(&kept, &[row(2)]), [""; 0]);
        assert_eq!(blinded(&kept, &[row(1)]).len(), 1);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_general_stories_are_told_and_the_kept_table_is_one() {
        for name in GENERAL {
            assert_eq!(chosen(Some(name)).unwrap().len(), 1, "{name}");
        }
        let kept = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(KEPT)).unwrap();
        let known = |bug: &str, story: &str| {
            Bug::ALL.iter().any(|(name, _)| *name == bug) && ALL.iter().any(|scenario| scenario.name == story)
        };
        assert!(!kept.is_empty());
        for (bug, story, kills) in &kept {
            assert!(known(bug, story) && *kills <= RATED, "{bug} {story} {kills}");
        }
    }
}
