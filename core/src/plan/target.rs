//! What an operator asks for.

use core::fmt;

use crate::identity::{Incarnation, OperationId, PointName};
use crate::scn::Scn;
use crate::time::WallMillis;

/// Where a restore is to end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// The newest cut that the archive reaches: a restore point or the cut of a backup.
    Latest,
    /// The cut of this backup itself.
    Backup(OperationId),
    /// The restore point of this name.
    Name(PointName),
    /// Everything stamped at or below this SCN.
    Scn(Scn),
    /// Everything stamped below this SCN.
    Below(Scn),
    /// The last state whose stamps' wall time, less what the incarnation's clock adds, is at or before this.
    Time(WallMillis),
}

/// A target, and how it is to be taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Aim {
    /// Where to.
    pub target: Target,
    /// The incarnation that it lies in or before; `None` for the one in force.
    pub incarnation: Option<Incarnation>,
    /// Whether an engine that reaches restore points only may take the newest one at or before the target.
    pub nearest_before: bool,
}

impl From<&Target> for Aim {
    fn from(target: &Target) -> Self {
        Self { target: target.clone(), incarnation: None, nearest_before: false }
    }
}

impl From<Target> for Aim {
    fn from(target: Target) -> Self {
        Self { target, incarnation: None, nearest_before: false }
    }
}

impl From<&Self> for Aim {
    fn from(aim: &Self) -> Self {
        aim.clone()
    }
}

impl Aim {
    /// The same target, in `incarnation` or before.
    #[must_use]
    pub fn of_incarnation(self, incarnation: Incarnation) -> Self {
        Self { incarnation: Some(incarnation), ..self }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => out.write_str("latest"),
            Self::Backup(id) => write!(out, "backup {id}"),
            Self::Name(name) => write!(out, "name {name}"),
            Self::Scn(scn) => write!(out, "scn {scn}"),
            Self::Below(scn) => write!(out, "scn {scn} exclusive"),
            Self::Time(time) => write!(out, "time {time}"),
        }
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.target.fmt(out)?;
        if let Some(incarnation) = self.incarnation {
            write!(out, " of incarnation {incarnation}")?;
        }
        if self.nearest_before { out.write_str(", or the nearest point before") } else { Ok(()) }
    }
}
