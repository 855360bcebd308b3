//! Clones: clusters of their own, made from this one's repository.

use std::time::Duration;

use sheetanchor_core::expiry::Keep;
use sheetanchor_core::format::catalog::{IncarnationState, Method};
use sheetanchor_core::identity::{Incarnation, OperationKind};
use sheetanchor_core::plan::Target;
use sheetanchor_core::refusal::Code;
use sheetanchor_engine::coordinator::Manner;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::plan::CrashPolicy;
use sheetanchor_sim::world::Failure;

use super::point::named_point;
use crate::stage::Stage;
use crate::workload::Load;

/// A cluster is cloned while it works, and goes on beside its clone. The clone has an identity, a repository and a lineage
/// of its own. Even if somebody gives it the other's repository for its own, it writes nothing there.
pub fn never_writes_to_its_source(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    let sealed = stage.a_backup_is_taken()?;
    stage.meanwhile(50, 300)?;
    let kept = stage.a_point_is_taken("kept")?;
    stage.the_point_becomes_reachable("kept")?;

    stage.clone_nodes_start(false)?;
    let begun = stage.operate_clone(|operator| async move {
        operator.clone_cluster(named_point("kept"), Manner::default(), false).await
    });
    let restored = stage.succeeds("a clone of a cluster that works", &begun)?;
    stage.the_clone_holds_the_history_up_to(kept.cut.scn)?;
    let status = stage.operate_clone(|operator| async move { operator.status().await });
    let status = stage.succeeds("the clone's status is shown", &status)?;
    let source = stage.status()?;
    let origin = status.incarnations.first().and_then(|object| match &object.state {
        IncarnationState::Opened(opened) => opened.origin.as_ref(),
        IncarnationState::Aborted(_) => None,
    });
    let is_known = origin.is_some_and(|origin| {
        (origin.cluster, origin.backup, &origin.cut) == (source.cluster.id, sealed.operation, &kept.cut)
    });
    let good = is_known && status.cluster.id != source.cluster.id && status.incarnation == Incarnation::new(1);
    let detail = format!("{:?} of {:?} with {:?}", status.cluster, source.cluster, status.incarnations);
    stage.holds(good && status.backups.is_empty(), Violation::new("a clone is a cluster of its own", detail))?;
    stage.holds(
        source.unfinished.is_empty() && restored.plan.source == Some(source.cluster.id),
        Violation::new("a clone that is open holds nothing at its source", format!("{:?}", source.unfinished)),
    )?;
    let first = stage.operate_clone(|operator| async move { operator.backup(None, Method::Fence).await });
    stage.succeeds("a clone's own first backup", &first)?;

    stage.a_point_is_taken("later")?;
    stage.the_point_becomes_reachable("later")?;
    stage.transfers_end()?;
    stage.only_the_clone_runs();
    let before = stage.the_sources_objects()?;
    stage.clone_nodes_start(true)?;
    stage.meanwhile(2_000, 3_000)?;
    let after = stage.the_sources_objects()?;
    let added: Vec<&String> = after.iter().filter(|key| !before.contains(key)).collect();
    let good = before.len() == after.len();
    stage.holds(good, Violation::new("a clone never writes to its source", format!("{added:?}")))?;
    stage.the_clones_archive_is_stuck("SA104")?;

    stage.everything_is_lost()?;
    stage.is_restored(named_point("later")).map(|_| ())
}

/// The coordinator of a clone dies while it is staged: the source keeps the backup until the clone is open.
pub fn holds_what_it_is_made_from(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    let first = stage.a_backup_is_taken()?;
    stage.meanwhile(50, 200)?;
    stage.transfers_end()?;
    stage.clone_nodes_start(false)?;
    let target = Target::Backup(first.operation);
    let begun = stage.operate_clone(move |operator| {
        let target = target.clone();
        async move { operator.clone_cluster(&target, Manner::default(), false).await }
    });
    stage.world().run_until_milestone(&begun.operator, "phase=staging", Duration::from_mins(1))?;
    stage.meanwhile(0, 25)?;
    stage.world().crash(&begun.operator, CrashPolicy::DropAll);
    stage.a_backup_is_taken()?;

    let expire = stage.operate(|operator| async move { operator.expire(Keep::Newest(1), false).await });
    stage.is_refused("to expire what a clone is made from", &expire, &[Code::Unfinished])?;
    let found =
        stage.operate_clone(|operator| async move { operator.repository().operations(OperationKind::Restore).await });
    let found = stage.succeeds("the clone's restore is listed", &found)?;
    let Some(operation) = found.first().copied() else {
        return stage.holds(false, Violation::new("an operation exists once it is registered", "none"));
    };
    let resumed = stage.operate_clone(move |operator| async move { operator.resume(operation).await });
    let restored = stage.succeeds("a clone is taken up by another coordinator", &resumed)?;
    stage.the_clone_holds_the_history_up_to(restored.plan.cut.scn)?;
    let expire = stage.operate(|operator| async move { operator.expire(Keep::Newest(1), false).await });
    let expired = stage.succeeds("expiry once the clone is open", &expire)?;
    stage.holds(
        !expired.objects.is_empty(),
        Violation::new("a backup goes that nobody holds", format!("{expired:?}")),
    )?;
    stage.everything_is_lost()?;
    stage.is_restored(Target::Latest).map(|_| ())
}
