//! What lies on the disks, file by file: what a person wants to see before and after a crash.

use std::collections::{BTreeMap, BTreeSet};

use super::store::{Store, VolumeId};
use super::volume::{Inode, Names};
use crate::host::HostId;

/// One file, as one host sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileView {
    /// Its path on that host.
    pub path: String,
    /// Its length as everybody reads it, in bytes. `None`: there is no file of that name any more; the name is still on
    /// the disk.
    pub seen_bytes: Option<u64>,
    /// Its length on the disk, in bytes, counting nothing that is unsynced.
    pub durable_bytes: u64,
    /// Bytes that this host wrote and that no sync has made durable.
    pub unsynced_bytes: u64,
    /// Whether the name itself is on the disk, leading to this file.
    pub name_durable: bool,
}

impl FileView {
    /// Whether losing power could change anything about it.
    pub const fn is_settled(&self) -> bool {
        self.unsynced_bytes == 0 && self.name_durable && self.seen_bytes.is_some()
    }
}

fn bytes(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// The files that `host` can reach by names.
pub(super) fn of(store: &Store, host: HostId) -> Vec<FileView> {
    let mut views = Vec::new();
    for (id, volume) in store.volumes() {
        let mount = match id {
            VolumeId::Own(owner) if *owner == host => "",
            VolumeId::Own(_) => continue,
            VolumeId::Shared(mount) => &**mount,
        };
        let (seen, durable) = (paths(volume.seen()), paths(&volume.durable_names()));
        let names: BTreeSet<&String> = seen.keys().chain(durable.keys()).collect();
        for name in names {
            let (now, then) = (seen.get(name).copied(), durable.get(name).copied());
            let Some(content) = now.or(then).and_then(|inode| volume.content(inode)) else { continue };
            views.push(FileView {
                path: format!("{mount}{name}"),
                seen_bytes: now.map(|_| bytes(content.length())),
                durable_bytes: bytes(content.durable_length()),
                unsynced_bytes: bytes(content.unsynced_by(host)),
                name_durable: now.is_none() || now == then,
            });
        }
    }
    views.sort_by(|one, other| one.path.cmp(&other.path));
    views
}

/// Every inode that names lead to, by its path on the volume.
fn paths(names: &Names) -> BTreeMap<String, Inode> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![(String::new(), Inode::ROOT)];
    while let Some((path, folder)) = waiting.pop() {
        let within = names.range((folder, String::new())..).take_while(|((above, _), _)| *above == folder);
        for ((_, name), inode) in within {
            let path = format!("{path}/{name}");
            waiting.push((path.clone(), *inode));
            found.insert(path, *inode);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::{Chance, Concern};
    use crate::disk::content::Content;
    use crate::disk::volume::Body;
    use crate::plan::CrashPolicy;

    const A: HostId = HostId::new(0);

    #[test]
    fn a_crash_takes_what_the_survey_called_unsynced() {
        let mut store = Store::new(&["/repo"]);
        let volume = store.volume(&VolumeId::Shared("/repo".into()));
        let folder = volume.create(Body::Folder, 0o700);
        volume.rename(A, vec![((Inode::ROOT, "packs".into()), Some(folder))]);
        volume.sync_folder(Inode::ROOT);
        for (name, synced) in [("kept", true), ("lost", false)] {
            let inode = volume.create(Body::File(Content::default()), 0o600);
            volume.rename(A, vec![((folder, name.into()), Some(inode))]);
            let content = volume.content_mut(inode).unwrap();
            content.write(A, 0, b"12345".to_vec());
            if synced {
                content.sync();
                content.write(A, 5, b"678".to_vec());
                volume.sync_folder(folder);
            }
        }
        let view = |path: &str, seen, durable, unsynced, name_durable| FileView {
            path: path.into(),
            seen_bytes: Some(seen),
            durable_bytes: durable,
            unsynced_bytes: unsynced,
            name_durable,
        };
        let before = [view("/repo/packs/kept", 8, 5, 3, true), view("/repo/packs/lost", 5, 0, 5, false)];
        assert_eq!(of(&store, A), before);
        store.crash(A, CrashPolicy::DropAll, &Chance::of(1, Concern::Crash));
        let after = of(&store, A);
        assert_eq!(after, [view("/repo/packs/kept", 5, 5, 0, true)]);
        assert!(after[0].is_settled() && !before[0].is_settled() && !before[1].is_settled());
    }
}
