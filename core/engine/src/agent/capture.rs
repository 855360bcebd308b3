//! Copies a node's files into the repository: read in pieces, pages checked, hashed, compressed, packed.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;
use core::pin::pin;
use core::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt};
use sheetanchor_core::compression::Compression;
use sheetanchor_core::error::{Error, FaultKind, Result};
use sheetanchor_core::format::files::{Chunk, FileContent, FileEntry, FileList, Patch, check_name};
use sheetanchor_core::format::{self, keys};
use sheetanchor_core::identity::{ByteCount, ContentHash, OperationId};
use sheetanchor_core::incremental::Take;
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::position::Position;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Captured, Doing, Progress};
use tokio::sync::watch;

use super::Agent;
use super::incremental::{Base, Inherited};
use crate::database::{PageVerdict, SourceFile, SourceKind};
use crate::env::{DiskFile, OpenMode, run_work};
use crate::{packing, zstd};

/// Pieces that are being hashed and compressed while the next is read.
pub(super) const PIECES_AT_ONCE: usize = 4;

/// How often a page that fails its checksum is read again, and how long to wait before: it may be torn by a write in
/// progress (seen with PostgreSQL 15 while it writes 8 KiB pages).
const READS_MAX: usize = 10;
const READ_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Packs what one capture takes.
pub(super) struct Packer<'a> {
    agent: &'a Agent,
    operation: OperationId,
    nonce: u64,
    pack: Vec<u8>,
    /// Its place in the list, once something is in it.
    filling: Option<u32>,
    /// How many packs it has begun.
    begun: u32,
    /// Packs of earlier backups, with their places in the list.
    inherited: BTreeMap<String, u32>,
    /// The backup that it goes on from.
    base: Option<OperationId>,
    /// The pack before this one, on its way into the repository while this one fills.
    writing: Option<BoxFuture<'a, Result<()>>>,
    pub(super) list: FileList,
    bytes: u64,
    stored: u64,
    progress: watch::Sender<Progress>,
}

/// A piece, for the entry at a place in the list.
pub(super) struct Packed {
    pub(super) place: usize,
    pub(super) piece: Piece,
}

/// How a piece of a file comes into the list.
pub(super) enum Piece {
    /// It was read: what it hashes to, its length, its frame.
    Whole(ContentHash, u64, Vec<u8>),
    /// It is what the base has.
    Kept(Inherited),
    /// It is what the base has, but for these blocks: their size and numbers, what they hash to, their frame.
    Patched(Inherited, u32, Vec<u32>, ContentHash, Vec<u8>),
}

/// A piece on its way.
type Packing<'a> = BoxFuture<'a, Result<Packed>>;

impl Agent {
    /// Copies everything that the database lists, or of it what has changed since the backup `base` if that can be told.
    pub(super) async fn capture_from(
        &self,
        operation: OperationId,
        base: Option<OperationId>,
        starts: &[Position],
        compression: Compression,
        progress: watch::Sender<Progress>,
    ) -> Result<Captured> {
        let Some(backup) = base else { return self.capture(operation, None, compression, progress).await };
        match self.base(backup, starts).await? {
            Ok(base) => self.capture(operation, Some(&base), compression, progress).await,
            Err(why) => {
                tracing::warn!(target: "sheetanchor::phase", base = %backup, why, phase = "full instead");
                let captured = self.capture(operation, None, compression, progress).await?;
                Ok(Captured { why_full: Some(why), ..captured })
            }
        }
    }

