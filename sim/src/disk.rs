//! The simulated disks: a volume of its own for each host, and volumes that all hosts mount. Bytes and names that were
//! written and not synced are kept apart from those on the disk, with the host that wrote them, so that a crash can take
//! them by policy: that host's only.
//!
//! Not modelled: permission bits and link targets are durable at once, and nobody is refused by permission bits.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sheetanchor_core::error::{Fault, FaultKind};
use sheetanchor_core::identity::ByteCount;
use sheetanchor_engine::env::whole;
use sheetanchor_engine::env::{Clock, Disk, DiskFile, DiskLock, Entry, EntryKind, Metadata, OpenMode, Published};

use crate::chance::Chance;
use crate::gate::{self, Cost, Kind, Life, Met, Operation, Said};
use crate::host::{HostId, locked};
use crate::plan::{CrashPolicy, Damage};

mod content;
mod loss;
mod store;
mod survey;
mod volume;

pub use survey::FileView;

use store::{Found, Store, VolumeId, fault};
use volume::{Body, Inode, Lock, Place};

/// Every disk of one world. Clones are the same disks.
#[derive(Clone, Debug)]
pub struct Disks(Arc<Mutex<Store>>);

/// Bytes that fit on each volume.
pub const CAPACITY: ByteCount = ByteCount::new(1 << 40);

impl Disks {
    /// Disks of which all hosts share the volumes mounted at `shared`; every other path is a host's own.
    pub fn new(shared: &[&str]) -> Self {
        Self(Arc::new(Mutex::new(Store::new(shared))))
    }

    /// Takes what `host` had not synced, by `policy`, and its locks.
    pub fn crash(&self, host: HostId, policy: CrashPolicy, chance: &Chance) {
        locked(&self.0).crash(host, policy, chance);
    }

    /// Every file that `host` can reach, as it stands now, sorted by path: no operation, no trace.
    pub fn survey(&self, host: HostId) -> Vec<FileView> {
        survey::of(&locked(&self.0), host)
    }

    /// The bytes of a file as `host` sees them now, for oracles and tests: no operation, no trace.
    pub fn peek(&self, host: HostId, path: &str) -> Option<Vec<u8>> {
        let mut store = locked(&self.0);
        let found = store.resolve(host, path, true).ok()?;
        let inode = found.inode?;
        store.volume(&found.volume).content(inode).map(|content| content.read(0, usize::MAX))
    }
}

/// The disks as one life of one host sees them.
#[derive(Clone)]
pub struct SimDisk {
    disks: Disks,
    life: Life,
    clock: Arc<dyn Clock>,
    chance: Chance,
}

impl core::fmt::Debug for SimDisk {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.debug_struct("SimDisk").field("life", &self.life).finish_non_exhaustive()
    }
}

impl SimDisk {
    /// The view of `life`.
    pub fn new(disks: Disks, life: Life, clock: Arc<dyn Clock>, chance: Chance) -> Self {
        Self { disks, life, clock, chance }
    }

    fn host(&self) -> HostId {
        self.life.host()
    }

    /// A sync takes 1 to 4 ms, before its effect. Anything else takes effect at once, and one in 32 dawdles afterwards.
    fn cost(&self, kind: Kind) -> Cost {
        match kind {
            Kind::Sync => Cost { before: Duration::from_micros(self.chance.between(1_000, 4_000)), ..Cost::default() },
            Kind::Read | Kind::Space | Kind::Write | Kind::Name | Kind::BucketPut | Kind::Net => {
                let dawdles = self.chance.one_in(32);
                let after = if dawdles { Duration::from_millis(1) } else { Duration::ZERO };
                Cost { after, ..Cost::default() }
            }
        }
    }

    async fn run<T: Send>(
        &self,
        kind: Kind,
        path: &str,
        said: Said<'_>,
        payload: &[u8],
        effect: impl FnOnce(&mut Store, Option<Met>) -> Result<T, Fault> + Send,
    ) -> Result<T, Fault> {
        let mount = locked(&self.disks.0).mount_of(path).cloned();
        let volume = mount.as_deref().map_or(gate::Volume::Own, gate::Volume::Named);
        let operation = Operation { kind, volume, said };
        let effect = |met| match (kind, met) {
            // What needs space fails in the middle, and a sync in a way of its own.
            (Kind::Read | Kind::Name, Some(Met::Fails(failed))) => Err(fault(failed, "use", path, BROKEN)),
            (_, met) => effect(&mut locked(&self.disks.0), met),
        };
        self.life.perform(self.clock.as_ref(), operation, payload, self.cost(kind), effect).await
    }
}

