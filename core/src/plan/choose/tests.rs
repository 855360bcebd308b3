use alloc::vec;

use super::*;
use crate::format::catalog::{Guarantee, IncarnationObject, IncarnationState, Method, Opened, ThreadCut};
use crate::identity::{ByteCount, ContentHash, Membership, Nonce, OperationKind, ThreadId, TimelineId};
use crate::position::Lsn;

/// A cluster in its first incarnation, with a backup cut at 10, a point `a` at 20 and one without a name at 30.
fn told() -> (Catalog, Lineage) {
    let incarnation = Incarnation::new(1);
    let opened = Opened {
        branch: None,
        membership: Membership::new(1),
        opened_ms: WallMillis::new(1),
        origin: None,
        scn_floor: Scn::ZERO,
        scn_offset_ms: 0,
    };
    let state = IncarnationState::Opened(opened);
    let object = IncarnationObject { incarnation, nonce: Nonce::new(1), restore: None, state };
    (Catalog { backups: vec![(backup(), sealed(10))], points: vec![point(20, Some("a")), point(30, None)] }, {
        Lineage::of(&[object]).unwrap()
    })
}

fn backup() -> OperationId {
    OperationId::new(OperationKind::Backup, 10, 1)
}

fn cut(place: u64) -> Cut {
    let at = ThreadCut { proof: Lsn::new(place), timeline: TimelineId::new(1), until: Lsn::new(place) };
    Cut { record: format!("sa-{place}"), scn: Scn::new(place), threads: BTreeMap::from([(ThreadId::new(1), at)]) }
}

fn sealed(place: u64) -> Seal {
    Seal {
        base: None,
        cut: cut(place),
        ended_ms: WallMillis::new(place),
        guarantee: Guarantee::Causal,
        incarnation: Incarnation::new(1),
        manifest: ContentHash::of(b""),
        point: None,
        stored: ByteCount::new(1),
        why_full: None,
    }
}

fn point(place: u64, name: Option<&str>) -> (OperationId, Point) {
    let point = Point {
        cut: cut(place),
        ended_ms: WallMillis::new(place),
        guarantee: Guarantee::Causal,
        incarnation: Incarnation::new(1),
        membership: Membership::new(1),
        method: Method::Fence,
        name: name.map(|name| name.parse().unwrap()),
    };
    (OperationId::new(OperationKind::Point, place, 1), point)
}

/// The SCNs of the cuts that answer an aim, or the refusal's code.
fn chosen(aim: &Aim, stamped: bool) -> Result<Vec<u64>, Code> {
    let (catalog, lineage) = told();
    let way = lineage.way_to(Incarnation::new(1)).unwrap();
    let found = choices(&catalog, &lineage, &way, aim, stamped).map_err(|refusal| refusal.code)?;
    assert!(found.iter().all(|choice| choice.backup == backup()));
    Ok(found.iter().map(|choice| choice.cut.scn.get()).collect())
}

fn aim(target: Target) -> Aim {
    Aim::from(target)
}

#[test]
fn latest_offers_every_cut_from_the_newest_on() {
    assert_eq!(chosen(&aim(Target::Latest), true), Ok(vec![30, 20, 10]));
    assert_eq!(chosen(&aim(Target::Backup(backup())), true), Ok(vec![10]));
    assert_eq!(chosen(&aim(Target::Name("a".parse().unwrap())), false), Ok(vec![20]));
    assert_eq!(chosen(&aim(Target::Name("b".parse().unwrap())), true), Err(Code::NoSuchTarget));
}

#[test]
fn with_stamps_an_scn_is_never_rounded() {
    assert_eq!(chosen(&aim(Target::Scn(Scn::new(25))), true), Ok(vec![25]));
    assert_eq!(chosen(&aim(Target::Below(Scn::new(25))), true), Ok(vec![24]));
    assert_eq!(chosen(&aim(Target::Below(Scn::ZERO)), true), Err(Code::BadTarget), "nothing lies below it");
    assert_eq!(chosen(&aim(Target::Scn(Scn::new(9))), true), Err(Code::NoBackup));
}

/// What an engine's records do not show is not guessed: an SCN or a time that is no cut of it is refused, or rounded down if
/// its operator has said so.
#[test]
fn without_stamps_only_cuts_are_targets() {
    let (between, time) = (Target::Scn(Scn::new(25)), Target::Time(WallMillis::new(25)));
    assert_eq!(chosen(&aim(Target::Scn(Scn::new(20))), false), Ok(vec![20]), "the very cut");
    for target in [between, time] {
        assert_eq!(chosen(&aim(target.clone()), false), Err(Code::PointsOnly));
        let rounded = Aim { nearest_before: true, ..aim(target) };
        assert_eq!(chosen(&rounded, false), Ok(vec![20, 10]));
    }
    let early = Aim { nearest_before: true, ..aim(Target::Time(WallMillis::new(9))) };
    assert_eq!(chosen(&early, false), Err(Code::NoBackup));
}

/// Two backups and two points, of which clocks said another order than there was: the archive's own counts, for the newest
/// cut and for what to start from.
#[test]
fn the_newest_cut_is_the_one_that_was_cut_last_whatever_clocks_said() {
    for scns in [[10, 20, 30, 40], [0; 4]] {
        let (mut catalog, lineage) = told();
        let placed = |place, scn| Cut { scn: Scn::new(scn), ..cut(place) };
        let ids = [9_000, 8_000, 7, 6].map(|clock| OperationId::new(OperationKind::Backup, clock, 1));
        catalog.backups = [(0, 10), (2, 30)]
            .map(|(at, place)| (ids[at], Seal { cut: placed(place, scns[at]), ..sealed(place) }))
            .into();
        catalog.points = [(1, 20), (3, 40)]
            .map(|(at, place)| {
                let (_, point) = point(place, None);
                (ids[at].as_kind(OperationKind::Point), Point { cut: placed(place, scns[at]), ..point })
            })
            .into();
        let way = lineage.way_to(Incarnation::new(1)).unwrap();
        let found = choices(&catalog, &lineage, &way, &aim(Target::Latest), scns[0] > 0).unwrap();
        let found: Vec<_> =
            found.iter().map(|choice| (choice.cut.threads[&ThreadId::new(1)].until.get(), choice.backup)).collect();
        assert_eq!(found, [(40, ids[2]), (30, ids[2]), (20, ids[0]), (10, ids[0])], "{scns:?}");
    }
}
