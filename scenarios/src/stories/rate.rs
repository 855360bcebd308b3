//! How fast a backup reads, and how fast a restore puts files in place.

use std::time::Duration;

use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::format::manifest::Manifest;
use sheetanchor_core::identity::{ByteCount, NodeId, OperationKind};
use sheetanchor_core::plan::Target;
use sheetanchor_core::request::Doing;
use sheetanchor_core::throttle::Rate;
use sheetanchor_engine::coordinator::Manner;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::world::Failure;

use crate::cluster::Disorder;
use crate::stage::Stage;
use crate::workload::Load;

/// A phase comes within this.
const SOON: Duration = Duration::from_secs(30);

/// A backup that was given a rate reads no faster, and not much slower, while clients go on; it is restored as any other.
pub fn is_kept_by_a_backup(stage: &mut Stage) -> Result<(), Failure> {
    let bytes_per_second = stage.chance().between(100_000, 200_000);
    let rate = Rate::new(bytes_per_second);
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    let backup = stage.operate(move |operator| async move { operator.at_rate(rate).backup(None, Method::Fence).await });
    let begun = stage.world().elapsed();
    let sealed = stage.succeeds("a backup at a rate", &backup)?;
    let took = stage.world().elapsed().saturating_sub(begun);
    stage.transfers_end()?;
    let read: u64 = sealed.manifest.units.values().map(|unit| unit.bytes.get()).sum();
    let least = rate.map(|rate| rate.time_for(ByteCount::new(read))).unwrap_or_default();
    let detail = format!("{read} bytes at {bytes_per_second} bytes/s took {took:?}");
    let good = !least.is_zero() && took >= least && took < least * 3;
    stage.holds(good, Violation::new("a backup keeps its rate", detail))?;
    stage.everything_is_lost()?;
    stage.is_restored(Target::Backup(sealed.operation)).map(|_| ())
}

/// A restore that was given a rate puts files in place no faster, and not much slower, over nothing or over older copies, and
/// each node says meanwhile how far it is. A node that restarts in the middle forgets the rate, and is told again.
pub fn is_kept_by_a_restore(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_either_storage_at_work()?;
    let sealed = stage.a_backup_is_taken()?;
    stage.transfers_end()?;
    let (node, bytes) = largest_unit(&sealed.manifest);
    let rate = Rate::new(bytes * 10 / stage.chance().between(10, 30));
    let least = rate.map(|rate| rate.time_for(ByteCount::new(bytes))).unwrap_or_default();
    let delta = stage.chance().one_in(3);
    if delta {
        stage.nodes_are_closed(Disorder::Damaged)?;
    } else {
        stage.everything_is_lost()?;
    }
    let (backup, manner) = (sealed.operation, Manner { delta, ..Manner::default() });
    let restore = stage.operate(move |operator| async move {
        operator.at_rate(rate).restore_in(Target::Backup(backup), manner).await
    });
    stage.world().run_until_milestone(&restore.operator, "phase=staging", SOON)?;
    let mut begun = stage.world().elapsed();
    stage.meanwhile(200, 600)?;
    let status = stage.status()?;
    let seen = status.nodes.iter().find(|status| status.node == node).map(|status| status.description.clone());
    let progress = seen
        .and_then(|seen| seen.ok()?.progress.into_iter().find(|told| told.operation.kind() == OperationKind::Restore));
    let elapsed = stage.world().elapsed().saturating_sub(begun);
    let told = progress.is_some_and(|told| {
        let in_time = rate.is_some_and(|rate| rate.time_for(told.done) <= elapsed);
        told.doing == Doing::Staging && told.total.get() == bytes && in_time
    });
    let detail = format!("node {node} stages {bytes} bytes, for {elapsed:?}, and says {progress:?}");
    stage.holds(told, Violation::new("a node says how far it is", detail))?;
    let strikes = stage.chance().one_in(2);
    if strikes {
        stage.crash_node(node.get());
        stage.meanwhile(50, 500)?;
        begun = stage.world().elapsed();
        stage.restart_node(node.get());
    }
    stage.world().run_until_milestone(&restore.operator, "phase=recovering", SOON)?;
    let took = stage.world().elapsed().saturating_sub(begun);
    let detail = format!("{bytes} bytes at {rate:?} took {took:?}, at least {least:?} were due; restarted: {strikes}");
    let good = !least.is_zero() && took >= least && took < least * 3;
    stage.holds(good, Violation::new("a restore keeps its rate", detail))?;
    let restored = stage.succeeds("a restore at a rate", &restore)?;
    stage.holds_exactly_the_history_up_to(restored.plan.cut.scn)
}

/// The node with the most bytes to copy, and how many these are.
fn largest_unit(manifest: &Manifest) -> (NodeId, u64) {
    let units = manifest.units.iter().map(|(node, unit)| (*node, unit.bytes.get()));
    units.max_by_key(|(_, bytes)| *bytes).unwrap_or_default()
}
