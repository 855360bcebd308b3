//! Copies a node's files into the repository: read in pieces, pages checked, hashed, compressed, packed.

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
use sheetanchor_core::error::{Error, FaultKind, Result};
use sheetanchor_core::format::files::{Chunk, FileContent, FileEntry, FileList, check_name};
use sheetanchor_core::format::{self, keys};
use sheetanchor_core::identity::{ByteCount, ContentHash, OperationId};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Captured, Progress};
use tokio::sync::watch;

use super::Agent;
use crate::database::{PageVerdict, SourceFile, SourceKind};
use crate::env::{DiskFile, OpenMode, run_work};
use crate::zstd;

/// Bytes read at once: a multiple of every page size, and of the 64 KiB that page checks rely on.
const PIECE_BYTES: u64 = 1 << 20;

/// Pieces that are being hashed and compressed while the next is read.
const PIECES_AT_ONCE: usize = 4;

/// How often a page that fails its checksum is read again, and how long to wait before: it may be torn by a write in
/// progress (seen with PostgreSQL 15 while it writes 8 KiB pages).
const READS_MAX: usize = 10;
const READ_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Packs what one capture takes.
struct Packer<'a> {
    agent: &'a Agent,
    operation: OperationId,
    nonce: u64,
    pack: Vec<u8>,
    /// The pack before this one, on its way into the repository while this one fills.
    writing: Option<BoxFuture<'a, Result<()>>>,
    list: FileList,
    bytes: u64,
    stored: u64,
    progress: watch::Sender<Progress>,
}

/// A piece on its way: its place in the list of entries, what it hashes to, its length, its frame.
type Packed<'a> = BoxFuture<'a, Result<(usize, ContentHash, u64, Vec<u8>)>>;

