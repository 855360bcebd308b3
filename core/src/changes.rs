//! What changed in a database's files between two positions of its WAL, as its WAL tells it. An incremental backup reads
//! only that, so every answer errs on one side: what nobody vouches for is read as a whole.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use core::fmt;

/// Blocks that a map holds before it goes over to whole files: some tens of MiB of memory.
const BLOCKS_MAX: usize = 1 << 21;

/// Whether every change of a file of this name is in the WAL. Names are relative to the data folder.
type Vouched = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// What changed, file by file. The default vouches for nothing.
#[derive(Default)]
pub struct ChangeMap {
    /// Bytes in a block.
    block: u32,
    vouched: Option<Vouched>,
    blocks: BTreeMap<String, BTreeSet<u64>>,
    /// How many blocks all files have here together.
    held: usize,
    whole: BTreeSet<String>,
    /// From which block on files have changed, however far they reach.
    tails: BTreeMap<String, u64>,
    folders: BTreeSet<String>,
}

/// What changed in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed<'a> {
    /// Nothing, as far as the file reached when the range began. Where it is longer now, what it grew by is new.
    Same,
    /// At most these blocks, as far as the file reached when the range began.
    Blocks {
        /// Bytes in a block; never zero.
        size: u32,
        /// The blocks, counted from the file's beginning. Never empty.
        numbers: &'a BTreeSet<u64>,
    },
    /// Nobody can tell: read all of it.
    Whole,
}

impl fmt::Debug for ChangeMap {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (files, blocks, whole) = (self.blocks.len(), self.held, self.whole.len());
        write!(out, "ChangeMap({blocks} blocks in {files} files, {whole} whole files, {} folders)", self.folders.len())
    }
}

impl ChangeMap {
    /// A map in which nothing has changed. `block` is the size of a block in bytes: a multiple of the page size. `vouched`
    /// says of a name whether all changes to its file are in the WAL; files of other names are always [`Changed::Whole`].
    pub fn new(block: u32, vouched: Box<dyn Fn(&str) -> bool + Send + Sync>) -> Self {
        assert!(block > 0, "blocks have a size");
        Self { block, vouched: Some(vouched), ..Self::default() }
    }

    /// Block `number` of the file `name` has changed.
    pub fn block(&mut self, name: &str, number: u64) {
        if self.whole.contains(name) {
            return;
        }
        if self.held >= BLOCKS_MAX {
            self.whole(name);
            return;
        }
        let new = match self.blocks.get_mut(name) {
            Some(numbers) => numbers.insert(number),
            None => self.blocks.entry(name.to_string()).or_default().insert(number),
        };
        self.held += usize::from(new);
    }

    /// The file `name` was cut short, and ended before block `from` once: what it has from there on is new.
    pub fn tail(&mut self, name: &str, from: u64) {
        let tail = self.tails.entry(name.to_string()).or_insert(from);
        *tail = from.min(*tail);
    }

    /// The file `name` was made, removed, cut short or written to in ways that no block says.
    pub fn whole(&mut self, name: &str) {
        self.held -= self.blocks.remove(name).map_or(0, |numbers| numbers.len());
        self.whole.insert(name.to_string());
    }

    /// Everything below the folder `prefix` has changed. `prefix` is a name without a slash at its end; the empty one means
    /// everything there is.
    pub fn folder(&mut self, prefix: &str) {
        self.folders.insert(prefix.to_string());
    }

