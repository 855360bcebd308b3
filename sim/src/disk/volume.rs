//! One volume: inodes, and the names that lead to them. Name changes are transactions of the whole volume, in order: a
//! rename between two folders is there in both or in neither, as in a journal; a sync of either folder settles it.

use std::collections::BTreeMap;

use sheetanchor_engine::env::EntryKind;

use super::content::{Content, Fate};
use super::loss::prefix;
use crate::chance::Chance;
use crate::host::HostId;
use crate::plan::CrashPolicy;

/// An inode of one volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Inode(u64);

impl Inode {
    /// The volume's root folder.
    pub(super) const ROOT: Self = Self(0);
}

#[derive(Debug)]
pub(super) enum Body {
    File(Content),
    Folder,
    Link(String),
}

#[derive(Debug)]
struct Node {
    body: Body,
    mode: u32,
}

/// The place of a name: the folder it is in, and the name itself.
pub(super) type Place = (Inode, String);
/// Names, and where each leads.
pub(super) type Names = BTreeMap<Place, Inode>;

/// A volume.
#[derive(Debug)]
pub(super) struct Volume {
    nodes: BTreeMap<Inode, Node>,
    next: u64,
    base: Names,
    changes: Vec<NameChange>,
    /// What everybody sees: `base` and all changes.
    seen: Names,
    locks: BTreeMap<Inode, Lock>,
}

/// Who holds a lock file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lock {
    pub(super) host: HostId,
    pub(super) serial: u64,
}

#[derive(Debug)]
struct NameChange {
    writer: HostId,
    fate: Fate,
    entries: Vec<(Place, Option<Inode>)>,
}

fn apply(names: &mut Names, entries: &[(Place, Option<Inode>)]) {
    for (place, inode) in entries {
        match inode {
            Some(inode) => drop(names.insert(place.clone(), *inode)),
            None => drop(names.remove(place)),
        }
    }
}

impl Volume {
    pub(super) fn new() -> Self {
        let root = Node { body: Body::Folder, mode: 0o700 };
        Self {
            nodes: BTreeMap::from([(Inode::ROOT, root)]),
            next: 1,
            base: Names::new(),
            changes: Vec::new(),
            seen: Names::new(),
            locks: BTreeMap::new(),
        }
    }

    pub(super) fn find(&self, place: &Place) -> Option<Inode> {
        self.seen.get(place).copied()
    }

    /// The names that everybody sees.
    pub(super) const fn seen(&self) -> &Names {
        &self.seen
    }

    /// The names on the disk, counting nothing that is unsynced.
    pub(super) fn durable_names(&self) -> Names {
        let mut names = self.base.clone();
        for change in self.changes.iter().filter(|change| change.fate == Fate::Durable) {
            apply(&mut names, &change.entries);
        }
        names
    }

    /// Makes an inode that no name leads to yet.
    pub(super) fn create(&mut self, body: Body, mode: u32) -> Inode {
        let inode = Inode(self.next);
        self.next += 1;
        self.nodes.insert(inode, Node { body, mode });
        inode
    }

    /// Changes names, all at once or not at all.
    pub(super) fn rename(&mut self, writer: HostId, entries: Vec<(Place, Option<Inode>)>) {
        apply(&mut self.seen, &entries);
        self.changes.push(NameChange { writer, fate: Fate::Dirty, entries });
    }

    pub(super) fn content(&self, inode: Inode) -> Option<&Content> {
        match self.nodes.get(&inode).map(|node| &node.body) {
            Some(Body::File(content)) => Some(content),
            Some(Body::Folder | Body::Link(_)) | None => None,
        }
    }

    pub(super) fn content_mut(&mut self, inode: Inode) -> Option<&mut Content> {
        match self.nodes.get_mut(&inode).map(|node| &mut node.body) {
            Some(Body::File(content)) => Some(content),
            Some(Body::Folder | Body::Link(_)) | None => None,
        }
    }

    pub(super) fn link_target(&self, inode: Inode) -> Option<&str> {
        match self.nodes.get(&inode).map(|node| &node.body) {
            Some(Body::Link(target)) => Some(target),
            Some(Body::File(_) | Body::Folder) | None => None,
        }
    }

    pub(super) fn kind(&self, inode: Inode) -> Option<EntryKind> {
        self.nodes.get(&inode).map(|node| match node.body {
            Body::File(_) => EntryKind::File,
            Body::Folder => EntryKind::Folder,
            Body::Link(_) => EntryKind::Link,
        })
    }

