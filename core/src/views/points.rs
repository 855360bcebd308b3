//! `restore_points` (`pg_cluster_restore_points`): every cut that was ever published, and whether it is a target.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Serialize;

use super::Scene;
use super::archive::{resumes_after, run_at};
use crate::format::catalog::{Cut, Guarantee, Method, Point, Seal};
use crate::identity::{Incarnation, Membership, OperationId, PointName, ThreadId, TimelineId};
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
    let start = start_of(scene, point);
    let threads: Vec<PointThreadRow> = point
        .cut
        .threads
        .iter()
        .map(|(thread, cut)| PointThreadRow {
            thread: *thread,
            timeline: cut.timeline,
            until: cut.until,
            proof: cut.proof,
            archived: reach(scene, point, start.map(|(_, seal)| seal), *thread).is_ok(),
        })
        .collect();
    let (state, reason) = match start {
        None => (PointState::Lost, Some("no backup that is kept lies before it".to_string())),
        Some((_, seal)) => {
            let behind = point.cut.threads.keys().find_map(|thread| reach(scene, point, Some(seal), *thread).err());
            behind.map_or((PointState::Reachable, None), |(state, why)| (state, Some(why)))
        }
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

/// The newest backup that lies before a point: in its incarnation, or else in the nearest ancestor before the branch.
pub(super) fn start_of<'a>(scene: &'a Scene, point: &'a Point) -> Option<(OperationId, &'a Seal)> {
    let (mut incarnation, mut cut): (Incarnation, &Cut) = (point.incarnation, &point.cut);
    loop {
        let fits = |seal: &Seal| seal.incarnation == incarnation && (seal.cut == *cut || cut.is_after(&seal.cut));
        if let Some(found) = scene.sealed().rev().find(|(_, seal)| fits(seal)) {
            return Some(found);
        }
        // Each parent is older, so this ends.
        let branch = scene.opened(incarnation)?.branch.as_ref().filter(|branch| branch.parent < incarnation)?;
        (incarnation, cut) = (branch.parent, &branch.cut);
    }
}

/// Whether the archive of a thread leads from a backup to a point.
fn reach(scene: &Scene, point: &Point, seal: Option<&Seal>, thread: ThreadId) -> Result<(), (PointState, String)> {
    let Some(cut) = point.cut.threads.get(&thread) else { return Ok(()) };
    let runs = scene.archive.get(&(point.incarnation, thread)).map(Vec::as_slice).unwrap_or_default();
    let start =
        seal.filter(|seal| seal.incarnation == point.incarnation).and_then(|seal| seal.cut.threads.get(&thread));
    let run = match start {
        Some(start) => run_at(runs, cut.timeline, start.until),
        // The backup is an ancestor's: this incarnation's WAL is needed from its beginning.
        None => runs.iter().find(|run| run.timeline == cut.timeline),
    };
    match run {
        Some(run) if run.until >= cut.proof => Ok(()),
        Some(run) => match resumes_after(runs, run) {
            Some(later) => {
                Err((PointState::Lost, format!("WAL of thread {thread} is missing from {} to {later}", run.until)))
            }
            None => Err(behind(scene, point, thread, run.until)),
        },
        None => Err(behind(scene, point, thread, start.map(|start| start.until).unwrap_or_default())),
    }
}

fn behind(scene: &Scene, point: &Point, thread: ThreadId, until: Lsn) -> (PointState, String) {
    if point.incarnation == scene.current {
        return (PointState::Pending, format!("thread {thread} is archived to {until}"));
    }
    let why = format!("thread {thread} is archived to {until}, and incarnation {} is over", point.incarnation);
    (PointState::Lost, why)
}
