//! `restore_points` (`pg_cluster_restore_points`): every cut that was ever published, and whether it is a target.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Serialize;

use super::Scene;
use super::archive::{Run, resumes_after, run_at};
use crate::format::catalog::{Cut, Guarantee, Method, Point, Seal};
use crate::hole::hole_at;
use crate::identity::{Incarnation, Membership, OperationId, PointName, ThreadId, TimelineId};
use crate::lineage::Way;
use crate::plan::start_of;
use crate::position::Lsn;
use crate::scn::Scn;
use crate::time::WallMillis;

/// A restore point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PointRow {
    /// What its operators call it; none for the cut that a backup ends with.
    pub name: Option<PointName>,
    /// Which.
    pub point_id: OperationId,
    /// The SCN of its cut, inclusive; zero on engines without.
    pub scn: Scn,
    /// When it was published, by its coordinator's clock.
    pub created_at: WallMillis,
    /// The incarnation that it lies in.
    pub incarnation: Incarnation,
    /// The members that it covers.
    pub membership: Membership,
    /// How it was taken.
    pub method: Method,
    /// What it says about the nodes together.
    pub guarantee: Guarantee,
    /// Whether it is a target.
    pub state: PointState,
    /// Why it is not.
    pub reason: Option<String>,
    /// The backup that a restore to it would start from.
    pub backup_id: Option<OperationId>,
    /// Its place in each thread.
    pub threads: Vec<PointThreadRow>,
}

/// Whether a restore point is a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PointState {
    /// The archive has not reached it yet.
    Pending,
    /// It can be restored to.
    Reachable,
    /// It never will be: no backup lies before it, or WAL that it needs is gone.
    Lost,
}

impl PointState {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Reachable => "reachable",
            Self::Lost => "lost",
        }
    }
}

/// A point's place in one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PointThreadRow {
    /// Which thread.
    pub thread: ThreadId,
    /// Its log branch.
    pub timeline: TimelineId,
    /// The end of what belongs to the cut, exclusive.
    pub until: Lsn,
    /// The archive must reach this.
    pub proof: Lsn,
    /// Whether it does, without a gap.
    pub archived: bool,
}

/// Every published point, in order of time.
pub fn restore_points(scene: &Scene) -> Vec<PointRow> {
    scene.published().map(|(id, point)| point_row(scene, id, point)).collect()
}

fn point_row(scene: &Scene, id: OperationId, point: &Point) -> PointRow {
    let way = scene.lineage.way_to(point.incarnation).unwrap_or_else(|_| Way::within(point.incarnation));
    let start = start_of(scene.sealed(), &way, point, scene.stamped());
    let mut behind = None;
    let mut threads = Vec::with_capacity(point.cut.threads.len());
    for (thread, cut) in &point.cut.threads {
        let archived = match start.map(|(_, seal)| reach(scene, &way, point, seal, *thread)) {
            Some(Ok(())) => true,
            Some(Err(why)) => {
                behind.get_or_insert(why);
                false
            }
            None => run_at(runs(scene, point.incarnation, *thread), cut.timeline, cut.proof).is_some(),
        };
        let (timeline, until, proof) = (cut.timeline, cut.until, cut.proof);
        threads.push(PointThreadRow { thread: *thread, timeline, until, proof, archived });
    }
    let (state, reason) = match (start, behind) {
        (None, _) => (PointState::Lost, Some("no backup that is kept lies before it".to_string())),
        (Some(_), None) => (PointState::Reachable, None),
        (Some(_), Some((state, why))) => (state, Some(why)),
    };
    PointRow {
        name: point.name.clone(),
        point_id: id,
        scn: point.cut.scn,
        created_at: point.ended_ms,
        incarnation: point.incarnation,
        membership: point.membership,
        method: point.method,
        guarantee: point.guarantee,
        state,
        reason,
        backup_id: start.map(|(id, _)| id),
        threads,
    }
}

