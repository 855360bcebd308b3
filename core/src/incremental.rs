//! Which backup an incremental one may go on from, and whose WAL tells what has changed since. Whatever does not fit is no
//! reason to fail: then all is copied, and the reason is shown.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::format::catalog::Members;
use crate::format::manifest::Manifest;
use crate::identity::{Incarnation, NodeId, ThreadId};
use crate::planted::{self, Bug};
use crate::position::Position;

/// How much of the data a backup is to copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Extent {
    /// All of it.
    #[default]
    Full,
    /// What has changed since the newest backup that it can go on from; all of it where there is none.
    Incremental,
}

/// WAL of one thread that tells what has changed in it: from where the earlier backup started to where this one does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where the earlier backup started. Thread and timeline are those of `until`.
    pub since: Position,
    /// Where this one starts, exclusive.
    pub until: Position,
}

/// Checks that a backup of the cluster as it is now can go on from the one that `base` describes: the same databases, in
/// the same incarnation.
///
/// # Errors
/// What does not fit, in words.
pub fn check_base(base: &Manifest, members: &Members, incarnation: Incarnation) -> Result<(), String> {
    let backup = base.operation;
    if base.incarnation != incarnation && !planted::is(Bug::BaseOfAnotherIncarnation) {
        return Err(format!("{backup} is of incarnation {}, this is incarnation {incarnation}", base.incarnation));
    }
    if base.membership != members.membership {
        return Err(format!(
            "{backup} covers list of members {}, this is list {}",
            base.membership, members.membership
        ));
    }
    if base.engine != members.engine || base.shared != members.shared || base.nodes != members.nodes {
        return Err(format!("{backup} is of other databases"));
    }
    Ok(())
}

/// The WAL that tells what has changed in the files that `node` captures: of every thread where all share them, else of
/// its own. `starts` are this backup's.
///
/// # Errors
/// What does not fit, in words.
pub fn ranges(base: &Manifest, starts: &[Position], node: NodeId) -> Result<Vec<Range>, String> {
    let own = ThreadId::of(node);
    let all = base.shared && !planted::is(Bug::ChangesOfOneThread);
    let threads = base.threads.iter().filter(|(thread, _)| all || **thread == own);
    let ranges: Result<Vec<Range>, String> = threads
        .map(|(thread, span)| {
            let since = Position { thread: *thread, timeline: span.timeline, lsn: span.start };
            let until = starts.iter().copied().find(|start| start.thread == *thread);
            let until = until.ok_or_else(|| format!("thread {thread} has not begun this backup"))?;
            if until.timeline == since.timeline && until.lsn >= since.lsn {
                return Ok(Range { since, until });
            }
            let (left, timeline) = (since.timeline, until.timeline);
            Err(format!("thread {thread} was at {since} of timeline {left}, and is at {until} of timeline {timeline}"))
        })
        .collect();
    let ranges = ranges?;
    if ranges.is_empty() {
        return Err(format!("{} has no WAL of node {node}", base.operation));
    }
    Ok(ranges)
}
