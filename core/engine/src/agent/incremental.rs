//! What an incremental capture goes on from: an earlier backup's lists, and what archived WAL tells of the time since.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use async_trait::async_trait;
use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::format::catalog::Ending;
use sheetanchor_core::format::files::{Chunk, FileContent};
use sheetanchor_core::format::keys;
use sheetanchor_core::identity::{Incarnation, OperationId};
use sheetanchor_core::incremental::{Range, ranges};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::position::Position;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::time::Moment;
use tokio::sync::Mutex;

use super::Agent;
use super::archive::read_piece;
use super::stage::entries;
use crate::changes::{ChangeMap, Changed};
use crate::database::{WalPiece, WalSource};

/// How long WAL up to the backup's start may take to come into the archive. It is on its way: each node ships what it has.
const WAL_PATIENCE: Duration = Duration::from_secs(30);

/// How often to look whether it has come.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// What a capture goes on from.
pub(super) struct Base {
    /// The earlier backup.
    pub(super) backup: OperationId,
    changes: ChangeMap,
    files: BTreeMap<String, BaseFile>,
}

struct BaseFile {
    packs: Arc<[String]>,
    /// By where they start in the file.
    chunks: BTreeMap<u64, Chunk>,
}

/// How the piece of a file comes into the backup.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Take {
    /// It is read.
    Whole,
    /// It is what the base has.
    Kept(Inherited),
    /// It is what the base has, but for these blocks, counted from the beginning of the piece.
    Blocks(Inherited, u32, Vec<u32>),
}

impl Take {
    /// How many bytes of the file are read for a piece of so many.
    pub(super) fn reads(&self, piece: u64) -> u64 {
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

/// A chunk of the base, and the packs that it counts in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inherited {
    pub(super) chunk: Chunk,
    pub(super) packs: Arc<[String]>,
}

impl Base {
    /// How the piece of `want` bytes at `offset` of the file `name` comes into the backup.
    pub(super) fn take(&self, name: &str, offset: u64, want: u64) -> Take {
        let Some((file, chunk)) = self.files.get(name).and_then(|file| Some((file, file.chunks.get(&offset)?))) else {
            return Take::Whole;
        };
        let grown = chunk.length.get() < want && planted::is(Bug::GrownTailUnread);
        if chunk.length.get() != want && !grown {
            return Take::Whole;
        }
        let inherited = Inherited { chunk: chunk.clone(), packs: file.packs.clone() };
        match self.changes.of_until(name, offset.saturating_add(chunk.length.get())) {
            Changed::Whole => Take::Whole,
            Changed::Same => Take::Kept(inherited),
            Changed::Blocks { size, numbers } => {
                let Some(first) = offset.checked_div(u64::from(size)).filter(|first| first * u64::from(size) == offset)
                else {
                    return Take::Whole;
                };
                let until = first.saturating_add(chunk.length.get().div_ceil(u64::from(size)));
                let changed: Vec<u32> =
                    numbers.range(first..until).filter_map(|number| u32::try_from(number - first).ok()).collect();
                patched(inherited, size, changed)
            }
        }
    }
}

/// What is changed in the base's chunk, and what was changed in it before: the new patch takes the place of the old one.
fn patched(inherited: Inherited, block: u32, mut changed: Vec<u32>) -> Take {
    if changed.is_empty() {
        return Take::Kept(inherited);
    }
    match &inherited.chunk.patch {
        Some(patch) if patch.block != block => return Take::Whole,
        Some(patch) if !planted::is(Bug::PatchForgetsThePatch) => changed.extend(&patch.numbers),
        Some(_) | None => {}
    }
    changed.sort_unstable();
    changed.dedup();
    let bytes = u64::from(block).saturating_mul(u64::try_from(changed.len()).unwrap_or(u64::MAX));
    if bytes.saturating_mul(2) > inherited.chunk.length.get() {
        return Take::Whole;
    }
    Take::Blocks(inherited, block, changed)
}

impl Agent {
    /// What a capture that starts at `starts` can go on from, or why it cannot, in words.
    ///
    /// # Errors
    /// Faults only: what does not fit is no reason to fail.
    pub(super) async fn base(
        &self,
        backup: OperationId,
        starts: &[Position],
    ) -> Result<core::result::Result<Base, String>> {
        match self.find_base(backup, starts).await {
            Err(Error::Refusal(refusal)) => Ok(Err(refusal.to_string())),
            outcome => outcome,
        }
    }

