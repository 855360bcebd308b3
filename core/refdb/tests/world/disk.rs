//! A shared volume with one mount for each node. What a node wrote and did not sync is its own to lose.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sheetanchor_core::identity::ByteCount;
use sheetanchor_engine::env::disk::parent;
use sheetanchor_engine::env::{
    Disk, DiskFile, DiskLock, Entry, EntryKind, Fault, FaultKind, Metadata, OpenMode, Published,
};

/// What a crash does to writes that were not synced.
#[derive(Clone, Copy, Debug)]
pub enum Loss {
    DropAll,
    KeepAll,
    /// Each sector of each write, by the flip of a coin.
    Sectors(u64),
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

#[derive(Default, Debug)]
struct Inode {
    durable: Vec<u8>,
    /// Older than what is pending: still to be seen, and written by no sync.
    given_up: Vec<(u16, Change)>,
    pending: Vec<(u16, Change)>,
}

impl Inode {
    fn content(&self) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        self.given_up.iter().chain(&self.pending).for_each(|(_, change)| apply(&mut bytes, change));
        bytes
    }

    fn write(&mut self, node: u16, at: usize, bytes: Vec<u8>) {
        let anew = |change: &Change| match change {
            Change::Write(from, old) => at <= *from && from + old.len() <= at + bytes.len(),
            Change::Truncate(_) => false,
        };
        self.given_up.retain(|(by, change)| *by != node || !anew(change));
        self.pending.push((node, Change::Write(at, bytes)));
    }

    /// A node's pending changes are taken for written, and are not.
    fn give_up(&mut self, node: u16) {
        let (own, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pending).into_iter().partition(|(by, _)| *by == node);
        self.given_up.extend(own);
        self.pending = others;
    }

    /// Makes a node's changes durable, or loses them.
    fn settle(&mut self, node: u16, keep: impl FnMut(Change) -> Vec<Change>) {
        let (own, others) = std::mem::take(&mut self.pending).into_iter().partition(|(by, _)| *by == node);
        self.pending = others;
        let own: Vec<(u16, Change)> = own;
        for change in own.into_iter().map(|(_, change)| change).flat_map(keep) {
            apply(&mut self.durable, &change);
        }
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Truncate(length) => bytes.resize(*length, 0),
        Change::Write(at, new) => {
            if bytes.len() < at + new.len() {
                bytes.resize(at + new.len(), 0);
            }
            bytes[*at..at + new.len()].copy_from_slice(new);
        }
    }
}

type Names = BTreeMap<String, Option<Arc<Mutex<Inode>>>>;

#[derive(Clone, Debug)]
enum NameChange {
    Set(String, Option<Arc<Mutex<Inode>>>),
    Remove(String),
    Rename(String, String),
}

impl NameChange {
    fn folder(&self) -> &str {
        match self {
            Self::Set(path, _) | Self::Remove(path) | Self::Rename(_, path) => parent(path),
        }
    }

    fn apply(&self, names: &mut Names) {
        match self {
            Self::Set(path, inode) => drop(names.insert(path.clone(), inode.clone())),
            Self::Remove(path) => drop(names.remove(path)),
            Self::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
        }
    }
}

#[derive(Default, Debug)]
struct Contents {
    names: Names,
    durable: Names,
    pending: Vec<(u16, NameChange)>,
    locks: BTreeMap<String, u16>,
    dead: BTreeSet<u64>,
}

/// The volume.
#[derive(Clone, Default, Debug)]
pub struct Volume {
    contents: Arc<Mutex<Contents>>,
}

impl Volume {
    /// A node's view of it. `crash_at` counts its operations: from that one on nothing happens any more.
    pub fn mount(&self, node: u16, id: u64, crash_at: u64) -> Arc<Mount> {
        Arc::new(Mount {
            volume: self.clone(),
            node,
            id,
            operations: Arc::default(),
            sync_fails: Arc::default(),
            gives_up: Arc::default(),
            crash_at,
        })
    }

