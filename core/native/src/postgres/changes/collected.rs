//! What WAL says was changed, gathered until it has all been read.

use std::collections::{BTreeMap, BTreeSet};

use sheetanchor_core::changes::ChangeMap;
use sheetanchor_core::identity::TimelineId;

use super::super::pages::SEGMENT_PAGES;
use super::super::wal_reader::{Event, Fork, Locator, Noted, Sink, Touch};
use super::names::{Names, RelationFile};

/// Bytes in a block, in every build that is supported.
const BLOCK_BYTES: u32 = 8192;

/// Blocks that are held at most: some 20 MiB, and 16 GiB of a database. Past that, relations are read as a whole.
const BLOCKS_MAX: usize = 1 << 21;

/// Places for blocks that were met lately; a power of two.
const RECENT: usize = 1 << 12;

type Block = (Locator, Fork, u32);

/// What was met so far.
pub(super) struct Collected {
    timeline: TimelineId,
    blocks: BTreeMap<(Locator, Fork), BTreeSet<u32>>,
    /// How many blocks all forks have here together.
    held: usize,
    blocks_max: usize,
    /// Forks that changed as a whole, and from which block on.
    whole: BTreeMap<(Locator, Fork), u32>,
    /// Parts of databases, by tablespace, that were made or removed.
    databases: BTreeSet<(u32, u32)>,
    spaces: BTreeSet<u32>,
    /// Most records change a block that was changed just before. Each block has one place here, and shares it.
    recent: Box<[Option<Block>]>,
    /// Whether pages carried checksums before the first shutdown, if anybody said so.
    had_checksums: Option<bool>,
    shut_down: bool,
    /// Why nothing can be told.
    untold: Option<String>,
}

impl Collected {
    /// Nothing so far, of WAL that is all to be of `timeline`.
    pub(super) fn new(timeline: TimelineId) -> Self {
        Self::holding(BLOCKS_MAX, timeline)
    }

    /// The same, for so many blocks at most.
    pub(super) fn holding(blocks_max: usize, timeline: TimelineId) -> Self {
        Self {
            timeline,
            blocks: BTreeMap::new(),
            held: 0,
            blocks_max,
            whole: BTreeMap::new(),
            databases: BTreeSet::new(),
            spaces: BTreeSet::new(),
            recent: vec![None; RECENT].into(),
            had_checksums: None,
            shut_down: false,
            untold: None,
        }
    }

    /// The map. `checksums` says whether pages carry any now.
    ///
    /// # Errors
    /// Why nothing can be told.
    pub(super) fn into_map(self, names: &Names, checksums: bool) -> Result<ChangeMap, String> {
        if let Some(why) = self.untold {
            return Err(why);
        }
        if self.shut_down && checksums && self.had_checksums != Some(true) {
            return Err("the server was shut down, and may have got its page checksums then".to_owned());
        }
        let Self { blocks, whole, databases, spaces, .. } = self;
        let changed: BTreeSet<Locator> = blocks.keys().chain(whole.keys()).map(|(locator, _)| *locator).collect();
        let cuts: Vec<_> = whole.iter().map(|((locator, fork), from)| (*locator, *fork, u64::from(*from))).collect();
        let told = names.clone();
        let vouched = move |name: &str| {
            let Some(RelationFile { locator, fork, segment }) = told.parse(name) else { return false };
            let stayed = !spaces.contains(&locator.space) && !databases.contains(&(locator.space, locator.database));
            stayed
                && match fork {
                    Fork::Main | Fork::Init => {
                        let first = u64::from(segment).saturating_mul(SEGMENT_PAGES);
                        whole.get(&(locator, fork)).is_none_or(|from| first < u64::from(*from))
                    }
                    Fork::Visibility => !changed.contains(&locator),
                    Fork::FreeSpace => false,
                }
        };
        let mut map = ChangeMap::new(BLOCK_BYTES, Box::new(vouched));
        for (locator, fork, from) in cuts {
            let segment = u32::try_from(from / SEGMENT_PAGES).unwrap_or(u32::MAX);
            map.tail(&names.name(RelationFile { locator, fork, segment }), from % SEGMENT_PAGES);
        }
        for ((locator, fork), numbers) in blocks {
            let (mut segment, mut name) = (None, String::new());
            for number in numbers.into_iter().map(u64::from) {
                if segment != Some(number / SEGMENT_PAGES) {
                    segment = Some(number / SEGMENT_PAGES);
                    let segment = u32::try_from(number / SEGMENT_PAGES).unwrap_or(u32::MAX);
                    name = names.name(RelationFile { locator, fork, segment });
                }
                map.block(&name, number % SEGMENT_PAGES);
            }
        }
        Ok(map)
    }

