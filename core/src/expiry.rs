//! What may be removed from a repository, so that every backup that is kept stays restorable, to its own cut and to every
//! later one that the archive reaches.
//!
//! A backup is first *condemned*, by an object of its own, and is no target from then on. What it alone needs goes only
//! when no operation is left that may have begun before and rely on it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::format::catalog::{Cut, Guarantee, Method, Point, Seal};
use crate::format::keys;
use crate::format::manifest::Manifest;
use crate::identity::{Incarnation, OperationId, ThreadId, TimelineId};
use crate::lineage::Lineage;
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
    /// Where clocks were wrong, rather more than that.
    Since(WallMillis),
}

/// The backups that go, oldest first. `backups` are all sealed ones, oldest first as a [`Catalog`](crate::plan::Catalog) has
/// them; `now` is the present, by the clock of whoever asks. The newest always stays.
///
/// # Errors
/// `SA101` if none would be kept.
pub fn choose(backups: &[(OperationId, Seal)], keep: Keep, now: WallMillis) -> Result<Vec<OperationId>, Refusal> {
    let going = match keep {
        Keep::Newest(0) => {
            return Err(Refusal::new(
                Code::ConfigInvalid,
                "0 backups are to be kept: that would leave nothing to restore",
            ));
        }
        Keep::Newest(count) => backups.len().saturating_sub(usize::try_from(count).unwrap_or(usize::MAX)),
        Keep::Since(time) => backups.len().saturating_sub(1).min(sealed_by(backups, time, now).saturating_sub(1)),
    };
    Ok(backups.iter().take(going).map(|(id, _)| *id).collect())
}

/// How many backups were sealed by `time` for certain: those before the first that says it was sealed later. What says that it
/// was sealed later than `now` had a wrong clock; it was sealed no later than the next one that had not.
fn sealed_by(backups: &[(OperationId, Seal)], time: WallMillis, now: WallMillis) -> usize {
    let mut count = backups.len();
    let mut next = WallMillis::new(u64::MAX);
    for (place, (_, seal)) in backups.iter().enumerate().rev() {
        if seal.ended_ms <= now {
            next = seal.ended_ms;
        }
        if next > time {
            count = place;
        }
    }
    count
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
///
/// `points` are all that were published, oldest first. Where databases that share nothing are cut atomically, a backup also needs what
/// lies between it and the second fenced cut before it: what was prepared there is decided by it.
pub fn wal_floor(
    incarnation: Incarnation,
    current: Incarnation,
    lineage: &Lineage,
    kept: &[Manifest],
    points: &[Point],
) -> WalFloor {
    let own: Vec<&Manifest> = kept.iter().filter(|manifest| manifest.incarnation == incarnation).collect();
    // One that was never opened has no way to it, and no WAL.
    let led_to = lineage.way_to(incarnation).is_ok_and(|way| {
        let ancestors = way.stretches().iter().map(|stretch| stretch.incarnation).filter(|of| *of != incarnation);
        ancestors.into_iter().any(|ancestor| kept.iter().any(|manifest| manifest.incarnation == ancestor))
    });
    match (led_to, own.is_empty(), incarnation == current) {
        (true, _, _) | (false, true, true) => WalFloor::All,
        (false, true, false) => WalFloor::Nothing,
        (false, false, _) => {
            let mut floors: BTreeMap<(ThreadId, TimelineId), Lsn> = BTreeMap::new();
            let spans = own.iter().flat_map(|manifest| {
                let evidence = evidence(manifest, points);
                manifest.threads.iter().map(move |(thread, span)| (thread, span, evidence))
            });
            for (thread, span, evidence) in spans {
                let needed = if planted::is(Bug::ExpiryKeepsFromStop) { span.stop } else { span.start };
                let evidence = evidence.and_then(|cut| cut.threads.get(thread));
                let needed = evidence.map_or(needed, |cut| needed.min(cut.until));
                floors
                    .entry((*thread, span.timeline))
                    .and_modify(|floor| *floor = needed.min(*floor))
                    .or_insert(needed);
            }
            WalFloor::From(floors)
        }
    }
}

/// The cut that the search for outcomes may have to go back to: the second fenced one before the backup began.
fn evidence<'a>(manifest: &Manifest, points: &'a [Point]) -> Option<&'a Cut> {
    if manifest.shared || manifest.guarantee != Guarantee::Atomic {
        return None;
    }
    let before = |cut: &Cut| {
        manifest.threads.iter().all(|(thread, span)| cut.threads.get(thread).is_some_and(|cut| cut.until <= span.start))
    };
    let fenced =
        points.iter().filter(|point| point.incarnation == manifest.incarnation && point.method == Method::Fence);
    let mut newest = fenced.map(|point| &point.cut).filter(|cut| before(cut)).rev();
    let last = newest.next();
    newest.next().or(last)
}

