//! Restore points.

use std::time::Duration;

use sheetanchor_core::plan::Target;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::plan::CrashPolicy;
use sheetanchor_sim::world::Failure;

use crate::stage::Stage;
use crate::workload::Load;

/// The coordinator dies when all nodes have drained and none is cut: commits flow again within the lease, nothing is
/// published, the name is free once the operation is aborted, and the next point is good.
pub fn frees_commits_when_its_coordinator_crashes(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 600)?;
    stage.a_backup_is_taken()?;
    let point = stage.begin_point("before-migration");
    stage.world().run_until_milestone(&point.operator, "phase=drained", Duration::from_secs(30))?;
    stage.world().crash(&point.operator, CrashPolicy::DropAll);
    stage.commits_flow_again_within_the_lease()?;
    let status = stage.status()?;
    let named = status.points.iter().filter(|(_, point)| point.name.is_some()).count();
    let violation = Violation::new("what was not decided is shown as unfinished", format!("{status:?}"));
    stage.holds(named == 0 && status.unfinished.len() == 1, violation)?;
    stage.unfinished_operations_are_aborted()?;
    stage.meanwhile(2_000, 2_500)?;
    stage.a_point_is_taken("before-migration")?;
    stage.meanwhile(50, 300)?;
    stage.the_point_is_restored("before-migration")
}

/// L1. Every node writes the same page all the time, and points cut through it: recovery has one order for all threads; one drawn from the seed is restored.
pub fn cuts_a_page_that_two_nodes_write(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::CROWDED)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    stage.a_backup_is_taken()?;
    for name in ["cut-1", "cut-2", "cut-3"] {
        stage.meanwhile(20, 300)?;
        stage.a_point_is_taken(name)?;
    }
    stage.meanwhile(50, 300)?;
    stage.the_point_becomes_reachable("cut-3")?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    let chosen = format!("cut-{}", stage.chance().between(1, 4));
    stage.is_restored(named_point(&chosen)).map(|_| ())
}

/// Clocks that differ, sessions that go from node to node and carry nothing, and a cut that reaches the slow node late:
/// only the fence keeps an effect out of the cut whose cause is not in it.
pub fn is_causal_for_sessions_that_carry_nothing(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::HOPPING)?;
    let skew_ms = stage.any_skew_ms();
    stage.a_cut_reaches_the_slow_node_late(skew_ms, |stage| stage.begin_point("skewed"), "phase=draining")?;
    stage.the_point_is_restored("skewed")
}

/// The restore point of that name.
pub fn named_point(name: &str) -> Target {
    name.parse().map_or(Target::Latest, Target::Name)
}