fn runs(scene: &Scene, incarnation: Incarnation, thread: ThreadId) -> &[Run] {
    scene.archive.get(&(incarnation, thread)).map(Vec::as_slice).unwrap_or_default()
}

/// Whether a thread's archive leads from a backup's cut to a point, through every incarnation between them; else what is
/// missing.
fn reach(scene: &Scene, way: &Way, point: &Point, seal: &Seal, thread: ThreadId) -> Result<(), (PointState, String)> {
    let place = |cut: &Cut| cut.threads.get(&thread).copied();
    let Some(last) = place(&point.cut) else { return Ok(()) };
    let mut at = place(&seal.cut).map(|cut| cut.until).unwrap_or_default();
    for stretch in way.between(seal.incarnation, point.incarnation) {
        let leaves = stretch.leaves.as_ref().filter(|_| stretch.incarnation != point.incarnation);
        let (timeline, until) =
            leaves.and_then(place).map_or((last.timeline, last.proof), |cut| (cut.timeline, cut.until));
        let runs = runs(scene, stretch.incarnation, thread);
        let run = run_at(runs, timeline, at);
        let reached = run.map_or(at, |run| run.until);
        if reached < until {
            if let Some(hole) = hole_at(scene.holes_of(stretch.incarnation, thread), timeline, reached) {
                return Err((PointState::Lost, hole.to_string()));
            }
            return Err(match resumes_after(runs, timeline, reached) {
                Some(later) => {
                    (PointState::Lost, format!("WAL of thread {thread} is missing from {reached} to {later}"))
                }
                None => behind(scene, stretch.incarnation, thread, reached),
            });
        }
        at = until;
    }
    Ok(())
}

