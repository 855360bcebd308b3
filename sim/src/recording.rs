//! All of a run, for people who want to see what happened: every event, and what each crash left on the disks.

use std::time::Duration;

use crate::disk::FileView;
use crate::plan::CrashPolicy;
use crate::trace::Event;

/// A run in full.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// The names of the hosts, in the order of their numbers.
    pub hosts: Vec<String>,
    /// Every event, in order.
    pub events: Vec<Event>,
    /// Every crash, in order.
    pub crashes: Vec<CrashView>,
}

/// What one crash did to the files that its host could reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashView {
    /// The number of the last event before the host's bytes were taken.
    pub event: u64,
    /// Simulated time since the start.
    pub at: Duration,
    /// Who crashed.
    pub host: String,
    /// What survived.
    pub policy: CrashPolicy,
    /// Files that the crash changed, or could have changed, by path.
    pub files: Vec<FileFate>,
    /// How many other files there were.
    pub untouched: usize,
}

/// A file before and after a crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFate {
    /// Before; `None`: it was not there.
    pub before: Option<FileView>,
    /// After; `None`: it is gone.
    pub after: Option<FileView>,
}

impl FileFate {
    /// Its path.
    pub fn path(&self) -> &str {
        self.before.as_ref().or(self.after.as_ref()).map_or("", |view| view.path.as_str())
    }
}

/// Pairs what a survey found before a crash with what another found after it. Answers the files that were not settled or
/// have changed, and the number of the others. Both are sorted by path.
pub(crate) fn fates(before: Vec<FileView>, after: Vec<FileView>) -> (Vec<FileFate>, usize) {
    let mut fates = Vec::new();
    let mut untouched = 0;
    let (mut before, mut after) = (before.into_iter().peekable(), after.into_iter().peekable());
    loop {
        let order = match (before.peek(), after.peek()) {
            (Some(one), Some(other)) => one.path.cmp(&other.path),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (None, None) => return (fates, untouched),
        };
        let one = if order.is_gt() { None } else { before.next() };
        let other = if order.is_lt() { None } else { after.next() };
        if one == other && one.as_ref().is_some_and(FileView::is_settled) {
            untouched += 1;
        } else {
            fates.push(FileFate { before: one, after: other });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, unsynced_bytes: u64) -> FileView {
        FileView { path: path.into(), seen_bytes: Some(4), durable_bytes: 4, unsynced_bytes, name_durable: true }
    }

    #[test]
    fn settled_files_are_counted_and_the_others_are_paired() {
        let before = vec![file("/a", 0), file("/b", 1), file("/c", 0)];
        let after = vec![file("/a", 0), file("/b", 0), file("/d", 0)];
        let (fates, untouched) = fates(before, after);
        assert_eq!(untouched, 1);
        let seen: Vec<_> =
            fates.iter().map(|fate| (fate.path(), fate.before.is_some(), fate.after.is_some())).collect();
        assert_eq!(seen, [("/b", true, true), ("/c", true, false), ("/d", false, true)]);
    }
}