    fn block(&mut self, block: Block) {
        let (locator, fork, number) = block;
        match self.recent.get_mut(place(block)) {
            Some(recent) if *recent == Some(block) => return,
            Some(recent) => *recent = Some(block),
            None => {}
        }
        let fork = (locator, fork);
        if self.whole.get(&fork).is_some_and(|from| *from <= number) {
            return;
        }
        if self.held >= self.blocks_max {
            self.whole(fork, 0);
            return;
        }
        if self.blocks.entry(fork).or_default().insert(number) {
            self.held = self.held.saturating_add(1);
        }
    }

    /// A fork changed as a whole from this block on.
    fn whole(&mut self, fork: (Locator, Fork), block: u32) {
        let from = self.whole.entry(fork).or_insert(block);
        *from = block.min(*from);
        let Some(numbers) = self.blocks.get_mut(&fork) else { return };
        let gone = numbers.split_off(&block).len();
        let none_left = numbers.is_empty();
        self.held = self.held.saturating_sub(gone);
        if none_left {
            self.blocks.remove(&fork);
        }
    }

    fn untold(&mut self, why: impl FnOnce() -> String) {
        self.untold.get_or_insert_with(why);
    }
}

impl Sink for Collected {
    const TOUCHES: bool = true;

    fn noted(&mut self, noted: Noted) {
        match noted.event {
            Event::Checkpoint { shutdown, timeline, .. } => {
                self.shut_down |= shutdown;
                if timeline != self.timeline {
                    self.untold(|| format!("the checkpoint at {} is of timeline {timeline}", noted.start));
                }
            }
            Event::EndOfRecovery { timeline, .. } => {
                self.untold(|| format!("timeline {timeline} began at {}", noted.start));
            }
            Event::RestorePoint { .. }
            | Event::Switch
            | Event::GivenUp { .. }
            | Event::Ended { .. }
            | Event::Prepared { .. } => {}
        }
    }

    fn touched(&mut self, touch: Touch) {
        match touch {
            Touch::Block { locator, fork: fork @ (Fork::Main | Fork::Init), block } => {
                self.block((locator, fork, block));
            }
            Touch::Block { fork: Fork::FreeSpace, .. } => {}
            Touch::Block { locator, fork: fork @ Fork::Visibility, .. } | Touch::Made { locator, fork } => {
                self.whole((locator, fork), 0);
            }
            Touch::Cut { locator, block } => self.whole((locator, Fork::Main), block),
            Touch::Removed { locator } => {
                self.whole((locator, Fork::Main), 0);
                self.whole((locator, Fork::Init), 0);
            }
            Touch::Database { space, database } => drop(self.databases.insert((space, database))),
            Touch::Space { space } => drop(self.spaces.insert(space)),
            Touch::Checksums { on } => {
                if !self.shut_down {
                    self.had_checksums.get_or_insert(on);
                }
            }
            Touch::Untold { manager, kind } => {
                self.untold(|| format!("resource manager {manager} wrote a record of kind {kind:02X}"));
            }
        }
    }
}

/// A block's place among the recent ones.
fn place((locator, fork, number): Block) -> usize {
    let fork = u32::from(fork == Fork::Main);
    let mixed = (locator.number ^ locator.database.rotate_left(16) ^ fork).wrapping_mul(0x9E37_79B1) ^ number;
    usize::try_from(mixed.wrapping_mul(0x9E37_79B1) >> 20).unwrap_or_default()
}
