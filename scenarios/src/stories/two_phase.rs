//! Transactions over databases that share nothing, committed in two phases, and cut in between.

use std::time::Duration;

use sheetanchor_core::format::catalog::Guarantee;
use sheetanchor_core::in_doubt::{Verdict, Why};
use sheetanchor_core::plan::Target;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::plan::CrashPolicy;
use sheetanchor_sim::world::Failure;

use super::point::named_point;
use crate::stage::{Comes, Stage};
use crate::workload::Load;

/// L19. Clients move money between three databases while points cut through their two-phase commits: at every point each
/// transfer is on both databases or on none. So the points say *atomic*.
pub fn is_resolved_alike_on_every_node(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_two_phase_databases(Load::ACROSS)?;
    stage.transfers_begin();
    stage.meanwhile(100, 300)?;
    stage.a_point_is_taken("first")?;
    stage.a_backup_is_taken()?;
    for name in ["cut-1", "cut-2", "cut-3"] {
        stage.meanwhile(20, 200)?;
        let point = stage.a_point_is_taken(name)?;
        let detail = format!("a point over two-phase commits says {:?}", point.guarantee);
        let violation = Violation::new("a point says what it is good for", detail);
        stage.holds(point.guarantee == Guarantee::Atomic, violation)?;
    }
    stage.meanwhile(50, 200)?;
    stage.the_point_becomes_reachable("cut-3")?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    let chosen = format!("cut-{}", stage.chance().between(1, 4));
    let restored = stage.is_restored(named_point(&chosen))?;
    stage.nothing_is_left_in_doubt(&restored)
}

/// D10. A transaction committed on one node, long before a backup begins, and is in doubt on the other ever since: what
/// tells its fate lies before all WAL that the backup needs.
pub fn is_decided_by_what_lies_before_the_backup(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_two_phase_databases(Load::ACROSS)?;
    if stage.chance().one_in(2) {
        stage.a_point_is_taken("before")?;
    }
    stage.a_client_comes(Comes::HalfWay, 1, "half")?;
    stage.a_client_comes_elsewhere(Comes::Prepared, 2, "never")?;
    stage.meanwhile(500, 1_500)?;
    for name in ["between-1", "between-2", "between-3"] {
        stage.a_point_is_taken(name)?;
    }
    stage.a_backup_is_taken()?;
    stage.meanwhile(100, 500)?;
    stage.everything_is_lost()?;
    let restored = stage.is_restored(Target::Latest)?;
    let verdicts: Vec<(&str, Verdict)> =
        restored.in_doubt.iter().map(|half| (half.gid.as_str(), half.verdict)).collect();
    let wanted = [("half", Verdict::Commit), ("never", Verdict::Rollback)];
    let good = wanted.iter().all(|verdict| verdicts.contains(verdict)) && restored.guarantee() == Guarantee::Atomic;
    stage.holds(good, Violation::new("evidence before the backup counts", format!("{verdicts:?}")))?;
    stage.nothing_is_left_in_doubt(&restored)?;
    // And so it is in the restored cluster's own log, which later recoveries go through.
    stage.a_point_is_taken("after")?;
    stage.the_point_becomes_reachable("after")?;
    stage.everything_is_lost()?;
    let restored = stage.is_restored(named_point("after"))?;
    stage.nothing_is_left_in_doubt(&restored)
}

/// A node or the coordinator, or both, crash while what is in doubt is decided and ended: whoever goes on decides the same.
pub fn is_resolved_whoever_crashes(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_two_phase_databases(Load::ACROSS)?;
    stage.a_client_comes(Comes::HalfWay, 1, "half")?;
    stage.a_client_comes_elsewhere(Comes::Prepared, 2, "never")?;
    stage.a_backup_is_taken()?;
    stage.everything_is_lost()?;
    let restore = stage.begin_restore(Target::Latest);
    let drawn = usize::try_from(stage.chance().below(4)).unwrap_or(0);
    let phase = ["phase=proving", "phase=judging", "phase=resolving", "phase=deciding"].get(drawn).copied();
    let phase = phase.unwrap_or("phase=judging");
    stage.world().run_until_milestone(&restore.operator, phase, Duration::from_mins(1))?;
    stage.meanwhile(0, 12)?;
    let node = if stage.chance().one_in(2) { 1 } else { 2 };
    let restored = if stage.chance().one_in(2) {
        stage.crash_node(node);
        stage.meanwhile(50, 500)?;
        stage.restart_node(node);
        stage.succeeds("a restore outlives the restart of a node", &restore)?
    } else {
        stage.world().crash(&restore.operator, CrashPolicy::DropAll);
        if stage.chance().one_in(2) {
            stage.crash_node(node);
            stage.meanwhile(50, 300)?;
            stage.restart_node(node);
        }
        stage.meanwhile(50, 300)?;
        let operation = stage.the_restore()?;
        let resumed = stage.begin_resume(operation);
        stage.succeeds("a restore is resumed by another coordinator", &resumed)?
    };
    stage.holds_exactly_the_history_up_to(restored.plan.cut.scn)?;
    stage.nothing_is_left_in_doubt(&restored)
}

/// A client uses a gid twice, which only the first of the two transactions may be judged by: the second is left in doubt,
/// says so, and an operator can end it; the guarantee is *causal* then.
pub fn is_left_if_its_gid_was_used_before(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_two_phase_databases(Load::ACROSS)?;
    stage.a_point_is_taken("before")?;
    stage.a_client_comes(Comes::Through, 1, "again")?;
    stage.meanwhile(50, 500)?;
    stage.a_client_comes(Comes::Prepared, 2, "again")?;
    stage.a_backup_is_taken()?;
    stage.everything_is_lost()?;
    let restored = stage.is_restored(Target::Latest)?;
    let left = restored.in_doubt.iter().filter(|half| half.verdict == Verdict::Left(Why::Reused)).count();
    let violation = Violation::new("a gid that was used before decides nothing", format!("{:?}", restored.in_doubt));
    stage.holds(left == 2 && restored.guarantee() == Guarantee::Causal, violation)?;
    let prepared = stage.what_is_prepared()?;
    let still = [1, 2].iter().all(|node| prepared.get(node).is_some_and(|gids| gids == &["again"]));
    stage.holds(still, Violation::new("what is left in doubt stays prepared", format!("{prepared:?}")))?;
    stage.is_rolled_back_by_hand(&[1, 2], "again")?;
    let prepared = stage.what_is_prepared()?;
    let none = prepared.values().all(Vec::is_empty);
    stage.holds(none, Violation::new("what is left in doubt can be ended", format!("{prepared:?}")))
}
