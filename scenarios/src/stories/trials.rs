//! The story of the sweep and of the swarm: short, and told under any faults.

use sheetanchor_core::plan::Target;
use sheetanchor_sim::world::Failure;

use crate::stage::Stage;
use crate::workload::Load;

/// A backup is taken, everything is lost, and the backup is restored and read, while faults strike: nodes and operators
/// crash, syncs fail, volumes are full, the network stands still. What was begun is finished or ended, a backup exists in the
/// end, and it is exactly the committed history up to its cut.
pub fn end_in_a_restore_whatever_strikes(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::BRIEF)?;
    stage.transfers_begin();
    stage.meanwhile(40, 80)?;
    stage.faults_begin();
    let backup = stage.begin_backup();
    let ended = stage.ends_amid_faults(&backup)?;
    let sealed = stage.is_backed_up_in_the_end(ended)?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.staging_may_be_struck();
    stage.is_restored_in_the_end(&Target::Backup(sealed.operation))?;
    stage.nobody_told_of_damage()
}

/// The same with the repository in an object store, which refuses, times out before and after the effect, and answers wrongly.
pub fn end_in_a_restore_from_an_object_store(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_an_object_store();
    end_in_a_restore_whatever_strikes(stage)
}
