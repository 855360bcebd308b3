//! A whole day.

use std::time::Duration;

use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::identity::Incarnation;
use sheetanchor_core::plan::{Aim, Target};
use sheetanchor_core::views::points::PointState;
use sheetanchor_engine::coordinator::Every;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::world::Failure;

use crate::stage::Stage;
use crate::workload::Load;

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// A backup each hour, the first one at once.
const HOURS: u32 = 24;
/// A restore point each minute.
const POINTS: u64 = 24 * 60;
/// Points that are restored in the end, drawn from the seed.
const RESTORES: u64 = 2;

/// Clients work for a day, while a restore point is taken by the fence every minute and a backup every hour. No point fails
/// or is skipped, backups and points never stand in each other's way, and points drawn from all over the day are restored,
/// each from scratch: the database is exactly the committed history up to the cut.
pub fn ends_in_restores(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster_at_leisure(Load::DAILY)?;
    stage.transfers_begin();
    stage.a_backup_is_taken()?;
    let begun = stage.world().elapsed();
    let points = stage.operate(|operator| async move {
        let every = Every { interval: MINUTE, method: Method::Fence, prefix: "minute".parse()?, points: Some(POINTS) };
        operator.take_points_every(&every, |_| {}).await
    });
    for hour in 1..=HOURS {
        let passed = stage.world().elapsed().saturating_sub(begun);
        stage.world().run_for((HOUR * hour).saturating_sub(passed))?;
        if hour < HOURS {
            stage.a_backup_is_taken()?;
        }
    }
    let tally = stage.succeeds("points are taken all day", &points)?;
    let whole = (tally.taken, tally.failed, tally.skipped) == (POINTS, 0, 0);
    stage.holds(whole, Violation::new("points and backups do not stand in each other's way", format!("{tally:?}")))?;
    stage.transfers_end()?;
    stage.meanwhile(60_000, 90_000)?;

    let listed = stage.operate(|operator| async move { operator.points().await });
    let listed = stage.succeeds("points are listed", &listed)?;
    let reachable: Vec<_> = listed
        .into_iter()
        .filter(|point| point.state == PointState::Reachable)
        .filter_map(|point| point.name)
        .collect();
    let named = u64::try_from(reachable.len()).unwrap_or(0);
    let detail = format!("{named} points of {POINTS} are reachable");
    stage.holds(named == POINTS, Violation::new("the archive reaches what was published", detail))?;
    let history = stage.history();
    for _ in 0..RESTORES {
        let drawn = usize::try_from(stage.chance().below(named)).unwrap_or(0);
        let Some(name) = reachable.get(drawn) else { continue };
        stage.everything_is_lost()?;
        stage.history_is(history.clone());
        stage.is_restored(Aim::from(Target::Name(name.clone())).of_incarnation(Incarnation::new(1)))?;
    }
    Ok(())
}
