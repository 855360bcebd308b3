//! Clocks that differ, and a cut that reaches the slow node late: what only causality keeps whole.

use std::time::Duration;

use sheetanchor_core::format::catalog::Point;
use sheetanchor_core::identity::OperationId;
use sheetanchor_core::plan::Target;
use sheetanchor_sim::world::Failure;

use super::{Begun, Stage};
use crate::cluster::host;

impl Stage {
    /// How far clocks are off, either way: drawn from the seed.
    pub fn any_skew_ms(&self) -> i64 {
        i64::try_from(self.chance.between(60, 250)).unwrap_or(0)
    }

    /// When: node 1's clock is ahead and node 3's behind; clients work, a backup is taken, and a point is begun whose
    /// requests node 3 gets late, from `phase` on. It succeeds.
    pub fn a_cut_reaches_the_slow_node_late(
        &mut self,
        skew_ms: i64,
        begin: impl FnOnce(&mut Self) -> Begun<(OperationId, Point)>,
        phase: &str,
    ) -> Result<Point, Failure> {
        let (fast, slow) = (host(1), host(3));
        self.world.set_wall_clock(&fast, skew_ms);
        self.world.set_wall_clock(&slow, -skew_ms);
        self.transfers_begin();
        self.meanwhile(100, 300)?;
        self.a_backup_is_taken()?;
        self.meanwhile(20, 300)?;
        let point = begin(self);
        self.world.run_until_milestone(&point.operator, phase, Duration::from_secs(30))?;
        self.meanwhile(0, 6)?;
        self.world.hold(&point.operator, &slow);
        self.meanwhile(50, 300)?;
        self.world.release(&point.operator, &slow);
        Ok(self.succeeds("a point outlives a slow network", &point)?.1)
    }

    /// Then: the point becomes a target; everything is lost, and restored to it.
    pub fn the_point_is_restored(&mut self, name: &str) -> Result<(), Failure> {
        self.the_point_becomes_reachable(name)?;
        self.transfers_end()?;
        self.everything_is_lost()?;
        let target = name.parse().map_or(Target::Latest, Target::Name);
        self.is_restored(target).map(|_| ())
    }
}
