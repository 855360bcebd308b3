//! Restores.

use std::time::Duration;

use sheetanchor_core::plan::Target;
use sheetanchor_core::refusal::Code;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::plan::CrashPolicy;
use sheetanchor_sim::world::{Failure, World};

use crate::cluster::{DATA, host};
use crate::stage::Stage;
use crate::workload::Load;

/// Where an agent notes which restore its folder is of.
const MARK: &str = "/state/restore.json";

/// A node, or the coordinator, crashes at some moment of a restore. A node that comes back goes on where it was; a
/// restore whose coordinator is gone is resumed by another.
pub fn is_resumed_after_a_crash(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 600)?;
    stage.a_backup_is_taken()?;
    stage.meanwhile(50, 400)?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;

    let restore = stage.begin_restore(Target::Latest);
    let phases = ["phase=staging", "phase=recovering", "phase=proving", "phase=deciding", "phase=opening"];
    let drawn = usize::try_from(stage.chance().below(5)).unwrap_or(0);
    let phase = phases.get(drawn).copied().unwrap_or("phase=staging");
    stage.world().run_until_milestone(&restore.operator, phase, Duration::from_mins(1))?;
    stage.meanwhile(0, 25)?;
    let restored = if stage.chance().one_in(2) {
        let node = if stage.chance().one_in(3) { 3 } else { 1 };
        stage.crash_node(node);
        stage.meanwhile(50, 500)?;
        stage.restart_node(node);
        stage.succeeds("a restore outlives the restart of a node", &restore)?
    } else {
        stage.world().crash(&restore.operator, CrashPolicy::DropAll);
        if stage.chance().one_in(2) {
            stage.crash_node(1);
            stage.meanwhile(50, 300)?;
            stage.restart_node(1);
        }
        stage.meanwhile(50, 300)?;
        let operation = stage.the_restore()?;
        let resumed = stage.begin_resume(operation);
        stage.succeeds("a restore is resumed by another coordinator", &resumed)?
    };
    stage.holds_exactly_the_history_up_to(restored.plan.cut.scn)
}

/// A node that one restore has begun to stage is not taken from it by another: that one is refused, and the folder is as it
/// was. Once the first is ended, the next restore is good.
pub fn leaves_the_folder_of_another_alone(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 600)?;
    stage.a_backup_is_taken()?;
    stage.meanwhile(50, 400)?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    let first = stage.begin_restore(Target::Latest);
    let marked = |world: &World| world.peek(&host(1), MARK).is_some();
    stage.world().run_until(marked, Duration::from_mins(1))?;
    stage.world().crash(&first.operator, CrashPolicy::DropAll);
    stage.world().crash(&host(1), CrashPolicy::KeepAll);
    let operation = stage.the_unfinished_operation()?;
    stage.restart_node(1);
    stage.meanwhile(200, 600)?;
    let control = format!("{DATA}/control");
    let seen = |stage: &mut Stage| [MARK, &control].map(|path| stage.world().peek(&host(1), path));
    let before = seen(stage);
    let second = stage.begin_restore(Target::Latest);
    stage.is_refused("a restore into a folder that is being restored", &second, &[Code::OtherRestore])?;
    let after = seen(stage);
    let detail = format!("its mark and the control file were {before:?}, and are {after:?}");
    stage.holds(before == after, Violation::new("a folder of another restore is left alone", detail))?;
    stage.is_aborted(operation)?;
    stage.is_restored(Target::Latest).map(|_| ())
}
