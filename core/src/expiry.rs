//! What may be removed from a repository, so that every backup that is kept stays restorable, to its own cut and to every
//! later one that the archive reaches.
//!
//! A backup is first *condemned*, by an object of its own, and is no target from then on. What it alone needs goes only
//! when no operation is left that may have begun before and rely on it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::format::catalog::{IncarnationObject, IncarnationState, Seal};
use crate::format::keys;
use crate::format::manifest::Manifest;
use crate::identity::{Incarnation, OperationId, ThreadId, TimelineId};
use crate::planted::{self, Bug};
use crate::position::Lsn;
use crate::refusal::{Code, Refusal};
use crate::time::WallMillis;

/// Which backups are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Keep {
    /// The newest ones, so many.
    Newest(u32),
    /// All that it takes to restore to any later cut than this time: what was sealed after it, and the last one before.
    Since(WallMillis),
}

/// The backups that go, oldest first. `backups` are all sealed ones, oldest first. The newest always stays.
///
/// # Errors
/// `SA101` if none would be kept.
pub fn choose(backups: &[(OperationId, Seal)], keep: Keep) -> Result<Vec<OperationId>, Refusal> {
    let going = match keep {
        Keep::Newest(0) => {
            return Err(Refusal::new(
                Code::ConfigInvalid,
                "0 backups are to be kept: that would leave nothing to restore",
            ));
        }
        Keep::Newest(count) => backups.len().saturating_sub(usize::try_from(count).unwrap_or(usize::MAX)),
        Keep::Since(time) => backups
            .iter()
            .rposition(|(_, seal)| seal.ended_ms <= time)
            .unwrap_or(0)
            .min(backups.len().saturating_sub(1)),
    };
    Ok(backups.iter().take(going).map(|(id, _)| *id).collect())
}

/// From where WAL is kept, in each thread and timeline of one incarnation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalFloor {
    /// All of it.
    All,
    /// What lies at or after these places; all of a thread that is not named.
    From(BTreeMap<(ThreadId, TimelineId), Lsn>),
    /// None of it.
    Nothing,
}

/// What of an incarnation's WAL is kept. An incarnation that an older one with a backup leads to is kept whole, since
/// recovery from that backup goes through it; so is the one in force. One that no kept backup leads to is of no use.
pub fn wal_floor(
    incarnation: Incarnation,
    current: Incarnation,
    incarnations: &[IncarnationObject],
    kept: &[Manifest],
) -> WalFloor {
    let own: Vec<&Manifest> = kept.iter().filter(|manifest| manifest.incarnation == incarnation).collect();
    let led_to = ancestors(incarnation, incarnations)
        .iter()
        .any(|ancestor| kept.iter().any(|manifest| manifest.incarnation == *ancestor));
    match (led_to, own.is_empty(), incarnation == current) {
        (true, _, _) | (false, true, true) => WalFloor::All,
        (false, true, false) => WalFloor::Nothing,
        (false, false, _) => {
            let mut floors: BTreeMap<(ThreadId, TimelineId), Lsn> = BTreeMap::new();
            for (thread, span) in own.iter().flat_map(|manifest| &manifest.threads) {
                let needed = if planted::is(Bug::ExpiryKeepsFromStop) { span.stop } else { span.start };
                floors
                    .entry((*thread, span.timeline))
                    .and_modify(|floor| *floor = needed.min(*floor))
                    .or_insert(needed);
            }
            WalFloor::From(floors)
        }
    }
}

/// The incarnations that led to this one, nearest first.
fn ancestors(incarnation: Incarnation, incarnations: &[IncarnationObject]) -> Vec<Incarnation> {
    let mut found = Vec::new();
    let mut child = incarnation;
    loop {
        let parent =
            incarnations.iter().find(|object| object.incarnation == child).and_then(|object| match &object.state {
                IncarnationState::Opened(opened) => opened.branch.as_ref().map(|branch| branch.parent),
                IncarnationState::Aborted(_) => None,
            });
        // A parent is older: a damaged catalog cannot make a circle of it.
        match parent.filter(|parent| *parent < child) {
            Some(parent) => {
                found.push(parent);
                child = parent;
            }
            None => return found,
        }
    }
}

