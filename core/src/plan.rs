//! Which backup, which cut, which WAL: what a restore needs, and what of it is missing. Never rounded in silence.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::format::catalog::{Cut, Guarantee, Point, Seal};
use crate::format::manifest::{Manifest, ThreadPlan};
use crate::format::wal::WalHeader;
use crate::identity::{Incarnation, OperationId, PointName, ThreadId};
use crate::position::Lsn;
use crate::refusal::{Code, Refusal};
use crate::scn::Scn;

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// The newest cut that the archive reaches: a restore point or the cut of a backup.
    Latest,
    /// The cut of this backup itself.
    Backup(OperationId),
    /// The restore point of this name.
    Name(PointName),
}

impl core::fmt::Display for Target {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Latest => out.write_str("latest"),
            Self::Backup(id) => write!(out, "backup {id}"),
            Self::Name(name) => write!(out, "name {name}"),
        }
    }
}

/// What the catalog holds of one incarnation, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Sealed backups.
    pub backups: Vec<(OperationId, Seal)>,
    /// Published restore points, the stop cuts of backups among them.
    pub points: Vec<(OperationId, Point)>,
}

/// A cut that can be restored to, and the backup to start from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The backup whose files are staged.
    pub backup: OperationId,
    /// Where recovery ends.
    pub cut: Cut,
    /// What the cut says about the nodes together.
    pub guarantee: Guarantee,
    /// The incarnation that both lie in.
    pub incarnation: Incarnation,
    /// What the target resolved to, in words.
    pub resolved: String,
}

/// The archive of one thread, as far as it is contiguous.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// The pieces in order: key and header.
    pub pieces: Vec<(String, WalHeader)>,
    /// Where a later piece starts that does not follow: what lies before it is missing.
    pub resumes: Option<Lsn>,
}

/// The choices for a target, best first: for `latest` every cut from the newest on, since only the archive can tell
/// which is the newest that it reaches; else the one that was asked for.
///
/// # Errors
/// `SA301` if there is no such backup or point, `SA302` if no backup lies before it.
pub fn choices(catalog: &Catalog, target: &Target) -> Result<Vec<Choice>, Refusal> {
    let no_such = |what: String| Err(Refusal::new(Code::NoSuchTarget, what));
    let cuts: Vec<Choice> = match target {
        Target::Backup(id) => match catalog.backups.iter().find(|(known, _)| known == id) {
            Some((id, seal)) => Vec::from([choice_of_backup(*id, seal)]),
            None => return no_such(format!("{id} is no sealed backup of this incarnation")),
        },
        Target::Name(name) => match catalog.points.iter().find(|(_, point)| point.name.as_ref() == Some(name)) {
            Some((id, point)) => {
                let resolved = format!("restore point `{name}` ({id})");
                Vec::from([choice_of_point(catalog, point, resolved)?])
            }
            None => return no_such(format!("there is no restore point `{name}` in this incarnation")),
        },
        Target::Latest => {
            let mut cuts: Vec<(OperationId, Choice)> = catalog
                .points
                .iter()
                .filter_map(|(id, point)| {
                    let name = point
                        .name
                        .as_ref()
                        .map_or_else(|| "stop cut".to_string(), |name| format!("restore point `{name}`"));
                    Some((*id, choice_of_point(catalog, point, format!("{name} ({id})")).ok()?))
                })
                .chain(
                    catalog
                        .backups
                        .iter()
                        .filter(|(_, seal)| seal.point.is_none())
                        .map(|(id, seal)| (*id, choice_of_backup(*id, seal))),
                )
                .collect();
            // By SCN where there is one; engines without have only the time at which the operation began.
            cuts.sort_by_key(|(id, choice)| core::cmp::Reverse((choice.cut.scn, id.started_ms())));
            if cuts.is_empty() {
                return Err(Refusal::new(Code::NoBackup, "there is no sealed backup in this incarnation"));
            }
            cuts.into_iter().map(|(_, choice)| choice).collect()
        }
    };
    Ok(cuts)
}

