//! Which backup, which cut, which WAL: what a restore needs, and what of it is missing. Never rounded in silence.

mod choose;
mod replay;
mod standing;
mod target;

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

pub use choose::choices;
pub(crate) use choose::start_of;
pub use replay::{Archive, Reach, Replay, is_stamped, replay};
pub use standing::Standing;
pub use target::{Aim, Target};

use crate::format::catalog::{Cut, Ending, Guarantee, Outcome, Point, Seal};
use crate::identity::{Incarnation, OperationId};
use crate::planted::{self, Bug};
use crate::scn::Scn;

/// What the catalog holds, oldest first by [`Standing`], whatever clocks said: of one incarnation or of all.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Sealed backups.
    pub backups: Vec<(OperationId, Seal)>,
    /// Published restore points, the stop cuts of backups among them.
    pub points: Vec<(OperationId, Point)>,
}

impl Catalog {
    /// What is usable of what operations came to: sealed backups that are not condemned, and published points.
    pub fn of(outcomes: impl IntoIterator<Item = Outcome>, condemned: &BTreeSet<OperationId>) -> Self {
        let mut catalog = Self::default();
        for outcome in outcomes {
            match outcome.result {
                Ending::Sealed(seal) if !condemned.contains(&outcome.operation) => {
                    catalog.backups.push((outcome.operation, seal));
                }
                Ending::Published(point) => catalog.points.push((outcome.operation, point)),
                Ending::Sealed(_) | Ending::Cloned(_) | Ending::Aborted(_) => {}
            }
        }
        if !planted::is(Bug::NewestByTheClock) {
            catalog.backups.sort_by_cached_key(Standing::of_backup);
            catalog.points.sort_by_cached_key(Standing::of_point);
        }
        catalog
    }

    /// The part of it that was made in an incarnation.
    #[must_use]
    pub fn within(mut self, incarnation: Incarnation) -> Self {
        self.backups.retain(|(_, seal)| seal.incarnation == incarnation);
        self.points.retain(|(_, point)| point.incarnation == incarnation);
        self
    }
}

/// A cut that can be restored to, and the backup to start from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The backup whose files are staged.
    pub backup: OperationId,
    /// Where recovery ends. Without threads if it is sought.
    pub cut: Cut,
    /// What the cut says about the nodes together.
    pub guarantee: Guarantee,
    /// The incarnation that the cut lies in; the backup may lie in an ancestor.
    pub incarnation: Incarnation,
    /// What the target resolved to, in words.
    pub resolved: String,
    /// Whether only the SCN is known: recovery finds the cut's place in each thread.
    pub sought: bool,
}

/// The SCN that a new incarnation's clock starts above: nothing that any incarnation's points, backups or archived records
/// used lies beyond it, not even beyond the cut. `used` are floors, and the last SCNs of archives.
pub fn high_water(catalog: &Catalog, used: impl IntoIterator<Item = Scn>) -> Scn {
    let points = catalog.points.iter().map(|(_, point)| point.cut.scn);
    let backups = catalog.backups.iter().map(|(_, seal)| seal.cut.scn);
    // The record that marks a cut is stamped above it, and may not be archived yet.
    points.chain(backups).map(Scn::next).chain(used).max().unwrap_or(Scn::ZERO)
}
