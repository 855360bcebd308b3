//! Backups.

use sheetanchor_core::plan::Target;
use sheetanchor_core::refusal::Code;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::world::Failure;

use crate::stage::Stage;
use crate::workload::Load;

/// The main job: back up, lose everything, restore to a point made after the backup, read; go on in the new incarnation,
/// and do it again from a backup of that one.
pub fn is_restored_and_read(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(300, 900)?;
    stage.a_backup_is_taken()?;
    stage.meanwhile(100, 600)?;
    stage.a_point_is_taken("after-the-backup")?;
    stage.meanwhile(50, 400)?;
    stage.the_point_becomes_reachable("after-the-backup")?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    let restored = stage.is_restored(Target::Latest)?;

    stage.history_goes_on();
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    let sealed = stage.a_backup_is_taken()?;
    stage.meanwhile(50, 300)?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    let again = stage.is_restored(Target::Backup(sealed.operation))?;
    let incarnations = (restored.plan.opens.get(), again.plan.opens.get());
    stage.holds(
        incarnations == (2, 3),
        Violation::new("each restore opens the next incarnation", format!("{incarnations:?}")),
    )
}

/// A node crashes while files are copied: the backup is refused and leaves nothing behind, commits flow on the others,
/// and once the node is back the next backup is good.
pub fn survives_a_node_that_crashes_during_capture(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 600)?;
    let backup = stage.begin_backup();
    stage.world().run_until_milestone(&backup.operator, "phase=capturing", std::time::Duration::from_secs(30))?;
    stage.meanwhile(0, 12)?;
    // Node 1 copies the shared files; another one only ends with it.
    let node = if stage.chance().one_in(4) { 2 } else { 1 };
    stage.crash_node(node);
    stage.commits_flow_again_within_the_lease()?;
    stage.restart_node(node);
    let codes = [Code::NodeSilent, Code::LifeChanged, Code::OutOfOrder, Code::DatabaseDown, Code::PinLost];
    stage.is_refused("a backup whose node crashed", &backup, &codes)?;
    let status = stage.status()?;
    stage.holds(
        status.backups.is_empty() && status.unfinished.is_empty(),
        Violation::new("a backup that failed does not exist", format!("{:?} {:?}", status.backups, status.unfinished)),
    )?;
    stage.meanwhile(1_000, 2_000)?;
    stage.a_backup_is_taken()?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.is_restored(Target::Latest).map(|_| ())
}
