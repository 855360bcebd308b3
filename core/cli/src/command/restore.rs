//! `restore`.

use std::path::Path;

use serde_json::json;
use sheetanchor_core::format::manifest::Plan;
use sheetanchor_core::identity::ByteCount;
use sheetanchor_engine::coordinator::{Manner, Planned, Restored};

use super::backup::meaning;
use crate::args::RestoreArguments;
use crate::connect::Connected;
use crate::report::Result;
use crate::screen::{Screen, Table, bytes, lines};

/// Restores, takes a restore up again, or shows what a restore would do.
///
/// # Errors
/// The restore's own.
pub async fn run(file: &Path, screen: &Screen, arguments: &RestoreArguments) -> Result<()> {
    let (aim, resumed) = (arguments.aim()?, arguments.resume.as_deref().map(str::parse).transpose()?);
    let connected = Connected::new(file, screen)?;
    let coordinator = &connected.coordinator;
    if arguments.dry_run {
        let planned = coordinator.plan_restore(&aim).await?;
        let passed_over: Vec<String> = planned.passed_over.iter().map(ToString::to_string).collect();
        let value = json!({ "plan": planned.plan, "resolved": planned.resolved, "passed_over": passed_over });
        return screen.result(&preview(&planned), &value);
    }
    let manner = Manner { stop: arguments.stop, anew: arguments.anew };
    let restored = if let Some(operation) = resumed {
        connected.watched(coordinator.resume(operation)).await?
    } else {
        connected.watched(coordinator.restore_in(&aim, manner)).await?
    };
    let value = json!({ "restore": restored.operation, "plan": restored.plan, "is_open": restored.is_open });
    screen.result(&describe(&restored), &value)
}

fn preview(planned: &Planned) -> String {
    let passed = lines(planned.passed_over.iter().map(|why| format!("passed over: {why}")));
    let plan = &planned.plan;
    format!(
        "{passed}asked for {}\nwould restore to {}, at SCN {} of incarnation {}{}, and open incarnation {}\n{}\n{}\nnothing was changed\n",
        plan.target,
        planned.resolved,
        plan.cut.scn,
        plan.incarnation,
        moment(plan),
        plan.opens,
        guarantee(plan),
        steps(plan),
    )
}

/// The wall time of the cut, and how far off it may be.
fn moment(plan: &Plan) -> String {
    let bound = std::time::Duration::from_millis(plan.resolved.clock_bound_ms);
    plan.resolved.time_ms.map_or_else(String::new, |time| format!(" ({time}, give or take {bound:?})"))
}

/// What was restored, in words.
pub fn describe(restored: &Restored) -> String {
    let plan = &restored.plan;
    let (done, state) = if restored.is_open {
        ("is done", "is open".to_owned())
    } else {
        let id = restored.operation;
        ("stands at its cut", format!("is closed\n`restore --resume {id}` opens it, `abort {id}` removes it"))
    };
    format!(
        "{} {done}: {} nodes restored to {}, at SCN {} of incarnation {}; incarnation {} {state}\n{}\n{}",
        restored.operation,
        plan.nodes.len(),
        plan.target,
        plan.cut.scn,
        plan.incarnation,
        plan.opens,
        guarantee(plan),
        steps(plan),
    )
}

/// A plan names its guarantee; `restore-point list` says how its cut was taken.
fn guarantee(plan: &Plan) -> String {
    format!("guarantee {}: {}", plan.guarantee.word(), meaning(plan.guarantee))
}

fn steps(plan: &Plan) -> String {
    let copied = ByteCount::new(plan.units.values().map(|unit| unit.bytes.get()).sum());
    let entries: u64 = plan.units.values().map(|unit| unit.entries).sum();
    let mut threads = Table::new(["thread", "from", "until", "pieces of wal"]);
    for (thread, wal) in &plan.threads {
        let until = plan.cut.threads.get(thread).map_or_else(|| "-".to_owned(), |cut| cut.until.to_string());
        let from = wal.spans.first().map(|span| span.from).unwrap_or_default();
        let pieces: usize = wal.spans.iter().map(|span| span.pieces.len()).sum();
        threads.row([thread.to_string(), from.to_string(), until, pieces.to_string()]);
    }
    format!("from {}: {entries} files, {}\n{threads}", plan.backup, bytes(copied))
}
