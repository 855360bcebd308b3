//! A repository in a folder, on any [`Disk`]: natively a local or mounted file system, in a simulator the simulated one,
//! so that crash sweeps cover it. `object_store`'s own local store does not sync unless told to; this one answers
//! `Created` only once file and folders are durable, and shows nothing that could still vanish.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use async_trait::async_trait;
use bytes::Bytes;
use sheetanchor_core::error::{Fault, FaultKind};
use sheetanchor_core::identity::ByteCount;
use sheetanchor_core::planted::{self, Bug};
use tokio::sync::Mutex;

use crate::env::disk::parent;
use crate::env::{Bucket, Disk, Entropy, EntryKind, OpenMode, Published, Put};

/// Where half-written objects lie. What a crash leaves there is garbage that nothing shows.
const TEMPORARY: &str = ".tmp";

/// A [`Bucket`] in a folder.
pub struct FolderBucket {
    disk: Arc<dyn Disk>,
    entropy: Arc<dyn Entropy>,
    root: String,
    /// Folders whose names, and those of the folders above them up to the root, this process has made durable.
    durable: Mutex<BTreeSet<String>>,
    /// Objects whose names a failed sync may have dropped, whatever later syncs answered, and how many syncs have failed.
    doubted: Mutex<(BTreeSet<String>, u64)>,
}

/// How often a name is given anew after a failed sync before its writer is told.
const ANEW_MAX: u32 = 3;

impl FolderBucket {
    /// The repository under the absolute path `root`, which is created when something is first put.
    pub fn new(disk: Arc<dyn Disk>, entropy: Arc<dyn Entropy>, root: impl Into<String>) -> Self {
        Self { disk, entropy, root: root.into(), durable: Mutex::default(), doubted: Mutex::default() }
    }

    fn path(&self, key: &str) -> Result<String, Fault> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let sound = |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(plain);
        if key.split('/').all(sound) {
            return Ok(format!("{}/{key}", self.root));
        }
        Err(Fault::new(FaultKind::Other, format!("use the key `{}`", key.escape_debug()), "it is no valid object key"))
    }

    /// Makes durable the names of a folder of ours and of those above it. That it is there says nothing: whoever made it
    /// may have been killed before the sync of its name, and all that lies in it would go with that name. (Found by the
    /// sweep: a sealed backup lost its WAL.)
    async fn assure(&self, folder: &str) -> Result<(), Fault> {
        if planted::is(Bug::FolderUnsynced) {
            return Ok(());
        }
        let mut unsure = Vec::new();
        let mut at = folder;
        loop {
            if self.durable.lock().await.contains(at) {
                break;
            }
            unsure.push(at);
            if at == self.root || at == "/" {
                break;
            }
            at = parent(at);
        }
        for (made, folder) in unsure.iter().enumerate().rev() {
            if let Err(fault) = self.sync_names(parent(folder)).await {
                // Its name may be lost, and no later sync would bring it back: what is empty goes, and is made anew.
                for folder in unsure.iter().take(made + 1) {
                    drop(self.disk.remove_folder(folder).await);
                }
                return Err(fault);
            }
            self.durable.lock().await.insert((*folder).to_string());
        }
        Ok(())
    }

    /// Makes the names in a folder durable. If that fails, names that had not been durable are so no more, though they are
    /// seen until the next loss of power, and later syncs succeed without them.
    async fn sync_names(&self, folder: &str) -> Result<(), Fault> {
        let synced = self.disk.sync_dir(folder).await;
        if synced.is_err() {
            self.doubted.lock().await.1 += 1;
        }
        synced
    }

    /// Makes the name of an object that has just been published durable. After a failed sync, of whoever in this process, the
    /// name is given anew, to the same bytes, since nothing else makes it durable. (Found by the swarm: a point lost its WAL.)
    async fn settle(&self, path: &str, mut failures: u64, mut anew: bool) -> Result<(), Fault> {
        for _ in 0..ANEW_MAX {
            if anew {
                self.name_anew(path).await?;
            }
            let synced = self.sync_names(parent(path)).await;
            let mut doubted = self.doubted.lock().await;
            if synced.is_ok() && doubted.1 == failures {
                doubted.0.remove(path);
                return Ok(());
            }
            (failures, anew) = (doubted.1, true);
            doubted.0.insert(path.to_string());
        }
        Err(Fault::new(FaultKind::SyncFailed, format!("sync {}", parent(path)), "it failed again and again"))
    }

    /// Makes the name of an object that was there already durable.
    async fn settle_found(&self, path: &str) -> Result<(), Fault> {
        let (anew, failures) = {
            let doubted = self.doubted.lock().await;
            (doubted.0.contains(path), doubted.1)
        };
        self.settle(path, failures, anew).await
    }

    async fn name_anew(&self, path: &str) -> Result<(), Fault> {
        let body = self.disk.read(path).await?;
        let temporary = self.temporary();
        let file = self.disk.open(&temporary, OpenMode::CreateNew).await?;
        file.write_at(0, body.into()).await?;
        file.sync().await?;
        drop(file);
        self.disk.rename(&temporary, path).await
    }

    fn temporary(&self) -> String {
        format!("{}/{TEMPORARY}/{:016x}", self.root, self.entropy.word())
    }

    async fn list_folder(&self, folder: &str, keys: &mut Vec<String>) -> Result<(), Fault> {
        let mut waiting = Vec::from([folder.to_string()]);
        while let Some(folder) = waiting.pop() {
            let path = if folder.is_empty() { self.root.clone() } else { format!("{}/{folder}", self.root) };
            let entries = match self.disk.list(&path).await {
                Ok(entries) => entries,
                Err(fault) if fault.kind == FaultKind::NotFound => continue,
                Err(fault) => return Err(fault),
            };
            let mut shown = false;
            for entry in entries {
                let key = if folder.is_empty() { entry.name } else { format!("{folder}/{}", entry.name) };
                match entry.kind {
                    EntryKind::Folder if key != TEMPORARY => waiting.push(key),
                    EntryKind::File => {
                        keys.push(key);
                        shown = true;
                    }
                    EntryKind::Folder | EntryKind::Link | EntryKind::Other => {}
                }
            }
            if shown {
                self.assure(&path).await?;
                self.sync_names(&path).await?;
            }
        }
        Ok(())
    }
}