/// Which of one thread's pieces go, given all keys of that thread in an incarnation, sorted. A piece goes if the next one
/// of its timeline starts at or before the floor: it ends there at the latest. The newest piece always stays, since the
/// archive goes on at its end. A declared hole goes as a piece would that held the WAL which is missing.
pub fn wal_to_remove(thread: ThreadId, keys: &[String], floor: &WalFloor) -> Vec<String> {
    let floors = match floor {
        WalFloor::All => return Vec::new(),
        WalFloor::Nothing => None,
        WalFloor::From(floors) => Some(floors),
    };
    let pairs = keys.iter().zip(keys.iter().skip(1));
    pairs
        .filter(|(key, next)| {
            let place = |key: &str| keys::parse_wal(key).or_else(|| keys::parse_hole(key));
            let (Some((timeline, start)), Some((next_timeline, next_start))) = (place(key), place(next)) else {
                return false;
            };
            // What landed where a hole had been declared ends anywhere in it.
            if (timeline, start) == (next_timeline, next_start) {
                return false;
            }
            let end = if planted::is(Bug::ExpiryTakesTheFloor) { start } else { next_start };
            match floors {
                None => true,
                Some(floors) => {
                    timeline == next_timeline && floors.get(&(thread, timeline)).is_some_and(|floor| end <= *floor)
                }
            }
        })
        .map(|(key, _)| key.clone())
        .collect()
}

