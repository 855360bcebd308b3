//! A history whose clocks ran ahead, and what follows it.

use std::collections::BTreeSet;

use sheetanchor_core::scn::Scn;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::world::Failure;

use super::point::named_point;
use crate::cluster::{NODES, host};
use crate::stage::Stage;
use crate::workload::Load;

const DAY_MS: i64 = 86_400_000;

/// D9. All clocks are a day ahead while the history is written, and right, or a little slow, when it is restored to a
/// point in its past. The new incarnation opens, each node takes the others' messages, now and after a restart, and no SCN
/// of the old history is issued again, not even of what lies beyond the cut.
pub fn does_not_stop_its_successor(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    all_nodes_restart_at(stage, DAY_MS)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    stage.a_backup_is_taken()?;
    stage.meanwhile(50, 300)?;
    stage.a_point_is_taken("kept")?;
    stage.meanwhile(300, 800)?;
    stage.transfers_end()?;
    stage.a_point_is_taken("end")?;
    stage.the_point_becomes_reachable("end")?;
    let used = stage.history().last_scn().unwrap_or_default();

    stage.everything_is_lost()?;
    let behind_ms = i64::try_from(stage.chance().between(2_000, 5_000)).unwrap_or(0);
    for node in NODES {
        stage.world().set_wall_clock(&host(node), -behind_ms);
    }
    stage.is_restored(named_point("kept"))?;
    stage.history_goes_on();
    commits_are_stamped_above(stage, used)?;

    let used = stage.history().last_scn().unwrap_or_default();
    all_nodes_restart_at(stage, -behind_ms)?;
    commits_are_stamped_above(stage, used)?;
    stage.a_backup_is_taken()?;
    stage.everything_is_lost()?;
    stage.is_restored(sheetanchor_core::plan::Target::Latest).map(|_| ())
}

/// All nodes stop, and come back with their clocks so far ahead.
fn all_nodes_restart_at(stage: &mut Stage, ahead_ms: i64) -> Result<(), Failure> {
    for node in NODES {
        stage.crash_node(node);
    }
    for node in NODES {
        stage.world().set_wall_clock(&host(node), ahead_ms);
        stage.restart_node(node);
    }
    stage.nodes_are_back()
}

/// Clients work for a while: commits are acknowledged, and none is stamped at or below what was used before.
fn commits_are_stamped_above(stage: &mut Stage, used: Scn) -> Result<(), Failure> {
    let before: BTreeSet<Scn> = stage.history().acknowledged_scns().into_iter().collect();
    stage.transfers_begin();
    stage.commits_flow_again_within_the_lease()?;
    stage.meanwhile(200, 600)?;
    stage.transfers_end()?;
    let first = stage.history().acknowledged_scns().into_iter().find(|scn| !before.contains(scn));
    let detail = format!("the first new commit is stamped {first:?}, and {used} was used");
    let violation = Violation::new("no SCN of the old history is issued again", detail);
    stage.holds(first.is_some_and(|first| first > used), violation)
}
