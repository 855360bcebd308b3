//! WAL that has no room: it is let go of, and everybody is told.

use std::time::Duration;

use sheetanchor_core::plan::Target;
use sheetanchor_core::refusal::Code;
use sheetanchor_core::scn::Scn;
use sheetanchor_core::views::pitr::pitr_status;
use sheetanchor_core::views::points::PointState;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::world::Failure;

use super::point::named_point;
use crate::stage::Stage;
use crate::workload::Load;

/// A phase comes within this.
const SOON: Duration = Duration::from_secs(30);

/// How long a node cannot reach the repository, in milliseconds: long enough that WAL is let go of, and gone.
const OUT_OF_REACH_MS: (u64, u64) = (6_000, 9_000);

/// What the end of a backup may be whose node has crashed besides.
const CRASHED: [Code; 5] = [Code::PinLost, Code::LifeChanged, Code::NodeSilent, Code::OutOfOrder, Code::ArchiveBehind];

/// A node's archive stands still, then it cannot reach the repository at all, and more WAL waits than may: it declares a hole,
/// lets go, and perhaps loses power meanwhile. Once the repository is back it shows the hole, and the archive goes on. What
/// needs the WAL is refused and says why; what lies before is restored, and so is a new backup.
pub fn is_declared_before_wal_is_let_go_of(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster_with_little_room(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    let first = stage.a_backup_is_taken()?;
    stage.a_point_is_taken("before")?;
    stage.the_point_becomes_reachable("before")?;

    let node = stage.any_node();
    stage.the_archive_stands_still_on(node)?;
    let within = stage.a_point_is_taken("within")?;
    let across = stage.begin_backup();
    stage.world().run_until_milestone(&across.operator, "phase=archiving", SOON)?;
    let (from_ms, until_ms) = OUT_OF_REACH_MS;
    let for_ms = stage.chance().between(from_ms, until_ms);
    stage.the_repository_is_out_of_reach_of(node, for_ms);
    let crashed = stage.a_node_lets_go_of_wal(node)?;
    let codes = if crashed { &CRASHED[..] } else { &[Code::PinLost] };
    stage.is_refused("a backup across a hole", &across, codes)?;
    stage.a_node_has(node, "recorded")?;

    nothing_passes(stage, "within", within.cut.scn)?;
    every_hole_is_declared(stage, true)?;
    let verify = stage.begin_verify(first.operation);
    stage.succeeds("a backup beside a hole is whole", &verify)?;
    stage.a_backup_is_taken()?;
    every_hole_is_declared(stage, false)?;
    stage.a_point_is_taken("after")?;
    stage.the_point_becomes_reachable("after")?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    let through = stage.begin_restore(named_point("within"));
    stage.is_refused("a restore through a hole", &through, &[Code::WalGap])?;
    let target = stage.any_of(&["before", "after"]).unwrap_or("after");
    stage.is_restored(named_point(target)).map(|_| ())
}

/// A point whose record was let go of is no target, and neither is its SCN: the refusal names the hole, and the view does.
fn nothing_passes(stage: &mut Stage, name: &str, scn: Scn) -> Result<(), Failure> {
    let listed = stage.point_is_listed_as(name)?;
    let is_lost = listed == Some(PointState::Lost);
    stage.holds(is_lost, Violation::new("a point in a declared hole is lost", format!("{listed:?}")))?;
    for target in [named_point(name), Target::Scn(scn)] {
        let plan = stage.begin_plan(&target);
        let refused = match stage.ends(&plan)? {
            Err(error) => error.refusal().filter(|why| why.code == Code::WalGap).map(ToString::to_string),
            Ok(_) => None,
        };
        let says = refused.as_ref().is_some_and(|why| why.contains("is a hole, declared at"));
        let detail = format!("{target}: {refused:?}");
        stage.holds(says, Violation::new("nothing passes a declared hole, and the refusal names it", detail))?;
    }
    Ok(())
}

/// All WAL that is missing was declared, and a backup is asked for if one is `wanted`.
fn every_hole_is_declared(stage: &mut Stage, wanted: bool) -> Result<(), Failure> {
    let scene = stage.scene()?;
    let rows = pitr_status(&scene);
    let holes: Vec<_> = rows.iter().flat_map(|row| &row.holes).collect();
    let all = !holes.is_empty() && holes.iter().all(|hole| hole.declared.is_some());
    stage.holds(all, Violation::new("no gap is silent", format!("{holes:?}")))?;
    let asked = !scene.holes_without_backup().is_empty();
    let detail = format!("asked for: {asked}, of {holes:?}");
    stage.holds(asked == wanted, Violation::new("a hole asks for a backup until there is one", detail))
}