    pub(super) fn mode(&self, inode: Inode) -> u32 {
        self.nodes.get(&inode).map_or(0, |node| node.mode)
    }

    pub(super) fn set_mode(&mut self, inode: Inode, mode: u32) {
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.mode = mode;
        }
    }

    /// The names in a folder, sorted.
    pub(super) fn list(&self, folder: Inode) -> impl Iterator<Item = (&str, Inode)> {
        self.seen
            .range((folder, String::new())..)
            .take_while(move |((within, _), _)| *within == folder)
            .map(|((_, name), inode)| (name.as_str(), *inode))
    }

    /// Makes the names in a folder durable, and with each the rest of the change that it came with.
    pub(super) fn sync_folder(&mut self, folder: Inode) {
        self.settle(folder, Fate::Durable, |_| true);
        self.fold();
    }

    /// A folder sync of `writer` that fails gives up the name changes that it was to write. Other hosts have their own.
    pub(super) fn fail_sync_folder(&mut self, writer: HostId, folder: Inode) {
        self.settle(folder, Fate::Lost, |change| change.writer == writer);
    }

    fn settle(&mut self, folder: Inode, fate: Fate, which: impl Fn(&NameChange) -> bool) {
        for change in self.changes.iter_mut().filter(|change| change.fate == Fate::Dirty && which(change)) {
            if change.entries.iter().any(|((within, _), _)| *within == folder) {
                change.fate = fate;
            }
        }
    }

    fn fold(&mut self) {
        let settled = self.changes.iter().take_while(|change| change.fate == Fate::Durable).count();
        for change in self.changes.drain(..settled) {
            apply(&mut self.base, &change.entries);
        }
    }

    /// Takes what `host` had not synced, and its locks.
    pub(super) fn crash(&mut self, host: HostId, policy: CrashPolicy, chance: &Chance) {
        self.locks.retain(|_, lock| lock.host != host);
        if policy == CrashPolicy::ProcessOnly {
            return;
        }
        for node in self.nodes.values_mut() {
            if let Body::File(content) = &mut node.body {
                content.crash(host, policy, chance);
            }
        }
        self.crash_names(host, policy, chance);
    }

    fn crash_names(&mut self, host: HostId, policy: CrashPolicy, chance: &Chance) {
        let dirty = self.changes.iter().filter(|change| change.writer == host && change.fate == Fate::Dirty).count();
        let mut keep = match policy {
            CrashPolicy::DropAll | CrashPolicy::ProcessOnly => 0,
            CrashPolicy::KeepAll | CrashPolicy::SizeFirst | CrashPolicy::NamesFirst | CrashPolicy::AnySubset => dirty,
            CrashPolicy::TornPrefix | CrashPolicy::AnySectors => prefix(dirty, chance),
        };
        self.changes.retain_mut(|change| {
            if change.writer != host {
                return true;
            }
            match change.fate {
                Fate::Durable => true,
                Fate::Dirty if keep > 0 && (policy != CrashPolicy::AnySubset || chance.one_in(2)) => {
                    keep -= 1;
                    change.fate = Fate::Durable;
                    true
                }
                Fate::Dirty | Fate::Lost => false,
            }
        });
        self.fold();
        self.seen.clone_from(&self.base);
        for change in &self.changes {
            apply(&mut self.seen, &change.entries);
        }
    }

    pub(super) fn lock_holder(&self, inode: Inode) -> Option<Lock> {
        self.locks.get(&inode).copied()
    }

    pub(super) fn lock(&mut self, inode: Inode, lock: Lock) {
        let before = self.locks.insert(inode, lock);
        assert!(before.is_none(), "a lock has one holder");
    }

    pub(super) fn unlock(&mut self, inode: Inode, lock: Lock) {
        if self.locks.get(&inode) == Some(&lock) {
            self.locks.remove(&inode);
        }
    }

    /// Bytes in the files that have a name.
    pub(super) fn used(&self) -> u64 {
        let length = |inode: &Inode| self.content(*inode).map_or(0, Content::length);
        let lengths = self.seen.values().map(|inode| u64::try_from(length(inode)).unwrap_or(u64::MAX));
        lengths.fold(0, u64::saturating_add)
    }
}
