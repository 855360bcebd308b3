//! Restore points at an interval.

use alloc::format;
use core::time::Duration;

use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::format::catalog::{Method, Point};
use sheetanchor_core::identity::{OperationId, PointName};
use sheetanchor_core::schedule::{Schedule, Tally};

use super::Coordinator;
use crate::pump::asked;

/// Which points are taken, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Every {
    /// The time between two points.
    pub interval: Duration,
    /// How the nodes are cut.
    pub method: Method,
    /// What the points' names begin with; the time of each follows, in milliseconds.
    pub prefix: PointName,
    /// To end after so many points, published or not; `None` to go on until the operator wants an end.
    pub points: Option<u64>,
}

/// What became of one tick.
#[derive(Debug)]
pub struct Tick {
    /// The point, or why there is none.
    pub outcome: Result<(OperationId, Point)>,
    /// How many ticks it made the schedule skip.
    pub skipped: u64,
    /// All ticks so far.
    pub tally: Tally,
}

impl Coordinator {
    /// Takes restore points at an interval, one at a time, and shows each. One that is late makes the schedule skip: none is
    /// queued. One that fails is counted, and the next is tried at its time.
    ///
    /// # Errors
    /// What keeps every point from being taken: `0A000`, a repository or membership that does not fit, a bad name.
    pub async fn take_points_every(&self, every: &Every, mut show: impl FnMut(&Tick) + Send) -> Result<Tally> {
        let mut footing = self.footing().await?;
        self.check_primitive(&mut footing, every.method).await?;
        let clock = &self.env.clock;
        let mut schedule = Schedule::new(clock.now(), every.interval);
        loop {
            let Tally { taken, failed, .. } = schedule.tally();
            if every.points.is_some_and(|points| taken + failed >= points) || !self.waits_until(&schedule).await {
                return Ok(schedule.tally());
            }
            let name: PointName = format!("{}-{}", every.prefix, clock.wall().get()).parse()?;
            let outcome = self.create_point_by(name, every.method).await;
            if let Err(error @ Error::Bug(_)) = outcome {
                return Err(error);
            }
            let skipped = schedule.ended(clock.now(), outcome.is_ok());
            if skipped > 0 {
                tracing::warn!(target: "sheetanchor::phase", skipped, phase = "skipped");
            }
            show(&Tick { outcome, skipped, tally: schedule.tally() });
        }
    }

    /// Waits until a point is due; false if the operator wants an end before that.
    async fn waits_until(&self, schedule: &Schedule) -> bool {
        tokio::select! {
            biased;
            () = asked(&self.cancel) => false,
            () = self.env.clock.sleep_until(schedule.due()) => true,
        }
    }
}
