//! `restore`.

use std::path::Path;

use serde_json::json;
use sheetanchor_core::format::catalog::Guarantee;
use sheetanchor_core::format::manifest::Plan;
use sheetanchor_core::identity::ByteCount;
use sheetanchor_core::in_doubt::{Resolved, Verdict};
use sheetanchor_engine::coordinator::{Manner, Planned, Restored};

use super::backup::meaning;
use crate::args::RestoreArguments;
use crate::config::ClusterFile;
use crate::connect::Connected;
use crate::report::Result;
use crate::screen::{Screen, Table, bytes, lines};

/// Restores, takes a restore up again, or shows what a restore would do.
///
/// # Errors
/// The restore's own.
pub async fn run(file: &Path, screen: &Screen, arguments: &RestoreArguments) -> Result<()> {
    let (aim, resumed) = (arguments.aim()?, arguments.resume.as_deref().map(str::parse).transpose()?);
    if !arguments.dry_run {
        ClusterFile::read(file)?.check_restorable()?;
    }
    let connected = Connected::new(file, screen)?;
    let coordinator = connected.coordinator.clone().at_rate(arguments.rate);
    if arguments.dry_run {
        let planned =
            if arguments.clone { coordinator.plan_clone(&aim).await? } else { coordinator.plan_restore(&aim).await? };
        let passed_over: Vec<String> = planned.passed_over.iter().map(ToString::to_string).collect();
        let value = json!({ "plan": planned.plan, "resolved": planned.resolved, "passed_over": passed_over });
        return screen.result(&preview(&planned), &value);
    }
    let manner = Manner { stop: arguments.stop, anew: arguments.anew, delta: arguments.delta };
    let restored = if let Some(operation) = resumed {
        connected.watched(coordinator.resume(operation)).await?
    } else if arguments.clone {
        connected.watched(coordinator.clone_cluster(&aim, manner, arguments.unheld)).await?
    } else {
        connected.watched(coordinator.restore_in(&aim, manner)).await?
    };
    let value = json!({
        "restore": restored.operation,
        "plan": restored.plan,
        "is_open": restored.is_open,
        "guarantee": restored.guarantee(),
        "in_doubt": restored.in_doubt,
    });
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
        guarantee(plan.guarantee),
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
        let (id, ends) = (restored.operation, if plan.delta { "leaves it closed" } else { "removes it" });
        ("stands at its cut", format!("is closed\n`restore --resume {id}` opens it, `abort {id}` {ends}"))
    };
    format!(
        "{} {done}: {} nodes restored to {}, at SCN {} of incarnation {}; incarnation {} {state}\n{}\n{}{}{}",
        restored.operation,
        plan.nodes.len(),
        plan.target,
        plan.cut.scn,
        plan.incarnation,
        plan.opens,
        guarantee(restored.guarantee()),
        in_doubt(&restored.in_doubt),
        steps(plan),
        clone(plan),
    )
}

/// What must be known of a clone.
fn clone(plan: &Plan) -> String {
    let told = |source| {
        let own = plan.cluster;
        format!(
            "cluster {own} is a clone of cluster {source}, and writes nothing there\n\
             it has no backup of its own yet: run `sheetanchor backup`\n"
        )
    };
    plan.source.map_or_else(String::new, told)
}

/// A plan names its guarantee; `restore-point list` says how its cut was taken.
fn guarantee(guarantee: Guarantee) -> String {
    format!("guarantee {}: {}", guarantee.word(), meaning(guarantee))
}

/// What was prepared at the cut, and what became of it; what nobody could decide, with what to do about it.
fn in_doubt(resolved: &[Resolved]) -> String {
    if resolved.is_empty() {
        return String::new();
    }
    let mut table = Table::new(["in doubt", "node", "transaction", "outcome"]);
    for half in resolved {
        let outcome = match half.verdict {
            Verdict::Commit => "committed".to_owned(),
            Verdict::Rollback => "rolled back".to_owned(),
            Verdict::Left(why) => format!("LEFT IN DOUBT: {}", why.words()),
        };
        table.row([half.gid.clone(), half.node.to_string(), half.transaction.clone(), outcome]);
    }
    let left = resolved.iter().filter(|half| matches!(half.verdict, Verdict::Left(_))).count();
    let hint = if left == 0 {
        String::new()
    } else {
        format!("{left} are still prepared: end them by hand, alike on every node\n")
    };
    format!("{table}{hint}")
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
