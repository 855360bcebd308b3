//! Anything may crash at any time, more than once; then the faults stop, and everything must work again.

use std::collections::BTreeMap;

use sheetanchor_core::error::{Error, Result as Outcome};
use sheetanchor_core::identity::PointName;
use sheetanchor_core::plan::Target;
use sheetanchor_core::scn::Scn;
use sheetanchor_core::views::points::PointState;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::plan::CrashPolicy;
use sheetanchor_sim::world::Failure;

use crate::cluster::host;
use crate::stage::{Begun, CLIENTS, Stage};
use crate::workload::Load;

/// Operations that are tried while things crash.
const ROUNDS: u64 = 4;

/// What happens to an operation while it runs.
type Trouble = fn(&mut Stage, &str) -> Result<bool, Failure>;

/// Backups and restore points are taken while nodes and coordinators crash. What was published is reachable afterwards,
/// what was refused is not there, and whichever point is restored is exactly the committed history up to its cut.
pub fn spares_what_was_proven(stage: &mut Stage) -> Result<(), Failure> {
    operations_run_amid(stage, Load::SPREAD, things_crash)
}

/// The same with the repository in an object store.
pub fn spares_what_was_proven_on_an_object_store(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_an_object_store();
    spares_what_was_proven(stage)
}

/// The same while the network between any two hosts, clients and operators among them, stands still for a while: longer
/// than some leases and deadlines, shorter than others.
pub fn waits_out_a_network_that_stalls(stage: &mut Stage) -> Result<(), Failure> {
    operations_run_amid(stage, Load::CALM, things_stall)
}

fn operations_run_amid(stage: &mut Stage, load: Load, trouble: Trouble) -> Result<(), Failure> {
    stage.given_a_cluster(load)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    stage.a_backup_is_taken()?;
    let mut published: BTreeMap<PointName, Scn> = BTreeMap::new();
    for round in 0..ROUNDS {
        if stage.chance().one_in(3) {
            let backup = stage.begin_backup();
            runs_amid(stage, trouble, &backup)?;
        } else {
            let point = stage.begin_point(&format!("round-{round}"));
            if let Some(Ok((_, point))) = runs_amid(stage, trouble, &point)?
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

/// Answers how an operation ended that ran amid trouble, if its operator lived to see it.
fn runs_amid<T>(stage: &mut Stage, trouble: Trouble, begun: &Begun<T>) -> Result<Option<Outcome<T>>, Failure> {
    if !trouble(stage, &begun.operator)? {
        return Ok(None);
    }
    let outcome = stage.ends(begun)?;
    if let Err(Error::Bug(what)) = &outcome {
        stage.holds(false, Violation::new("no invariant of ours breaks", what.clone()))?;
    }
    Ok(Some(outcome))
}

/// Crashes nodes, and perhaps the operator; brings the nodes back. Answers whether the operator lives.
fn things_crash(stage: &mut Stage, operator: &str) -> Result<bool, Failure> {
    let crashes = stage.chance().between(1, 4);
    let mut operator_lives = true;
    for _ in 0..crashes {
        stage.meanwhile(0, 250)?;
        if stage.chance().one_in(5) {
            stage.world().crash(operator, CrashPolicy::DropAll);
            operator_lives = false;
            continue;
        }
        let node = stage.any_node();
        stage.crash_node(node);
        stage.meanwhile(0, 600)?;
        stage.restart_node(node);
    }
    Ok(operator_lives)
}

/// Holds the traffic between pairs of hosts and lets it go again, one pair after another or two at once.
fn things_stall(stage: &mut Stage, operator: &str) -> Result<bool, Failure> {
    for _ in 0..stage.chance().between(1, 4) {
        stage.meanwhile(0, 120)?;
        let first = host(stage.any_node());
        let second = match stage.chance().below(4) {
            0 | 1 => operator.to_string(),
            2 => CLIENTS.to_string(),
            _ => host(stage.any_node()),
        };
        if first == second {
            continue;
        }
        stage.world().hold(&first, &second);
        if stage.chance().one_in(4) {
            let node = stage.any_node();
            stage.crash_node(node);
            stage.meanwhile(0, 300)?;
            stage.restart_node(node);
        }
        stage.meanwhile(20, 3_000)?;
        stage.world().release(&first, &second);
    }
    Ok(true)
}

fn every_published_point_is_reachable(stage: &mut Stage, published: &BTreeMap<PointName, Scn>) -> Result<(), Failure> {
    stage.meanwhile(500, 501)?;
    let points = stage.operate(|operator| async move { operator.points().await });
    let points = stage.succeeds("points are listed", &points)?;
    for (name, scn) in published {
        let listed = points.iter().find(|point| point.name.as_ref() == Some(name));
        let good = listed.is_some_and(|point| point.scn == *scn && point.state == PointState::Reachable);
        let detail = format!("`{name}` was published at {scn} and is listed as {listed:?}");
        stage.holds(good, Violation::new("what was published is listed and reachable", detail))?;
    }
    Ok(())
}
