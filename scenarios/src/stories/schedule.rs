//! Restore points at an interval.

use std::time::Duration;

use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::plan::Target;
use sheetanchor_engine::coordinator::Every;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::world::Failure;

use crate::cluster::host;
use crate::stage::Stage;
use crate::workload::Load;

/// The time between two points.
const INTERVAL: Duration = Duration::from_millis(300);

/// How many are taken.
const POINTS: u64 = 8;

/// Points are taken at an interval while the network holds one of them up for longer than that: the ticks that it overruns
/// are skipped and counted, none is made up for, and the beat is kept. The latest point is restored.
pub fn skips_what_a_late_point_overran(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    stage.a_backup_is_taken()?;
    let begun = stage.operate(|operator| async move {
        let every = Every { interval: INTERVAL, method: Method::Scn, prefix: "auto".parse()?, points: Some(POINTS) };
        operator.take_points_every(&every, |_| {}).await
    });
    stage.meanwhile(300, 900)?;
    let slow = host(u16::try_from(stage.chance().between(1, 4)).unwrap_or(1));
    stage.world().hold(&begun.operator, &slow);
    stage.meanwhile(1_000, 2_000)?;
    stage.world().release(&begun.operator, &slow);
    let tally = stage.succeeds("points are taken at an interval", &begun)?;
    let detail = format!("{tally:?}");
    let counted = tally.taken == POINTS && tally.failed == 0 && tally.skipped >= 2;
    stage.holds(counted, Violation::new("a late point makes the schedule skip", detail))?;
    keeps_the_beat(stage, &begun.operator)?;
    stage.meanwhile(500, 800)?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.is_restored_by_scn(Target::Latest).map(|_| ())
}

/// No two points begin within much less than the interval: that would be one which was queued.
fn keeps_the_beat(stage: &mut Stage, operator: &str) -> Result<(), Failure> {
    let milestones = stage.world().milestones(operator);
    let begun: Vec<Duration> =
        milestones.iter().filter(|event| event.what.ends_with("phase=enlisting")).map(|event| event.at).collect();
    let ended: Vec<Duration> =
        milestones.iter().filter(|event| event.what.ends_with("phase=ended")).map(|event| event.at).collect();
    let queued =
        ended.iter().zip(begun.iter().skip(1)).filter(|(end, begin)| begin.saturating_sub(**end) < GAP_MIN).count();
    let detail = format!("begun at {begun:?}, ended at {ended:?}: {queued} at once after the one before");
    stage.holds(queued <= 1, Violation::new("no restore point is queued", detail))
}

/// A point that begins sooner after the end of the one before was waiting for it. One may do so by chance, at the end of
/// the late one.
const GAP_MIN: Duration = Duration::from_millis(60);
