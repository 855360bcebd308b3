//! The archive of a thread as runs without a gap: what may be recovered through lies in one run.

use alloc::vec::Vec;

use crate::format::wal::WalHeader;
use crate::identity::TimelineId;
use crate::position::Lsn;
use crate::scn::Scn;

/// Archived WAL of one thread and timeline, without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The thread's log branch.
    pub timeline: TimelineId,
    /// Its first byte.
    pub from: Lsn,
    /// Its end, exclusive.
    pub until: Lsn,
    /// The highest SCN in it, on engines that stamp.
    pub scn_last: Option<Scn>,
}

/// The runs of one thread's pieces, sorted.
pub fn runs_of(mut pieces: Vec<WalHeader>) -> Vec<Run> {
    pieces.sort_by_key(|piece| (piece.timeline, piece.from));
    let mut runs: Vec<Run> = Vec::new();
    for piece in pieces {
        match runs.last_mut() {
            Some(run) if run.timeline == piece.timeline && piece.from <= run.until => {
                run.until = run.until.max(piece.until);
                run.scn_last = run.scn_last.max(piece.scn_last);
            }
            _ => runs.push(Run {
                timeline: piece.timeline,
                from: piece.from,
                until: piece.until,
                scn_last: piece.scn_last,
            }),
        }
    }
    runs
}

/// The run that holds a place, or ends there.
pub fn run_at(runs: &[Run], timeline: TimelineId, place: Lsn) -> Option<&Run> {
    runs.iter().find(|run| run.timeline == timeline && run.from <= place && place <= run.until)
}

/// Where WAL goes on behind a place that a run ends at, if it does: what lies between is missing.
pub fn resumes_after(runs: &[Run], timeline: TimelineId, place: Lsn) -> Option<Lsn> {
    runs.iter().filter(|later| later.timeline == timeline && later.from > place).map(|later| later.from).min()
}
