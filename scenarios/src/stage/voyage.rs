//! More verbs for runs in which faults strike by plan: what holds in the end, over several incarnations.

use std::time::Duration;

use sheetanchor_core::identity::{OperationId, PointName};
use sheetanchor_core::request::PinSeen;
use sheetanchor_core::scn::Scn;
use sheetanchor_core::views::points::PointState;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::world::Failure;

use super::Stage;

/// How often it is looked whether something has come about, and how long between.
const LOOKS: u32 = 40;
const BETWEEN: Duration = Duration::from_millis(250);

/// Fewer rows than the pages of any load hold, with room for some more.
const ROWS_MAX: usize = 120;

impl Stage {
    /// When: more faults strike from here on, if the run draws any.
    pub fn more_faults(&mut self) {
        let first = core::mem::replace(&mut self.swept_from, self.world.all_passes());
        let drawn = self.any_plan();
        self.swept_from = first;
        self.arm_if_drawn(drawn);
    }

    /// When: an operator ends what has no outcome yet, whoever carries it on.
    pub fn what_was_begun_is_aborted(&mut self) -> Result<(), Failure> {
        let status = self.works_in_the_end("status is shown", |operator| async move { operator.status().await })?;
        for operation in status.unfinished {
            // Its outcome may be decided meanwhile; then there is nothing to abort.
            let aborted = self.operate(move |operator| async move { operator.abort(operation).await });
            drop(self.ends_amid_faults(&aborted)?);
        }
        Ok(())
    }

    /// The cut of the newest backup of the incarnation in force.
    pub fn newest_backup_in_the_end(&mut self) -> Result<Option<Scn>, Failure> {
        let status = self.works_in_the_end("status is shown", |operator| async move { operator.status().await })?;
        Ok(status.backups.last().map(|(_, seal)| seal.cut.scn))
    }

    /// Then: a point that was published is listed with its cut, and the archive reaches it.
    pub fn is_reachable_in_the_end(&mut self, name: &PointName, scn: Scn) -> Result<(), Failure> {
        let mut listed = None;
        for look in 1..=LOOKS {
            let points =
                self.works_in_the_end("points are listed", |operator| async move { operator.points().await })?;
            listed = points.into_iter().find(|point| point.name.as_ref() == Some(name));
            if listed.as_ref().is_some_and(|point| point.scn == scn && point.state == PointState::Reachable) {
                return Ok(());
            }
            self.world.run_for(BETWEEN)?;
            // A database that a failing disk has stopped archives nothing, and its agent lives.
            self.what_stopped_is_started_anew(look.is_multiple_of(8))?;
        }
        let detail = format!("`{name}` was published at {scn} and is listed as {listed:?}");
        self.holds(false, Violation::new("what was published is listed and reachable", detail))
    }

    /// Then: once the leases are over, nothing is pinned by any operation.
    pub fn nothing_stays_pinned(&mut self, lease: Duration) -> Result<(), Failure> {
        // An agent may be started anew meanwhile, and begins a lease again; and it finds only after half of one what it failed
        // to let go of.
        let until = self.world.elapsed() + lease * 3;
        loop {
            let pins = self.works_in_the_end("pins are listed", |operator| async move { operator.pins().await })?;
            let of_operation = |pin: &PinSeen| pin.name.parse::<OperationId>().is_ok();
            let pinned: Vec<PinSeen> = pins.into_values().flatten().filter(of_operation).collect();
            if pinned.is_empty() || self.world.elapsed() > until {
                return self.holds(pinned.is_empty(), Violation::new("an orphaned pin expires", format!("{pinned:?}")));
            }
            self.world.run_for(BETWEEN * 4)?;
        }
    }

    /// Then: commits are acknowledged again, though not at once: a node may have to be started anew.
    pub fn commits_flow_in_the_end(&mut self) -> Result<(), Failure> {
        let before = self.history().acknowledged_count();
        if before > ROWS_MAX {
            // Pages that are full of rows take no more of them, which is no fault of anybody's.
            self.world.note(format!("not asked whether commits flow: pages may be full of {before}"));
            return Ok(());
        }
        for look in 1..=LOOKS {
            if self.history().acknowledged_count() > before {
                return Ok(());
            }
            self.world.run_for(BETWEEN)?;
            self.what_stopped_is_started_anew(look.is_multiple_of(8))?;
        }
        self.holds(false, Violation::new("commits flow in the end", format!("none since the {before}th")))
    }

    /// When: somebody starts what has stopped, and `all` of it if a database may have stopped beside a living agent.
    pub fn what_stopped_is_started_anew(&mut self, all: bool) -> Result<(), Failure> {
        self.what_stopped_is_started();
        if all { self.all_is_started_anew() } else { Ok(()) }
    }
}