/// Which objects of backups go, given the keys under `manifests/`, `files/` and `packs/`: those of operations that are
/// over and of no use, but for the packs in `used`, which a later backup that is kept goes on using.
pub fn objects_to_remove(keys: &[String], dead: &BTreeSet<OperationId>, used: &BTreeSet<String>) -> Vec<String> {
    let dead: BTreeSet<String> = dead.iter().map(ToString::to_string).collect();
    let owner = |key: &str| -> Option<String> {
        let name = key.split('/').nth(1)?;
        // An operation's id has three parts.
        let end = name.match_indices('-').nth(2).map(|(at, _)| at)?;
        name.get(..end).map(ToString::to_string)
    };
    let of_the_dead = keys.iter().filter(|key| owner(key).is_some_and(|owner| dead.contains(&owner)));
    of_the_dead.filter(|key| !used.contains(*key) || planted::is(Bug::ExpiryTakesBasePacks)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::catalog::{Branch, IncarnationObject, IncarnationState, Opened, ThreadCut};
    use crate::format::manifest::ThreadSpan;
    use crate::identity::{ByteCount, ClusterId, ContentHash, Membership, Nonce, OperationKind};
    use crate::scn::Scn;
    use std::format;
    use std::vec;

    fn backup(number: u32, ended_ms: u64) -> (OperationId, Seal) {
        let seal = Seal {
            base: None,
            cut: Cut { record: String::new(), scn: Scn::new(u64::from(number)), threads: BTreeMap::new() },
            ended_ms: WallMillis::new(ended_ms),
            guarantee: Guarantee::Atomic,
            incarnation: Incarnation::new(1),
            manifest: ContentHash::of(b""),
            point: None,
            stored: ByteCount::new(1),
            why_full: None,
        };
        (OperationId::new(OperationKind::Backup, u64::from(number), number), seal)
    }

    #[test]
    fn the_newest_backup_and_the_last_one_before_a_time_stay() {
        let all = [backup(1, 10), backup(2, 20), backup(3, 30)];
        let now = WallMillis::new(99);
        let going = |keep| choose(&all, keep, now).unwrap().len();
        assert_eq!([1, 2, 3, 9].map(|count| going(Keep::Newest(count))), [2, 1, 0, 0]);
        assert_eq!([5, 10, 19, 20, 30, 99].map(|ms| going(Keep::Since(WallMillis::new(ms)))), [0, 0, 0, 1, 2, 2]);
        assert_eq!(choose(&all, Keep::Newest(0), now).unwrap_err().code, Code::ConfigInvalid);
        assert_eq!(choose(&[], Keep::Newest(1), now), Ok(vec![]));
    }

    /// The second one says that it was sealed at another time than it was.
    #[test]
    fn a_clock_that_was_wrong_never_makes_more_go() {
        let going = |said, until, now| {
            let all = [backup(1, 10), backup(2, said), backup(3, 30), backup(4, 40)];
            let going = choose(&all, Keep::Since(WallMillis::new(until)), WallMillis::new(now)).unwrap();
            going.len()
        };
        let right = [9, 10, 20, 25, 30, 40].map(|until| going(20, until, 50));
        assert_eq!(right, [0, 0, 1, 1, 2, 3]);
        // Ahead of the present: known to be wrong, and no later than what followed.
        assert_eq!([9, 10, 20, 25, 30, 40].map(|until| going(1_000, until, 50)), [0, 0, 0, 0, 2, 3]);
        // Ahead, and past by now: what was sealed after it may be older than it says.
        assert_eq!([9, 10, 20, 25, 30, 40, 45].map(|until| going(45, until, 50)), [0, 0, 0, 0, 0, 0, 3]);
        // Behind: it alone does not show that what lies between is old enough.
        assert_eq!([4, 9, 10, 20, 29, 30, 40].map(|until| going(5, until, 50)), [0, 0, 1, 1, 1, 2, 3]);
        // Whoever asks has a clock that is behind: what claims to come from the future stays.
        assert_eq!([25, 30, 45].map(|until| going(20, until, 15)), [0, 0, 0]);
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
    fn a_declared_hole_goes_with_the_wal_before_it() {
        let thread = ThreadId::new(1);
        let key = |start| keys::wal(Incarnation::new(1), thread, TimelineId::new(1), Lsn::new(start));
        let hole = keys::hole(Incarnation::new(1), thread, TimelineId::new(1), Lsn::new(20));
        let keys = [key(0), key(20), hole.clone(), key(90), key(95)];
        let gone = |lsn| {
            let floor = WalFloor::From(BTreeMap::from([((thread, TimelineId::new(1)), Lsn::new(lsn))]));
            wal_to_remove(thread, &keys, &floor)
        };
        assert_eq!(gone(10), [] as [String; 0]);
        assert_eq!(gone(20), [key(0)], "what starts with the hole landed late, and may be needed");
        assert_eq!(gone(90), [key(0), hole.clone()]);
        assert_eq!(gone(99), [key(0), hole, key(90)]);
        let without = [key(0), keys[2].clone(), key(90)];
        assert_eq!(wal_to_remove(thread, &without, &WalFloor::Nothing), [key(0), keys[2].clone()]);
    }

    /// A backup of an incarnation whose WAL starts at `start`.
    fn manifest(incarnation: u32, start: u64) -> Manifest {
        let span = ThreadSpan { start: Lsn::new(start), stop: Lsn::new(start + 5), timeline: TimelineId::new(1) };
        Manifest {
            begun_scn: Scn::ZERO,
            cluster: ClusterId::new(1),
            cut: Cut { record: String::new(), scn: Scn::ZERO, threads: BTreeMap::new() },
            durable_scn: Scn::ZERO,
            engine: "refdb".into(),
            guarantee: Guarantee::Atomic,
            incarnation: Incarnation::new(incarnation),
            label: None,
            membership: Membership::new(1),
            method: Method::Fence,
            nodes: BTreeMap::new(),
            operation: backup(incarnation, 1).0,
            shared: true,
            started_ms: WallMillis::new(0),
            threads: BTreeMap::from([(ThreadId::new(1), span)]),
            units: BTreeMap::new(),
        }
    }

    #[test]
    fn an_incarnation_that_a_kept_backup_leads_to_keeps_all_its_wal() {
        let opened = |number: u32, parent: Option<u32>| {
            let cut = Cut { record: String::new(), scn: Scn::ZERO, threads: BTreeMap::new() };
            IncarnationObject {
                incarnation: Incarnation::new(number),
                nonce: Nonce::new(1),
                restore: None,
                state: IncarnationState::Opened(Opened {
                    branch: parent.map(|parent| Branch { cut, parent: Incarnation::new(parent) }),
                    membership: Membership::new(1),
                    origin: None,
                    opened_ms: WallMillis::new(0),
                    scn_floor: Scn::ZERO,
                    scn_offset_ms: 0,
                }),
            }
        };
        // 1 → 2 → 4, and 1 → 3.
        let tree = [opened(1, None), opened(2, Some(1)), opened(3, Some(1)), opened(4, Some(2))];
        let lineage = Lineage::of(&tree).unwrap();
        let floor =
            |number, kept: &[Manifest]| wal_floor(Incarnation::new(number), Incarnation::new(4), &lineage, kept, &[]);
        let from = |start| WalFloor::From(BTreeMap::from([((ThreadId::new(1), TimelineId::new(1)), Lsn::new(start))]));
        let kept = [manifest(1, 30), manifest(1, 20)];
        assert_eq!(floor(1, &kept), from(20));
        assert_eq!([2, 3, 4].map(|number| floor(number, &kept)), [WalFloor::All, WalFloor::All, WalFloor::All]);
        let kept = [manifest(2, 7)];
        assert_eq!([1, 3].map(|number| floor(number, &kept)), [WalFloor::Nothing, WalFloor::Nothing]);
        assert_eq!([floor(2, &kept), floor(4, &kept)], [from(7), WalFloor::All]);
        assert_eq!(floor(4, &[manifest(3, 1)]), WalFloor::All, "the one in force goes on");
    }

    #[test]
    fn what_decides_prepared_transactions_is_kept_where_a_guarantee_rests_on_it() {
        let lineage = Lineage::default();
        let point = |until, method| {
            let cut = ThreadCut { proof: Lsn::new(until + 1), timeline: TimelineId::new(1), until: Lsn::new(until) };
            Point {
                cut: Cut { record: String::new(), scn: Scn::ZERO, threads: [(ThreadId::new(1), cut)].into() },
                ended_ms: WallMillis::new(0),
                guarantee: Guarantee::Atomic,
                incarnation: Incarnation::new(1),
                membership: Membership::new(1),
                method,
                name: None,
            }
        };
        let from = |shared, guarantee, points: &[Point]| {
            let kept = [Manifest { guarantee, shared, ..manifest(1, 50) }];
            match wal_floor(Incarnation::new(1), Incarnation::new(1), &lineage, &kept, points) {
                WalFloor::From(floors) => floors.into_values().map(Lsn::get).collect::<Vec<_>>(),
                other => panic!("{other:?}"),
            }
        };
        let fenced = [10, 20, 30, 60].map(|until| point(until, Method::Fence));
        assert_eq!(from(false, Guarantee::Atomic, &fenced), [20], "two fenced cuts back");
        assert_eq!(from(false, Guarantee::Atomic, &fenced[2..]), [30], "as far as there is one");
        assert_eq!(from(false, Guarantee::Atomic, &[point(40, Method::Scn)]), [50], "a cut by SCN proves nothing");
        assert_eq!(from(false, Guarantee::Causal, &fenced), [50]);
        assert_eq!(from(true, Guarantee::Atomic, &fenced), [50], "one commit record a transaction");
    }

    #[test]
    fn only_objects_of_dead_operations_go() {
        let (dead, alive) = (backup(1, 1).0, backup(2, 2).0);
        let keys = [format!("packs/{dead}-1-00-000000"), format!("packs/{alive}-1-00-000000"), "packs/x".into()];
        let dead = BTreeSet::from([dead]);
        assert_eq!(objects_to_remove(&keys, &dead, &BTreeSet::new()), [keys[0].clone()]);
        assert_eq!(objects_to_remove(&keys, &dead, &BTreeSet::from([keys[0].clone()])), [] as [String; 0]);
    }
}