    async fn capture(
        &self,
        operation: OperationId,
        base: Option<&Base>,
        compression: Compression,
        progress: watch::Sender<Progress>,
    ) -> Result<Captured> {
        if let Some(stream) = self.database.file_stream(&operation.to_string()).await? {
            return self.capture_stream(operation, stream, compression, progress).await;
        }
        let files = self.database.files().await?;
        let total: u64 = files.iter().map(|file| file.length().get()).sum();
        progress.send_modify(|progress| progress.total = ByteCount::new(total));
        let mut packer = Packer::new(self, operation, progress);
        packer.base = base.map(|base| base.backup);
        let mut running: FuturesOrdered<Packing<'_>> = FuturesOrdered::new();
        for file in files {
            check_name(&file.name)?;
            let content = match &file.kind {
                SourceKind::Folder => FileContent::Folder,
                SourceKind::Link { target } => FileContent::Link(target.clone()),
                SourceKind::File { .. } => FileContent::File(Vec::new()),
            };
            let takes = self.takes_of(&file, base);
            let is_file = matches!(file.kind, SourceKind::File { .. });
            // What is as it was is not even opened.
            let is_read = base.is_none() || takes.iter().any(|(.., take)| !matches!(take, Take::Kept(_)));
            let opened = if is_file && is_read { self.open_listed(&file.name).await? } else { None };
            if is_file && is_read && opened.is_none() {
                continue;
            }
            let place = packer.list.entries.len();
            packer.list.entries.push(FileEntry { content, mode: file.mode, name: file.name.clone() });
            let name: Arc<str> = Arc::from(file.name.as_str());
            for (offset, want, take) in takes {
                packer.meanwhile(self.await_turn(operation, take.reads(want))).await??;
                running.push_back(self.packing(place, &name, opened.as_ref(), (offset, want), take, compression));
                while running.len() >= PIECES_AT_ONCE
                    && let Some(piece) = packer.meanwhile(running.next()).await?
                {
                    packer.add(piece?).await?;
                }
            }
        }
        while let Some(piece) = packer.meanwhile(running.next()).await? {
            packer.add(piece?).await?;
        }
        packer.finish().await
    }

    /// Stores files that exist nowhere on disk. They are small, and always packed by zstd.
    pub(super) async fn capture_extra(
        &self,
        operation: OperationId,
        files: Vec<(String, Vec<u8>)>,
    ) -> Result<Option<Captured>> {
        if files.is_empty() {
            return Ok(None);
        }
        // A packer stops once nobody watches it: the receiver is held to the end.
        let (progress, _watched) = progress_of(operation, Doing::Copying);
        let mut packer = Packer::new(self, operation, progress);
        for (name, bytes) in files {
            check_name(&name)?;
            let place = packer.list.entries.len();
            packer.list.entries.push(FileEntry { content: FileContent::File(Vec::new()), mode: 0o600, name });
            let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            let piece = Piece::Whole(ContentHash::of(&bytes), length, zstd::compress(&bytes));
            packer.add(Packed { place, piece }).await?;
        }
        packer.finish().await.map(Some)
    }

    fn may_shrink(&self, name: &str) -> bool {
        self.database.may_shrink(name) || planted::is(Bug::ShrunkFileAccepted)
    }

    /// Where the pieces of a file start, how long they are, and how each comes into the backup.
    fn takes_of(&self, file: &SourceFile, base: Option<&Base>) -> Vec<(u64, u64, Take<Inherited>)> {
        let (length, piece) = (file.length().get(), self.config.piece.get().max(1));
        let mut takes = Vec::new();
        let mut offset = 0;
        while offset < length {
            let want = piece.min(length - offset);
            takes.push((offset, want, base.map_or(Take::Whole, |base| base.take(&file.name, offset, want))));
            offset += want;
        }
        takes
    }

    /// Opens a file that was listed; nothing if the WAL says that it was removed since.
    async fn open_listed(&self, name: &str) -> Result<Option<Arc<dyn DiskFile>>> {
        let path = format!("{}/{name}", self.database.data_folder());
        match self.env.disk.open(&path, OpenMode::Read).await {
            Ok(opened) => Ok(Some(Arc::from(opened))),
            Err(fault) if fault.kind == FaultKind::NotFound && self.may_shrink(name) => Ok(None),
            Err(fault) if fault.kind == FaultKind::NotFound => Err(changed(name, "is gone since it was listed")),
            Err(fault) => Err(fault.into()),
        }
    }