    /// What changed by this map or by another one, of the same blocks: where several threads change one set of files. Only
    /// what both vouch for is vouched for.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        if self.block != other.block {
            self.folder("");
        }
        self.folders.extend(other.folders);
        for name in &other.whole {
            self.whole(name);
        }
        for (name, numbers) in &other.blocks {
            for number in numbers {
                self.block(name, *number);
            }
        }
        for (name, from) in &other.tails {
            self.tail(name, *from);
        }
        self.vouched = match (self.vouched, other.vouched) {
            (Some(one), Some(two)) => Some(Box::new(move |name| one(name) && two(name))),
            (Some(_) | None, None) | (None, Some(_)) => None,
        };
        self
    }

    /// What changed in the file `name`.
    pub fn of(&self, name: &str) -> Changed<'_> {
        self.of_until(name, u64::MAX)
    }

    /// What changed in the file `name` before the byte `until`. It is read as a whole if it was cut short before that.
    pub fn of_until(&self, name: &str, until: u64) -> Changed<'_> {
        let vouched = self.vouched.as_ref().is_some_and(|vouched| vouched(name));
        let was_cut = |from: &u64| from.saturating_mul(u64::from(self.block)) < until;
        if !vouched
            || self.tails.get(name).is_some_and(was_cut)
            || self.whole.contains(name)
            || self.is_in_changed_folder(name)
        {
            return Changed::Whole;
        }
        match self.blocks.get(name) {
            Some(numbers) => Changed::Blocks { size: self.block, numbers },
            None => Changed::Same,
        }
    }

    fn is_in_changed_folder(&self, name: &str) -> bool {
        let ancestors = name.match_indices('/').map(|(end, _)| name.split_at(end).0);
        self.folders.contains("") || ancestors.into_iter().any(|folder| self.folders.contains(folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_base() -> ChangeMap {
        ChangeMap::new(8192, Box::new(|name| name.starts_with("base/")))
    }

    #[test]
    fn what_nobody_vouches_for_is_whole() {
        assert_eq!(ChangeMap::default().of("base/1/1259"), Changed::Whole);
        assert_eq!(of_base().of("PG_VERSION"), Changed::Whole);
        assert_eq!(of_base().of("base/1/1259"), Changed::Same);
    }

    #[test]
    fn blocks_are_told_by_file_until_the_file_is_whole() {
        let mut map = of_base();
        map.block("base/1/1259", 7);
        map.block("base/1/1259", 0);
        map.block("base/1/1259", 7);
        let numbers = BTreeSet::from([0, 7]);
        assert_eq!(map.of("base/1/1259"), Changed::Blocks { size: 8192, numbers: &numbers });
        assert_eq!((map.of("base/1/1260"), map.held), (Changed::Same, 2));
        map.whole("base/1/1259");
        map.block("base/1/1259", 8);
        assert_eq!((map.of("base/1/1259"), map.held), (Changed::Whole, 0));
    }

    #[test]
    fn what_lies_behind_a_cut_is_whole_and_what_lies_before_it_is_not() {
        let mut map = of_base();
        map.tail("base/1/1259", 9);
        map.tail("base/1/1259", 4);
        map.tail("base/1/1259", 5);
        map.block("base/1/1259", 2);
        let mut elsewhere = of_base();
        elsewhere.tail("base/1/1260", 7);
        let map = elsewhere.and(map);
        assert_eq!((map.of("base/1/1259"), map.of("base/1/1260")), (Changed::Whole, Changed::Whole));
        assert_eq!(map.of_until("base/1/1259", 4 * 8192 + 1), Changed::Whole);
        let numbers = BTreeSet::from([2]);
        assert_eq!(map.of_until("base/1/1259", 4 * 8192), Changed::Blocks { size: 8192, numbers: &numbers });
        assert_eq!(map.of_until("base/1/1260", 7 * 8192), Changed::Same);
    }

    #[test]
    fn a_changed_folder_covers_what_is_below_it_and_no_namesakes() {
        let mut map = of_base();
        map.folder("base/16");
        map.block("base/16/1", 1);
        assert_eq!(map.of("base/16/1"), Changed::Whole);
        assert_eq!(map.of("base/16/deep/1"), Changed::Whole);
        assert_eq!(map.of("base/161/1"), Changed::Same);
        map.folder("");
        assert_eq!(map.of("base/161/1"), Changed::Whole);
    }

    #[test]
    fn two_maps_together_say_what_either_says() {
        let (mut one, mut two) = (of_base(), ChangeMap::new(8192, Box::new(|name| name != "base/unvouched")));
        one.block("base/1", 1);
        one.block("base/2", 1);
        two.block("base/1", 2);
        two.whole("base/2");
        two.folder("base/3");
        let both = one.and(two);
        assert_eq!(both.of("base/1"), Changed::Blocks { size: 8192, numbers: &BTreeSet::from([1, 2]) });
        assert_eq!(["base/2", "base/3/1", "base/unvouched", "x"].map(|name| both.of(name)), [Changed::Whole; 4]);
        assert_eq!((both.of("base/4"), both.held), (Changed::Same, 2));
        let of_other_blocks = of_base().and(ChangeMap::new(4096, Box::new(|_| true)));
        assert_eq!(of_other_blocks.of("base/4"), Changed::Whole);
        assert_eq!(of_base().and(ChangeMap::default()).of("base/4"), Changed::Whole);
    }

    #[test]
    fn a_map_that_would_grow_without_bound_says_whole() {
        let mut map = of_base();
        map.block("base/1/1", 1);
        map.held = BLOCKS_MAX;
        map.block("base/1/2", 1);
        assert_eq!(map.of("base/1/2"), Changed::Whole);
        assert!(matches!(map.of("base/1/1"), Changed::Blocks { .. }));
    }
}
