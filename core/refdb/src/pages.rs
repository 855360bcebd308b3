//! The pages that a node has in memory, and those it owns.

use std::collections::{BTreeMap, BTreeSet};

use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::scn::Scn;

use crate::layout::PageNo;
use crate::page::Page;

/// A page in memory.
#[derive(Debug)]
pub(crate) struct Cached {
    pub(crate) page: Page,
    /// Whether it has changes that were not handed to the disk.
    pub(crate) dirty: bool,
    /// The end of its last change in the log: the log is durable up to there before the page is written.
    pub(crate) last: Lsn,
    /// Where its last whole image lies in the log; none since it was read from disk or given away.
    pub(crate) imaged: Option<Lsn>,
}

/// A data page that this node owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tenure {
    /// Whether this node changed it since it became the owner, or since it last logged a release of it.
    pub(crate) changed: bool,
    /// What the file holds is at this version or later.
    pub(crate) version: Scn,
}

/// Pages in memory and in hand.
#[derive(Debug)]
pub(crate) struct Pages {
    cached: BTreeMap<PageNo, Cached>,
    owned: BTreeMap<PageNo, Tenure>,
    /// Pages on their way in or out: nobody reads or changes them.
    moving: BTreeSet<PageNo>,
    /// Crash recovery will start here, once the running checkpoint is done: the first change of a page after it logs
    /// the whole page.
    redo: Lsn,
}

impl Pages {
    pub(crate) fn new(redo: Lsn) -> Self {
        Self { cached: BTreeMap::new(), owned: BTreeMap::new(), moving: BTreeSet::new(), redo }
    }

    /// The page, if it may be read and changed now.
    pub(crate) fn usable(&self, page: PageNo) -> Option<&Page> {
        if self.moving.contains(&page) { None } else { self.cached.get(&page).map(|cached| &cached.page) }
    }

    /// The page with what belongs to it, if it may be changed now.
    pub(crate) fn usable_mut(&mut self, page: PageNo) -> Option<&mut Cached> {
        if self.moving.contains(&page) { None } else { self.cached.get_mut(&page) }
    }

    /// The page with what belongs to it, moving or not.
    pub(crate) fn cached_mut(&mut self, page: PageNo) -> Option<&mut Cached> {
        self.cached.get_mut(&page)
    }

    /// The version of a page in memory.
    pub(crate) fn version(&self, page: PageNo) -> Option<Scn> {
        self.cached.get(&page).map(|cached| cached.page.version)
    }

    /// Takes a page out of use; false if it is out of use already.
    pub(crate) fn begin_move(&mut self, page: PageNo) -> bool {
        self.moving.insert(page)
    }

    /// Puts it back into use.
    pub(crate) fn end_move(&mut self, page: PageNo) {
        self.moving.remove(&page);
    }

    pub(crate) fn tenure(&self, page: PageNo) -> Option<Tenure> {
        self.owned.get(&page).copied()
    }

    pub(crate) fn tenure_mut(&mut self, page: PageNo) -> Option<&mut Tenure> {
        self.owned.get_mut(&page)
    }

    /// Becomes the owner of a page whose file holds `version` or later.
    pub(crate) fn own(&mut self, page: PageNo, version: Scn) {
        self.owned.insert(page, Tenure { changed: false, version });
    }

    /// Gives a page up.
    pub(crate) fn disown(&mut self, page: PageNo) {
        let clean = self.cached.remove(&page).is_none_or(|cached| !cached.dirty);
        assert!(clean, "{page} is written before it is given away");
        self.owned.remove(&page);
    }

    /// The data pages that this node owns.
    pub(crate) fn owned(&self) -> impl Iterator<Item = PageNo> {
        self.owned.keys().copied()
    }

    /// Puts a page that was just read from the file into memory.
    pub(crate) fn insert(&mut self, number: PageNo, page: Page) {
        let imaged = planted::is(Bug::ImageLeftOut).then_some(Lsn::new(u64::MAX));
        let before = self.cached.insert(number, Cached { page, dirty: false, last: Lsn::default(), imaged });
        assert!(before.is_none(), "{number} was in memory when it was read");
    }

    /// Pages in memory.
    pub(crate) fn len(&self) -> usize {
        self.cached.len()
    }

    pub(crate) fn redo(&self) -> Lsn {
        self.redo
    }

    /// Starts a checkpoint at the log's end `redo`: the pages that it has to write.
    pub(crate) fn begin_checkpoint(&mut self, redo: Lsn) -> Vec<PageNo> {
        assert!(redo >= self.redo, "checkpoints go forward");
        self.redo = redo;
        self.cached.iter().filter(|(_, cached)| cached.dirty).map(|(page, _)| *page).collect()
    }

    /// Drops clean pages until `bound` are left, if there are as many. Only between checkpoints' writes and the next.
    pub(crate) fn evict(&mut self, bound: usize) {
        let excess = self.cached.len().saturating_sub(bound);
        let idle = |(page, cached): &(&PageNo, &Cached)| !cached.dirty && !self.moving.contains(page);
        let victims: Vec<PageNo> = self.cached.iter().filter(idle).map(|(page, _)| *page).take(excess).collect();
        for page in victims {
            let version = self.cached.remove(&page).map(|cached| cached.page.version);
            if let (Some(tenure), Some(version)) = (self.owned.get_mut(&page), version) {
                tenure.version = version;
            }
        }
    }
}