    async fn find_base(&self, backup: OperationId, starts: &[Position]) -> Result<core::result::Result<Base, String>> {
        let Some(Ending::Sealed(seal)) = self.repository.outcome(backup).await?.map(|outcome| outcome.result) else {
            return Ok(Err(format!("{backup} is not sealed")));
        };
        let manifest = self.repository.manifest(backup, &seal).await?;
        let Some(unit) = manifest.units.get(&self.config.node) else {
            return Ok(Err(format!("{backup} has no files of node {}", self.config.node)));
        };
        let ranges = match ranges(&manifest, starts, self.config.node) {
            Ok(ranges) => ranges,
            Err(why) => return Ok(Err(why)),
        };
        let mut changes: Option<ChangeMap> = None;
        for range in ranges {
            let wal = ArchivedRange::new(self, manifest.incarnation, range);
            let Some(of_thread) = self.database.changes(range.since, range.until, &wal).await? else {
                return Ok(Err(format!("{} cannot tell what has changed since {backup}", manifest.engine)));
            };
            changes = Some(match changes {
                Some(others) => others.and(of_thread),
                None => of_thread,
            });
        }
        let mut files = BTreeMap::new();
        for staged in entries(&self.repository, unit).await? {
            let FileContent::File(chunks) = staged.entry.content else { continue };
            let mut offset = 0;
            let placed = chunks.into_iter().map(|chunk| {
                let start = offset;
                offset += chunk.length.get();
                (start, chunk)
            });
            files.insert(staged.entry.name, BaseFile { chunks: placed.collect(), packs: staged.packs });
        }
        Ok(Ok(Base { backup, changes: changes.unwrap_or_default(), files }))
    }
}

/// WAL of one thread, as it comes into the archive.
struct ArchivedRange<'a> {
    agent: &'a Agent,
    incarnation: Incarnation,
    range: Range,
    deadline: Moment,
    /// Keys of the thread's pieces, as they were last listed.
    keys: Mutex<Vec<String>>,
}

impl<'a> ArchivedRange<'a> {
    fn new(agent: &'a Agent, incarnation: Incarnation, range: Range) -> Self {
        let deadline = agent.env.clock.now().after(WAL_PATIENCE);
        Self { agent, incarnation, range, deadline, keys: Mutex::default() }
    }

    /// The key of the last known piece that starts at or before `from`, if any does.
    async fn key_for(&self, from: Position) -> Option<String> {
        let starts = |key: &&String| keys::parse_wal(key).is_some_and(|start| start <= (from.timeline, from.lsn));
        let keys = self.keys.lock().await;
        let last = keys.iter().take_while(starts).last()?;
        keys::parse_wal(last).is_some_and(|(timeline, _)| timeline == from.timeline).then(|| last.clone())
    }
}

#[async_trait]
impl WalSource for ArchivedRange<'_> {
    async fn piece(&self, from: Position) -> Result<Option<WalPiece>> {
        if from.thread != self.range.until.thread || from.lsn >= self.range.until.lsn {
            return Ok(None);
        }
        let repository = &self.agent.repository;
        loop {
            if let Some(key) = self.key_for(from).await {
                let (header, bytes) = read_piece(&key, &repository.get(&key).await?)?;
                if header.thread != from.thread {
                    return Err(Refusal::new(Code::WalDamaged, format!("{key} is of thread {}", header.thread)).into());
                }
                if header.until > from.lsn {
                    return Ok(Some(WalPiece::cut_to(from, &header, bytes)));
                }
            }
            let listed = repository.bucket().list(&keys::wal_thread(self.incarnation, from.thread)).await?;
            let news = {
                let mut keys = self.keys.lock().await;
                let news = *keys != listed;
                *keys = listed;
                news
            };
            if news {
                continue;
            }
            if self.agent.env.clock.now() >= self.deadline {
                let seconds = WAL_PATIENCE.as_secs();
                let message = format!("the archive has not passed {from} within {seconds} s");
                return Err(Refusal::new(Code::ArchiveBehind, message).into());
            }
            self.agent.ship.notify_one();
            self.agent.env.clock.sleep(LOOK_AGAIN_AFTER).await;
        }
    }
}