    /// A node's process is gone: what it wrote is there, and not durable. Its mount does nothing any more.
    pub fn kill(&self, mount: &Mount) {
        let mut contents = self.contents.lock().unwrap();
        contents.dead.insert(mount.id);
        contents.locks.retain(|_, node| *node != mount.node);
    }

    /// Loses what a node had not synced. Its mount does nothing any more.
    pub fn crash(&self, mount: &Mount, loss: Loss) {
        self.kill(mount);
        let mut contents = self.contents.lock().unwrap();
        let pending = std::mem::take(&mut contents.pending);
        let (own, others): (Vec<_>, Vec<_>) = pending.into_iter().partition(|(by, _)| *by == mount.node);
        contents.pending = others;
        if let Loss::KeepAll = loss {
            for (_, change) in &own {
                change.apply(&mut contents.durable);
            }
        }
        let mut names = contents.durable.clone();
        contents.pending.iter().for_each(|(_, change)| change.apply(&mut names));
        let inodes: Vec<_> = names.values().flatten().cloned().collect();
        contents.names = names;
        let mut coins = if let Loss::Sectors(seed) = loss { seed } else { 0 };
        for inode in inodes {
            inode.lock().unwrap().given_up.retain(|(by, _)| *by != mount.node);
            inode.lock().unwrap().settle(mount.node, |change| match (loss, change) {
                (Loss::DropAll, _) => Vec::new(),
                (Loss::KeepAll, change) => vec![change],
                (Loss::Sectors(_), change @ Change::Truncate(_)) => {
                    if coin(&mut coins) {
                        vec![change]
                    } else {
                        Vec::new()
                    }
                }
                (Loss::Sectors(_), Change::Write(at, bytes)) => {
                    sectors(at, &bytes).into_iter().filter(|_| coin(&mut coins)).collect()
                }
            });
        }
    }

    /// Bytes of a file as a reader sees them.
    pub fn bytes(&self, path: &str) -> Vec<u8> {
        let inode = self.contents.lock().unwrap().names[path].clone().unwrap();
        inode.lock().unwrap().content()
    }

    /// Puts a file there, durably.
    pub fn put(&self, path: &str, bytes: Vec<u8>) {
        let mut contents = self.contents.lock().unwrap();
        let mut folder = parent(path).to_owned();
        while folder != "/" {
            contents.names.insert(folder.clone(), None);
            contents.durable.insert(folder.clone(), None);
            folder = parent(&folder).to_owned();
        }
        let inode = Some(Arc::new(Mutex::new(Inode { durable: bytes, ..Inode::default() })));
        contents.names.insert(path.into(), inode.clone());
        contents.durable.insert(path.into(), inode);
    }

    /// The names below a folder.
    pub fn names(&self, below: &str) -> Vec<String> {
        let contents = self.contents.lock().unwrap();
        contents.names.keys().filter(|name| name.starts_with(below)).cloned().collect()
    }
}

fn sectors(at: usize, bytes: &[u8]) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut from = 0;
    while from < bytes.len() {
        let until = (((at + from) / 512 + 1) * 512 - at).min(bytes.len());
        changes.push(Change::Write(at + from, bytes[from..until].to_vec()));
        from = until;
    }
    changes
}

/// The next toss (splitmix64).
pub fn coin(state: &mut u64) -> bool {
    next(state) & 1 == 0
}

pub fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// One node's view of a volume.
#[derive(Clone, Debug)]
pub struct Mount {
    volume: Volume,
    pub node: u16,
    id: u64,
    operations: Arc<Mutex<u64>>,
    sync_fails: Arc<Mutex<bool>>,
    gives_up: Arc<Mutex<Option<String>>>,
    crash_at: u64,
}

impl Mount {
    pub fn operations(&self) -> u64 {
        *self.operations.lock().unwrap()
    }

    /// The next sync of a file fails, and what it was to make durable is gone, as on Linux.
    pub fn fail_the_next_sync(&self) {
        *self.sync_fails.lock().unwrap() = true;
    }

