//! Puts one file of a backup in its place: what of it lies there already, and hashes right, stays; the rest is written, made
//! durable, and read again. Neither a length nor a time is believed.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::format::files::{Chunk, FileContent};
use sheetanchor_core::identity::{ByteCount, ContentHash};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::Progress;
use tokio::sync::{Semaphore, watch};

use super::Agent;
use super::stage::{Staged, read_chunk};
use crate::env::disk::parent;
use crate::env::{DiskFile, EntryKind, OpenMode, run_work};
use crate::repository::Repository;

/// The control file is written beside its place, under its name and this.
pub(super) const BESIDE: &str = ".staged";

/// Chunks in memory at once, of all files.
const CHUNKS_AT_ONCE: usize = 24;

/// Chunks of one file that are on their way at once: a database may be one large file.
const CHUNKS_OF_A_FILE: usize = 6;

/// The files of one unit on their way into their folder.
pub(super) struct Putting<'a> {
    agent: &'a Agent,
    origin: &'a Repository,
    folder: &'a str,
    progress: &'a watch::Sender<Progress>,
    chunks: Semaphore,
}

/// Where a chunk lies in its file, what the file's own bytes hash to there, and whether they were written just now.
struct Place<'a> {
    offset: u64,
    chunk: &'a Chunk,
    hash: ContentHash,
    written: bool,
}

impl<'a> Putting<'a> {
    /// Chunks come from `origin`, names are relative to `folder`. It ends once nobody watches `progress` any more.
    pub(super) fn new(
        agent: &'a Agent,
        origin: &'a Repository,
        folder: &'a str,
        progress: &'a watch::Sender<Progress>,
    ) -> Self {
        Self { agent, origin, folder, progress, chunks: Semaphore::new(CHUNKS_AT_ONCE) }
    }

    /// Puts a file in its place; folders and links are none.
    ///
    /// # Errors
    /// `SA207` if the restore has ended; those of [`read_chunk`]; `SA009`; faults.
    pub(super) async fn put(&self, staged: &Staged) -> Result<()> {
        self.check_wanted()?;
        let FileContent::File(chunks) = &staged.entry.content else { return Ok(()) };
        let path = format!("{}/{}", self.folder, staged.entry.name);
        let length = chunks.iter().map(|chunk| chunk.length.get()).sum();
        let (file, is_old) = self.open(&path, length).await?;
        let written = self.fill(&file, staged, chunks, is_old).await?;
        // Of an old file, too: what was read back may be an earlier attempt's, whose crash came before its sync.
        if !planted::is(Bug::StagedUnsynced) {
            file.sync().await?;
        }
        self.check_written(&file, &path, written).await?;
        Ok(self.agent.env.disk.set_mode(&path, staged.entry.mode).await?)
    }

    /// Puts the file in its place that makes the folder a database: all of it or nothing, since a process that starts after
    /// a crash looks at it before anybody can stage it again. (Found by the sweep: a node did not start for half of it.)
    ///
    /// # Errors
    /// Those of [`Putting::put`].
    pub(super) async fn put_control(&self, mut staged: Staged) -> Result<()> {
        let path = format!("{}/{}", self.folder, staged.entry.name);
        staged.entry.name.push_str(BESIDE);
        self.put(&staged).await?;
        self.agent.env.disk.rename(&format!("{path}{BESIDE}"), &path).await?;
        Ok(self.agent.env.disk.sync_dir(parent(&path)).await?)
    }

    fn check_wanted(&self) -> Result<()> {
        if self.progress.is_closed() {
            return Err(Refusal::new(Code::Aborted, "the restore has ended").into());
        }
        Ok(())
    }

    /// The file at `path`, and whether something of it may be right.
    async fn open(&self, path: &str, length: u64) -> Result<(Arc<dyn DiskFile>, bool)> {
        let disk = &self.agent.env.disk;
        let old = match disk.metadata(path).await? {
            Some(metadata) if metadata.kind == EntryKind::File => Some(metadata),
            // Never written through: where a link leads is not ours.
            Some(_) => {
                disk.remove(path).await?;
                None
            }
            None => None,
        };
        let Some(old) = old else {
            return Ok((Arc::from(disk.open(path, OpenMode::CreateNew).await?), false));
        };
        if old.mode & 0o600 != 0o600 {
            disk.set_mode(path, 0o600).await?;
        }
        let file: Arc<dyn DiskFile> = Arc::from(disk.open(path, OpenMode::Write).await?);
        if old.length.get() != length {
            file.truncate(length).await?;
        }
        Ok((file, old.length.get() > 0))
    }

