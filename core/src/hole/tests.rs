use std::string::ToString;
use std::vec;

use super::*;
use crate::format::catalog::{Cut, Guarantee, ThreadCut};
use crate::identity::{ByteCount, ContentHash};
use crate::scn::Scn;

const ONE: TimelineId = TimelineId::new(1);
const TWO: TimelineId = TimelineId::new(2);

fn place(timeline: TimelineId, lsn: u64) -> Position {
    Position { thread: ThreadId::new(1), timeline, lsn: Lsn::new(lsn) }
}

fn declaration(timeline: TimelineId, from: u64, until: u64) -> Declaration {
    Declaration {
        incarnation: Incarnation::new(1),
        from: place(timeline, from),
        until: place(timeline, until),
        reason: HoleReason::Bound,
        message: format!("up to {until}"),
        at: WallMillis::new(until),
        nonce: Nonce::new(until),
    }
}

fn hole(timeline: TimelineId, from: u64, until: u64) -> Hole {
    declared(&[], declaration(timeline, from, until)).unwrap().unwrap().remove(0)
}

fn ends(holes: &[Hole]) -> Vec<(u32, u64, u64)> {
    holes.iter().map(|hole| (hole.timeline.get(), hole.from.get(), hole.until.get())).collect()
}

#[test]
fn each_rise_is_told_once() {
    let mut gauge = Gauge::default();
    let mut look = |bytes| gauge.look(WalKept { bytes: ByteCount::new(bytes), max: ByteCount::new(100) });
    for (bytes, told) in [
        (10, None),
        (74, None),
        (75, Some(Level::High)),
        (90, None),
        (100, None),
        (101, Some(Level::Over)),
        (900, None),
        (80, None),
        (20, None),
        (76, Some(Level::High)),
        (10, None),
        (101, Some(Level::Over)),
    ] {
        assert_eq!(look(bytes), told, "{bytes}");
    }
    assert_eq!(gauge.kept().map(|kept| kept.bytes.get()), Some(101));
}

#[test]
fn a_hole_that_waits_grows_and_another_timeline_has_its_own() {
    assert_eq!(declared(&[], declaration(ONE, 50, 50)), Ok(None), "nothing is missing");
    let waiting = declared(&[], declaration(ONE, 50, 90)).unwrap().unwrap();
    let grown = declared(&waiting, declaration(ONE, 90, 200)).unwrap().unwrap();
    assert_eq!(ends(&grown), [(1, 50, 200)]);
    assert_eq!((grown[0].declared_ms, grown[0].nonce), (WallMillis::new(90), Nonce::new(90)), "the first one's");
    assert_eq!(grown[0].message, "up to 200");
    let both = declared(&grown, declaration(TWO, 210, 300)).unwrap().unwrap();
    assert_eq!(ends(&both), [(1, 50, 200), (2, 210, 300)]);
    let many: Vec<Hole> = (0..64).map(|_| hole(ONE, 1, 2)).collect();
    assert_eq!(declared(&many, declaration(TWO, 1, 2)).unwrap_err().code, Code::ArchiveBehind);
    declared(&many, declaration(ONE, 2, 3)).unwrap().expect("one that grows is none more");
}

#[test]
fn what_landed_late_is_no_part_of_a_hole() {
    let shown = |archived: Option<u64>| {
        to_record(hole(ONE, 50, 90), archived.map(Lsn::new)).map(|hole| (hole.from.get(), hole.until.get()))
    };
    for (archived, left) in [(None, Some((50, 90))), (Some(40), Some((50, 90))), (Some(70), Some((70, 90)))] {
        assert_eq!(shown(archived), left, "{archived:?}");
    }
    assert_eq!((shown(Some(90)), shown(Some(95))), (None, None));
    let left = remainder(hole(ONE, 50, 200), &hole(ONE, 50, 90));
    assert_eq!(left.map(|hole| (hole.from.get(), hole.until.get())), Some((90, 200)));
    assert_eq!(remainder(hole(ONE, 50, 90), &hole(ONE, 50, 90)), None);
}

#[test]
fn the_archive_goes_on_behind_the_holes_that_it_has_come_to() {
    let holes = [hole(ONE, 50, 90), hole(ONE, 90, 120), hole(ONE, 400, 500), hole(TWO, 520, 600)];
    let at = |end: Option<(TimelineId, u64)>, count: usize| {
        let resumed = resumes(end.map(|(timeline, lsn)| (timeline, Lsn::new(lsn))), &holes[..count]);
        resumed.map(|(timeline, lsn)| (timeline.get(), lsn.get()))
    };
    assert_eq!(at(Some((ONE, 49)), 3), Some((1, 49)), "a gap that nobody has declared");
    assert_eq!(at(Some((ONE, 50)), 3), Some((1, 120)));
    assert_eq!(at(Some((ONE, 60)), 3), Some((1, 120)), "a piece that landed late");
    assert_eq!(at(Some((ONE, 120)), 3), Some((1, 120)));
    assert_eq!(at(Some((ONE, 400)), 4), Some((2, 600)), "the earlier timeline has no more");
    assert_eq!(at(Some((TWO, 700)), 4), Some((2, 700)));
    assert_eq!((at(None, 1), at(None, 0)), (Some((1, 90)), None));
}