    fn packing(
        &self,
        place: usize,
        name: &Arc<str>,
        file: Option<&Arc<dyn DiskFile>>,
        (offset, want): (u64, u64),
        take: Take<Inherited>,
        compression: Compression,
    ) -> Packing<'_> {
        let (name, file) = (name.clone(), file.cloned());
        async move {
            let unopened = || Error::Bug(format!("{name} is to be read and was not opened"));
            let piece = match take {
                Take::Kept(inherited) => Piece::Kept(inherited),
                Take::Whole => self.piece(&name, &file.ok_or_else(unopened)?, (offset, want), compression).await?,
                Take::Blocks(inherited, block, numbers) => {
                    let file = file.ok_or_else(unopened)?;
                    match self.blocks(&name, &file, (offset, want), (block, &numbers), compression).await? {
                        Some((hash, frame)) => Piece::Patched(inherited, block, numbers, hash, frame),
                        // It has become shorter: whatever is left of it is read.
                        None => self.piece(&name, &file, (offset, want), compression).await?,
                    }
                }
            };
            Ok(Packed { place, piece })
        }
        .boxed()
    }

    async fn piece(
        &self,
        name: &Arc<str>,
        file: &Arc<dyn DiskFile>,
        (offset, want): (u64, u64),
        compression: Compression,
    ) -> Result<Piece> {
        let mut reads = 0;
        loop {
            let bytes = file.read_at(offset, usize::try_from(want).unwrap_or(usize::MAX)).await?;
            if u64::try_from(bytes.len()) != Ok(want) && !self.may_shrink(name) {
                let end = offset.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                return Err(changed(name, &format!("ends at byte {end}, and was longer when it was listed")));
            }
            let (database, checked) = (self.database.clone(), name.clone());
            let packed = run_work(&self.env.work, move || match database.check_pages(&checked, offset, &bytes) {
                PageVerdict::Fails(at) if !planted::is(Bug::PageUnchecked) => Err(at),
                PageVerdict::Fails(_) | PageVerdict::Sound => {
                    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                    Ok(Piece::Whole(ContentHash::of(&bytes), length, packing::pack(compression, &bytes)))
                }
            });
            match packed.await.ok_or_else(|| Error::Bug("packing a piece panicked".to_string()))? {
                Ok(piece) => return Ok(piece),
                Err(at) => self.read_again(name, at, &mut reads).await?,
            }
        }
    }

    /// Reads some blocks of the piece `offset`, `want`, one run of neighbours after the other, and packs them together;
    /// nothing if the file has become shorter than the piece.
    async fn blocks(
        &self,
        name: &Arc<str>,
        file: &Arc<dyn DiskFile>,
        (offset, want): (u64, u64),
        (block, numbers): (u32, &[u32]),
        compression: Compression,
    ) -> Result<Option<(ContentHash, Vec<u8>)>> {
        let mut blocks = Vec::new();
        for (first, until) in runs(numbers) {
            let start = u64::from(first).saturating_mul(u64::from(block));
            let end = u64::from(until).saturating_mul(u64::from(block)).min(want);
            let mut reads = 0;
            loop {
                let length = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
                let bytes = file.read_at(offset + start, length).await?;
                if bytes.len() != length {
                    return Ok(None);
                }
                let (database, checked, from) = (self.database.clone(), name.clone(), offset + start);
                let verdict = run_work(&self.env.work, move || (database.check_pages(&checked, from, &bytes), bytes));
                match verdict.await.ok_or_else(|| Error::Bug("checking blocks panicked".to_string()))? {
                    (PageVerdict::Fails(at), _) if !planted::is(Bug::PageUnchecked) => {
                        self.read_again(name, at, &mut reads).await?;
                    }
                    (PageVerdict::Fails(_) | PageVerdict::Sound, bytes) => {
                        blocks.extend_from_slice(&bytes);
                        break;
                    }
                }
            }
        }
        let pack = move || (ContentHash::of(&blocks), packing::pack(compression, &blocks));
        run_work(&self.env.work, pack).await.map(Some).ok_or_else(|| Error::Bug("packing blocks panicked".to_string()))
    }

    /// Waits before a page that fails its checksum is read again, unless that was tried often enough.
    async fn read_again(&self, name: &str, at: u64, reads: &mut usize) -> Result<()> {
        *reads += 1;
        if *reads == READS_MAX {
            let message = format!("the page at byte {at} of {name} fails its checksum, {reads} times in a row");
            return Err(Refusal::new(Code::PageDamaged, message).into());
        }
        self.env.clock.sleep(READ_AGAIN_AFTER).await;
        Ok(())
    }
}

