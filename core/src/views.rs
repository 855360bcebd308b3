//! Views as plain data: what operators see of backups, points, the restorable window and incarnations, from one place, for
//! the command line and whatever else shows it. `docs/views.md` explains each column.
//!
//! Reading order: [`Scene`] (what is looked at), [`archive`] (WAL without a gap), then a module a view.

pub mod archive;

pub mod backups;

pub mod points;

pub mod pitr;

pub mod incarnations;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use crate::format::catalog::{Ending, IncarnationObject, Outcome, Point, Registered, Seal};
use crate::format::hole::Hole;
use crate::hole::{Holes, unanswered};
use crate::identity::{Epoch, Incarnation, NodeId, OperationId, ThreadId};
use crate::lineage::Lineage;
use crate::request::{Description, PinSeen};
use crate::time::WallMillis;
use archive::Run;

/// What the repository holds and the nodes say, at one moment. Nodes that are silent leave their columns empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scene {
    /// The incarnation in force.
    pub current: Incarnation,
    /// The present, by the clock of whoever looks.
    pub now: WallMillis,
    /// Every incarnation's object, ascending.
    pub incarnations: Vec<IncarnationObject>,
    /// The tree that they make.
    pub lineage: Lineage,
    /// Every backup that was ever begun, in order of time, with the term that it is in; zero for one that has ended.
    pub begun: Vec<(Registered, Epoch)>,
    /// What became of backups, in order of time.
    pub backups: Vec<Outcome>,
    /// What became of restore points, in order of time.
    pub points: Vec<Outcome>,
    /// Backups that have expired.
    pub condemned: BTreeSet<OperationId>,
    /// The archive, as runs without a gap.
    pub archive: BTreeMap<(Incarnation, ThreadId), Vec<Run>>,
    /// WAL that was let go of before it was archived, as the repository shows it.
    pub holes: Holes,
    /// What each node says of itself, or why it says nothing.
    pub nodes: BTreeMap<NodeId, Result<Description, String>>,
    /// The pins of each node that lists them.
    pub pins: BTreeMap<NodeId, Vec<PinSeen>>,
}

impl Scene {
    /// Backups that can be restored, oldest first.
    pub(crate) fn sealed(&self) -> impl DoubleEndedIterator<Item = (OperationId, &Seal)> {
        self.backups.iter().filter_map(|outcome| match &outcome.result {
            Ending::Sealed(seal) if !self.condemned.contains(&outcome.operation) => Some((outcome.operation, seal)),
            Ending::Sealed(_) | Ending::Published(_) | Ending::Cloned(_) | Ending::Aborted(_) => None,
        })
    }

    /// Published points, oldest first.
    pub(crate) fn published(&self) -> impl Iterator<Item = (OperationId, &Point)> {
        self.points.iter().filter_map(|outcome| match &outcome.result {
            Ending::Published(point) => Some((outcome.operation, point)),
            Ending::Sealed(_) | Ending::Cloned(_) | Ending::Aborted(_) => None,
        })
    }

    /// The declared holes of the incarnation in force behind which no backup was taken yet: take one.
    pub fn holes_without_backup(&self) -> Vec<&Hole> {
        let seals: Vec<&Seal> = self.sealed().map(|(_, seal)| seal).collect();
        let mut holes = unanswered(&self.holes, &seals);
        holes.retain(|hole| hole.incarnation == self.current);
        holes
    }

    /// The declared holes of a thread in an incarnation.
    pub(crate) fn holes_of(&self, incarnation: Incarnation, thread: ThreadId) -> &[Hole] {
        self.holes.get(&(incarnation, thread)).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether the records of whoever wrote the archive carry SCNs.
    pub(crate) fn stamped(&self) -> bool {
        self.archive.values().flatten().any(|run| run.scn_last.is_some())
    }
}
