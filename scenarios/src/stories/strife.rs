//! The general story of the database itself: nodes fight for few pages and fail one by one, while the others go on. The bugs
//! that it claims to see are samples.

use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::identity::PointName;
use sheetanchor_core::plan::{Aim, Target};
use sheetanchor_core::scn::Scn;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::oracle::ledger::{check_cut, check_restored, check_restored_by_scn};
use sheetanchor_sim::world::Failure;

use crate::cluster::{NODES, PIN_LEASE, host};
use crate::stage::Stage;
use crate::workload::{Load, SPARE};

/// Few rows that everybody writes; sessions whose commits nothing but time ties together; each node for itself, too.
const LOADS: [Load; 4] = [
    Load { spare: SPARE, pause_ms_max: 16, ..Load::CROWDED },
    Load { accounts: 6, spare: SPARE, roaming: 3, at_home: false, pause_ms_max: 12, ..Load::SPREAD },
    Load { spare: SPARE, hopping: 2, pause_ms_max: 6, ..Load::HOPPING },
    Load { spare: SPARE, pause_ms_max: 30, ..Load::SPREAD },
];

/// Where a fenced point, and one by SCN, may be struck.
const FENCED: [&str; 9] = [
    "phase=closing",
    "phase=closing",
    "phase=closing",
    "phase=closing",
    "phase=draining",
    "phase=drained",
    "phase=cut",
    "phase=released",
    "phase=flushed",
];
const BY_SCN: [&str; 3] = ["phase=enlisting", "phase=marking", "phase=marked"];

/// A cut that was published.
struct Mark {
    name: PointName,
    scn: Scn,
    method: Method,
    begun: u64,
    published: u64,
}

/// Nodes are struck at bad moments, points and backups meanwhile in any of their phases. Whenever clients pause, every node
/// shows all that was acknowledged, and the same; and any point that was published amid all this is restored as it was.
pub fn loses_nothing_acknowledged(stage: &mut Stage) -> Result<(), Failure> {
    let load = stage.any_of(&LOADS).unwrap_or(Load::CROWDED);
    if load.hopping > 0 || stage.chance().one_in(2) {
        clocks_are_off(stage);
    }
    stage.given_a_cluster(load)?;
    stage.transfers_begin();
    stage.meanwhile(40, 120)?;
    let backup = stage.begin_backup();
    let ended = stage.ends_amid_faults(&backup)?;
    stage.is_backed_up_in_the_end(ended)?;
    stage.faults_begin();
    let mut marks = Vec::new();
    for round in 0..stage.chance().between(2, 5) {
        for _ in 0..stage.chance().between(1, 3) {
            stage.a_node_is_struck()?;
        }
        a_point_is_struck(stage, &format!("struck-{round}"), &mut marks)?;
        if stage.chance().one_in(2) {
            stage.transfers_end()?;
            stage.all_nodes_hold_what_was_acknowledged()?;
            stage.transfers_begin();
        }
        stage.meanwhile(0, 120)?;
    }
    stage.what_was_begun_is_aborted()?;
    for attempt in 0..8 {
        if a_point_ends(stage, &format!("last-{attempt}"), &mut marks)? {
            break;
        }
        stage.meanwhile(600, 800)?;
        stage.what_stopped_is_started_anew(attempt % 3 == 2)?;
    }
    stage.transfers_end()?;
    stage.all_nodes_hold_what_was_acknowledged()?;
    for mark in &marks {
        let Mark { scn, begun, published, .. } = *mark;
        let verdict = check_cut(&stage.history(), scn, begun, published, mark.method == Method::Fence);
        stage.world().judge(verdict)?;
        stage.is_reachable_in_the_end(&mark.name, mark.scn)?;
    }
    stage.nothing_stays_pinned(PIN_LEASE)?;
    stage.everything_is_lost()?;
    any_mark_is_restored(stage, &marks)
}

/// Every node's wall clock jumps.
fn clocks_are_off(stage: &mut Stage) {
    for node in NODES {
        let skew = i64::try_from(stage.chance().below(500)).unwrap_or(0) - 250;
        stage.world().set_wall_clock(&host(node), skew);
    }
}

fn a_point_is_struck(stage: &mut Stage, name: &str, marks: &mut Vec<Mark>) -> Result<(), Failure> {
    let (by_scn, begun) = (stage.chance().one_in(3), stage.history().now());
    let point = if by_scn { stage.begin_point_by_scn(name) } else { stage.begin_point(name) };
    let phases = if by_scn { &BY_SCN[..] } else { &FENCED[..] };
    stage.an_operation_is_struck(&point.operator, phases)?;
    let method = if by_scn { Method::Scn } else { Method::Fence };
    if let (Ok((_, point)), Ok(name)) = (stage.ends_amid_faults(&point)?, name.parse()) {
        marks.push(Mark { name, scn: point.cut.scn, method, begun, published: stage.history().now() });
    }
    Ok(())
}

fn a_point_ends(stage: &mut Stage, name: &str, marks: &mut Vec<Mark>) -> Result<bool, Failure> {
    let begun = stage.history().now();
    let point = stage.begin_point(name);
    let (Ok((_, point)), Ok(name)) = (stage.ends_amid_faults(&point)?, name.parse()) else { return Ok(false) };
    let published = stage.history().now();
    marks.push(Mark { name, scn: point.cut.scn, method: Method::Fence, begun, published });
    Ok(true)
}

/// The first ones most often: what was published while nothing was well.
fn any_mark_is_restored(stage: &mut Stage, marks: &[Mark]) -> Result<(), Failure> {
    let drawn = if stage.chance().one_in(3) { marks.last() } else { marks.first() };
    let Some(mark) = drawn else {
        return stage
            .holds(false, Violation::new("a point is taken once the faults are over", "eight attempts failed"));
    };
    if stage.chance().one_in(2) {
        stage.whoever_stages_will_lose_power();
    }
    // What nothing but time ties together is cut apart without a fence.
    let check = if mark.method == Method::Fence { check_restored } else { check_restored_by_scn };
    let restored = stage.is_restored_in_the_end_by(&Aim::from(Target::Name(mark.name.clone())), check)?;
    let (asked, cut) = (mark.scn, restored.plan.cut.scn);
    let detail = format!("asked for {asked}, restored to {cut}");
    stage.holds(cut == asked, Violation::new("a target is never rounded", detail))?;
    stage.history_goes_on();
    stage.transfers_begin();
    stage.meanwhile(40, 120)?;
    stage.transfers_end()?;
    stage.all_nodes_hold_what_was_acknowledged()?;
    stage.nobody_told_of_damage()
}
