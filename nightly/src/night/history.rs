//! `history.jsonl`: one line a night, kept from night to night, so that the report can show trends.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

/// The version of a line.
pub const VERSION: u64 = 0;

/// One night.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Night {
    /// Always [`VERSION`].
    pub history_version: u64,
    /// The day on which it began, in UTC.
    pub date: String,
    /// What was run.
    pub commit: String,
    /// The first new seed.
    pub from: u64,
    /// How many runs there were, each done twice.
    pub runs: usize,
    /// How many of them were seeds that had failed before.
    pub old_seeds: usize,
    /// How long these runs took, in seconds.
    pub seconds: f64,
    /// What failed.
    pub failed: Vec<Failed>,
    /// Which planted bugs were hunted in which story.
    pub hunted: Vec<Hunted>,
    /// How many pairs of a bug and a story there are.
    pub claims: usize,
}

/// A run that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Its story.
    pub story: String,
    /// Its seed.
    pub seed: u64,
    /// Its simulator.
    pub backend: String,
    /// What did not hold.
    pub invariant: String,
    /// The folder that shows it, beside the report.
    pub folder: Option<String>,
}

/// A planted bug, hunted in one story.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hunted {
    /// The bug.
    pub bug: String,
    /// The story; `None`: none claims to see it, and a general one was told.
    pub story: Option<String>,
    /// How many runs it took.
    pub runs: String,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// The invariant that gave it away; `None`: nobody saw it.
    pub seen: Option<String>,
}

impl Hunted {
    /// Whether the bug was seen by a story that claims to.
    pub fn is_as_claimed(&self) -> bool {
        self.seen.is_some() && self.story.is_some()
    }
}

impl Night {
    /// Whether nothing failed, and every bug that was hunted was seen as claimed.
    pub fn is_good(&self) -> bool {
        self.runs > 0 && self.failed.is_empty() && self.killed() == self.hunted.len()
    }

    /// How many hunts ended as claimed.
    pub fn killed(&self) -> usize {
        self.hunted.iter().filter(|hunted| hunted.is_as_claimed()).count()
    }
}

/// All nights of a file, oldest first; none if there is no file yet.
pub fn read(path: &Path) -> Result<Vec<Night>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let night = |(line, text): (usize, &str)| -> Result<Night> {
        let place = || format!("{} line {line}", path.display());
        let night: Night = serde_json::from_str(text).with_context(place)?;
        if night.history_version != VERSION {
            bail!("{}: its version is {}; this program reads version {VERSION}", place(), night.history_version);
        }
        Ok(night)
    };
    (1..).zip(text.lines()).map(night).collect()
}

/// Adds a night.
pub fn append(path: &Path, night: &Night) -> Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path);
    let line = serde_json::to_string(night)? + "\n";
    file.as_mut()
        .map_err(|error| std::io::Error::new(error.kind(), error.to_string()))
        .and_then(|file| file.write_all(line.as_bytes()))
        .with_context(|| format!("cannot add to {}", path.display()))
}

#[cfg(test)]
pub fn sample(date: &str, failed: usize, seen: bool) -> Night {
    let failure = Failed {
        story: "a-story".into(),
        seed: 7,
        backend: "own".into(),
        invariant: "1 < 2".into(),
        folder: Some("a-story-7-own".into()),
    };
    let hunted = Hunted {
        bug: "no-fence".into(),
        story: Some("a-story".into()),
        runs: "3".into(),
        seconds: 0.5,
        seen: seen.then(|| "what holds".into()),
    };
    Night {
        history_version: VERSION,
        date: date.into(),
        commit: "abc".into(),
        from: 20_260_101_000_000,
        runs: 120,
        old_seeds: 4,
        seconds: 60.0,
        failed: vec![failure; failed],
        hunted: vec![hunted],
        claims: 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nights_are_read_back_and_another_version_is_refused() {
        let path = std::env::temp_dir().join(format!("sheetanchor-history-{}.jsonl", std::process::id()));
        assert_eq!(read(&path).unwrap(), []);
        let nights = [sample("2026-01-01", 0, true), sample("2026-01-02", 1, false)];
        for night in &nights {
            append(&path, night).unwrap();
        }
        assert_eq!(read(&path).unwrap(), nights);
        append(&path, &Night { history_version: 9, ..sample("2026-01-03", 0, true) }).unwrap();
        let answer = read(&path).unwrap_err().to_string();
        assert!(answer.contains("line 3: its version is 9"), "{answer}");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_failure_or_a_survivor_spoils_the_night() {
        assert!(sample("2026-01-01", 0, true).is_good());
        assert!(!sample("2026-01-01", 1, true).is_good());
        assert!(!sample("2026-01-01", 0, false).is_good());
        assert!(!Night { runs: 0, ..sample("2026-01-01", 0, true) }.is_good());
    }
}