/// Why a capture is a full one, in words for whoever asked for less.
pub(super) fn why_full(backup: OperationId, why: &str) -> String {
    tracing::warn!(target: "sheetanchor::phase", base = %backup, why, phase = "full instead");
    why.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use sheetanchor_core::format::files::Patch;
    use sheetanchor_core::identity::{ByteCount, ContentHash, OperationKind};

    fn chunk(length: u64, patch: Option<&[u32]>) -> Chunk {
        let (hash, stored) = (ContentHash::of(b""), ByteCount::new(1));
        let patch =
            patch.map(|numbers| Patch { block: 8, hash, numbers: numbers.to_vec(), offset: 0, pack: 0, stored });
        Chunk { hash, length: ByteCount::new(length), offset: 0, pack: 0, patch, stored }
    }

    /// A file of three chunks, the second one patched, in which some blocks of 8 bytes have changed.
    fn base(blocks: &[u64]) -> Base {
        let mut changes = ChangeMap::new(8, Box::new(|name| name != "unvouched"));
        for number in blocks {
            changes.block("changed", *number);
        }
        changes.whole("rewritten");
        let chunks = [(0, chunk(64, None)), (64, chunk(64, Some(&[1]))), (128, chunk(20, None))];
        let file = || BaseFile { packs: Arc::from([]), chunks: chunks.clone().into() };
        let names = ["changed", "same", "unvouched", "rewritten"];
        let files = names.map(|name| (name.to_string(), file())).into();
        Base { backup: OperationId::new(OperationKind::Backup, 1, 1), changes, files }
    }

    /// `whole`, `kept`, or the blocks.
    fn shown(take: Take) -> String {
        match take {
            Take::Whole => "whole".into(),
            Take::Kept(_) => "kept".into(),
            Take::Blocks(_, _, numbers) => format!("{numbers:?}"),
        }
    }

    fn taken(base: &Base, name: &str) -> Vec<String> {
        [(0, 64), (64, 64), (128, 20)].map(|(offset, want)| shown(base.take(name, offset, want))).into()
    }

    #[test]
    fn only_what_changed_is_taken_and_what_nobody_vouches_for() {
        let base = base(&[0, 3, 10, 17]);
        assert_eq!(taken(&base, "changed"), ["[0, 3]", "[1, 2]", "[1]"], "a patch has what the one before it had");
        assert_eq!(taken(&base, "same"), ["kept"; 3]);
        for name in ["unvouched", "rewritten", "new"] {
            assert_eq!(taken(&base, name), ["whole"; 3], "{name}");
        }
    }

    #[test]
    fn what_the_file_had_not_or_has_no_more_is_read() {
        let base = base(&[]);
        assert_eq!(shown(base.take("same", 128, 21)), "whole", "grown by a byte");
        assert_eq!(shown(base.take("same", 128, 64)), "whole");
        assert_eq!(shown(base.take("same", 192, 64)), "whole", "beyond its old end");
        assert_eq!(shown(base.take("same", 128, 19)), "whole", "cut short");
        assert_eq!(shown(base.take("same", 32, 32)), "whole", "pieces of another size");
    }

    #[test]
    fn from_where_a_file_was_cut_on_it_is_read() {
        let mut base = base(&[]);
        base.changes.tail("same", 8);
        assert_eq!(taken(&base, "same"), ["kept", "whole", "whole"]);
        base.changes.tail("same", 7);
        assert_eq!(taken(&base, "same"), ["whole"; 3]);
    }

    #[test]
    fn more_than_half_of_a_chunk_is_stored_as_a_whole() {
        assert_eq!(taken(&base(&[0, 1, 2, 3]), "changed")[0], "[0, 1, 2, 3]");
        assert_eq!(taken(&base(&[0, 1, 2, 3, 4]), "changed")[0], "whole");
        assert_eq!(taken(&base(&[8, 10, 11]), "changed")[1], "[0, 1, 2, 3]", "with the old patch");
        assert_eq!(taken(&base(&[8, 10, 11, 12]), "changed")[1], "whole");
    }

    #[test]
    fn blocks_of_another_size_than_the_patch_has_make_it_whole() {
        let inherited = Inherited { chunk: chunk(64, Some(&[0])), packs: Arc::from([]) };
        assert_eq!(patched(inherited.clone(), 4, vec![9]), Take::Whole);
        assert_eq!(patched(inherited.clone(), 4, vec![]), Take::Kept(inherited));
    }
}
