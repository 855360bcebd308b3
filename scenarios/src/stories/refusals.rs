//! What cannot be done is refused, at once, and changes nothing.

use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::identity::{OperationId, OperationKind};
use sheetanchor_core::plan::Target;
use sheetanchor_core::refusal::Code;
use sheetanchor_core::views::points::PointState;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::world::Failure;

use super::point::named_point;
use crate::stage::Stage;
use crate::workload::Load;

/// Names used twice, targets that are not there, nodes that have a database, operations that are over or never were.
pub fn change_nothing(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(100, 300)?;
    let too_early = stage.operate(|operator| async move { operator.plan_restore(&Target::Latest).await });
    stage.is_refused("a restore before the first backup", &too_early, &[Code::NoBackup])?;
    let early = stage.a_point_is_taken("before-any-backup")?;
    let sealed = stage.a_backup_is_taken()?;
    let listed = stage.point_is_listed_as("before-any-backup")?;
    let violation = Violation::new("listed means reachable", format!("no backup lies before it: {listed:?}"));
    stage.holds(listed == Some(PointState::Lost), violation)?;
    let before = stage.status()?;

    let unbacked =
        stage.operate(|operator| async move { operator.plan_restore(&named_point("before-any-backup")).await });
    stage.is_refused("a point that no backup lies before", &unbacked, &[Code::NoBackup])?;
    let twice = stage.begin_point("before-any-backup");
    stage.is_refused("a name that was used before", &twice, &[Code::NameTaken])?;
    let alone = stage.operate(|operator| async move { operator.backup(None, Method::Alone).await });
    stage.is_refused("a cut of one node on shared storage", &alone, &[Code::NotSupported])?;
    let unknown = stage.operate(|operator| async move { operator.plan_restore(&named_point("never-taken")).await });
    stage.is_refused("a point that was never taken", &unknown, &[Code::NoSuchTarget])?;
    let occupied = stage.begin_restore(Target::Backup(sealed.operation));
    stage.is_refused("a restore over living databases", &occupied, &[Code::FolderNotEmpty])?;
    let finished = sealed.operation;
    let over = stage.operate(move |operator| async move { operator.abort(finished).await });
    stage.is_refused("ending a backup that is sealed", &over, &[Code::Aborted])?;
    let never = OperationId::new(OperationKind::Backup, 1, 1);
    let nothing = stage.operate(move |operator| async move { operator.abort(never).await });
    stage.is_refused("ending what never began", &nothing, &[Code::NotRegistered])?;
    let no_pin = stage.operate(|operator| async move { operator.drop_pin("backup-000000000001-00000001").await });
    stage.is_refused("dropping a pin that is not there", &no_pin, &[Code::NoSuchTarget])?;

    let after = stage.status()?;
    let same = before.backups == after.backups && before.points == after.points && after.unfinished.is_empty();
    stage.holds(same, Violation::new("a refusal changes nothing", format!("{before:?} became {after:?}")))?;
    let kept = after.points.iter().any(|(_, point)| *point == early);
    stage.holds(kept, Violation::new("what was published stays", format!("{after:?}")))?;
    stage.commits_flow_again_within_the_lease()?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.is_restored(Target::Latest).map(|_| ())
}