impl core::fmt::Debug for FolderBucket {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(out, "FolderBucket({})", self.root)
    }
}

#[async_trait]
impl Bucket for FolderBucket {
    async fn put_new(&self, key: &str, body: Bytes) -> Result<Put, Fault> {
        let path = self.path(key)?;
        let folder = parent(&path);
        if self.disk.metadata(&path).await?.is_some() {
            self.assure(folder).await?;
            self.settle_found(&path).await?;
            return Ok(Put::Exists);
        }
        let temporary_folder = format!("{}/{TEMPORARY}", self.root);
        self.disk.create_durable_folder(&temporary_folder).await?;
        self.disk.create_folder(folder).await?;
        self.assure(folder).await?;
        let temporary = self.temporary();
        let written = async {
            let file = self.disk.open(&temporary, OpenMode::CreateNew).await?;
            file.write_at(0, body).await?;
            if planted::is(Bug::NoFsyncBeforeSeal) {
                return Ok(());
            }
            file.sync().await
        };
        if let Err(fault) = written.await {
            // A full disk must not stay full of what could not be written; if this fails too, it is garbage.
            drop(self.disk.remove(&temporary).await);
            return Err(fault);
        }
        let failures = self.doubted.lock().await.1;
        let published = self.disk.publish(&temporary, &path).await?;
        if !planted::is(Bug::NoFsyncBeforeSeal) {
            self.settle(&path, failures, false).await?;
        }
        Ok(match published {
            Published::Created => Put::Created,
            Published::Exists => Put::Exists,
        })
    }

    async fn get(&self, key: &str) -> Result<Vec<u8>, Fault> {
        let path = self.path(key)?;
        let body = self.disk.read(&path).await?;
        // Its writer may not have come to sync the name: whoever acts on what was read must find it again.
        if !planted::is(Bug::NoFsyncBeforeSeal) {
            self.assure(parent(&path)).await?;
            self.settle_found(&path).await?;
        }
        Ok(body)
    }

    async fn get_range(&self, key: &str, from: u64, length: u64) -> Result<Vec<u8>, Fault> {
        let file = self.disk.open(&self.path(key)?, OpenMode::Read).await?;
        file.read_at(from, usize::try_from(length).unwrap_or(usize::MAX)).await
    }

    async fn head(&self, key: &str) -> Result<Option<ByteCount>, Fault> {
        let path = self.path(key)?;
        Ok(self.disk.metadata(&path).await?.map(|metadata| metadata.length))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, Fault> {
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut keys = Vec::new();
        self.list_folder(folder, &mut keys).await?;
        keys.retain(|key| key.starts_with(prefix));
        keys.sort_unstable();
        Ok(keys)
    }

    async fn folders(&self, prefix: &str) -> Result<Vec<String>, Fault> {
        let path = format!("{}/{}", self.root, prefix.trim_end_matches('/'));
        let entries = match self.disk.list(&path).await {
            Ok(entries) => entries,
            Err(fault) if fault.kind == FaultKind::NotFound => return Ok(Vec::new()),
            Err(fault) => return Err(fault),
        };
        self.assure(&path).await?;
        self.sync_names(&path).await?;
        let folders = entries.into_iter().filter(|entry| entry.kind == EntryKind::Folder);
        let mut folders: Vec<String> = folders.map(|entry| format!("{prefix}{}", entry.name)).collect();
        folders.sort_unstable();
        Ok(folders)
    }

    async fn delete(&self, key: &str) -> Result<(), Fault> {
        let path = self.path(key)?;
        match self.disk.remove(&path).await {
            Ok(()) => self.sync_names(parent(&path)).await,
            Err(fault) if fault.kind == FaultKind::NotFound => Ok(()),
            Err(fault) => Err(fault),
        }
    }
}