/// What a disk says that fails.
const BROKEN: &str = "the disk failed";

/// What needs space fails on a full volume, and with whatever else it meets.
fn full(met: Option<Met>, path: &str) -> Result<(), Fault> {
    if met == Some(Met::Fails(FaultKind::NoSpace)) {
        return Err(fault(FaultKind::NoSpace, "write", path, "no space left on the volume"));
    }
    broken(met, path)
}

/// What may turn out to need no space fails with all but a full volume.
fn broken(met: Option<Met>, path: &str) -> Result<(), Fault> {
    match met {
        Some(Met::Fails(FaultKind::NoSpace) | Met::Short | Met::Silent(..)) | None => Ok(()),
        Some(Met::Fails(kind)) => Err(fault(kind, "write", path, BROKEN)),
    }
}

fn missing(operation: &str, path: &str) -> Fault {
    fault(FaultKind::NotFound, operation, path, "there is no such name")
}

/// The place and the inode of something that must be there, and that is not the root of a volume.
fn standing(found: &Found, operation: &str, path: &str) -> Result<(Place, Inode), Fault> {
    match (&found.place, found.inode) {
        (Some(place), Some(inode)) => Ok((place.clone(), inode)),
        (Some(_), None) => Err(missing(operation, path)),
        (None, _) => Err(fault(FaultKind::Other, operation, path, "it is the root of a volume")),
    }
}

/// The place of a name that must be free.
fn vacant(found: &Found, operation: &str, path: &str) -> Result<Place, Fault> {
    match (&found.place, found.inode) {
        (Some(place), None) => Ok(place.clone()),
        (_, Some(_)) | (None, None) => Err(fault(FaultKind::Exists, operation, path, "the name is taken")),
    }
}

#[async_trait]
impl Disk for SimDisk {
    async fn open(&self, path: &str, mode: OpenMode) -> Result<Box<dyn DiskFile>, Fault> {
        let host = self.host();
        let kind = if mode == OpenMode::CreateNew { Kind::Write } else { Kind::Read };
        let file = self
            .run(kind, path, Said::of("disk open", path).opened(mode), &[], |store, injected| {
                let found = store.resolve(host, path, mode != OpenMode::CreateNew)?;
                let inode = match mode {
                    OpenMode::CreateNew => {
                        let place = vacant(&found, "create", path)?;
                        full(injected, path)?;
                        let volume = store.volume(&found.volume);
                        let inode = volume.create(Body::File(content::Content::default()), 0o600);
                        volume.rename(host, vec![(place, Some(inode))]);
                        inode
                    }
                    OpenMode::Read | OpenMode::Write => found.inode.ok_or_else(|| missing("open", path))?,
                };
                if store.volume(&found.volume).content(inode).is_none() {
                    return Err(fault(FaultKind::Other, "open", path, "it is no file"));
                }
                Ok((found.volume, inode))
            })
            .await?;
        let (volume, inode) = file;
        Ok(Box::new(SimFile { disk: self.clone(), path: path.into(), volume, inode, writable: mode != OpenMode::Read }))
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), Fault> {
        let host = self.host();
        self.run(Kind::Name, from, Said::of("disk rename", from).name(to), &[], |store, _| {
            let source = store.resolve(host, from, false)?;
            let target = store.resolve(host, to, false)?;
            let (old_place, inode) = standing(&source, "rename", from)?;
            if source.volume != target.volume {
                return Err(fault(FaultKind::Other, "rename", from, "the new name is on another volume"));
            }
            let Some(place) = target.place else { return Err(fault(FaultKind::Other, "rename", to, "it is a volume")) };
            let volume = store.volume(&source.volume);
            if target.inode == Some(inode) {
                return Ok(());
            }
            let is_folder = |inode| volume.kind(inode) == Some(EntryKind::Folder);
            if let Some(replaced) = target.inode {
                if is_folder(replaced) != is_folder(inode) {
                    return Err(fault(FaultKind::Other, "rename", from, "one is a folder and the other is not"));
                }
                if volume.list(replaced).next().is_some() {
                    return Err(fault(FaultKind::Exists, "rename", to, "the folder is not empty"));
                }
            }
            volume.rename(host, vec![(old_place, None), (place, Some(inode))]);
            Ok(())
        })
        .await
    }

