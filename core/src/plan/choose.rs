//! From a target to the cuts that answer it, each with the backup to start from.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{Aim, Catalog, Choice, Standing, Target};
use crate::format::catalog::{Cut, Point, Seal};
use crate::identity::{Incarnation, OperationId, PointName};
use crate::lineage::{Lineage, Way};
use crate::planted::{self, Bug};
use crate::refusal::{Code, Refusal};
use crate::scn::Scn;
use crate::time::WallMillis;

/// The choices for an aim, best first: for `latest`, and for the nearest point before something, every cut from the
/// newest on, since only the archive can tell which is the newest that it reaches; else the one that was asked for.
/// `way` leads to the incarnation that was chosen; `stamped` says whether the engine's records carry SCNs; `catalog` holds
/// all incarnations.
///
/// # Errors
/// `SA301` if there is no such backup, point or incarnation; `SA302` if no backup lies before it; `SA304` if it says two
/// things at once; `SA305` if it lies on another branch; `SA306` between two incarnations; `SA307` if the engine reaches
/// restore points only.
pub fn choices(
    catalog: &Catalog,
    lineage: &Lineage,
    way: &Way,
    aim: &Aim,
    stamped: bool,
) -> Result<Vec<Choice>, Refusal> {
    let menu = Menu { catalog, lineage, way, stamped };
    match &aim.target {
        Target::Latest => menu.latest(),
        Target::Backup(id) => menu.backup(*id).map(one),
        Target::Name(name) => menu.name(name).map(one),
        Target::Scn(scn) => menu.scn(*scn, aim),
        Target::Below(scn) => match scn.get().checked_sub(1) {
            Some(below) => menu.scn(Scn::new(below), aim),
            None => Err(Refusal::new(Code::BadTarget, format!("there is nothing below SCN {scn}"))),
        },
        Target::Time(time) => menu.time(*time, aim),
    }
}

fn one(choice: Choice) -> Vec<Choice> {
    Vec::from([choice])
}

/// What there is to choose from.
#[derive(Clone, Copy)]
struct Menu<'a> {
    catalog: &'a Catalog,
    lineage: &'a Lineage,
    way: &'a Way,
    stamped: bool,
}

impl Menu<'_> {
    /// Every cut on the way, newest first.
    fn latest(&self) -> Result<Vec<Choice>, Refusal> {
        let cuts = self.cuts(|_, _| true);
        if cuts.is_empty() {
            let message = format!("there is no sealed backup on the way to incarnation {}", self.way.end());
            return Err(Refusal::new(Code::NoBackup, message));
        }
        Ok(cuts)
    }

    /// The cuts on the way that `fits` lets through, each by its cut and by when it was made as the clock said, newest first.
    fn cuts(&self, fits: impl Fn(&Cut, WallMillis) -> bool) -> Vec<Choice> {
        let points = self.catalog.points.iter().filter(|(_, point)| fits(&point.cut, point.ended_ms));
        let points = points.filter_map(|(id, point)| {
            let name =
                point.name.as_ref().map_or_else(|| "stop cut".to_string(), |name| format!("restore point `{name}`"));
            Some((*id, self.of_point(point, format!("{name} ({id})")).ok()?))
        });
        let alone = |seal: &Seal| {
            seal.point.is_none() && self.way.holds(seal.incarnation, &seal.cut) && fits(&seal.cut, seal.ended_ms)
        };
        let backups = self.catalog.backups.iter().filter(|(_, seal)| alone(seal));
        let mut cuts: Vec<(OperationId, Choice)> =
            points.chain(backups.map(|(id, seal)| (*id, of_backup(*id, seal)))).collect();
        cuts.sort_by_cached_key(|(id, choice)| {
            core::cmp::Reverse(Standing::of_cut(choice.incarnation, &choice.cut, *id))
        });
        cuts.into_iter().map(|(_, choice)| choice).collect()
    }

    fn backup(&self, id: OperationId) -> Result<Choice, Refusal> {
        match self.catalog.backups.iter().find(|(known, _)| *known == id) {
            Some((id, seal)) => {
                self.check_on_way(&id.to_string(), seal.incarnation, &seal.cut)?;
                Ok(of_backup(*id, seal))
            }
            None => Err(Refusal::new(Code::NoSuchTarget, format!("{id} is no sealed backup of this cluster"))),
        }
    }

    fn name(&self, name: &PointName) -> Result<Choice, Refusal> {
        match self.catalog.points.iter().find(|(_, point)| point.name.as_ref() == Some(name)) {
            Some((id, point)) => self.of_point(point, format!("restore point `{name}` ({id})")),
            None => Err(Refusal::new(Code::NoSuchTarget, format!("there is no restore point `{name}`"))),
        }
    }

    fn scn(&self, scn: Scn, aim: &Aim) -> Result<Vec<Choice>, Refusal> {
        if self.stamped {
            return self.sought(self.way.place_of(scn)?, scn).map(one);
        }
        let exact = self.cuts(|cut, _| cut.scn == scn && scn != Scn::ZERO);
        match exact.into_iter().next() {
            Some(choice) => Ok(one(choice)),
            None => self.nearest(aim, |cut, _| cut.scn != Scn::ZERO && cut.scn <= scn),
        }
    }

    fn time(&self, time: WallMillis, aim: &Aim) -> Result<Vec<Choice>, Refusal> {
        if self.stamped {
            let (incarnation, scn) = self.way.place_at(time)?;
            return self.sought(incarnation, scn).map(one);
        }
        self.nearest(aim, |_, ended| ended <= time)
    }

    /// On engines that reach restore points only: the newest one at or before the target, if that may be taken.
    fn nearest(&self, aim: &Aim, fits: impl Fn(&Cut, WallMillis) -> bool) -> Result<Vec<Choice>, Refusal> {
        if !aim.nearest_before {
            let message = format!("this engine's records carry no SCN: {} is no restore point of it", aim.target);
            return Err(Refusal::new(Code::PointsOnly, message));
        }
        let cuts = self.cuts(fits);
        if cuts.is_empty() {
            return Err(Refusal::new(Code::NoBackup, format!("no restore point lies at or before {}", aim.target)));
        }
        Ok(cuts)
    }

    /// A cut of which only the SCN is known.
    fn sought(&self, incarnation: Incarnation, scn: Scn) -> Result<Choice, Refusal> {
        if planted::is(Bug::TargetRounded)
            && let Some(rounded) = self.cuts(|cut, _| cut.scn <= scn).into_iter().next()
        {
            return Ok(rounded);
        }
        let resolved = format!("everything stamped at or below SCN {scn}");
        let reaches = |seal: &Seal| seal.incarnation < incarnation || seal.cut.scn <= scn;
        let newest = newest_backup(self.backups(), self.way, incarnation, self.stamped, reaches);
        let (backup, seal) = newest.ok_or_else(|| no_backup(&resolved))?;
        let cut = Cut { record: String::new(), scn, threads: BTreeMap::new() };
        Ok(Choice { backup, cut, guarantee: seal.guarantee, incarnation, resolved, sought: true })
    }

    fn backups(&self) -> impl Iterator<Item = (OperationId, &Seal)> {
        self.catalog.backups.iter().map(|(id, seal)| (*id, seal))
    }

    fn of_point(&self, point: &Point, resolved: String) -> Result<Choice, Refusal> {
        self.check_on_way(&resolved, point.incarnation, &point.cut)?;
        let (backup, _) =
            start_of(self.backups(), self.way, point, self.stamped).ok_or_else(|| no_backup(&resolved))?;
        Ok(Choice {
            backup,
            cut: point.cut.clone(),
            guarantee: point.guarantee,
            incarnation: point.incarnation,
            resolved,
            sought: false,
        })
    }

    /// What is not on the way is refused, and the message says whose branch holds it.
    fn check_on_way(&self, what: &str, incarnation: Incarnation, cut: &Cut) -> Result<(), Refusal> {
        if self.way.holds(incarnation, cut) {
            return Ok(());
        }
        let end = self.way.end();
        let children = self.lineage.children(incarnation);
        let beyond = self.way.stretch(incarnation).and_then(|stretch| stretch.leaves.as_ref());
        let message = if let Some(leaves) = beyond {
            format!(
                "{what} lies in incarnation {incarnation} beyond SCN {}, where the way to incarnation {end} branched \
                 off: it is on the branch of incarnation {incarnation}",
                leaves.scn
            )
        } else {
            let on = if children.is_empty() { "" } else { " or one of its descendants" };
            format!("{what} is on the branch of incarnation {incarnation}{on}, not on the way to incarnation {end}")
        };
        Err(Refusal::new(Code::OtherBranch, message))
    }
}

