//! From the decision on a restore goes only forward; before it, it may wait or be taken back.

use sheetanchor_core::identity::Incarnation;
use sheetanchor_core::plan::Target;
use sheetanchor_core::refusal::Code;
use sheetanchor_engine::coordinator::Manner;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::plan::CrashPolicy;
use sheetanchor_sim::world::Failure;

use crate::stage::Stage;
use crate::workload::Load;

/// D11: a restore is decided, and a node loses its disk before it has opened. Nobody begins another one beside it: it is
/// taken up, and that node is staged again, to the very cut that the others have opened at.
pub fn stages_again_what_was_lost_before_it_opened(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_separate_databases(Load::HOPPING)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    stage.a_backup_is_taken()?;
    stage.meanwhile(50, 300)?;
    stage.a_point_is_taken("kept")?;
    stage.the_point_becomes_reachable("kept")?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;

    let lost = if stage.chance().one_in(2) { 3 } else { 1 };
    let decided = stage.a_restore_loses_a_node_once_it_is_decided(lost)?;
    stage.is_refused("a restore that lost a node", &decided, &[Code::DatabaseDown, Code::NodeSilent])?;
    let restore = stage.the_restore()?;
    let missing = stage.status()?.half_open.map(|(of, nodes)| (of, nodes.len()));
    let violation = Violation::new("a restore that has not opened every node is shown", format!("{missing:?}"));
    stage.holds(missing == Some((restore, 1)), violation)?;

    let second = stage.begin_restore_in(Manner::default());
    stage.is_refused("a second restore", &second, &[Code::RestoreUnfinished])?;
    let anew = stage.begin_restore_in(Manner { anew: true, ..Manner::default() });
    stage.is_refused("a second restore beside living nodes", &anew, &[Code::FolderNotEmpty])?;

    let resumed = stage.begin_resume(restore);
    let restored = stage.succeeds("a node that was lost before it opened is staged again", &resumed)?;
    stage.holds_exactly_the_history_up_to(restored.plan.cut.scn)?;
    stage.history_goes_on();
    stage.transfers_begin();
    stage.meanwhile(100, 300)?;
    stage.a_point_is_taken("after")?;
    stage.the_point_becomes_reachable("after")?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    let again = stage.is_restored(Target::Latest)?;
    let opens = again.plan.opens;
    stage.holds(opens == Incarnation::new(3), Violation::new("one incarnation follows the other", format!("{opens}")))
}

/// A node that had opened, and wrote since, loses its disk; or all of them do, where they share one. To stage it again at
/// the old cut would lose acknowledged commits in silence: that is refused, and the cluster is restored anew.
pub fn refuses_to_put_back_what_had_opened(stage: &mut Stage) -> Result<(), Failure> {
    let shares = stage.chance().one_in(2);
    if shares {
        stage.given_a_cluster(Load::SPREAD)?;
    } else {
        stage.given_separate_databases(Load::HOPPING)?;
    }
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    stage.a_backup_is_taken()?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.is_restored(Target::Latest)?;
    stage.history_goes_on();
    let restore = stage.the_restore()?;
    let before = stage.history().acknowledged_count();
    stage.transfers_begin();
    stage.meanwhile(200, 400)?;
    stage.a_point_is_taken("since")?;
    stage.the_point_becomes_reachable("since")?;
    stage.transfers_end()?;
    let wrote = stage.history().acknowledged_count() > before;
    stage.holds(wrote, Violation::new("commits follow the restore", format!("{before}")))?;

    if shares {
        stage.everything_is_lost()?;
    } else {
        stage.a_node_loses_its_disks(2)?;
    }
    let resumed = stage.begin_resume(restore);
    stage.is_refused("to put back a node that had opened", &resumed, &[Code::LostAfterOpening])?;

    stage.everything_is_lost()?;
    let late = stage.begin_resume(restore);
    stage.is_refused("to put back all nodes", &late, &[Code::LostAfterOpening])?;
    stage.is_restored(Target::Latest)?;
    let over = stage.begin_resume(restore);
    stage.is_refused("to take up a restore that another has followed", &over, &[Code::OtherIncarnation])
}

/// A restore that is told to stop on arrival leaves all nodes at the cut, closed, through a loss of power; then it is
/// taken up and opens, or is aborted, and another one takes its place.
pub fn stops_on_arrival(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    stage.a_backup_is_taken()?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    let stopped = stage.begin_restore_in(Manner { stop: true, ..Manner::default() });
    let stopped = stage.succeeds("a restore stops on arrival", &stopped)?;
    if stage.chance().one_in(2) {
        stage.power_fails_everywhere(CrashPolicy::DropAll)?;
    }
    let (nodes, incarnation) = stage.standing()?;
    let closed = nodes.iter().all(|(_, state)| state == "reached") && !stopped.is_open;
    let good = closed && incarnation == Incarnation::new(1);
    stage.holds(good, Violation::new("what has arrived stands closed", format!("{nodes:?} in {incarnation}")))?;
    let restored = if stage.chance().one_in(2) {
        let resumed = stage.begin_resume(stopped.operation);
        stage.succeeds("a restore that had stopped is taken up", &resumed)?
    } else {
        stage.is_aborted(stopped.operation)?;
        let resumed = stage.begin_resume(stopped.operation);
        stage.is_refused("to take up what was aborted", &resumed, &[Code::Aborted])?;
        let anew = stage.begin_restore(Target::Latest);
        stage.succeeds("a restore into what an aborted one has left", &anew)?
    };
    stage.holds_exactly_the_history_up_to(restored.plan.cut.scn)
}