    async fn publish(&self, temporary: &str, name: &str) -> Result<Published, Fault> {
        let host = self.host();
        self.run(Kind::Name, temporary, Said::of("disk publish", temporary).name(name), &[], |store, _| {
            let source = store.resolve(host, temporary, false)?;
            let target = store.resolve(host, name, false)?;
            let (old_place, inode) = standing(&source, "publish", temporary)?;
            if source.volume != target.volume {
                return Err(fault(FaultKind::Other, "publish", temporary, "the new name is on another volume"));
            }
            let volume = store.volume(&source.volume);
            let Ok(place) = vacant(&target, "publish", name) else {
                volume.rename(host, vec![(old_place, None)]);
                return Ok(Published::Exists);
            };
            volume.rename(host, vec![(old_place, None), (place, Some(inode))]);
            Ok(Published::Created)
        })
        .await
    }

    async fn create_folder(&self, path: &str) -> Result<(), Fault> {
        let host = self.host();
        self.run(Kind::Write, path, Said::of("disk create-folder", path), &[], |store, injected| {
            broken(injected, path)?;
            let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
            for prefix in ends.filter_map(|end| path.get(..end)).filter(|prefix| !prefix.is_empty()) {
                let found = store.resolve(host, prefix, true)?;
                let volume = store.volume(&found.volume);
                match (found.place, found.inode) {
                    (_, Some(inode)) if volume.kind(inode) == Some(EntryKind::Folder) => {}
                    (Some(place), None) => {
                        full(injected, path)?;
                        let folder = volume.create(Body::Folder, 0o700);
                        volume.rename(host, vec![(place, Some(folder))]);
                    }
                    (_, Some(_)) | (None, None) => {
                        return Err(fault(FaultKind::Exists, "create folder", prefix, "it is there and no folder"));
                    }
                }
            }
            Ok(())
        })
        .await
    }

    async fn remove(&self, path: &str) -> Result<(), Fault> {
        let host = self.host();
        self.run(Kind::Name, path, Said::of("disk remove", path), &[], |store, _| {
            let found = store.resolve(host, path, false)?;
            let (place, inode) = standing(&found, "remove", path)?;
            let volume = store.volume(&found.volume);
            if volume.kind(inode) == Some(EntryKind::Folder) {
                return Err(fault(FaultKind::Other, "remove", path, "it is a folder"));
            }
            volume.rename(host, vec![(place, None)]);
            Ok(())
        })
        .await
    }

    async fn remove_folder(&self, path: &str) -> Result<(), Fault> {
        let host = self.host();
        self.run(Kind::Name, path, Said::of("disk remove-folder", path), &[], |store, _| {
            let found = store.resolve(host, path, false)?;
            let (place, inode) = standing(&found, "remove", path)?;
            let volume = store.volume(&found.volume);
            if volume.kind(inode) != Some(EntryKind::Folder) {
                return Err(fault(FaultKind::Other, "remove", path, "it is no folder"));
            }
            if volume.list(inode).next().is_some() {
                return Err(fault(FaultKind::Exists, "remove", path, "the folder is not empty"));
            }
            volume.rename(host, vec![(place, None)]);
            Ok(())
        })
        .await
    }

    async fn list(&self, path: &str) -> Result<Vec<Entry>, Fault> {
        let host = self.host();
        self.run(Kind::Read, path, Said::of("disk list", path), &[], |store, _| {
            let found = store.resolve(host, path, true)?;
            let folder = found.inode.ok_or_else(|| missing("list", path))?;
            let volume = store.volume(&found.volume);
            if volume.kind(folder) != Some(EntryKind::Folder) {
                return Err(fault(FaultKind::Other, "list", path, "it is no folder"));
            }
            let entry = |(name, inode): (&str, _)| Some(Entry { name: name.into(), kind: volume.kind(inode)? });
            Ok(volume.list(folder).filter_map(entry).collect())
        })
        .await
    }

    async fn metadata(&self, path: &str) -> Result<Option<Metadata>, Fault> {
        let host = self.host();
        self.run(Kind::Read, path, Said::of("disk metadata", path), &[], |store, _| {
            let found = match store.resolve(host, path, false) {
                Err(fault) if fault.kind == FaultKind::NotFound => return Ok(None),
                found => found?,
            };
            let volume = store.volume(&found.volume);
            Ok(found.inode.and_then(|inode| {
                let length = volume.content(inode).map_or(0, content::Content::length);
                let length = ByteCount::new(u64::try_from(length).unwrap_or(u64::MAX));
                Some(Metadata { kind: volume.kind(inode)?, length, mode: volume.mode(inode) })
            }))
        })
        .await
    }