/// Neighbours among ascending numbers, as half-open ranges.
fn runs(numbers: &[u32]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, until)) if *until == *number => *until = number.saturating_add(1),
            Some(_) | None => runs.push((*number, number.saturating_add(1))),
        }
    }
    runs
}

impl<'a> Packer<'a> {
    pub(super) fn new(agent: &'a Agent, operation: OperationId, progress: watch::Sender<Progress>) -> Self {
        let nonce = agent.env.entropy.word();
        let (pack, list, inherited) = (Vec::new(), FileList::default(), BTreeMap::new());
        let (filling, base, begun, writing) = (None, None, 0, None);
        let (bytes, stored) = (0, 0);
        Self { agent, operation, nonce, pack, filling, begun, inherited, base, writing, list, bytes, stored, progress }
    }

    /// Waits for something else while the pack before is written. An error is the pack's.
    pub(super) async fn meanwhile<T>(&mut self, awaited: impl Future<Output = T>) -> Result<T> {
        let mut awaited = pin!(awaited);
        while let Some(writing) = &mut self.writing {
            tokio::select! {
                biased;
                written = writing => {
                    self.writing = None;
                    written?;
                }
                outcome = &mut awaited => return Ok(outcome),
            }
        }
        Ok(awaited.await)
    }

    pub(super) async fn add(&mut self, Packed { place, piece }: Packed) -> Result<()> {
        // The coordinator gave up, or the pin expired: nobody would ever read what is copied.
        if self.progress.is_closed() {
            return Err(Refusal::new(Code::Aborted, format!("{} has ended", self.operation)).into());
        }
        let chunk = match piece {
            // A file that shrank since it was listed.
            Piece::Whole(_, 0, _) => return Ok(()),
            Piece::Whole(hash, length, frame) => {
                let (length, stored) = (ByteCount::new(length), count(&frame));
                let (pack, offset) = self.store(&frame)?;
                Chunk { hash, length, offset, pack, patch: None, stored }
            }
            Piece::Kept(inherited) => {
                let patch = match &inherited.chunk.patch {
                    Some(patch) => Some(Patch { pack: self.inherit(&inherited.packs, patch.pack)?, ..patch.clone() }),
                    None => None,
                };
                Chunk { pack: self.inherit(&inherited.packs, inherited.chunk.pack)?, patch, ..inherited.chunk }
            }
            Piece::Patched(inherited, block, numbers, hash, frame) => {
                let stored = count(&frame);
                let (pack, offset) = self.store(&frame)?;
                let patch = Some(Patch { block, hash, numbers, offset, pack, stored });
                Chunk { pack: self.inherit(&inherited.packs, inherited.chunk.pack)?, patch, ..inherited.chunk }
            }
        };
        let length = chunk.length.get();
        if let Some(FileEntry { content: FileContent::File(chunks), .. }) = self.list.entries.get_mut(place) {
            chunks.push(chunk);
        }
        self.bytes += length;
        self.progress.send_modify(|progress| progress.done = ByteCount::new(progress.done.get() + length));
        if count(&self.pack) >= self.agent.config.pack {
            self.write_pack().await?;
        }
        Ok(())
    }

