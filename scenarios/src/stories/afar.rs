//! Nodes whose folders nobody can read: they send their files to a backup themselves.

use sheetanchor_core::plan::Target;
use sheetanchor_sim::world::Failure;

use crate::stage::Stage;
use crate::workload::Load;

/// Some of the nodes send their files, in one stream each, and the others' are read; all of them are backed up as one cluster
/// while faults strike: streams break off in the middle, nodes and operators crash, disks fail. A backup exists in the end;
/// everything is lost, and what is restored is exactly the committed history up to its cut.
pub fn is_restored_whatever_strikes(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_separate_databases_of_which_some_send(Load::BRIEF_HOPPING)?;
    stage.transfers_begin();
    stage.meanwhile(40, 80)?;
    stage.faults_begin();
    stage.sending_may_break_off();
    let backup = stage.begin_backup();
    let ended = stage.ends_amid_faults(&backup)?;
    let sealed = stage.is_backed_up_in_the_end(ended)?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.is_restored_in_the_end(&Target::Backup(sealed.operation))?;
    stage.nobody_told_of_damage()
}