fn choice_of_backup(id: OperationId, seal: &Seal) -> Choice {
    Choice {
        backup: id,
        cut: seal.cut.clone(),
        guarantee: seal.guarantee,
        incarnation: seal.incarnation,
        resolved: format!("the cut of {id}"),
    }
}

/// The newest backup whose own cut is this point or lies before it.
fn choice_of_point(catalog: &Catalog, point: &Point, resolved: String) -> Result<Choice, Refusal> {
    let fits =
        |seal: &Seal| seal.incarnation == point.incarnation && (seal.cut == point.cut || point.cut.is_after(&seal.cut));
    match catalog.backups.iter().rev().find(|(_, seal)| fits(seal)) {
        Some((backup, _)) => Ok(Choice {
            backup: *backup,
            cut: point.cut.clone(),
            guarantee: point.guarantee,
            incarnation: point.incarnation,
            resolved,
        }),
        None => Err(Refusal::new(Code::NoBackup, format!("no sealed backup lies before {resolved}"))),
    }
}

impl Reach {
    /// The longest contiguous run of pieces from the one that holds `start`. `pieces` are sorted by their first byte.
    pub fn from(start: Lsn, pieces: Vec<(String, WalHeader)>) -> Self {
        let mut run: Vec<(String, WalHeader)> = Vec::new();
        let mut resumes = None;
        for (key, header) in pieces {
            let next = run.last().map(|(_, last)| last.until);
            match next {
                None if header.until <= start => {}
                None if header.from <= start => run.push((key, header)),
                Some(next) if header.from == next => run.push((key, header)),
                Some(next) if header.until <= next => {}
                None | Some(_) => {
                    resumes = Some(header.from);
                    break;
                }
            }
        }
        Self { pieces: run, resumes }
    }

    /// The end of the run.
    pub fn until(&self) -> Option<Lsn> {
        self.pieces.last().map(|(_, header)| header.until)
    }
}

/// The WAL that takes `manifest` to `choice`, or what is missing of it.
///
/// # Errors
/// `SA303` if some thread's archive does not reach the cut's proof yet, `SA501` if it never will; `SA002` if manifest and cut do not fit.
pub fn threads(
    manifest: &Manifest,
    choice: &Choice,
    archive: &BTreeMap<ThreadId, Reach>,
) -> Result<BTreeMap<ThreadId, ThreadPlan>, Refusal> {
    let mut plans = BTreeMap::new();
    for (thread, span) in &manifest.threads {
        let Some(cut) = choice.cut.threads.get(thread) else {
            return Err(Refusal::new(
                Code::Damaged,
                format!("the cut {} does not cover thread {thread}", choice.cut.record),
            ));
        };
        let reach = archive.get(thread).cloned().unwrap_or_default();
        let reached = reach.until().unwrap_or(span.start);
        if reached < cut.proof || cut.timeline != span.timeline {
            let message = format!(
                "{}: the archive of thread {thread} is whole from {} to {reached}, the cut needs it to {}",
                choice.resolved, span.start, cut.proof
            );
            return Err(match reach.resumes {
                Some(later) => Refusal::new(Code::WalGap, format!("{message}, and it goes on at {later} only")),
                None => Refusal::new(Code::NotReachable, message),
            });
        }
        let pieces =
            reach.pieces.into_iter().filter(|(_, header)| header.from < cut.proof).map(|(key, _)| key).collect();
        plans.insert(*thread, ThreadPlan { pieces, start: span.start });
    }
    Ok(plans)
}

/// The SCN that a new incarnation's clock starts above: nothing that any ancestor's points, backups or archived records
/// used lies beyond it, not even beyond the cut.
pub fn high_water(catalog: &Catalog, archived: impl IntoIterator<Item = Scn>) -> Scn {
    let points = catalog.points.iter().map(|(_, point)| point.cut.scn);
    let backups = catalog.backups.iter().map(|(_, seal)| seal.cut.scn);
    // The record that marks a cut is stamped above it, and may not be archived yet.
    points.chain(backups).map(Scn::next).chain(archived).max().unwrap_or(Scn::ZERO)
}
