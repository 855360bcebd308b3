//! Files.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use async_trait::async_trait;
use bytes::Bytes;
use sheetanchor_core::error::Fault;
use sheetanchor_core::identity::ByteCount;
use sheetanchor_core::planted::{self, Bug};

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, to read.
    Read,
    /// An existing file, to read and write.
    Write,
    /// A file that must not exist yet, to read and write; mode 0600.
    CreateNew,
}

/// What became of a [`Disk::publish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// The name now stands for the published file.
    Created,
    /// The name was taken; what it stands for is unchanged, and the temporary file is gone.
    Exists,
}

/// What a name in a folder stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A socket, a pipe, a device.
    Other,
}

/// A name in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The last part of its path.
    pub name: String,
    /// What it is. Links are not followed.
    pub kind: EntryKind,
}

/// What the file system knows of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// What it is. Links are not followed.
    pub kind: EntryKind,
    /// Length of a file; of no meaning for others.
    pub length: ByteCount,
    /// Permission bits.
    pub mode: u32,
}

/// The files of one machine, and of volumes that it shares with others. Paths are absolute, `/`-separated.
///
/// What we rely on after power loss: bytes are durable once [`DiskFile::sync`] has returned, names once
/// [`Disk::sync_dir`] of their folder has. What was written and not synced may be there, in part, or not. After a sync
/// has failed nothing may be assumed of what was written since the last good one, whatever later calls answer.
///
/// Every method's faults: [`NotFound`](sheetanchor_core::error::FaultKind::NotFound),
/// [`Exists`](sheetanchor_core::error::FaultKind::Exists), [`NoSpace`](sheetanchor_core::error::FaultKind::NoSpace),
/// [`SyncFailed`](sheetanchor_core::error::FaultKind::SyncFailed), [`Other`](sheetanchor_core::error::FaultKind::Other).
#[async_trait]
#[allow(clippy::missing_errors_doc, reason = "one contract for all, above")]
pub trait Disk: Send + Sync {
    /// Opens a file.
    async fn open(&self, path: &str, mode: OpenMode) -> Result<Box<dyn DiskFile>, Fault>;

    /// Gives a file or folder another name in the same volume, replacing a file that had it. Atomic, not durable.
    async fn rename(&self, from: &str, to: &str) -> Result<(), Fault>;

    /// Gives the file at `temporary` the name `name` unless that is taken; atomic, and never overwrites. Either way
    /// `temporary` is gone afterwards. Not durable by itself: sync the file before and both folders after.
    async fn publish(&self, temporary: &str, name: &str) -> Result<Published, Fault>;

    /// Creates a folder and those above it that are missing. No fault if it is there. Mode 0700.
    async fn create_folder(&self, path: &str) -> Result<(), Fault>;

    /// Removes a file or link.
    async fn remove(&self, path: &str) -> Result<(), Fault>;

    /// Removes an empty folder.
    async fn remove_folder(&self, path: &str) -> Result<(), Fault>;

    /// What lies in a folder, sorted by name.
    async fn list(&self, path: &str) -> Result<Vec<Entry>, Fault>;

    /// What the file system knows of a name; `None` if there is nothing.
    async fn metadata(&self, path: &str) -> Result<Option<Metadata>, Fault>;

    /// Sets permission bits.
    async fn set_mode(&self, path: &str, mode: u32) -> Result<(), Fault>;

    /// Makes a symbolic link at `path` that leads to `target`.
    async fn symlink(&self, target: &str, path: &str) -> Result<(), Fault>;

    /// Where a symbolic link leads.
    async fn read_link(&self, path: &str) -> Result<String, Fault>;

    /// Makes the names in a folder durable: those created, renamed and removed in it.
    async fn sync_dir(&self, path: &str) -> Result<(), Fault>;

    /// Free space of the volume that `path` lies on.
    async fn space_left(&self, path: &str) -> Result<ByteCount, Fault>;

    /// Takes the lock file at `path`, creating it if need be; `None` if another living process holds it. Held until the
    /// returned value is dropped or the process dies, however it dies.
    async fn lock(&self, path: &str) -> Result<Option<Box<dyn DiskLock>>, Fault>;
}

/// A held lock; dropping it lets go.
pub trait DiskLock: Send + Sync {}

/// An open file. Closed when dropped; closing neither syncs nor fails. Faults as for [`Disk`].
#[async_trait]
#[allow(clippy::missing_errors_doc, reason = "one contract for all, at `Disk`")]
pub trait DiskFile: Send + Sync {
    /// The bytes `offset..offset + length`; fewer only at the end of the file.
    async fn read_at(&self, offset: u64, length: usize) -> Result<Vec<u8>, Fault>;

    /// Writes all of `bytes` at `offset`, extending the file if need be. After a fault, any part may have been written.
    async fn write_at(&self, offset: u64, bytes: Bytes) -> Result<(), Fault>;

    /// Cuts or extends (with zeros) the file.
    async fn truncate(&self, length: u64) -> Result<(), Fault>;

    /// Makes the file's bytes and length durable, though not its name.
    async fn sync(&self) -> Result<(), Fault>;

    /// The file's length.
    async fn length(&self) -> Result<ByteCount, Fault>;
}

impl dyn Disk {
    /// Creates a folder and makes its name, and those of the folders above it that were missing, durable. From the top,
    /// one by one: whoever finds a folder there knows that only its own name may not be durable yet.
    ///
    /// # Errors
    /// Those of [`Disk`].
    pub async fn create_durable_folder(&self, path: &str) -> Result<(), Fault> {
        let mut missing = Vec::new();
        let mut at = path;
        while at != "/" && self.metadata(at).await?.is_none() {
            missing.push(at);
            at = parent(at);
        }
        if at != "/" {
            // A process that was killed may have made it, and not have come to sync its name.
            self.sync_dir(parent(at)).await?;
        }
        for folder in missing.into_iter().rev() {
            self.create_folder(folder).await?;
            self.sync_dir(parent(folder)).await?;
        }
        Ok(())
    }

    /// The whole file.
    ///
    /// # Errors
    /// Those of [`Disk`].
    pub async fn read(&self, path: &str) -> Result<Vec<u8>, Fault> {
        let file = self.open(path, OpenMode::Read).await?;
        let length = file.length().await?;
        file.read_at(0, usize::try_from(length.get()).unwrap_or(usize::MAX)).await
    }

    /// Replaces the file at `path` by one that holds `bytes`: after power loss it is the old one or the new one, whole,
    /// and once this returns it is the new one. `path` must lie in a folder.
    ///
    /// # Errors
    /// Those of [`Disk`].
    pub async fn replace(&self, path: &str, bytes: Vec<u8>) -> Result<(), Fault> {
        let temporary = alloc::format!("{path}.new");
        if self.metadata(&temporary).await?.is_some() {
            self.remove(&temporary).await?;
        }
        let file = self.open(&temporary, OpenMode::CreateNew).await?;
        file.write_at(0, bytes.into()).await?;
        file.sync().await?;
        drop(file);
        self.rename(&temporary, path).await?;
        if planted::is(Bug::ReplacedNameUnsynced) {
            return Ok(());
        }
        self.sync_dir(parent(path)).await
    }
}

/// The folder that `path` lies in.
pub fn parent(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((folder, _)) => folder,
    }
}