#[test]
fn what_lies_in_a_hole_is_waited_for_in_vain() {
    let holes = [hole(ONE, 50, 90)];
    let in_vain = |timeline, lsn| never_archived(&holes, place(timeline, lsn)).is_some();
    assert_eq!([50, 51, 90, 91].map(|lsn| in_vain(ONE, lsn)), [false, true, true, false]);
    assert!(!in_vain(TWO, 70));
    let at = |lsn| hole_at(&holes, ONE, Lsn::new(lsn)).is_some();
    assert_eq!([49, 50, 89, 90].map(at), [false, true, true, false]);
}

#[test]
fn a_gap_is_declared_only_as_a_whole() {
    let holes = [hole(ONE, 50, 90), hole(ONE, 90, 120)];
    let whole = |from, until| is_declared(&holes, ONE, Lsn::new(from), Lsn::new(until));
    assert!(whole(50, 120) && whole(60, 100) && whole(90, 120));
    assert!(!whole(40, 120) && !whole(50, 121) && !is_declared(&holes, TWO, Lsn::new(50), Lsn::new(90)));
}

#[test]
fn a_hole_wants_a_backup_until_one_lies_behind_it() {
    let holes = Holes::from([((Incarnation::new(1), ThreadId::new(1)), vec![hole(ONE, 50, 90)])]);
    let seal = |incarnation, timeline, proof| {
        let cut = ThreadCut { proof: Lsn::new(proof), timeline, until: Lsn::new(proof) };
        Seal {
            base: None,
            cut: Cut { record: "r".to_string(), scn: Scn::ZERO, threads: [(ThreadId::new(1), cut)].into() },
            ended_ms: WallMillis::new(0),
            guarantee: Guarantee::Node,
            incarnation: Incarnation::new(incarnation),
            manifest: ContentHash::of(b""),
            point: None,
            stored: ByteCount::new(0),
            why_full: None,
        }
    };
    let wants = |seals: &[Seal]| unanswered(&holes, &seals.iter().collect::<Vec<_>>()).len();
    assert_eq!(wants(&[]), 1);
    assert_eq!(wants(&[seal(1, ONE, 50), seal(2, ONE, 200)]), 1, "before it, and of another incarnation");
    assert_eq!(wants(&[seal(1, ONE, 50), seal(1, ONE, 91)]), 0);
    assert_eq!(wants(&[seal(1, TWO, 60)]), 0, "a later timeline goes on behind it");
}

/// A standby takes over before, in, or behind a hole of the old timeline: what the archive goes on with, whether the rest of the
/// old timeline can still be had or not.
#[test]
fn a_hole_and_a_fork_lead_the_archive_on_whichever_came_first() {
    let on = |end: (TimelineId, u64), holes: &[Hole]| {
        let resumed = resumes(Some((end.0, Lsn::new(end.1))), holes);
        resumed.map(|(timeline, lsn)| (timeline.get(), lsn.get()))
    };
    let (old, new) = (hole(ONE, 50, 90), hole(TWO, 60, 130));
    // Before anything of the new timeline is archived: behind the old one's hole, were the fork in it or not.
    assert_eq!(on((ONE, 50), std::slice::from_ref(&old)), Some((1, 90)));
    // Once something is, no hole of the old timeline leads it back, nor past what the new one has.
    assert_eq!(on((TWO, 55), std::slice::from_ref(&old)), Some((2, 55)));
    assert_eq!(on((TWO, 60), &[old.clone(), new.clone()]), Some((2, 130)));
    assert_eq!(on((ONE, 50), &[old.clone(), new.clone()]), Some((2, 130)), "the old timeline's rest is given up");
    // What is waited for on one timeline is not held to be in the other's hole.
    let both = [old, new];
    assert_eq!(never_archived(&both, place(ONE, 70)).map(|hole| hole.timeline), Some(ONE));
    assert_eq!(never_archived(&both, place(TWO, 70)).map(|hole| hole.timeline), Some(TWO));
    assert_eq!(never_archived(&both, place(ONE, 120)), None);
    assert_eq!(never_archived(&both, place(TWO, 55)), None);
}
