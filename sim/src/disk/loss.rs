//! What a loss of power spares of what one host wrote to one file and did not sync.

use super::content::What;
use crate::chance::Chance;
use crate::plan::CrashPolicy;

/// One host's loss in one file: it is asked for each of that host's changes, in the order in which they were made.
pub(super) struct Loss {
    policy: CrashPolicy,
    /// How many changes are still kept whole: the prefix of a policy that has one.
    keep: usize,
    /// Whether the change after that prefix is torn.
    torn: bool,
}

impl Loss {
    /// The loss by `policy` of `dirty` changes.
    pub(super) fn of(policy: CrashPolicy, dirty: usize, chance: &Chance) -> Self {
        let keep = match policy {
            CrashPolicy::KeepAll | CrashPolicy::ProcessOnly => dirty,
            CrashPolicy::TornPrefix | CrashPolicy::AnySectors => prefix(dirty, chance),
            CrashPolicy::DropAll | CrashPolicy::AnySubset | CrashPolicy::SizeFirst | CrashPolicy::NamesFirst => 0,
        };
        Self { policy, keep, torn: policy == CrashPolicy::TornPrefix && keep < dirty }
    }

    /// What of the next change is on the disk.
    pub(super) fn spares(&mut self, what: What, chance: &Chance) -> Vec<What> {
        let within = self.keep > 0;
        self.keep = self.keep.saturating_sub(1);
        match (self.policy, what) {
            (CrashPolicy::AnySectors | CrashPolicy::AnySubset, What::Write { offset, bytes }) => {
                sectors(offset, &bytes, chance)
            }
            (CrashPolicy::AnySubset, what) => {
                if chance.one_in(2) {
                    vec![what]
                } else {
                    Vec::new()
                }
            }
            (CrashPolicy::SizeFirst, What::Write { offset, bytes }) => {
                vec![What::Reach { length: offset.saturating_add(bytes.len()) }]
            }
            (CrashPolicy::SizeFirst, what) => vec![what],
            (_, what) if within => vec![what],
            (_, what) => {
                let tears = core::mem::take(&mut self.torn);
                tears.then(|| tear(what, chance)).flatten().into_iter().collect()
            }
        }
    }
}

/// How many of so many things are kept, if it is the first ones that are.
pub(super) fn prefix(count: usize, chance: &Chance) -> usize {
    let bound = u64::try_from(count).unwrap_or(u64::MAX).saturating_add(1);
    usize::try_from(chance.below(bound)).unwrap_or(0)
}

fn sector_bytes(chance: &Chance) -> usize {
    if chance.one_in(2) { 512 } else { 4_096 }
}

/// Those sectors of a write that reached the disk: each or not.
fn sectors(offset: usize, bytes: &[u8], chance: &Chance) -> Vec<What> {
    let sector = sector_bytes(chance);
    let (first, rest) = bytes.split_at((sector - offset % sector).min(bytes.len()));
    let pieces = core::iter::once(first).chain(rest.chunks(sector));
    let mut at = offset;
    let mut spared = Vec::new();
    for piece in pieces {
        if !piece.is_empty() && chance.one_in(2) {
            spared.push(What::Write { offset: at, bytes: piece.to_vec() });
        }
        at = at.saturating_add(piece.len());
    }
    spared
}

/// The part of a change that reached the disk: whole sectors from its start, perhaps none.
fn tear(what: What, chance: &Chance) -> Option<What> {
    let What::Write { offset, mut bytes } = what else { return None };
    let sector = sector_bytes(chance);
    let first = sector - offset % sector;
    let sectors = bytes.len().saturating_sub(first).div_ceil(sector) + 1;
    let kept = usize::try_from(chance.below(u64::try_from(sectors).unwrap_or(u64::MAX))).unwrap_or(0);
    if kept == 0 {
        return None;
    }
    bytes.truncate(first + (kept - 1) * sector);
    Some(What::Write { offset, bytes })
}
