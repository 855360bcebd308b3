//! Nodes that share nothing but their clients, as PostgreSQL servers do: each has a database of its own.

use std::time::Duration;

use sheetanchor_core::format::catalog::{Guarantee, Point};
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::world::Failure;

use super::point::named_point;
use crate::cluster::host;
use crate::stage::Stage;
use crate::workload::Load;

/// Sessions commit on one database after the other, and carry nothing; clocks differ, and the cut reaches one node late. A
/// fenced point is causal all the same; and it says so, and no more: nothing ties the commits of two databases together.
pub fn are_fenced_causally(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_separate_databases(Load::HOPPING)?;
    let (fast, slow) = (host(1), host(3));
    let ahead_ms = i64::try_from(stage.chance().between(60, 250)).unwrap_or(0);
    stage.world().set_wall_clock(&fast, ahead_ms);
    stage.world().set_wall_clock(&slow, -ahead_ms);
    stage.transfers_begin();
    stage.meanwhile(100, 300)?;
    stage.a_backup_is_taken()?;
    stage.meanwhile(20, 300)?;
    let point = stage.begin_point("fenced");
    stage.world().run_until_milestone(&point.operator, "phase=draining", Duration::from_secs(30))?;
    stage.meanwhile(0, 6)?;
    stage.world().hold(&point.operator, &slow);
    stage.meanwhile(50, 300)?;
    stage.world().release(&point.operator, &slow);
    let (_, point) = stage.succeeds("a restore point outlives a slow network", &point)?;
    is_causal_and_no_more(stage, &point)?;
    stage.the_point_becomes_reachable("fenced")?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.is_restored(named_point("fenced")).map(|_| ())
}

/// The same by SCN, for a session that carries it from database to database: nobody waits.
pub fn are_cut_by_scn(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_separate_databases(Load::CARRYING)?;
    stage.world().set_wall_clock(&host(1), 200);
    stage.world().set_wall_clock(&host(3), -200);
    stage.transfers_begin();
    stage.meanwhile(100, 300)?;
    stage.a_backup_is_taken()?;
    stage.meanwhile(20, 300)?;
    let point = stage.begin_point_by_scn("marked");
    stage.world().run_until_milestone(&point.operator, "phase=enlisting", Duration::from_secs(30))?;
    stage.meanwhile(0, 6)?;
    stage.world().hold(&point.operator, &host(3));
    stage.meanwhile(50, 300)?;
    stage.world().release(&point.operator, &host(3));
    let (_, point) = stage.succeeds("a point by SCN outlives a slow network", &point)?;
    is_causal_and_no_more(stage, &point)?;
    stage.the_point_becomes_reachable("marked")?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.is_restored(named_point("marked")).map(|_| ())
}

fn is_causal_and_no_more(stage: &mut Stage, point: &Point) -> Result<(), Failure> {
    let detail = format!("a point over separate databases says {:?}", point.guarantee);
    stage.holds(point.guarantee == Guarantee::Causal, Violation::new("a guarantee is never overstated", detail))
}
