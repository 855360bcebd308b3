//! `pitr_status` (`pg_cluster_pitr_status`): what the cluster as a whole can be restored to. A window reaches from a
//! backup's cut to the end of the archive of the slowest thread; a gap in any thread ends it.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use serde::Serialize;

use super::Scene;
use super::archive::{Run, resumes_after, run_at};
use super::points::{PointRow, PointState, restore_points};
use crate::format::catalog::{IncarnationState, Opened, Seal};
use crate::format::hole::HoleReason;
use crate::hole::is_declared;
use crate::identity::{ByteCount, Incarnation, NodeId, OperationId, PointName, ThreadId, TimelineId};
use crate::plan::Standing;
use crate::position::Lsn;
use crate::request::Description;
use crate::scn::Scn;
use crate::time::WallMillis;

/// An incarnation's restorable windows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PitrRow {
    /// Which incarnation.
    pub incarnation: Incarnation,
    /// Whether it is the one in force.
    pub current: bool,
    /// What can be restored to, oldest first.
    pub windows: Vec<Window>,
    /// WAL that is missing.
    pub holes: Vec<Hole>,
    /// How far each thread's archive is.
    pub threads: Vec<PitrThreadRow>,
}

/// Cuts that can be restored to, from a backup on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Window {
    /// The backup that it begins with.
    pub backup_id: OperationId,
    /// How many backups lie in it.
    pub backups: u64,
    /// How many restore points in it are targets.
    pub points: u64,
    /// The SCN of its first cut; zero on engines without.
    pub from_scn: Scn,
    /// When that backup was sealed.
    pub from_at: WallMillis,
    /// The SCN that every thread's archive has passed, on engines that stamp.
    pub until_scn: Option<Scn>,
    /// About when that was: the wall time of that SCN, or of the newest target.
    pub until_at: WallMillis,
    /// The newest restore point in it.
    pub newest_point: Option<OperationId>,
    /// Its name.
    pub newest_name: Option<PointName>,
}

/// WAL that is missing between two archived pieces, or that a node has let go of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hole {
    /// Whose.
    pub thread: ThreadId,
    /// The thread's log branch.
    pub timeline: TimelineId,
    /// The first byte that is missing.
    pub from: Lsn,
    /// Where the archive goes on.
    pub until: Lsn,
    /// What its node has said of it, before it let go: it is no damage. None of WAL that nobody has declared.
    pub declared: Option<Declared>,
}

/// That a hole was declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Declared {
    /// When, by the node's clock.
    pub at: WallMillis,
    /// The kind of reason.
    pub reason: HoleReason,
    /// What was seen.
    pub message: alloc::string::String,
}

/// How far a thread's archive is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PitrThreadRow {
    /// Which thread.
    pub thread: ThreadId,
    /// The end of its archive.
    pub archived_until: Option<Lsn>,
    /// The highest SCN in it, on engines that stamp.
    pub archived_scn: Option<Scn>,
    /// The end of its WAL, as its node says.
    pub wal_end: Option<Lsn>,
    /// How much is not archived yet.
    pub lag_bytes: Option<ByteCount>,
    /// How far the node's SCN is ahead of the archive's, in milliseconds; zero where nothing is behind.
    pub lag_ms: Option<u64>,
    /// How long ago the oldest WAL was written, at most, that is not archived, in milliseconds, as its node says.
    pub exposed_ms: Option<u64>,
    /// Why the archive does not move on.
    pub trouble: Option<alloc::string::String>,
}

/// Every incarnation that was opened, ascending.
pub fn pitr_status(scene: &Scene) -> Vec<PitrRow> {
    let points = restore_points(scene);
    let opened = scene.incarnations.iter().filter_map(|object| match &object.state {
        IncarnationState::Opened(opened) => Some((object.incarnation, opened)),
        IncarnationState::Aborted(_) => None,
    });
    opened.map(|(incarnation, opened)| pitr_row(scene, incarnation, opened, &points)).collect()
}

fn pitr_row(scene: &Scene, incarnation: Incarnation, opened: &Opened, points: &[PointRow]) -> PitrRow {
    let archive = scene.archive.iter().filter(|((of, _), _)| *of == incarnation);
    let threads = archive.clone().map(|((_, thread), runs)| thread_row(scene, incarnation, *thread, runs));
    let holes = archive.flat_map(|((_, thread), runs)| holes_of(scene, incarnation, *thread, runs));
    PitrRow {
        incarnation,
        current: incarnation == scene.current,
        windows: windows(scene, incarnation, opened, points),
        holes: holes.collect(),
        threads: threads.collect(),
    }
}

/// What a thread has declared, and gaps that nobody has.
fn holes_of(scene: &Scene, incarnation: Incarnation, thread: ThreadId, runs: &[Run]) -> Vec<Hole> {
    let declared = scene.holes_of(incarnation, thread);
    let mut holes: Vec<Hole> = declared
        .iter()
        .map(|hole| Hole {
            thread,
            timeline: hole.timeline,
            from: hole.from,
            until: hole.until,
            declared: Some(Declared { at: hole.declared_ms, reason: hole.reason, message: hole.message.clone() }),
        })
        .collect();
    holes.extend(runs.iter().filter_map(|run| {
        let until = resumes_after(runs, run.timeline, run.until)?;
        let gap = Hole { thread, timeline: run.timeline, from: run.until, until, declared: None };
        (!is_declared(declared, run.timeline, run.until, until)).then_some(gap)
    }));
    holes.sort_by_key(|hole| (hole.timeline, hole.from));
    holes
}

