//! `backup` (`pg_stat_cluster_backup`): what is under way. `history` (`pg_cluster_backup_history`): all that ever was.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Serialize;

use super::Scene;
use crate::format::catalog::{Ending, Guarantee, Method, Outcome, Registered, Seal};
use crate::identity::{ByteCount, Epoch, Incarnation, Membership, NodeId, OperationId, PointName};
use crate::position::Lsn;
use crate::scn::Scn;
use crate::time::WallMillis;

/// A backup without an outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackupRow {
    /// Which.
    pub backup_id: OperationId,
    /// The name it was given.
    pub label: Option<PointName>,
    /// How far it is, as the nodes show it.
    pub phase: BackupPhase,
    /// When it was begun, by its coordinator's clock.
    pub started_at: WallMillis,
    /// How long ago that is, by the clock of whoever looks.
    pub elapsed_ms: u64,
    /// The incarnation that it is taken in.
    pub incarnation: Incarnation,
    /// The members that it covers.
    pub membership: Membership,
    /// Its coordinator's term.
    pub epoch: Epoch,
    /// Bytes that are copied, of all nodes that are copying.
    pub bytes_done: ByteCount,
    /// Bytes that there are to be copied.
    pub bytes_total: ByteCount,
    /// What each node does for it.
    pub nodes: Vec<BackupNodeRow>,
}

/// How far a backup is, as its nodes show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupPhase {
    /// No node keeps WAL for it: it has just begun, or its coordinator is gone and its pins have expired.
    Unpinned,
    /// Some node keeps WAL for it.
    Pinned,
    /// Some node is copying.
    Copying,
}

/// What a node does for a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BackupNodeRow {
    /// Which node.
    pub node: NodeId,
    /// WAL is kept from here.
    pub pinned_from: Option<Lsn>,
    /// How long the pin lasts if its coordinator does not renew it.
    pub lease_left_ms: Option<u64>,
}

/// A backup that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HistoryRow {
    /// Which.
    pub backup_id: OperationId,
    /// The name it was given.
    pub label: Option<PointName>,
    /// What became of it.
    pub state: BackupState,
    /// When it was begun, by its coordinator's clock.
    pub started_at: WallMillis,
    /// When it was sealed.
    pub ended_at: Option<WallMillis>,
    /// How long that took.
    pub duration_ms: Option<u64>,
    /// The SCN of its cut, inclusive; zero on engines without.
    pub scn: Option<Scn>,
    /// The incarnation that it was taken in.
    pub incarnation: Incarnation,
    /// The members that it covers.
    pub membership: Membership,
    /// How its cut was taken.
    pub method: Option<Method>,
    /// What its cut says about the nodes together.
    pub guarantee: Option<Guarantee>,
    /// The restore point that was published for its cut.
    pub point_id: Option<OperationId>,
    /// The backup that it is based on; of an incremental one.
    pub base_id: Option<OperationId>,
    /// Bytes that it has stored for files, once it is sealed.
    pub stored_bytes: Option<ByteCount>,
    /// Why all files of some node were copied although less was asked for.
    pub why_full: Option<String>,
    /// Why it came to nothing.
    pub error: Option<String>,
}

/// What became of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupState {
    /// It has no outcome yet.
    Running,
    /// It is there.
    Sealed,
    /// It came to nothing.
    Aborted,
    /// It was there, and has been removed.
    Expired,
}

/// Backups without an outcome, in order of time.
pub fn backup(scene: &Scene) -> Vec<BackupRow> {
    let running = scene.begun.iter().filter(|(begun, _)| outcome_of(scene, begun.operation).is_none());
    running.map(|(begun, epoch)| backup_row(scene, begun, *epoch)).collect()
}

fn backup_row(scene: &Scene, begun: &Registered, epoch: Epoch) -> BackupRow {
    let name = begun.operation.to_string();
    let pin = |node: &NodeId| scene.pins.get(node).and_then(|pins| pins.iter().find(|pin| pin.name == name));
    let nodes: Vec<BackupNodeRow> = scene
        .nodes
        .keys()
        .map(|node| BackupNodeRow {
            node: *node,
            pinned_from: pin(node).map(|pin| pin.from.lsn),
            lease_left_ms: pin(node).and_then(|pin| pin.lease_left_ms),
        })
        .collect();
    let busy = scene.nodes.values().flatten().flat_map(|node| &node.progress);
    let copying: Vec<_> = busy.filter(|progress| progress.operation == begun.operation).collect();
    let phase = match (copying.is_empty(), nodes.iter().any(|node| node.pinned_from.is_some())) {
        (false, _) => BackupPhase::Copying,
        (true, true) => BackupPhase::Pinned,
        (true, false) => BackupPhase::Unpinned,
    };
    let started = begun.operation.started_ms();
    BackupRow {
        backup_id: begun.operation,
        label: begun.label.clone(),
        phase,
        started_at: WallMillis::new(started),
        elapsed_ms: scene.now.get().saturating_sub(started),
        incarnation: begun.incarnation,
        membership: begun.membership,
        epoch,
        bytes_done: ByteCount::new(copying.iter().map(|progress| progress.done.get()).sum()),
        bytes_total: ByteCount::new(copying.iter().map(|progress| progress.total.get()).sum()),
        nodes,
    }
}

/// Every backup that was ever begun, in order of time.
pub fn history(scene: &Scene) -> Vec<HistoryRow> {
    scene.begun.iter().map(|(begun, _)| history_row(scene, begun)).collect()
}

fn history_row(scene: &Scene, begun: &Registered) -> HistoryRow {
    let started = begun.operation.started_ms();
    let mut row = HistoryRow {
        backup_id: begun.operation,
        label: begun.label.clone(),
        state: BackupState::Running,
        started_at: WallMillis::new(started),
        ended_at: None,
        duration_ms: None,
        scn: None,
        incarnation: begun.incarnation,
        membership: begun.membership,
        method: None,
        guarantee: None,
        point_id: None,
        base_id: None,
        stored_bytes: None,
        why_full: None,
        error: None,
    };
    match outcome_of(scene, begun.operation).map(|outcome| &outcome.result) {
        Some(Ending::Sealed(seal)) => {
            let expired = scene.condemned.contains(&begun.operation);
            row.state = if expired { BackupState::Expired } else { BackupState::Sealed };
            row.ended_at = Some(seal.ended_ms);
            row.duration_ms = Some(seal.ended_ms.get().saturating_sub(started));
            row.scn = Some(seal.cut.scn);
            row.method = Some(method_of(scene, seal));
            row.guarantee = Some(seal.guarantee);
            row.point_id = seal.point;
            row.base_id = seal.base;
            row.stored_bytes = Some(seal.stored);
            row.why_full.clone_from(&seal.why_full);
        }
        Some(Ending::Aborted(abort)) => {
            row.state = BackupState::Aborted;
            row.error = Some(format!("{} ({})", abort.message, abort.code));
        }
        Some(Ending::Published(_) | Ending::Cloned(_)) | None => {}
    }
    row
}

/// How a backup's cut was taken: as the point was that it ends with; each node by itself if it has none.
fn method_of(scene: &Scene, seal: &Seal) -> Method {
    let point = scene.published().find(|(id, _)| Some(*id) == seal.point);
    point.map_or(Method::Alone, |(_, point)| point.method)
}

fn outcome_of(scene: &Scene, backup: OperationId) -> Option<&Outcome> {
    // In order of time, as ids sort.
    let found = scene.backups.binary_search_by_key(&backup, |outcome| outcome.operation).ok()?;
    scene.backups.get(found)
}