/// The backup that a restore to `point` starts from: the newest whose own cut is this point or lies before it.
pub(crate) fn start_of<'a>(
    backups: impl Iterator<Item = (OperationId, &'a Seal)>,
    way: &Way,
    point: &Point,
    stamped: bool,
) -> Option<(OperationId, &'a Seal)> {
    // Without stamps no engine here reads the WAL of two timelines as one: a node that failed over needs a new backup.
    let same_timelines = |seal: &Seal| {
        seal.cut
            .threads
            .iter()
            .all(|(thread, cut)| point.cut.threads.get(thread).is_none_or(|reached| reached.timeline == cut.timeline))
    };
    let before = |seal: &Seal| {
        seal.incarnation < point.incarnation
            || seal.cut == point.cut
            || point.cut.is_after(&seal.cut) && (stamped || same_timelines(seal))
    };
    newest_backup(backups, way, point.incarnation, stamped, before)
}

/// The newest backup on the way, in `incarnation` or an ancestor of it, that `fits`.
fn newest_backup<'a>(
    backups: impl Iterator<Item = (OperationId, &'a Seal)>,
    way: &Way,
    incarnation: Incarnation,
    stamped: bool,
    fits: impl Fn(&Seal) -> bool,
) -> Option<(OperationId, &'a Seal)> {
    let good = |seal: &Seal| {
        // Without stamps no engine here reads the WAL of two incarnations as one.
        let readable = seal.incarnation == incarnation || stamped && seal.incarnation < incarnation;
        readable && way.holds(seal.incarnation, &seal.cut) && fits(seal)
    };
    backups.filter(|(_, seal)| good(seal)).max_by_key(|(id, seal)| Standing::of_cut(seal.incarnation, &seal.cut, *id))
}

fn no_backup(what: &str) -> Refusal {
    Refusal::new(Code::NoBackup, format!("no sealed backup lies before {what}"))
}

fn of_backup(id: OperationId, seal: &Seal) -> Choice {
    Choice {
        backup: id,
        cut: seal.cut.clone(),
        guarantee: seal.guarantee,
        incarnation: seal.incarnation,
        resolved: format!("the cut of {id}"),
        sought: false,
    }
}

#[cfg(test)]
mod tests;