    async fn set_mode(&self, path: &str, mode: u32) -> Result<(), Fault> {
        let host = self.host();
        self.run(Kind::Name, path, Said::of("disk set-mode", path).mode(mode), &[], |store, _| {
            let found = store.resolve(host, path, true)?;
            let inode = found.inode.ok_or_else(|| missing("set the mode of", path))?;
            store.volume(&found.volume).set_mode(inode, mode & 0o7777);
            Ok(())
        })
        .await
    }

    async fn symlink(&self, target: &str, path: &str) -> Result<(), Fault> {
        let host = self.host();
        self.run(Kind::Write, path, Said::of("disk symlink", target).name(path), &[], |store, injected| {
            let found = store.resolve(host, path, false)?;
            let place = vacant(&found, "link", path)?;
            full(injected, path)?;
            let volume = store.volume(&found.volume);
            let inode = volume.create(Body::Link(target.into()), 0o777);
            volume.rename(host, vec![(place, Some(inode))]);
            Ok(())
        })
        .await
    }

    async fn read_link(&self, path: &str) -> Result<String, Fault> {
        let host = self.host();
        self.run(Kind::Read, path, Said::of("disk read-link", path), &[], |store, _| {
            let found = store.resolve(host, path, false)?;
            let inode = found.inode.ok_or_else(|| missing("read", path))?;
            let target = store.volume(&found.volume).link_target(inode).map(str::to_string);
            target.ok_or_else(|| fault(FaultKind::Other, "read", path, "it is no symbolic link"))
        })
        .await
    }

    async fn sync_dir(&self, path: &str) -> Result<(), Fault> {
        let host = self.host();
        self.run(Kind::Sync, path, Said::of("disk sync-dir", path), &[], |store, injected| {
            let found = store.resolve(host, path, true)?;
            let folder = found.inode.ok_or_else(|| missing("sync", path))?;
            let volume = store.volume(&found.volume);
            if volume.kind(folder) != Some(EntryKind::Folder) {
                return Err(fault(FaultKind::Other, "sync", path, "it is no folder"));
            }
            if let Some(Met::Fails(kind)) = injected {
                volume.fail_sync_folder(host, folder);
                return Err(fault(kind, "sync", path, BROKEN));
            }
            volume.sync_folder(folder);
            Ok(())
        })
        .await
    }

    async fn space_left(&self, path: &str) -> Result<ByteCount, Fault> {
        let host = self.host();
        self.run(Kind::Space, path, Said::of("disk space-left", path), &[], |store, injected| {
            let found = store.resolve(host, path, true)?;
            if matches!(injected, Some(Met::Fails(_))) {
                return Ok(ByteCount::new(0));
            }
            Ok(ByteCount::new(CAPACITY.get().saturating_sub(store.volume(&found.volume).used())))
        })
        .await
    }

    async fn lock(&self, path: &str) -> Result<Option<Box<dyn DiskLock>>, Fault> {
        let host = self.host();
        let taken = self
            .run(Kind::Name, path, Said::of("disk lock", path), &[], |store, _| {
                let found = store.resolve(host, path, true)?;
                let serial = store.next_lock();
                let volume = store.volume(&found.volume);
                let inode = match (&found.place, found.inode) {
                    (_, Some(inode)) => inode,
                    (Some(place), None) => {
                        let inode = volume.create(Body::File(content::Content::default()), 0o600);
                        volume.rename(host, vec![(place.clone(), Some(inode))]);
                        inode
                    }
                    (None, None) => return Err(missing("lock", path)),
                };
                if volume.lock_holder(inode).is_some() {
                    return Ok(None);
                }
                let lock = Lock { host, serial };
                volume.lock(inode, lock);
                Ok(Some((found.volume, inode, lock)))
            })
            .await?;
        let Some((volume, inode, lock)) = taken else { return Ok(None) };
        Ok(Some(Box::new(HeldLock { disks: self.disks.clone(), life: self.life.clone(), volume, inode, lock })))
    }
}

/// A lock of one life. When that life ends by a crash, the crash takes the lock, not the drop.
struct HeldLock {
    disks: Disks,
    life: Life,
    volume: VolumeId,
    inode: Inode,
    lock: Lock,
}

impl DiskLock for HeldLock {}

impl Drop for HeldLock {
    fn drop(&mut self) {
        if !self.life.is_over() {
            locked(&self.disks.0).volume(&self.volume).unlock(self.inode, self.lock);
        }
    }
}

/// An open file. It stands for the inode, whatever becomes of the name.
struct SimFile {
    disk: SimDisk,
    path: String,
    volume: VolumeId,
    inode: Inode,
    writable: bool,
}

