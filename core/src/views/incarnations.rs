//! `incarnations`: every branch of the cluster's history, and where it began.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::Serialize;

use super::Scene;
use crate::format::catalog::{IncarnationObject, IncarnationState};
use crate::identity::{Incarnation, Membership, OperationId, ThreadId};
use crate::position::Lsn;
use crate::scn::Scn;
use crate::time::WallMillis;

/// An incarnation, or the number of one that was never opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IncarnationRow {
    /// Its number.
    pub incarnation: Incarnation,
    /// What became of it.
    pub state: LineState,
    /// The one that it branched off.
    pub parent: Option<Incarnation>,
    /// The SCN of that cut, inclusive.
    pub branch_scn: Option<Scn>,
    /// That cut in each thread, exclusive.
    pub branch: BTreeMap<ThreadId, Lsn>,
    /// When it was opened.
    pub opened_at: Option<WallMillis>,
    /// The restore that opened it, or meant to.
    pub restore_id: Option<OperationId>,
    /// The members that it began with.
    pub membership: Option<Membership>,
    /// Its clock started above this.
    pub scn_floor: Option<Scn>,
    /// Backups of it that are kept.
    pub backups: u64,
    /// Restore points that were published in it.
    pub points: u64,
    /// Why it was never opened.
    pub error: Option<String>,
}

/// What became of an incarnation's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LineState {
    /// The cluster lives in it.
    Current,
    /// The cluster lived in it.
    Past,
    /// It was never opened, and never will be.
    Aborted,
}

impl LineState {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Past => "past",
            Self::Aborted => "aborted",
        }
    }
}

/// Every incarnation's number that was ever used, ascending.
pub fn incarnations(scene: &Scene) -> Vec<IncarnationRow> {
    scene.incarnations.iter().map(|object| incarnation_row(scene, object)).collect()
}

fn incarnation_row(scene: &Scene, object: &IncarnationObject) -> IncarnationRow {
    let incarnation = object.incarnation;
    let count = |found: usize| u64::try_from(found).unwrap_or(u64::MAX);
    let mut row = IncarnationRow {
        incarnation,
        state: LineState::Aborted,
        parent: None,
        branch_scn: None,
        branch: BTreeMap::new(),
        opened_at: None,
        restore_id: object.restore,
        membership: None,
        scn_floor: None,
        backups: count(scene.sealed().filter(|(_, seal)| seal.incarnation == incarnation).count()),
        points: count(scene.published().filter(|(_, point)| point.incarnation == incarnation).count()),
        error: None,
    };
    match &object.state {
        IncarnationState::Opened(opened) => {
            row.state = if incarnation == scene.current { LineState::Current } else { LineState::Past };
            row.opened_at = Some(opened.opened_ms);
            row.membership = Some(opened.membership);
            row.scn_floor = Some(opened.scn_floor);
            if let Some(branch) = &opened.branch {
                row.parent = Some(branch.parent);
                row.branch_scn = Some(branch.cut.scn);
                row.branch = branch.cut.threads.iter().map(|(thread, cut)| (*thread, cut.until)).collect();
            }
        }
        IncarnationState::Aborted(abort) => row.error = Some(format!("{} ({})", abort.message, abort.code)),
    }
    row
}
