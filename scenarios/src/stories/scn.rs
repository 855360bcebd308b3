//! Points by SCN, and the clock that they stand on.

use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::format::keys;
use sheetanchor_core::identity::ThreadId;
use sheetanchor_core::scn::Scn;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::world::Failure;

use super::point::named_point;
use crate::cluster::{NODES, host};
use crate::stage::Stage;
use crate::workload::Load;

/// A backup and points are cut by SCN amid transfers: no fence ever closes, so no commit ever waits; and one of the
/// points, drawn from the seed, is restored.
pub fn holds_no_commit_back(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    let backup = stage.operate(|operator| async move { operator.backup(None, Method::Scn).await });
    stage.succeeds("a backup by SCN succeeds", &backup)?;
    for name in ["scn-1", "scn-2", "scn-3"] {
        stage.meanwhile(0, 200)?;
        let point = stage.a_point_is_taken_by_scn(name)?;
        let behind = stage.history().last_scn().unwrap_or_default();
        let told = format!("`{name}` is cut at {} by {:?}", point.cut.scn, point.method);
        stage.holds(point.method == Method::Scn, Violation::new("a point says how it was taken", told))?;
        stage.world().note(format!("{name} at {}, commits went on to {behind}", point.cut.scn));
    }
    stage.the_point_becomes_reachable("scn-3")?;
    stage.transfers_end()?;
    no_fence_ever_closed(stage)?;
    stage.everything_is_lost()?;
    let chosen = format!("scn-{}", stage.chance().between(1, 4));
    stage.is_restored_by_scn(named_point(&chosen)).map(|_| ())
}

/// A commit waits for nothing but a closed fence.
fn no_fence_ever_closed(stage: &mut Stage) -> Result<(), Failure> {
    for node in NODES {
        let name = host(node);
        let closed = stage.world().milestones(&name).iter().find(|event| event.what.contains("fence closed")).cloned();
        let detail = format!("{name}: {closed:?}");
        stage.holds(closed.is_none(), Violation::new("no commit waits for a point by SCN", detail))?;
    }
    Ok(())
}

/// D8. A session commits on a node, is told so, and commits on the next, whose clock is slow; it carries the SCN. Cuts by
/// SCN, which reach the slow node late, never hold the second without the first.
pub fn is_causal_for_sessions_that_carry_it(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::CARRYING)?;
    let skew_ms = stage.any_skew_ms();
    stage.a_cut_reaches_the_slow_node_late(skew_ms, |stage| stage.begin_point_by_scn("skewed"), "phase=enlisting")?;
    stage.the_point_is_restored("skewed")
}

/// D7. Nodes observe the cut's SCN, the point is published, they crash and come back with slow clocks: what they commit
/// then is stamped above the cut, and the point is restored without it.
pub fn is_never_stamped_below_again(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.world().set_wall_clock(&host(1), 250);
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    stage.a_backup_is_taken()?;
    stage.transfers_end()?;
    stage.a_point_is_taken_by_scn("before")?;
    // At once, when the barriers have just been written; or when a checkpoint has passed them and no other has come.
    if stage.chance().one_in(3) {
        stage.meanwhile(0, 30)?;
    } else {
        stage.meanwhile(450, 950)?;
    }
    for node in NODES {
        stage.crash_node(node);
        stage.world().set_wall_clock(&host(node), -5_000);
        stage.restart_node(node);
    }
    stage.nodes_are_back()?;
    stage.transfers_begin();
    stage.commits_flow_again_within_the_lease()?;
    stage.meanwhile(300, 800)?;
    stage.the_point_is_restored("before")
}

/// One thread is idle while the others work: the archive's reach, which is that of its slowest thread, moves on.
pub fn reaches_on_past_an_idle_thread(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(300, 600)?;
    stage.a_backup_is_taken()?;
    stage.transfers_end()?;
    let last = stage.history().last_scn().unwrap_or_default();
    stage.meanwhile(2_500, 4_000)?;
    let reach = archive_reach(stage)?;
    let detail = format!(
        "the archive reaches {reach}, {} ms past the last commit",
        reach.millis().saturating_sub(last.millis())
    );
    stage.holds(
        reach.millis() > last.millis() + 1_000,
        Violation::new("the archive's reach moves on while nodes are idle", detail),
    )?;
    stage.a_point_is_taken_by_scn("idle")?;
    stage.the_point_becomes_reachable("idle")?;
    stage.everything_is_lost()?;
    stage.is_restored(named_point("idle")).map(|_| ())
}

/// The least of the threads' last archived stamps.
fn archive_reach(stage: &mut Stage) -> Result<Scn, Failure> {
    let read = stage.operate(|operator| async move {
        let repository = operator.repository().clone();
        let (incarnation, ..) = repository.current_incarnation().await?;
        let mut reach: Option<Scn> = None;
        for node in NODES {
            let prefix = keys::wal_thread(incarnation, ThreadId::new(node));
            let newest = repository.bucket().list(&prefix).await?.pop();
            let last = match newest {
                Some(key) => repository.wal_header(&key).await?.scn_last.unwrap_or_default(),
                None => Scn::ZERO,
            };
            reach = Some(reach.map_or(last, |reach| reach.min(last)));
        }
        Ok(reach.unwrap_or_default())
    });
    stage.succeeds("the archive is read", &read)
}