    /// The next sync of the file that has something to write fails. What it was to make durable is still read, passes for
    /// written, and is gone once power is lost: on Linux, too.
    pub fn give_up_at_the_next_sync_of(&self, path: &str) {
        *self.gives_up.lock().unwrap() = Some(path.into());
    }

    pub fn has_crashed(&self) -> bool {
        self.operations() >= self.crash_at
    }

    /// Each operation takes a little time; a mount whose node has crashed does nothing any more.
    async fn operation(&self) {
        tokio::time::sleep(Duration::from_micros(50)).await;
        let number = {
            let mut operations = self.operations.lock().unwrap();
            *operations += 1;
            *operations
        };
        let dead = self.volume.contents.lock().unwrap().dead.contains(&self.id);
        if dead || number >= self.crash_at {
            std::future::pending::<()>().await;
        }
    }

    fn inode(&self, path: &str) -> Result<Arc<Mutex<Inode>>, Fault> {
        let contents = self.volume.contents.lock().unwrap();
        contents.names.get(path).cloned().flatten().ok_or_else(|| Fault::new(FaultKind::NotFound, path, "not there"))
    }

    fn change(&self, change: NameChange) {
        let mut contents = self.volume.contents.lock().unwrap();
        change.apply(&mut contents.names);
        contents.pending.push((self.node, change));
    }

    fn exists(&self, path: &str) -> bool {
        self.volume.contents.lock().unwrap().names.contains_key(path)
    }
}

#[async_trait]
impl Disk for Mount {
    async fn open(&self, path: &str, mode: OpenMode) -> Result<Box<dyn DiskFile>, Fault> {
        self.operation().await;
        if mode == OpenMode::CreateNew {
            if self.exists(path) {
                return Err(Fault::new(FaultKind::Exists, path, "there"));
            }
            if !self.exists(parent(path)) {
                return Err(Fault::new(FaultKind::NotFound, path, "no folder"));
            }
            self.change(NameChange::Set(path.into(), Some(Arc::default())));
        }
        Ok(Box::new(File { mount: self.clone(), path: path.into(), inode: self.inode(path)? }))
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), Fault> {
        self.operation().await;
        self.inode(from)?;
        self.change(NameChange::Rename(from.into(), to.into()));
        Ok(())
    }

    async fn publish(&self, _temporary: &str, _name: &str) -> Result<Published, Fault> {
        unreachable!("the database does not publish")
    }

    async fn create_folder(&self, path: &str) -> Result<(), Fault> {
        self.operation().await;
        let mut above = vec![path.to_owned()];
        while let Some(folder) = above.last().map(|path| parent(path).to_owned()).filter(|folder| folder != "/") {
            above.push(folder);
        }
        for folder in above.into_iter().rev() {
            if !self.exists(&folder) {
                self.change(NameChange::Set(folder, None));
            }
        }
        Ok(())
    }

    async fn remove(&self, path: &str) -> Result<(), Fault> {
        self.operation().await;
        self.inode(path)?;
        self.change(NameChange::Remove(path.into()));
        Ok(())
    }

    async fn remove_folder(&self, _path: &str) -> Result<(), Fault> {
        unreachable!("the database removes no folder")
    }

    async fn list(&self, path: &str) -> Result<Vec<Entry>, Fault> {
        self.operation().await;
        let contents = self.volume.contents.lock().unwrap();
        let inside = contents.names.iter().filter(|(name, _)| parent(name) == path);
        Ok(inside
            .map(|(name, inode)| Entry {
                name: name.rsplit('/').next().unwrap().into(),
                kind: if inode.is_some() { EntryKind::File } else { EntryKind::Folder },
            })
            .collect())
    }

    async fn metadata(&self, path: &str) -> Result<Option<Metadata>, Fault> {
        self.operation().await;
        let found = self.volume.contents.lock().unwrap().names.get(path).cloned();
        Ok(found.map(|inode| match inode {
            None => Metadata { kind: EntryKind::Folder, length: ByteCount::new(0), mode: 0o700 },
            Some(inode) => {
                let length = ByteCount::new(inode.lock().unwrap().content().len() as u64);
                Metadata { kind: EntryKind::File, length, mode: 0o600 }
            }
        }))
    }

