//! Reads a backup again, as a restore would: before it is sealed, and whenever somebody wants to know.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use futures_util::future::{BoxFuture, try_join_all};
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt};
use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::format::files::{Chunk, FileContent, Patch};
use sheetanchor_core::format::keys;
use sheetanchor_core::format::manifest::Manifest;
use sheetanchor_core::identity::ByteCount;
use sheetanchor_core::plan::Replay;
use sheetanchor_core::refusal::{Code, Refusal};

use super::Coordinator;
use crate::agent::archive::read_piece;
use crate::agent::stage::{Staged, entries, read_chunk, read_patch};

/// Chunks, and pieces of WAL, that are read at once.
const READS_AT_ONCE: usize = 8;

/// How much of a backup is read again before it is sealed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadBack {
    /// Everything that the backup has stored: each chunk, each patch and each piece of WAL must hash to what was captured.
    /// Costs reading all that was stored. Of packs of earlier backups, which were read when those were sealed, as with
    /// [`ReadBack::Presence`].
    #[default]
    Contents,
    /// Everything that a restore would read, packs of earlier backups too.
    All,
    /// Every list, and of each pack and piece of WAL that it is there, the pack as long as its chunks need. Costs one look
    /// at each; what was damaged on the way is found by `verify`, or by the restore.
    Presence,
}

/// What a verification has read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Files, folders and links.
    pub entries: u64,
    /// Chunks whose bytes hash to what was captured, and patches that were read without their chunk.
    pub chunks: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Pieces of WAL that are whole and follow each other.
    pub wal_pieces: u64,
}

impl Coordinator {
    /// Reads what a manifest names, and the WAL that takes it to a cut. `progress` is told bytes done and in all.
    ///
    /// # Errors
    /// `SA002`, `SA003`, `SA006`, `SA407`, `SA504` for what is wrong with it.
    pub(super) async fn read_back(
        &self,
        manifest: &Manifest,
        replay: &Replay,
        how: ReadBack,
        progress: &(dyn Fn(ByteCount, ByteCount) + Sync),
    ) -> Result<Verified> {
        let mut tally = Tally::new(manifest, replay, progress);
        for unit in manifest.units.values() {
            let entries = entries(&self.repository, unit).await?;
            tally.verified.entries += u64::try_from(entries.len()).unwrap_or(u64::MAX);
            let own = match how {
                ReadBack::All => String::new(),
                ReadBack::Contents | ReadBack::Presence => format!("{}{}-", keys::PACKS, manifest.operation),
            };
            if how == ReadBack::Presence || how == ReadBack::Contents && unit.base.is_some() {
                self.packs_are_there(&entries).await?;
            }
            if how == ReadBack::Presence {
                continue;
            }
            // In order, so that of several that are damaged the first is named, whichever was read first.
            let mut running: FuturesOrdered<BoxFuture<'_, Result<Proven>>> = FuturesOrdered::new();
            for (staged, chunk) in entries.iter().flat_map(chunks_of) {
                match Stored::of(staged, chunk, &own) {
                    Stored::Chunk => running.push_back(self.chunk_bytes(staged, chunk).boxed()),
                    Stored::Patch(patch) => running.push_back(self.patch_bytes(staged, chunk, patch).boxed()),
                    Stored::Nothing => tally.passed(chunk.length.get()),
                }
                while running.len() >= READS_AT_ONCE
                    && let Some(proven) = running.next().await
                {
                    tally.read(&proven?);
                }
            }
            while let Some(proven) = running.next().await {
                tally.read(&proven?);
            }
        }
        if how != ReadBack::Presence {
            for span in replay.threads.values().flat_map(|wal| &wal.spans) {
                for keys in span.pieces.chunks(READS_AT_ONCE) {
                    for bytes in try_join_all(keys.iter().map(|key| self.piece_bytes(key))).await? {
                        tally.passed(bytes);
                    }
                }
                tally.verified.wal_pieces += u64::try_from(span.pieces.len()).unwrap_or(u64::MAX);
            }
        }
        Ok(tally.verified)
    }

    async fn chunk_bytes(&self, staged: &Staged, chunk: &Chunk) -> Result<Proven> {
        let bytes = read_chunk(&self.env, &self.repository, &staged.packs, chunk).await?;
        Ok(Proven { read: u64::try_from(bytes.len()).unwrap_or(u64::MAX), length: chunk.length.get() })
    }

