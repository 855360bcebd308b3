//! Evidence: a backup and a restore point are promises, and each is checked against what lies in the repository.

use std::time::Duration;

use sheetanchor_core::plan::Target;
use sheetanchor_core::refusal::Code;
use sheetanchor_core::views::points::PointState;
use sheetanchor_sim::gate::PutTrouble;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::world::Failure;

use super::point::named_point;
use crate::cluster::host;
use crate::stage::Stage;
use crate::workload::Load;

/// A phase comes within this.
const SOON: Duration = Duration::from_secs(30);

/// D14: a point is published, and a node loses its disk before it has archived its WAL: the point is not listed as
/// reachable, restoring to it is refused, and the newest target says that it passed it over.
pub fn of_a_point_is_its_wal(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    stage.a_backup_is_taken()?;
    let kept = stage.a_point_is_taken("kept")?;
    stage.the_point_becomes_reachable("kept")?;
    // Its archiver stands still from the next piece on.
    let node = if stage.chance().one_in(2) { 2 } else { 3 };
    stage.world().trouble_next_put(&host(node), PutTrouble::Waits(Duration::from_secs(20)));
    stage.meanwhile(800, 1_200)?;
    stage.a_point_is_taken("lost")?;
    stage.meanwhile(300, 600)?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    let listed = stage.point_is_listed_as("lost")?;
    let is_no_target = listed.is_some_and(|state| state != PointState::Reachable);
    stage.holds(is_no_target, Violation::new("listed means reachable", format!("{listed:?}")))?;
    let planned = stage.begin_plan(named_point("lost"));
    stage.is_refused("a plan to a point whose WAL was lost", &planned, &[Code::NotReachable])?;
    let restore = stage.begin_restore(named_point("lost"));
    stage.is_refused("a restore to a point whose WAL was lost", &restore, &[Code::NotReachable])?;
    let latest = stage.begin_plan(Target::Latest);
    let latest = stage.succeeds("there is a newest target", &latest)?;
    let told = latest.passed_over.iter().any(|why| why.code == Code::NotReachable && why.to_string().contains("lost"));
    let silent = Violation::new("`latest` says what it passed over", format!("{:?}", latest.passed_over));
    stage.holds(told, silent)?;
    let restored = stage.is_restored(Target::Latest)?;
    let cut = restored.plan.cut.scn;
    let rounded = Violation::new("`latest` is the newest that is reachable", format!("{cut}, not {}", kept.cut.scn));
    stage.holds(cut == kept.cut.scn, rounded)
}

/// L11: pins are no part of a backup. Two run at once, each with its pin on every node while files are copied; what is
/// restored of either has none of them.
pub fn brings_no_pins_along(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    let backup = stage.begin_backup();
    let other = stage.begin_backup();
    for begun in [&backup, &other] {
        stage.world().run_until_milestone(&begun.operator, "phase=capturing", SOON)?;
    }
    let pinned = stage.pinned()?;
    let bare = Violation::new("a backup that copies files has its pins", format!("{pinned:?}"));
    stage.holds(pinned.values().all(|pins| !pins.is_empty()), bare)?;
    let taken = stage.succeeds("a backup beside another", &backup)?;
    stage.succeeds("a backup beside another", &other)?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.is_restored(Target::Backup(taken.operation))?;
    stage.nothing_is_pinned("a restored node owns no pins")?;
    stage.history_goes_on();
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    stage.a_backup_is_taken()?;
    stage.transfers_end()?;
    stage.nothing_is_pinned("a backup that ended leaves no pin")
}
