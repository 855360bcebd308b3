//! All volumes of a world, and how a host's paths lead into them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use sheetanchor_core::error::{Fault, FaultKind};
use sheetanchor_engine::env::EntryKind;

use super::volume::{Inode, Place, Volume};
use crate::chance::Chance;
use crate::host::HostId;
use crate::plan::CrashPolicy;

/// Which volume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum VolumeId {
    /// A host's own disk.
    Own(HostId),
    /// The one that every host mounts there.
    Shared(Arc<str>),
}

/// Where a path led.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) volume: VolumeId,
    /// The folder and the name in it; `None` for the root of a volume.
    pub(super) place: Option<Place>,
    /// What stands there, if anything does.
    pub(super) inode: Option<Inode>,
}

/// Every volume of one world.
#[derive(Debug)]
pub(super) struct Store {
    shared: Vec<Arc<str>>,
    volumes: BTreeMap<VolumeId, Volume>,
    locks_taken: u64,
}

/// Symbolic links followed in one path before it is taken for a circle.
const LINKS_MAX: u32 = 16;

impl Store {
    /// A store whose hosts share a volume at each of `shared`.
    pub(super) fn new(shared: &[&str]) -> Self {
        let shared = shared.iter().map(|mount| Arc::from(*mount)).collect();
        Self { shared, volumes: BTreeMap::new(), locks_taken: 0 }
    }

    pub(super) fn volume(&mut self, id: &VolumeId) -> &mut Volume {
        self.volumes.entry(id.clone()).or_insert_with(Volume::new)
    }

    pub(super) fn volumes(&self) -> impl Iterator<Item = (&VolumeId, &Volume)> {
        self.volumes.iter()
    }

    pub(super) fn next_lock(&mut self) -> u64 {
        self.locks_taken += 1;
        self.locks_taken
    }

    /// The volume that a path lies on, judged by its prefix alone.
    pub(super) fn mount_of(&self, path: &str) -> Option<&Arc<str>> {
        let under = |mount: &&Arc<str>| {
            path.strip_prefix(&***mount).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.shared.iter().find(under)
    }

    /// Follows a path. Links in the middle are followed, the last one too if `follow`.
    pub(super) fn resolve(&mut self, host: HostId, path: &str, follow: bool) -> Result<Found, Fault> {
        let mut path = normal(path)?;
        for _ in 0..LINKS_MAX {
            match self.walk(host, &path, follow)? {
                Walked::There(found) => return Ok(found),
                Walked::Link(onward) => path = normal(&onward)?.into_owned().into(),
            }
        }
        Err(fault(FaultKind::Other, "follow", &path, "too many symbolic links"))
    }

    fn walk(&mut self, host: HostId, path: &str, follow: bool) -> Result<Walked, Fault> {
        let (id, rest) = match self.mount_of(path) {
            Some(mount) => (VolumeId::Shared(mount.clone()), path.strip_prefix(&**mount).unwrap_or_default()),
            None => (VolumeId::Own(host), path),
        };
        let mount_length = path.len() - rest.len();
        let volume = self.volume(&id);
        let mut found = Found { volume: id, place: None, inode: Some(Inode::ROOT) };
        let mut parts = rest.split('/').filter(|part| !part.is_empty()).peekable();
        let mut walked_bytes = mount_length;
        while let Some(part) = parts.next() {
            let folder = found.inode.ok_or_else(|| fault(FaultKind::NotFound, "find", path, "a folder is missing"))?;
            if volume.kind(folder) != Some(EntryKind::Folder) {
                return Err(fault(FaultKind::NotFound, "find", path, "a part of the path is no folder"));
            }
            let above = walked_bytes;
            walked_bytes += part.len() + 1;
            // The name's own bytes are those of the part before.
            let mut place = found.place.take().unwrap_or_default();
            place.0 = folder;
            place.1.clear();
            place.1.push_str(part);
            let inode = volume.find(&place);
            let last = parts.peek().is_none();
            if let Some(target) = inode.and_then(|inode| volume.link_target(inode))
                && (follow || !last)
            {
                let above = path.get(..above).unwrap_or_default();
                let below = path.get(walked_bytes..).unwrap_or_default();
                let onward = if target.starts_with('/') {
                    format!("{target}{below}")
                } else {
                    format!("{above}/{target}{below}")
                };
                return Ok(Walked::Link(onward));
            }
            (found.place, found.inode) = (Some(place), inode);
        }
        Ok(Walked::There(found))
    }

    pub(super) fn crash(&mut self, host: HostId, policy: CrashPolicy, chance: &Chance) {
        for volume in self.volumes.values_mut() {
            volume.crash(host, policy, chance);
        }
    }
}

enum Walked {
    There(Found),
    Link(String),
}

/// The path without `.` and `..`, which symbolic links may hold.
fn normal(path: &str) -> Result<Cow<'_, str>, Fault> {
    if !path.starts_with('/') {
        return Err(fault(FaultKind::Other, "use", path, "the path is not absolute"));
    }
    if path.split('/').skip(1).all(|part| !matches!(part, "" | "." | "..")) {
        return Ok(Cow::Borrowed(path));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Ok(Cow::Owned(format!("/{}", parts.join("/"))))
}

pub(super) fn fault(kind: FaultKind, operation: &str, path: &str, cause: &str) -> Fault {
    Fault::new(kind, format!("{operation} {path}"), cause)
}