    /// Sees to every chunk; says which were written.
    async fn fill<'c>(
        &self,
        file: &Arc<dyn DiskFile>,
        staged: &Staged,
        chunks: &'c [Chunk],
        is_old: bool,
    ) -> Result<Vec<Place<'c>>> {
        let (mut offset, mut places, mut running) = (0, Vec::new(), FuturesOrdered::new());
        for chunk in chunks {
            running.push_back(self.chunk(file, staged, Place { offset, chunk, hash: chunk.hash, written: !is_old }));
            offset += chunk.length.get();
            if running.len() >= CHUNKS_OF_A_FILE
                && let Some(place) = running.next().await
            {
                places.push(place?);
            }
        }
        while let Some(place) = running.next().await {
            places.push(place?);
        }
        places.retain(|place| place.written);
        Ok(places)
    }

    async fn chunk<'c>(&self, file: &Arc<dyn DiskFile>, staged: &Staged, mut place: Place<'c>) -> Result<Place<'c>> {
        let _turn = self.chunks.acquire().await.map_err(|_| Error::Bug("nobody closes the turns".into()))?;
        self.check_wanted()?;
        let (operation, length) = (self.progress.borrow().operation, place.chunk.length.get());
        // Once, whether it is only looked at or written: both are the disk's work.
        self.agent.await_turn(operation, length).await?;
        let known = place.chunk.finished_hash();
        let believed = !place.written && planted::is(Bug::StagedByLength);
        if !believed && (place.written || known.is_none() || !self.holds(file, &place).await?) {
            let bytes = read_chunk(&self.agent.env, self.origin, &staged.packs, place.chunk).await?;
            // Nobody has hashed what a patched chunk comes to.
            place.hash = known.unwrap_or_else(|| ContentHash::of(&bytes));
            if place.written || known.is_some() || !self.holds(file, &place).await? {
                file.write_at(place.offset, bytes.into()).await?;
                place.written = true;
            }
        }
        self.progress.send_modify(|progress| progress.done = ByteCount::new(progress.done.get() + length));
        Ok(place)
    }

    /// Whether a chunk lies in its place.
    async fn holds(&self, file: &Arc<dyn DiskFile>, place: &Place<'_>) -> Result<bool> {
        let length = usize::try_from(place.chunk.length.get()).unwrap_or(usize::MAX);
        let bytes = file.read_at(place.offset, length).await?;
        let found = run_work(&self.agent.env.work, move || ContentHash::of(&bytes)).await;
        Ok(found.ok_or_else(|| Error::Bug("hashing what lies there panicked".into()))? == place.hash)
    }

    /// Reads again what was just written. A disk that loses a write, or puts it elsewhere, says nothing, and an empty place
    /// may pass for a page that was never used. What a cache still holds hides it from this look, too.
    async fn check_written(&self, file: &Arc<dyn DiskFile>, path: &str, written: Vec<Place<'_>>) -> Result<()> {
        let mut running = FuturesOrdered::new();
        for place in written {
            running.push_back(self.check_chunk(file, path, place));
            if running.len() >= CHUNKS_OF_A_FILE
                && let Some(checked) = running.next().await
            {
                checked?;
            }
        }
        while let Some(checked) = running.next().await {
            checked?;
        }
        Ok(())
    }

    async fn check_chunk(&self, file: &Arc<dyn DiskFile>, path: &str, place: Place<'_>) -> Result<()> {
        let _turn = self.chunks.acquire().await.map_err(|_| Error::Bug("nobody closes the turns".into()))?;
        if self.holds(file, &place).await? || planted::is(Bug::StagedUnread) {
            return Ok(());
        }
        let until = place.offset.saturating_add(place.chunk.length.get());
        let message = format!("{path} does not hold what was written from byte {} to {until}", place.offset);
        Err(Refusal::new(Code::NotWritten, message).into())
    }
}
