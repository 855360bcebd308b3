//! Which backup an incremental one may go on from, whose WAL tells what has changed since, and what is read for that.
//! Whatever does not fit is no reason to fail: then all is copied, and the reason is shown.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::changes::{ChangeMap, Changed};
use crate::format::catalog::Members;
use crate::format::files::Chunk;
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

/// How the piece of a file comes into a backup; `B` is what the base has of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Take<B> {
    /// It is read.
    Whole,
    /// It is what the base has.
    Kept(B),
    /// It is what the base has, but for these blocks of so many bytes, counted from the beginning of the piece.
    Blocks(B, u32, Vec<u32>),
}

impl<B> Take<B> {
    /// How many bytes of the file are read for a piece of so many.
    pub fn reads(&self, piece: u64) -> u64 {
        match self {
            Self::Whole => piece,
            Self::Kept(_) => 0,
            Self::Blocks(_, size, blocks) => {
                let count = u64::try_from(blocks.len()).unwrap_or(u64::MAX);
                piece.min(count.saturating_mul(u64::from(*size)))
            }
        }
    }
}

impl Take<()> {
    /// The same, with what the base has.
    pub fn with<B>(self, base: impl FnOnce() -> B) -> Take<B> {
        match self {
            Self::Whole => Take::Whole,
            Self::Kept(()) => Take::Kept(base()),
            Self::Blocks((), size, blocks) => Take::Blocks(base(), size, blocks),
        }
    }
}

/// How the piece of `want` bytes at `offset` of the file `name` comes into a backup, whose base has `chunk` there.
pub fn take(chunk: &Chunk, changes: &ChangeMap, name: &str, offset: u64, want: u64) -> Take<()> {
    let grown = chunk.length.get() < want && planted::is(Bug::GrownTailUnread);
    if chunk.length.get() != want && !grown {
        return Take::Whole;
    }
    match changes.of_until(name, offset.saturating_add(chunk.length.get())) {
        Changed::Whole => Take::Whole,
        Changed::Same => Take::Kept(()),
        Changed::Blocks { size, numbers } => {
            let Some(first) = offset.checked_div(u64::from(size)).filter(|first| first * u64::from(size) == offset)
            else {
                return Take::Whole;
            };
            let until = first.saturating_add(chunk.length.get().div_ceil(u64::from(size)));
            patched(
                chunk,
                size,
                numbers.range(first..until).filter_map(|number| u32::try_from(number - first).ok()).collect(),
            )
        }
    }
}

/// What is changed in the base's chunk, and what was changed in it before: the new patch takes the place of the old one.
fn patched(chunk: &Chunk, block: u32, mut changed: Vec<u32>) -> Take<()> {
    if changed.is_empty() {
        return Take::Kept(());
    }
    match &chunk.patch {
        Some(patch) if patch.block != block => return Take::Whole,
        Some(patch) if !planted::is(Bug::PatchForgetsThePatch) => changed.extend(&patch.numbers),
        Some(_) | None => {}
    }
    changed.sort_unstable();
    changed.dedup();
    let bytes = u64::from(block).saturating_mul(u64::try_from(changed.len()).unwrap_or(u64::MAX));
    if bytes.saturating_mul(2) > chunk.length.get() {
        return Take::Whole;
    }
    Take::Blocks((), block, changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::files::Patch;
    use crate::identity::{ByteCount, ContentHash};
    use std::boxed::Box;
    use std::vec;

    fn chunk(length: u64, patch: Option<&[u32]>) -> Chunk {
        let (hash, stored) = (ContentHash::of(b""), ByteCount::new(1));
        let patch =
            patch.map(|numbers| Patch { block: 8, hash, numbers: numbers.to_vec(), offset: 0, pack: 0, stored });
        Chunk { hash, length: ByteCount::new(length), offset: 0, pack: 0, patch, stored }
    }

    /// The base's file of three chunks, the second one patched: by where they start.
    fn chunks() -> [(u64, Chunk); 3] {
        [(0, chunk(64, None)), (64, chunk(64, Some(&[1]))), (128, chunk(20, None))]
    }

    /// Some blocks of 8 bytes have changed in one file, and all of another.
    fn changes(blocks: &[u64]) -> ChangeMap {
        let mut changes = ChangeMap::new(8, Box::new(|name| name != "unvouched"));
        for number in blocks {
            changes.block("changed", *number);
        }
        changes.whole("rewritten");
        changes
    }

    /// `whole`, `kept`, or the blocks.
    fn shown(take: Take<()>) -> String {
        match take {
            Take::Whole => "whole".into(),
            Take::Kept(()) => "kept".into(),
            Take::Blocks((), _, numbers) => format!("{numbers:?}"),
        }
    }

    fn taken(changes: &ChangeMap, name: &str) -> Vec<String> {
        chunks().map(|(offset, chunk)| shown(take(&chunk, changes, name, offset, chunk.length.get()))).into()
    }

    #[test]
    fn only_what_changed_is_taken_and_what_nobody_vouches_for() {
        let changes = changes(&[0, 3, 10, 17]);
        assert_eq!(taken(&changes, "changed"), ["[0, 3]", "[1, 2]", "[1]"], "a patch has what the one before it had");
        assert_eq!(taken(&changes, "same"), ["kept"; 3]);
        for name in ["unvouched", "rewritten"] {
            assert_eq!(taken(&changes, name), ["whole"; 3], "{name}");
        }
    }

    #[test]
    fn what_the_file_had_not_or_has_no_more_is_read() {
        let (last, changes) = (chunk(20, None), changes(&[]));
        let shown = |want| shown(take(&last, &changes, "same", 128, want));
        assert_eq!(
            [20, 21, 64, 19].map(shown),
            ["kept", "whole", "whole", "whole"],
            "as it was, grown twice, cut short"
        );
    }

    #[test]
    fn from_where_a_file_was_cut_on_it_is_read() {
        let mut changes = changes(&[]);
        changes.tail("same", 8);
        assert_eq!(taken(&changes, "same"), ["kept", "whole", "whole"]);
        changes.tail("same", 7);
        assert_eq!(taken(&changes, "same"), ["whole"; 3]);
    }

    #[test]
    fn more_than_half_of_a_chunk_is_stored_as_a_whole() {
        assert_eq!(taken(&changes(&[0, 1, 2, 3]), "changed")[0], "[0, 1, 2, 3]");
        assert_eq!(taken(&changes(&[0, 1, 2, 3, 4]), "changed")[0], "whole");
        assert_eq!(taken(&changes(&[8, 10, 11]), "changed")[1], "[0, 1, 2, 3]", "with the old patch");
        assert_eq!(taken(&changes(&[8, 10, 11, 12]), "changed")[1], "whole");
    }

    #[test]
    fn blocks_of_another_size_than_the_patch_has_make_it_whole() {
        let patched_before = chunk(64, Some(&[0]));
        assert_eq!(patched(&patched_before, 4, vec![9]), Take::Whole);
        assert_eq!(patched(&patched_before, 4, vec![]), Take::Kept(()));
    }

    #[test]
    fn only_what_is_taken_counts_as_read() {
        assert_eq!(
            [Take::Whole, Take::Kept(()), Take::Blocks((), 8, vec![1, 4])].map(|take| take.reads(64)),
            [64, 0, 16]
        );
        assert_eq!(Take::Blocks((), 8, vec![2]).reads(5), 5, "a last block may be short");
    }
}
