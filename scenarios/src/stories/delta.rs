//! Restores over an older copy: what of it is right stays, all else is changed, and nothing starts in between.

use std::time::Duration;

use sheetanchor_core::refusal::Code;
use sheetanchor_engine::coordinator::Manner;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::world::{Failure, World};

use super::point::named_point;
use crate::cluster::{Disorder, host};
use crate::stage::Stage;

/// A phase comes within this.
const SOON: Duration = Duration::from_secs(30);

/// How often a node that stages passes the gate meanwhile, roughly.
const PASSES: u64 = 90;

const OVER: Manner = Manner { stop: false, anew: false, delta: true };

/// Clients have gone on from a restore point, and their files are damaged since: bits have rotted, lengths are wrong, there
/// are files that no backup has. A restore over them is refused, and changes nothing, while a node is open and while what
/// lies there is no database. Then it ends exactly at the point, though a node stops at any moment of the staging; nothing
/// that the backup lacks is left. Aborted before the decision, it leaves what no node takes for a database.
pub fn keeps_what_is_right(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_either_storage_at_work()?;
    let full = stage.a_backup_is_taken()?;
    stage.meanwhile(50, 300)?;
    if stage.chance().one_in(2) {
        // Then nobody has hashed what a patched chunk comes to.
        stage.an_incremental_is_taken_on(full.operation)?;
    }
    stage.a_point_is_taken("kept")?;
    stage.the_point_becomes_reachable("kept")?;
    let living = stage.begin_restore_to(named_point("kept"), OVER);
    stage.is_refused("a restore over living nodes", &living, &[Code::FolderInUse])?;
    stage.meanwhile(100, 400)?;
    stage.transfers_end()?;

    stage.nodes_are_closed(Disorder::NoDatabase)?;
    let before = stage.what_lies_there();
    let foreign = stage.begin_restore_to(named_point("kept"), OVER);
    stage.is_refused("a restore over what is no database", &foreign, &[Code::ForeignFolder])?;
    let after = stage.what_lies_there();
    let changed = Violation::new("a refused restore changes nothing", format!("{} files", before.len()));
    stage.holds(before == after && !before.is_empty(), changed)?;

    stage.nodes_are_closed(Disorder::Damaged)?;
    if stage.chance().one_in(3) {
        let stopped = stage.begin_restore_to(named_point("kept"), Manner { stop: true, ..OVER });
        let stopped = stage.succeeds("a restore over old copies stops on arrival", &stopped)?;
        stage.is_aborted(stopped.operation)?;
        stage.no_control_file_is_left()?;
    }
    let victim = stage.any_node();
    let restore = stage.begin_restore_to(named_point("kept"), OVER);
    stage.world().run_until_milestone(&restore.operator, "phase=staging", SOON)?;
    let goal = stage.world().passes(&host(victim)) + stage.chance().below(PASSES);
    let operator = restore.operator.clone();
    let there =
        move |world: &World| world.passes(&host(victim)) >= goal || world.has_reached(&operator, "phase=deciding");
    stage.world().run_until(there, SOON)?;
    stage.crash_node(victim);
    stage.meanwhile(50, 500)?;
    stage.restart_node(victim);
    let restored = stage.succeeds("a restore over old copies outlives the restart of a node", &restore)?;
    stage.nothing_is_left_of_the_disorder()?;
    stage.holds_exactly_the_history_up_to(restored.plan.cut.scn)?;
    stage.history_goes_on();
    stage.transfers_begin();
    stage.meanwhile(100, 200)?;
    stage.transfers_end()
}
