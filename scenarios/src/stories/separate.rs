//! Nodes that share nothing but their clients, as PostgreSQL servers do: each has a database of its own.

use sheetanchor_core::format::catalog::{Guarantee, Point};
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::world::Failure;

use crate::stage::Stage;
use crate::workload::Load;

/// Sessions commit on one database after the other, and carry nothing; clocks differ, and the cut reaches one node late. A
/// fenced point is causal all the same; and it says so, and no more: nothing ties the commits of two databases together.
pub fn are_fenced_causally(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_separate_databases(Load::HOPPING)?;
    let skew_ms = stage.any_skew_ms();
    let point =
        stage.a_cut_reaches_the_slow_node_late(skew_ms, |stage| stage.begin_point("fenced"), "phase=draining")?;
    is_causal_and_no_more(stage, &point)?;
    stage.the_point_is_restored("fenced")
}

/// The same by SCN, for a session that carries it from database to database: nobody waits.
pub fn are_cut_by_scn(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_separate_databases(Load::CARRYING)?;
    let begin = |stage: &mut Stage| stage.begin_point_by_scn("marked");
    let point = stage.a_cut_reaches_the_slow_node_late(200, begin, "phase=enlisting")?;
    is_causal_and_no_more(stage, &point)?;
    stage.the_point_is_restored("marked")
}

fn is_causal_and_no_more(stage: &mut Stage, point: &Point) -> Result<(), Failure> {
    let detail = format!("a point over separate databases says {:?}", point.guarantee);
    stage.holds(point.guarantee == Guarantee::Causal, Violation::new("a guarantee is never overstated", detail))
}
