//! Anything may crash at any time, more than once; then the faults stop, and everything must work again.

use std::collections::BTreeMap;

use sheetanchor_core::error::{Error, Result as Outcome};
use sheetanchor_core::identity::PointName;
use sheetanchor_core::plan::Target;
use sheetanchor_core::scn::Scn;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::plan::CrashPolicy;
use sheetanchor_sim::world::Failure;

use crate::cluster::NODES;
use crate::stage::{Begun, Stage};
use crate::workload::Load;

/// Operations that are tried while things crash.
const ROUNDS: u64 = 4;

/// Backups and restore points are taken while nodes and coordinators crash. What was published is reachable afterwards,
/// what was refused is not there, and whichever point is restored is exactly the committed history up to its cut.
pub fn spares_what_was_proven(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    stage.a_backup_is_taken()?;
    let mut published: BTreeMap<PointName, Scn> = BTreeMap::new();
    for round in 0..ROUNDS {
        if stage.chance().one_in(3) {
            let backup = stage.begin_backup();
            things_crash(stage, &backup)?;
        } else {
            let point = stage.begin_point(&format!("round-{round}"));
            if let Some(Ok((_, point))) = things_crash(stage, &point)?
                && let Some(name) = point.name
            {
                published.insert(name, point.cut.scn);
            }
        }
    }
    stage.meanwhile(2_000, 3_000)?;
    stage.commits_flow_again_within_the_lease()?;
    stage.unfinished_operations_are_aborted()?;
    stage.a_backup_is_taken()?;
    stage.meanwhile(20, 200)?;
    let last = stage.a_point_is_taken("last")?;
    published.extend(last.name.map(|name| (name, last.cut.scn)));
    stage.the_point_becomes_reachable("last")?;
    every_published_point_is_reachable(stage, &published)?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    let drawn = usize::try_from(stage.chance().below(64)).unwrap_or(0) % published.len().max(1);
    let (target, scn) = match published.iter().nth(drawn) {
        Some((name, scn)) => (Target::Name(name.clone()), *scn),
        None => (Target::Latest, last.cut.scn),
    };
    let restored = stage.is_restored(target)?;
    let reached = restored.plan.cut.scn;
    stage.holds(
        reached == scn,
        Violation::new("a target is never rounded", format!("asked for {scn}, restored to {reached}")),
    )
}

/// Crashes nodes, and perhaps the operator, while an operation runs; brings the nodes back. Answers how the operation
/// ended, if its operator lived to see it.
fn things_crash<T>(stage: &mut Stage, begun: &Begun<T>) -> Result<Option<Outcome<T>>, Failure> {
    let crashes = stage.chance().between(1, 4);
    let mut operator_lives = true;
    for _ in 0..crashes {
        stage.meanwhile(0, 250)?;
        if stage.chance().one_in(5) {
            let operator = begun.operator.clone();
            stage.world().crash(&operator, CrashPolicy::DropAll);
            operator_lives = false;
            continue;
        }
        let place = usize::try_from(stage.chance().below(3)).unwrap_or(0);
        let node = NODES.get(place).copied().unwrap_or(1);
        stage.crash_node(node);
        stage.meanwhile(0, 600)?;
        stage.restart_node(node);
    }
    if !operator_lives {
        return Ok(None);
    }
    let outcome = stage.ends(begun)?;
    if let Err(Error::Bug(what)) = &outcome {
        stage.holds(false, Violation::new("no invariant of ours breaks", what.clone()))?;
    }
    Ok(Some(outcome))
}

fn every_published_point_is_reachable(stage: &mut Stage, published: &BTreeMap<PointName, Scn>) -> Result<(), Failure> {
    stage.meanwhile(500, 501)?;
    let points = stage.operate(|operator| async move { operator.points().await });
    let points = stage.succeeds("points are listed", &points)?;
    for (name, scn) in published {
        let listed = points.iter().find(|(_, point, _)| point.name.as_ref() == Some(name));
        let good = listed.is_some_and(|(_, point, reached)| point.cut.scn == *scn && reached.is_ok());
        let detail = format!("`{name}` was published at {scn} and is listed as {listed:?}");
        stage.holds(good, Violation::new("what was published is listed and reachable", detail))?;
    }
    Ok(())
}