impl SimFile {
    async fn run<T: Send>(
        &self,
        kind: Kind,
        said: Said<'_>,
        payload: &[u8],
        effect: impl FnOnce(&mut content::Content, Option<Met>) -> Result<T, Fault> + Send,
    ) -> Result<T, Fault> {
        if !self.writable && kind == Kind::Write {
            return Err(fault(FaultKind::Other, "write", &self.path, "the file is open for reading"));
        }
        self.disk
            .run(kind, &self.path, said, payload, |store, injected| {
                let content = store.volume(&self.volume).content_mut(self.inode);
                effect(content.ok_or_else(|| missing("use", &self.path))?, injected)
            })
            .await
    }

    fn place(&self, offset: u64) -> Result<usize, Fault> {
        // Far beyond any file of a simulation: a wild offset must not allocate the machine away.
        let bound = 1 << 32;
        usize::try_from(offset)
            .ok()
            .filter(|offset| *offset < bound)
            .ok_or_else(|| fault(FaultKind::NoSpace, "write", &self.path, "the file would be too large"))
    }
}

#[async_trait]
impl DiskFile for SimFile {
    async fn read_at(&self, offset: u64, length: usize) -> Result<Vec<u8>, Fault> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let said = Said::of("disk read", &self.path).range(offset, length);
        self.run(Kind::Read, said, &[], |content, met| {
            if let Some(Met::Silent(Damage::Rot, draw)) = met {
                content.rot(from, length, draw);
            }
            let there = content.length().saturating_sub(from);
            let mut short = met == Some(Met::Short);
            whole::read_full(length.min(there), |bytes, wanted| {
                let before = bytes.len();
                let wanted = if core::mem::take(&mut short) { wanted.div_ceil(2) } else { wanted };
                bytes.resize(before.saturating_add(wanted), 0);
                let taken = content.read_into(from.saturating_add(before), bytes.get_mut(before..).unwrap_or_default());
                bytes.truncate(before.saturating_add(taken));
                Ok::<_, Fault>(())
            })
        })
        .await
    }

    async fn write_at(&self, offset: u64, bytes: Bytes) -> Result<(), Fault> {
        let from = self.place(offset)?;
        let host = self.disk.host();
        let payload = bytes.clone();
        let said = Said::of("disk write", &self.path).range(offset, bytes.len());
        self.run(Kind::Write, said, &payload, |content, met| {
            let mut bytes = bytes;
            match met {
                // The volume fills up, or fails, in the middle of the write.
                Some(Met::Fails(_)) => bytes.truncate(bytes.len() / 2),
                Some(Met::Silent(Damage::Lost, _)) => {
                    content.lose(host, from, bytes.len());
                    return Ok(());
                }
                Some(Met::Silent(Damage::Astray, draw)) => {
                    content.go_astray(host, from, bytes.into(), draw);
                    return Ok(());
                }
                Some(Met::Silent(Damage::Rot, _) | Met::Short) | None => {}
            }
            let mut short = met == Some(Met::Short);
            whole::write_full(&bytes, |rest, before| {
                let taken = if core::mem::take(&mut short) { rest.len().div_ceil(2) } else { rest.len() };
                let before = usize::try_from(before).unwrap_or(usize::MAX);
                content.write(host, from.saturating_add(before), rest.get(..taken).unwrap_or_default().to_vec());
                Ok::<_, Fault>(taken)
            })?;
            full(met, &self.path)
        })
        .await
    }

    async fn truncate(&self, length: u64) -> Result<(), Fault> {
        let until = self.place(length)?;
        let host = self.disk.host();
        let said = Said::of("disk truncate", &self.path).count(until);
        self.run(Kind::Write, said, &[], |content, injected| {
            broken(injected, &self.path)?;
            if until > content.length() {
                full(injected, &self.path)?;
            }
            content.truncate(host, until);
            Ok(())
        })
        .await
    }

    async fn sync(&self) -> Result<(), Fault> {
        let host = self.disk.host();
        self.run(Kind::Sync, Said::of("disk sync", &self.path), &[], |content, injected| {
            if let Some(Met::Fails(kind)) = injected {
                content.fail_sync(host);
                return Err(fault(kind, "sync", &self.path, BROKEN));
            }
            content.sync();
            Ok(())
        })
        .await
    }

    async fn length(&self) -> Result<ByteCount, Fault> {
        let said = Said::of("disk length", &self.path);
        let length = self.run(Kind::Read, said, &[], |content, _| Ok(content.length())).await?;
        Ok(ByteCount::new(u64::try_from(length).unwrap_or(u64::MAX)))
    }
}