/// Which of one thread's pieces go, given all keys of that thread in an incarnation, sorted. A piece goes if the next one
/// of its timeline starts at or before the floor: it ends there at the latest. The newest piece always stays, since the
/// archive goes on at its end.
pub fn wal_to_remove(thread: ThreadId, keys: &[String], floor: &WalFloor) -> Vec<String> {
    let floors = match floor {
        WalFloor::All => return Vec::new(),
        WalFloor::Nothing => None,
        WalFloor::From(floors) => Some(floors),
    };
    let pairs = keys.iter().zip(keys.iter().skip(1));
    pairs
        .filter(|(key, next)| {
            let (Some((timeline, _)), Some((next_timeline, next_start))) =
                (keys::parse_wal(key), keys::parse_wal(next))
            else {
                return false;
            };
            match floors {
                None => true,
                Some(floors) => {
                    timeline == next_timeline
                        && floors.get(&(thread, timeline)).is_some_and(|floor| next_start <= *floor)
                }
            }
        })
        .map(|(key, _)| key.clone())
        .collect()
}

/// Which objects of backups go, given the keys under `manifests/`, `files/` and `packs/`: those of operations that are
/// over and of no use.
pub fn objects_to_remove(keys: &[String], dead: &BTreeSet<OperationId>) -> Vec<String> {
    let dead: BTreeSet<String> = dead.iter().map(ToString::to_string).collect();
    let owner = |key: &str| -> Option<String> {
        let name = key.split('/').nth(1)?;
        // An operation's id has three parts.
        let end = name.match_indices('-').nth(2).map(|(at, _)| at)?;
        name.get(..end).map(ToString::to_string)
    };
    keys.iter().filter(|key| owner(key).is_some_and(|owner| dead.contains(&owner))).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::catalog::{Cut, Guarantee};
    use crate::identity::{ContentHash, OperationKind};
    use crate::scn::Scn;
    use std::format;
    use std::vec;

    fn backup(number: u32, ended_ms: u64) -> (OperationId, Seal) {
        let seal = Seal {
            cut: Cut { record: String::new(), scn: Scn::new(u64::from(number)), threads: BTreeMap::new() },
            ended_ms: WallMillis::new(ended_ms),
            guarantee: Guarantee::Atomic,
            incarnation: Incarnation::new(1),
            manifest: ContentHash::of(b""),
            point: None,
        };
        (OperationId::new(OperationKind::Backup, u64::from(number), number), seal)
    }

    #[test]
    fn the_newest_backup_and_the_last_one_before_a_time_stay() {
        let all = [backup(1, 10), backup(2, 20), backup(3, 30)];
        let going = |keep| choose(&all, keep).unwrap().len();
        assert_eq!([1, 2, 3, 9].map(|count| going(Keep::Newest(count))), [2, 1, 0, 0]);
        assert_eq!([5, 10, 19, 20, 30, 99].map(|ms| going(Keep::Since(WallMillis::new(ms)))), [0, 0, 0, 1, 2, 2]);
        assert_eq!(choose(&all, Keep::Newest(0)).unwrap_err().code, Code::ConfigInvalid);
        assert_eq!(choose(&[], Keep::Newest(1)), Ok(vec![]));
    }

    #[test]
    fn wal_goes_up_to_the_piece_that_holds_the_floor() {
        let thread = ThreadId::new(1);
        let key = |start| keys::wal(Incarnation::new(1), thread, TimelineId::new(1), Lsn::new(start));
        let keys = [0, 10, 20, 30].map(key);
        let floor = |lsn| WalFloor::From(BTreeMap::from([((thread, TimelineId::new(1)), Lsn::new(lsn))]));
        let left = |floor| keys.len() - wal_to_remove(thread, &keys, &floor).len();
        assert_eq!([0, 9, 10, 19, 20, 30, 99].map(|lsn| left(floor(lsn))), [4, 4, 3, 3, 2, 1, 1]);
        assert_eq!(left(WalFloor::All), 4);
        assert_eq!(left(WalFloor::Nothing), 1, "the archive goes on at the end of the newest piece");
        assert_eq!(left(WalFloor::From(BTreeMap::new())), 4, "a thread without a floor is kept whole");
    }

    #[test]
    fn only_objects_of_dead_operations_go() {
        let (dead, alive) = (backup(1, 1).0, backup(2, 2).0);
        let keys = [format!("packs/{dead}-1-00-000000"), format!("packs/{alive}-1-00-000000"), "packs/x".into()];
        assert_eq!(objects_to_remove(&keys, &BTreeSet::from([dead])), [keys[0].clone()]);
    }
}