/// The archive of the incarnation in force goes on; that of another does not.
fn behind(scene: &Scene, incarnation: Incarnation, thread: ThreadId, until: Lsn) -> (PointState, String) {
    if incarnation == scene.current {
        return (PointState::Pending, format!("thread {thread} is archived to {until}"));
    }
    let why = format!("thread {thread} is archived to {until}, and incarnation {incarnation} is over");
    (PointState::Lost, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::catalog::{Branch, Ending, IncarnationObject, IncarnationState, Opened, Outcome, ThreadCut};
    use crate::format::hole::{Hole, HoleReason};
    use crate::identity::{ByteCount, ContentHash, Nonce, OperationKind};
    use crate::lineage::Lineage;
    use std::vec;

    const THREAD: ThreadId = ThreadId::new(1);

    fn cut(scn: u64) -> Cut {
        let place = ThreadCut { proof: Lsn::new(scn + 1), timeline: TimelineId::new(1), until: Lsn::new(scn) };
        Cut { record: format!("sa-{scn}"), scn: Scn::new(scn), threads: [(THREAD, place)].into() }
    }

    fn opened(number: u32, parent: Option<u64>) -> IncarnationObject {
        let opened = Opened {
            branch: parent.map(|scn| Branch { cut: cut(scn), parent: Incarnation::new(1) }),
            membership: Membership::new(1),
            origin: None,
            opened_ms: WallMillis::new(0),
            scn_floor: Scn::new(parent.unwrap_or(0)),
            scn_offset_ms: 0,
        };
        let state = IncarnationState::Opened(opened);
        IncarnationObject { incarnation: Incarnation::new(number), nonce: Nonce::new(1), restore: None, state }
    }

    fn outcome(kind: OperationKind, result: Ending) -> Outcome {
        Outcome { nonce: Nonce::new(1), operation: OperationId::new(kind, 1, 1), result }
    }

    /// A backup of the first incarnation at 10, the second one branches off at 50, and has a point at 90. `archives` are
    /// the first and last byte of each run, by incarnation.
    fn scene(stamped: bool, archives: &[(u32, &[(u64, u64)])]) -> Scene {
        let seal = Seal {
            base: None,
            cut: cut(10),
            ended_ms: WallMillis::new(0),
            guarantee: Guarantee::Node,
            incarnation: Incarnation::new(1),
            manifest: ContentHash::of(b""),
            point: None,
            stored: ByteCount::new(1),
            why_full: None,
        };
        let point = Point {
            cut: cut(90),
            ended_ms: WallMillis::new(0),
            guarantee: Guarantee::Causal,
            incarnation: Incarnation::new(2),
            membership: Membership::new(1),
            method: Method::Fence,
            name: None,
        };
        let run = |(from, until): &(u64, u64)| Run {
            timeline: TimelineId::new(1),
            from: Lsn::new(*from),
            until: Lsn::new(*until),
            scn_last: stamped.then_some(Scn::new(*until)),
        };
        let incarnations = vec![opened(1, None), opened(2, Some(50))];
        Scene {
            current: Incarnation::new(2),
            lineage: Lineage::of(&incarnations).unwrap(),
            incarnations,
            backups: vec![outcome(OperationKind::Backup, Ending::Sealed(seal))],
            points: vec![outcome(OperationKind::Point, Ending::Published(point))],
            archive: archives
                .iter()
                .map(|(of, runs)| ((Incarnation::new(*of), THREAD), runs.iter().map(run).collect()))
                .collect(),
            ..Scene::default()
        }
    }

    fn state(scene: &Scene) -> PointState {
        restore_points(scene)[0].state
    }

    #[test]
    fn a_point_is_a_target_if_the_archive_leads_to_it_through_every_incarnation() {
        assert_eq!(state(&scene(true, &[(1, &[(0, 60)]), (2, &[(50, 95)])])), PointState::Reachable);
        for (archives, wanted) in [
            ([(1, &[(0, 60)][..]), (2, &[(50, 80)][..])], PointState::Pending),
            ([(1, &[(0, 20), (30, 60)]), (2, &[(50, 95)])], PointState::Lost),
            ([(1, &[(0, 40)]), (2, &[(50, 95)])], PointState::Lost),
            ([(1, &[(0, 60)]), (2, &[(70, 95)])], PointState::Lost),
            ([(1, &[(0, 60)]), (2, &[(50, 60), (70, 95)])], PointState::Lost),
        ] {
            let scene = scene(true, &archives);
            assert_eq!(state(&scene), wanted, "{archives:?}");
            assert!(!restore_points(&scene)[0].threads[0].archived, "{archives:?}");
        }
    }

    #[test]
    fn a_point_in_or_behind_a_declared_hole_is_lost_whether_or_not_the_archive_goes_on() {
        let hole = Hole {
            declared_ms: WallMillis::new(0),
            from: Lsn::new(70),
            incarnation: Incarnation::new(2),
            message: "too much waited".to_string(),
            nonce: Nonce::new(1),
            reason: HoleReason::Bound,
            thread: THREAD,
            timeline: TimelineId::new(1),
            until: Lsn::new(80),
        };
        for runs in [&[(50, 70)][..], &[(50, 70), (80, 99)], &[(50, 75), (80, 99)]] {
            let mut scene = scene(true, &[(1, &[(0, 60)]), (2, runs)]);
            scene.holes.insert((Incarnation::new(2), THREAD), vec![hole.clone()]);
            let row = restore_points(&scene).remove(0);
            assert_eq!(row.state, PointState::Lost, "{runs:?}");
            assert!(row.reason.is_some_and(|why| why.contains("hole") && why.contains("too much waited")), "{runs:?}");
            assert_eq!(scene.holes_without_backup(), [&hole], "the backup lies before it");
        }
    }

    #[test]
    fn without_stamps_a_backup_of_an_ancestor_is_no_beginning() {
        let scene = scene(false, &[(1, &[(0, 60)]), (2, &[(50, 95)])]);
        assert_eq!(state(&scene), PointState::Lost);
        assert_eq!(restore_points(&scene)[0].backup_id, None);
    }
}