    /// Puts a frame into the pack that is being filled: the pack's place in the list, and where the frame starts.
    fn store(&mut self, frame: &[u8]) -> Result<(u32, u64)> {
        let place = if let Some(place) = self.filling {
            place
        } else {
            let key = keys::pack(self.operation, self.agent.config.node, self.begun, self.nonce);
            self.begun = self.begun.saturating_add(1);
            self.list_pack(key)?
        };
        self.filling = Some(place);
        let offset = count(&self.pack).get();
        self.pack.extend_from_slice(frame);
        self.stored += count(frame).get();
        Ok((place, offset))
    }

    /// The place in this list of a pack that the base's list has at `place`.
    fn inherit(&mut self, packs: &[String], place: u32) -> Result<u32> {
        let key = usize::try_from(place).ok().and_then(|place| packs.get(place));
        let key = key.ok_or_else(|| Refusal::new(Code::Damaged, "a chunk of the base is in no listed pack"))?;
        if let Some(place) = self.inherited.get(key) {
            return Ok(*place);
        }
        let listed = self.list_pack(key.clone())?;
        self.inherited.insert(key.clone(), listed);
        Ok(listed)
    }

    fn list_pack(&mut self, key: String) -> Result<u32> {
        let place = u32::try_from(self.list.packs.len());
        self.list.packs.push(key);
        place.map_err(|_| Error::Bug("more packs than a list can name".to_string()))
    }

    /// Begins to write the pack, once the one before it is durable: no more than two are in memory.
    async fn write_pack(&mut self) -> Result<()> {
        self.written().await?;
        let place = self.filling.take().and_then(|place| usize::try_from(place).ok());
        let Some(key) = place.and_then(|place| self.list.packs.get(place)).cloned() else { return Ok(()) };
        let (agent, pack) = (self.agent, mem::take(&mut self.pack));
        // Unique by its nonce: whatever stands there after a time-out is this pack.
        self.writing = Some(async move { agent.repository.put_hashed(&key, pack).await }.boxed());
        Ok(())
    }

    /// Waits until the pack on its way is durable.
    async fn written(&mut self) -> Result<()> {
        match self.writing.take() {
            Some(writing) => writing.await,
            None => Ok(()),
        }
    }

    pub(super) async fn finish(mut self) -> Result<Captured> {
        if !self.pack.is_empty() {
            self.write_pack().await?;
        }
        // The list names all of them: it comes last.
        self.written().await?;
        let frame = zstd::compress(&format::write(&self.list));
        let hash = ContentHash::of(&frame);
        let key = keys::files(self.operation, self.agent.config.node, hash);
        self.agent.repository.put_hashed(&key, frame).await?;
        Ok(Captured {
            list: key,
            hash,
            entries: u64::try_from(self.list.entries.len()).unwrap_or(u64::MAX),
            bytes: ByteCount::new(self.bytes),
            stored: ByteCount::new(self.stored),
            base: self.base,
            why_full: None,
        })
    }
}

fn count(bytes: &[u8]) -> ByteCount {
    ByteCount::new(u64::try_from(bytes.len()).unwrap_or(u64::MAX))
}

/// A file that no writer of the database's explains.
fn changed(name: &str, how: &str) -> Error {
    Refusal::new(Code::FileChanged, format!("{name} {how}")).into()
}

/// Starts a progress, which ends a capture or a staging when it is dropped from the agent's list.
pub(super) fn progress_of(
    operation: OperationId,
    doing: Doing,
) -> (watch::Sender<Progress>, watch::Receiver<Progress>) {
    watch::channel(Progress { operation, doing, done: ByteCount::new(0), total: ByteCount::new(0) })
}
