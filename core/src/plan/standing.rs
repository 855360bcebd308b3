//! Which of two cuts came later, by what the catalog holds of them. An operation's id begins with what its coordinator's
//! clock said, which may have been wrong, by a day or by a year: an id names an operation, and says nothing about order.

use alloc::vec::Vec;

use crate::format::catalog::{Cut, Point, Seal};
use crate::identity::{Incarnation, OperationId, ThreadId, TimelineId};
use crate::position::Lsn;
use crate::scn::Scn;

/// Where a cut stands among all that the catalog holds: a greater one came later. Incarnations follow each other by their
/// numbers, and inside one no thread's place ever goes back, but onto a later timeline. Of cuts that were taken at once each
/// may be the later one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Standing {
    incarnation: Incarnation,
    places: Vec<(ThreadId, TimelineId, Lsn)>,
    scn: Scn,
    /// Tells apart what stands at one place.
    operation: OperationId,
}

impl Standing {
    /// The standing of a cut in `incarnation` that `operation` took; `places` are its ends in each thread.
    pub fn new(
        incarnation: Incarnation,
        places: impl IntoIterator<Item = (ThreadId, TimelineId, Lsn)>,
        scn: Scn,
        operation: OperationId,
    ) -> Self {
        Self { incarnation, places: places.into_iter().collect(), scn, operation }
    }

    /// The standing of a cut.
    pub fn of_cut(incarnation: Incarnation, cut: &Cut, operation: OperationId) -> Self {
        let places = cut.threads.iter().map(|(thread, cut)| (*thread, cut.timeline, cut.until));
        Self::new(incarnation, places, cut.scn, operation)
    }

    /// The standing of a sealed backup.
    pub fn of_backup((operation, seal): &(OperationId, Seal)) -> Self {
        Self::of_cut(seal.incarnation, &seal.cut, *operation)
    }

    /// The standing of a published point.
    pub fn of_point((operation, point): &(OperationId, Point)) -> Self {
        Self::of_cut(point.incarnation, &point.cut, *operation)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::string::String;
    use std::vec;

    use super::*;
    use crate::expiry::{Keep, choose};
    use crate::format::catalog::{Ending, Guarantee, Method, Outcome, ThreadCut};
    use crate::identity::{ByteCount, ContentHash, Membership, Nonce, OperationKind};
    use crate::plan::Catalog;
    use crate::time::WallMillis;

    /// A cut of two threads: their timelines and ends.
    fn cut(scn: u64, places: [(u32, u64); 2]) -> Cut {
        let threads = places.into_iter().zip(1..).map(|((timeline, until), thread)| {
            let (proof, until) = (Lsn::new(until + 1), Lsn::new(until));
            (ThreadId::new(thread), ThreadCut { proof, timeline: TimelineId::new(timeline), until })
        });
        Cut { record: String::new(), scn: Scn::new(scn), threads: threads.collect() }
    }

    /// A backup whose coordinator's clock said `clock`.
    fn backup(clock: u64, incarnation: u32, cut: Cut) -> Outcome {
        let seal = Seal {
            base: None,
            cut,
            ended_ms: WallMillis::new(clock),
            guarantee: Guarantee::Node,
            incarnation: Incarnation::new(incarnation),
            manifest: ContentHash::of(b""),
            point: None,
            stored: ByteCount::new(1),
            why_full: None,
        };
        let operation = OperationId::new(OperationKind::Backup, clock, 1);
        Outcome { nonce: Nonce::new(1), operation, result: Ending::Sealed(seal) }
    }

    fn point(clock: u64, cut: Cut) -> Outcome {
        let point = Point {
            cut,
            ended_ms: WallMillis::new(clock),
            guarantee: Guarantee::Causal,
            incarnation: Incarnation::new(1),
            membership: Membership::new(1),
            method: Method::Fence,
            name: None,
        };
        let operation = OperationId::new(OperationKind::Point, clock, 1);
        Outcome { nonce: Nonce::new(1), operation, result: Ending::Published(point) }
    }

    /// What the clocks of those said who took what is listed, oldest first.
    fn clocks(mut outcomes: Vec<Outcome>) -> Vec<u64> {
        // As a repository lists them.
        outcomes.sort_by_key(|outcome| outcome.operation);
        let catalog = Catalog::of(outcomes, &BTreeSet::new());
        let points = catalog.points.iter().map(|(id, _)| id.started_ms());
        catalog.backups.iter().map(|(id, _)| id.started_ms()).chain(points).collect()
    }

    #[test]
    fn what_was_cut_later_came_later_whatever_clocks_said() {
        let stamped = [(50, 10, 100), (7_000, 20, 200), (60, 30, 300), (2, 40, 400), (70, 50, 500)];
        let all = stamped.map(|(clock, scn, lsn)| backup(clock, 1, cut(scn, [(1, lsn), (1, lsn + 5)])));
        assert_eq!(clocks(all.into()), [50, 7_000, 60, 2, 70]);
        let all = stamped.map(|(clock, scn, lsn)| point(clock, cut(scn, [(1, 100), (1, lsn)])));
        assert_eq!(clocks(all.into()), [50, 7_000, 60, 2, 70], "a thread may be idle");
    }

    #[test]
    fn backups_without_an_scn_stand_by_their_places_beside_those_with_one() {
        let alone = |clock, lsn| backup(clock, 1, cut(0, [(1, lsn), (1, lsn)]));
        let fenced = |clock, lsn| backup(clock, 1, cut(900, [(1, lsn), (1, lsn)]));
        assert_eq!(clocks(vec![alone(9, 10), fenced(8, 20), alone(3, 30)]), [9, 8, 3]);
    }

    #[test]
    fn a_later_timeline_and_a_later_incarnation_come_later_wherever_they_began() {
        let before = backup(900, 1, cut(10, [(1, 800), (1, 800)]));
        let failed_over = backup(500, 1, cut(20, [(2, 700), (1, 900)]));
        let restored = backup(100, 2, cut(5, [(1, 100), (1, 100)]));
        assert_eq!(clocks(vec![before, failed_over, restored]), [900, 500, 100]);
    }

    /// The one that a clock a year ahead has named is the oldest.
    #[test]
    fn a_backup_that_a_clock_named_newest_is_not_kept_for_ever() {
        let year_ms = 31_536_000_000;
        let taken = [(year_ms, 10), (50, 20), (60, 30)];
        let outcomes = taken.map(|(clock, lsn)| backup(clock, 1, cut(lsn, [(1, lsn), (1, lsn)])));
        let mut listed = Vec::from(outcomes);
        listed.sort_by_key(|outcome| outcome.operation);
        let catalog = Catalog::of(listed, &BTreeSet::new());
        let going = |keep| choose(&catalog.backups, keep, WallMillis::new(70)).unwrap();
        let ids = taken.map(|(clock, _)| OperationId::new(OperationKind::Backup, clock, 1));
        assert_eq!(going(Keep::Newest(1)), ids[..2]);
        assert_eq!(going(Keep::Newest(2)), ids[..1]);
        assert_eq!(going(Keep::Since(WallMillis::new(60))), ids[..2]);
        assert_eq!(going(Keep::Since(WallMillis::new(55))), ids[..1]);
    }
}