impl Agent {
    /// Copies everything that the database lists.
    pub(super) async fn capture(&self, operation: OperationId, progress: watch::Sender<Progress>) -> Result<Captured> {
        let files = self.database.files().await?;
        let total: u64 = files.iter().map(length_of).sum();
        progress.send_modify(|progress| progress.total = ByteCount::new(total));
        let mut packer = Packer::new(self, operation, progress);
        let mut running: FuturesOrdered<Packed<'_>> = FuturesOrdered::new();
        for file in files {
            check_name(&file.name)?;
            let content = match &file.kind {
                SourceKind::Folder => FileContent::Folder,
                SourceKind::Link { target } => FileContent::Link(target.clone()),
                SourceKind::File { .. } => FileContent::File(Vec::new()),
            };
            let path = format!("{}/{}", self.database.data_folder(), file.name);
            let opened: Option<Arc<dyn DiskFile>> = match file.kind {
                SourceKind::File { .. } => match self.env.disk.open(&path, OpenMode::Read).await {
                    Ok(opened) => Some(Arc::from(opened)),
                    // Removed since it was listed: the WAL says so too.
                    Err(fault) if fault.kind == FaultKind::NotFound && self.may_shrink(&file.name) => continue,
                    Err(fault) if fault.kind == FaultKind::NotFound => {
                        return Err(changed(&file.name, "is gone since it was listed"));
                    }
                    Err(fault) => return Err(fault.into()),
                },
                SourceKind::Folder | SourceKind::Link { .. } => None,
            };
            let place = packer.list.entries.len();
            packer.list.entries.push(FileEntry { content, mode: file.mode, name: file.name.clone() });
            let Some(opened) = opened else { continue };
            let name: Arc<str> = Arc::from(file.name.as_str());
            let mut offset = 0;
            while offset < length_of(&file) {
                let want = PIECE_BYTES.min(length_of(&file) - offset);
                packer.meanwhile(self.await_turn(operation, want)).await??;
                running.push_back(self.piece(place, name.clone(), opened.clone(), offset, want).boxed());
                offset += want;
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

    /// Stores files that exist nowhere on disk.
    pub(super) async fn capture_extra(
        &self,
        operation: OperationId,
        files: Vec<(String, Vec<u8>)>,
    ) -> Result<Option<Captured>> {
        if files.is_empty() {
            return Ok(None);
        }
        let progress = Progress { operation, done: ByteCount::new(0), total: ByteCount::new(0) };
        // A packer stops once nobody watches it: the receiver is held to the end.
        let (progress, _watched) = watch::channel(progress);
        let mut packer = Packer::new(self, operation, progress);
        for (name, bytes) in files {
            check_name(&name)?;
            let place = packer.list.entries.len();
            packer.list.entries.push(FileEntry { content: FileContent::File(Vec::new()), mode: 0o600, name });
            let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            packer.add((place, ContentHash::of(&bytes), length, zstd::compress(&bytes))).await?;
        }
        packer.finish().await.map(Some)
    }

    fn may_shrink(&self, name: &str) -> bool {
        self.database.may_shrink(name) || planted::is(Bug::ShrunkFileAccepted)
    }

    async fn piece(
        &self,
        place: usize,
        name: Arc<str>,
        file: Arc<dyn DiskFile>,
        offset: u64,
        want: u64,
    ) -> Result<(usize, ContentHash, u64, Vec<u8>)> {
        let mut reads = 0;
        loop {
            let bytes = file.read_at(offset, usize::try_from(want).unwrap_or(usize::MAX)).await?;
            if u64::try_from(bytes.len()) != Ok(want) && !self.may_shrink(&name) {
                let end = offset.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                return Err(changed(&name, &format!("ends at byte {end}, and was longer when it was listed")));
            }
            let (database, checked) = (self.database.clone(), name.clone());
            let packed = run_work(&self.env.work, move || match database.check_pages(&checked, offset, &bytes) {
                PageVerdict::Fails(at) if !planted::is(Bug::PageUnchecked) => Err(at),
                PageVerdict::Fails(_) | PageVerdict::Sound => {
                    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                    Ok((ContentHash::of(&bytes), length, zstd::compress(&bytes)))
                }
            });
            match packed.await.ok_or_else(|| Error::Bug("packing a piece panicked".to_string()))? {
                Ok((hash, length, frame)) => return Ok((place, hash, length, frame)),
                Err(at) => {
                    reads += 1;
                    if reads == READS_MAX {
                        let message =
                            format!("the page at byte {at} of {name} fails its checksum, {reads} times in a row");
                        return Err(Refusal::new(Code::PageDamaged, message).into());
                    }
                    self.env.clock.sleep(READ_AGAIN_AFTER).await;
                }
            }
        }
    }
}

impl<'a> Packer<'a> {
    fn new(agent: &'a Agent, operation: OperationId, progress: watch::Sender<Progress>) -> Self {
        let nonce = agent.env.entropy.word();
        let (pack, list) = (Vec::new(), FileList::default());
        Self { agent, operation, nonce, pack, writing: None, list, bytes: 0, stored: 0, progress }
    }

    /// Waits for something else while the pack before is written. An error is the pack's.
    async fn meanwhile<T>(&mut self, awaited: impl Future<Output = T>) -> Result<T> {
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

    async fn add(&mut self, (place, hash, length, frame): (usize, ContentHash, u64, Vec<u8>)) -> Result<()> {
        // The coordinator gave up, or the pin expired: nobody would ever read what is copied.
        if self.progress.is_closed() {
            return Err(Refusal::new(Code::Aborted, format!("{} has ended", self.operation)).into());
        }
        // A file that shrank since it was listed.
        if length == 0 {
            return Ok(());
        }
        let stored = u64::try_from(frame.len()).unwrap_or(u64::MAX);
        let chunk = Chunk {
            hash,
            length: ByteCount::new(length),
            offset: u64::try_from(self.pack.len()).unwrap_or(u64::MAX),
            pack: self.serial()?,
            stored: ByteCount::new(stored),
        };
        self.pack.extend_from_slice(&frame);
        if let Some(FileEntry { content: FileContent::File(chunks), .. }) = self.list.entries.get_mut(place) {
            chunks.push(chunk);
        }
        self.bytes += length;
        self.stored += stored;
        self.progress.send_modify(|progress| progress.done = ByteCount::new(progress.done.get() + length));
        if u64::try_from(self.pack.len()).unwrap_or(u64::MAX) >= self.agent.config.pack.get() {
            self.write_pack().await?;
        }
        Ok(())
    }

    fn serial(&self) -> Result<u32> {
        u32::try_from(self.list.packs.len()).map_err(|_| Error::Bug("more packs than a list can name".to_string()))
    }

    /// Begins to write the pack, once the one before it is durable: no more than two are in memory.
    async fn write_pack(&mut self) -> Result<()> {
        self.written().await?;
        let key = keys::pack(self.operation, self.agent.config.node, self.serial()?, self.nonce);
        let (agent, pack) = (self.agent, mem::take(&mut self.pack));
        self.list.packs.push(key.clone());
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

    async fn finish(mut self) -> Result<Captured> {
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
        })
    }
}

/// A file that no writer of the database's explains.
fn changed(name: &str, how: &str) -> Error {
    Refusal::new(Code::FileChanged, format!("{name} {how}")).into()
}

fn length_of(file: &SourceFile) -> u64 {
    match file.kind {
        SourceKind::File { length } => length.get(),
        SourceKind::Folder | SourceKind::Link { .. } => 0,
    }
}

/// Starts a progress, which ends the capture when it is dropped from the agent's list.
pub(super) fn progress_of(operation: OperationId) -> (watch::Sender<Progress>, watch::Receiver<Progress>) {
    watch::channel(Progress { operation, done: ByteCount::new(0), total: ByteCount::new(0) })
}