/// The runs that hold a backup's cut, one a thread; none if the archive does not hold it.
fn runs_of_cut<'a>(scene: &'a Scene, seal: &Seal) -> Option<Vec<&'a Run>> {
    let run = |(thread, cut): (&ThreadId, &crate::format::catalog::ThreadCut)| {
        run_at(scene.archive.get(&(seal.incarnation, *thread))?, cut.timeline, cut.proof)
    };
    seal.cut.threads.iter().map(run).collect()
}

fn windows(scene: &Scene, incarnation: Incarnation, opened: &Opened, points: &[PointRow]) -> Vec<Window> {
    let mut found: Vec<(Window, Vec<&Run>)> = Vec::from_iter(inherited(scene, incarnation, opened, points));
    let mut own: Vec<(OperationId, &Seal)> =
        scene.sealed().filter(|(_, seal)| seal.incarnation == incarnation).collect();
    own.sort_by_cached_key(|(id, seal)| Standing::of_cut(incarnation, &seal.cut, *id));
    let rank: BTreeMap<OperationId, usize> = own.iter().enumerate().map(|(rank, (id, _))| (*id, rank)).collect();
    for (id, seal) in own {
        let Some(runs) = runs_of_cut(scene, seal) else { continue };
        if let Some((window, same)) = found.last_mut()
            && *same == runs
        {
            window.backups = window.backups.saturating_add(1);
            continue;
        }
        let (until_scn, until_at) = end_of(&runs, seal.cut.scn, opened);
        let window = Window {
            backup_id: id,
            backups: 1,
            points: 0,
            from_scn: seal.cut.scn,
            from_at: seal.ended_ms,
            until_scn,
            until_at: until_at.unwrap_or(seal.ended_ms),
            newest_point: None,
            newest_name: None,
        };
        found.push((window, runs));
    }
    let mut windows: Vec<Window> = found.into_iter().map(|(window, _)| window).collect();
    let targets = points.iter().filter(|point| point.state == PointState::Reachable);
    let mut targets: Vec<&PointRow> = targets.filter(|point| point.incarnation == incarnation).collect();
    targets.sort_by_cached_key(|point| {
        let places = point.threads.iter().map(|place| (place.thread, place.timeline, place.until));
        Standing::new(incarnation, places, point.scn, point.point_id)
    });
    for point in targets {
        // The window of the backup that it would start from: the last one that does not begin later. A backup of an
        // ancestor has no rank here, and comes before all that have.
        let not_later = |id: OperationId, window: &Window| rank.get(&window.backup_id) <= rank.get(&id);
        let window = windows.iter_mut().rev().find(|window| point.backup_id.is_some_and(|id| not_later(id, window)));
        let Some(window) = window else { continue };
        window.points = window.points.saturating_add(1);
        window.newest_point = Some(point.point_id);
        window.newest_name.clone_from(&point.name);
        if window.until_scn.is_none() {
            window.until_at = window.until_at.max(point.created_at);
        }
    }
    windows
}

/// The window of an incarnation that goes on from an ancestor's backup: from the cut that it branched off at.
fn inherited<'a>(
    scene: &'a Scene,
    incarnation: Incarnation,
    opened: &Opened,
    points: &[PointRow],
) -> Option<(Window, Vec<&'a Run>)> {
    let branch = opened.branch.as_ref()?;
    let own = |id: OperationId| scene.sealed().any(|(own, seal)| own == id && seal.incarnation == incarnation);
    let backup_id = points
        .iter()
        .filter(|point| point.incarnation == incarnation && point.state == PointState::Reachable)
        .find_map(|point| point.backup_id.filter(|id| !own(*id)))?;
    let first = |thread: &ThreadId| scene.archive.get(&(incarnation, *thread)).and_then(|runs| runs.first());
    let runs: Vec<&Run> = branch.cut.threads.keys().map(first).collect::<Option<_>>()?;
    let (until_scn, until_at) = end_of(&runs, branch.cut.scn, opened);
    let window = Window {
        backup_id,
        backups: 0,
        points: 0,
        from_scn: branch.cut.scn,
        from_at: opened.opened_ms,
        until_scn,
        until_at: until_at.unwrap_or(opened.opened_ms),
        newest_point: None,
        newest_name: None,
    };
    Some((window, runs))
}

/// Where the slowest of some runs ends, by SCN and by the clock.
fn end_of(runs: &[&Run], least: Scn, opened: &Opened) -> (Option<Scn>, Option<WallMillis>) {
    let scn = runs.iter().map(|run| run.scn_last).min().flatten().map(|scn| scn.max(least));
    (scn, scn.map(|scn| WallMillis::new(scn.millis().saturating_sub(opened.scn_offset_ms))))
}

fn thread_row(scene: &Scene, incarnation: Incarnation, thread: ThreadId, runs: &[Run]) -> PitrThreadRow {
    let last = runs.last();
    let node = scene.nodes.get(&NodeId::new(thread.get())).and_then(|node| node.as_ref().ok());
    let node = node.filter(|node| node.incarnation == Some(incarnation));
    let end = node.map(|node| node.end.lsn);
    let lag = last.zip(end).and_then(|(last, end)| end.bytes_since(last.until));
    let lag_ms = node.zip(last.and_then(|last| last.scn_last)).map(|(node, archived)| match lag {
        Some(0) => 0,
        Some(_) | None => node.scn.millis().saturating_sub(archived.millis()),
    });
    PitrThreadRow {
        thread,
        archived_until: last.map(|last| last.until),
        archived_scn: last.and_then(|last| last.scn_last),
        wal_end: end,
        lag_bytes: lag.map(ByteCount::new),
        lag_ms,
        exposed_ms: node.and_then(|node| node.exposed_ms),
        trouble: node.and_then(Description::trouble),
    }
}