    async fn patch_bytes(&self, staged: &Staged, chunk: &Chunk, patch: &Patch) -> Result<Proven> {
        let bytes = read_patch(&self.env, &self.repository, &staged.packs, chunk.length, patch).await?;
        Ok(Proven { read: u64::try_from(bytes.len()).unwrap_or(u64::MAX), length: chunk.length.get() })
    }

    /// Proves that a piece of WAL is whole; how much of its thread it holds.
    async fn piece_bytes(&self, key: &str) -> Result<u64> {
        let (header, _) = read_piece(key, &self.repository.get(key).await?)?;
        Ok(header.until.bytes_since(header.from).unwrap_or_default())
    }

    /// Each pack is there, and long enough for the chunks and patches that are said to lie in it.
    async fn packs_are_there(&self, entries: &[Staged]) -> Result<()> {
        let mut ends: BTreeMap<&String, u64> = BTreeMap::new();
        for (staged, chunk) in entries.iter().flat_map(chunks_of) {
            let unlisted = || Refusal::new(Code::ChunkDamaged, format!("chunk {} is in no listed pack", chunk.hash));
            let patch = chunk.patch.as_ref().map(|patch| (patch.pack, patch.offset, patch.stored));
            for (pack, offset, stored) in [(chunk.pack, chunk.offset, chunk.stored)].into_iter().chain(patch) {
                let end = ends.entry(pack_of(staged, pack).ok_or_else(unlisted)?).or_default();
                *end = offset.saturating_add(stored.get()).max(*end);
            }
        }
        for (pack, end) in ends {
            let length = self.repository.bucket().head(pack).await?;
            let length =
                length.ok_or_else(|| Error::from(Refusal::new(Code::Missing, format!("there is no {pack}"))))?;
            if length.get() < end {
                let message = format!("{pack} holds {length} bytes, and its chunks take {end}");
                return Err(Refusal::new(Code::ChunkDamaged, message).into());
            }
        }
        Ok(())
    }
}

/// Bytes that were read of a chunk, and how long it is in its file.
struct Proven {
    read: u64,
    length: u64,
}

/// What was read so far, and who is told how far that is.
struct Tally<'a> {
    verified: Verified,
    /// Bytes of files, and of WAL, that were proven or need no proof.
    done: u64,
    total: u64,
    progress: &'a (dyn Fn(ByteCount, ByteCount) + Sync),
}

impl<'a> Tally<'a> {
    fn new(manifest: &Manifest, replay: &Replay, progress: &'a (dyn Fn(ByteCount, ByteCount) + Sync)) -> Self {
        let spans = replay.threads.values().flat_map(|wal| &wal.spans);
        let wal = spans.map(|span| span.until.bytes_since(span.from).unwrap_or_default());
        let total = manifest.units.values().map(|unit| unit.bytes.get()).chain(wal).fold(0, u64::saturating_add);
        Self { verified: Verified::default(), done: 0, total, progress }
    }

    fn read(&mut self, proven: &Proven) {
        self.verified.chunks += 1;
        self.verified.bytes += proven.read;
        self.passed(proven.length);
    }

    fn passed(&mut self, bytes: u64) {
        // A piece of WAL may begin before its span, and end after it.
        self.done = self.done.saturating_add(bytes).min(self.total);
        (self.progress)(ByteCount::new(self.done), ByteCount::new(self.total));
    }
}

/// What of a chunk lies in packs whose keys begin alike.
enum Stored<'a> {
    /// Its frame, and its patch if it has one.
    Chunk,
    /// Its patch only.
    Patch(&'a Patch),
    /// Nothing.
    Nothing,
}

impl<'a> Stored<'a> {
    fn of(staged: &Staged, chunk: &'a Chunk, prefix: &str) -> Self {
        // What is in no listed pack is read, and refused.
        let is_there = |pack| pack_of(staged, pack).is_none_or(|key| key.starts_with(prefix));
        match &chunk.patch {
            _ if is_there(chunk.pack) => Self::Chunk,
            Some(patch) if is_there(patch.pack) => Self::Patch(patch),
            Some(_) | None => Self::Nothing,
        }
    }
}

fn pack_of(staged: &Staged, place: u32) -> Option<&String> {
    usize::try_from(place).ok().and_then(|place| staged.packs.get(place))
}

/// The chunks of a file, each with the entry that knows its packs.
fn chunks_of(staged: &Staged) -> Vec<(&Staged, &Chunk)> {
    match &staged.entry.content {
        FileContent::File(chunks) => chunks.iter().map(|chunk| (staged, chunk)).collect(),
        FileContent::Folder | FileContent::Link(_) => Vec::new(),
    }
}
