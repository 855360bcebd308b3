//! What a run has done, as it goes and as a page.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use super::faults::Planned;

/// One round.
#[derive(Clone, Debug, Default)]
pub struct Row {
    pub round: u32,
    pub deeds: Vec<String>,
    /// The kinds of those that struck somebody.
    pub struck: Vec<&'static str>,
    pub points: u32,
    pub points_failed: u32,
    pub backups: u32,
    pub backups_failed: u32,
    pub restored: Vec<String>,
    /// How the targets were named, and where they were restored to.
    pub ways: Vec<&'static str>,
    pub entries: usize,
    /// Transfers so far that were committed in two phases.
    pub pairs: usize,
    /// Halves of them that were in doubt at the cuts that were restored beside.
    pub in_doubt: usize,
    pub took: Duration,
}

impl Row {
    pub fn deed(&mut self, planned: Planned, struck: bool) {
        if struck {
            self.struck.push(planned.deed.kind());
        }
        self.deeds.push(if struck { planned.to_string() } else { format!("{planned}, which struck nobody") });
    }

    pub fn restore(&mut self, ways: impl IntoIterator<Item = &'static str>, what: String) {
        self.ways.extend(ways);
        self.restored.push(what);
    }
}

/// How often each was there, most often first.
fn counted<'a>(all: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for one in all {
        *counts.entry(one).or_default() += 1;
    }
    let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts.iter().map(|(one, count)| format!("{one} {count}")).collect::<Vec<_>>().join(", ")
}

pub struct Report {
    seed: u64,
    begun: Instant,
    pub folder: Option<String>,
    rows: Vec<Row>,
}

impl Report {
    pub fn new(seed: u64, folder: Option<String>) -> Self {
        eprintln!("nemesis: seed {seed}");
        Self { seed, begun: Instant::now(), folder, rows: Vec::new() }
    }

    pub fn add(&mut self, row: Row) {
        eprintln!(
            "round {}: {} points, {} failed; {} backups, {} failed; restored {}, {} in doubt; {} entries, {} transfers in two phases; {} cuts restored so far, {:.0} s",
            row.round,
            row.points,
            row.points_failed,
            row.backups,
            row.backups_failed,
            row.restored.join(", "),
            row.in_doubt,
            row.entries,
            row.pairs,
            self.restored() + row.restored.len(),
            self.begun.elapsed().as_secs_f32(),
        );
        self.rows.push(row);
        self.write("no cut was wrong");
    }

    pub fn restored(&self) -> usize {
        self.rows.iter().map(|row| row.restored.len()).sum()
    }

    /// Writes the page, if one is wanted.
    pub fn write(&self, verdict: &str) {
        let Some(folder) = &self.folder else { return };
        let mut text = format!(
            "# Nemesis, seed {}\n\n{} cuts restored in {} rounds and {:.0} s: {verdict}.\n\n\
             Restored: {}.\n\nStruck: {}.\n\n| round | what the nemesis did | points | failed | backups | failed | restored | in doubt | entries | in two phases | seconds |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
            self.seed,
            self.restored(),
            self.rows.len(),
            self.begun.elapsed().as_secs_f32(),
            counted(self.rows.iter().flat_map(|row| row.ways.iter().copied())),
            counted(self.rows.iter().flat_map(|row| row.struck.iter().copied())),
        );
        for row in &self.rows {
            text += &format!(
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {:.0} |\n",
                row.round,
                row.deeds.join("; "),
                row.points,
                row.points_failed,
                row.backups,
                row.backups_failed,
                row.restored.join(", "),
                row.in_doubt,
                row.entries,
                row.pairs,
                row.took.as_secs_f32()
            );
        }
        fs::create_dir_all(folder).unwrap();
        fs::write(format!("{folder}/report.md"), text).unwrap();
    }
}