    async fn set_mode(&self, _path: &str, _mode: u32) -> Result<(), Fault> {
        unreachable!("the database sets no modes")
    }

    async fn symlink(&self, _target: &str, _path: &str) -> Result<(), Fault> {
        unreachable!("the database makes no links")
    }

    async fn read_link(&self, _path: &str) -> Result<String, Fault> {
        unreachable!("the database reads no links")
    }

    async fn sync_dir(&self, path: &str) -> Result<(), Fault> {
        self.operation().await;
        let mut contents = self.volume.contents.lock().unwrap();
        let pending = std::mem::take(&mut contents.pending);
        let due = |(node, change): &(u16, NameChange)| *node == self.node && change.folder() == path;
        let (synced, others): (Vec<_>, Vec<_>) = pending.into_iter().partition(due);
        contents.pending = others;
        for (_, change) in &synced {
            change.apply(&mut contents.durable);
        }
        Ok(())
    }

    async fn space_left(&self, _path: &str) -> Result<ByteCount, Fault> {
        Ok(ByteCount::new(1 << 40))
    }

    async fn lock(&self, path: &str) -> Result<Option<Box<dyn DiskLock>>, Fault> {
        self.operation().await;
        let mut contents = self.volume.contents.lock().unwrap();
        if contents.locks.contains_key(path) {
            return Ok(None);
        }
        contents.locks.insert(path.into(), self.node);
        Ok(Some(Box::new(Lock { mount: self.clone(), path: path.into() })))
    }
}

struct Lock {
    mount: Mount,
    path: String,
}

impl DiskLock for Lock {}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut contents = self.mount.volume.contents.lock().unwrap();
        if !contents.dead.contains(&self.mount.id) {
            contents.locks.remove(&self.path);
        }
    }
}

struct File {
    mount: Mount,
    path: String,
    inode: Arc<Mutex<Inode>>,
}

#[async_trait]
impl DiskFile for File {
    async fn read_at(&self, offset: u64, length: usize) -> Result<Vec<u8>, Fault> {
        self.mount.operation().await;
        let content = self.inode.lock().unwrap().content();
        let from = usize::try_from(offset).unwrap().min(content.len());
        let until = from.saturating_add(length).min(content.len());
        Ok(content[from..until].to_vec())
    }

    async fn write_at(&self, offset: u64, bytes: Bytes) -> Result<(), Fault> {
        self.mount.operation().await;
        self.inode.lock().unwrap().write(self.mount.node, usize::try_from(offset).unwrap(), bytes.into());
        Ok(())
    }

    async fn truncate(&self, length: u64) -> Result<(), Fault> {
        self.mount.operation().await;
        let change = Change::Truncate(usize::try_from(length).unwrap());
        self.inode.lock().unwrap().pending.push((self.mount.node, change));
        Ok(())
    }

    async fn sync(&self) -> Result<(), Fault> {
        self.mount.operation().await;
        let mut inode = self.inode.lock().unwrap();
        let due = inode.pending.iter().any(|(by, _)| *by == self.mount.node);
        if due && self.mount.gives_up.lock().unwrap().take_if(|path| *path == self.path).is_some() {
            inode.give_up(self.mount.node);
            return Err(Fault::new(FaultKind::SyncFailed, "sync", "the disk says so"));
        }
        let fails = std::mem::take(&mut *self.mount.sync_fails.lock().unwrap());
        inode.settle(self.mount.node, |change| if fails { Vec::new() } else { vec![change] });
        if fails { Err(Fault::new(FaultKind::SyncFailed, "sync", "the disk says so")) } else { Ok(()) }
    }

    async fn length(&self) -> Result<ByteCount, Fault> {
        self.mount.operation().await;
        Ok(ByteCount::new(self.inode.lock().unwrap().content().len() as u64))
    }
}
