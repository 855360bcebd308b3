//! `restore-point create` and `restore-point list`.

use std::path::Path;

use serde_json::{Value, json};
use sheetanchor_core::format::catalog::Point;
use sheetanchor_core::identity::OperationId;
use sheetanchor_engine::coordinator::{Every, Tick};

use super::backup::{method_word, promise};
use crate::args::MethodArgument;
use crate::connect::Connected;
use crate::report::Result;
use crate::screen::{Screen, Table, time};

/// Names a cut of the cluster.
///
/// # Errors
/// `SA106` for a bad name; the restore point's own.
pub async fn create(file: &Path, screen: &Screen, name: &str, method: MethodArgument) -> Result<()> {
    let name = name.parse()?;
    let connected = Connected::new(file, screen)?;
    let (operation, point) = connected.watched(connected.coordinator.create_point_by(name, method.method())).await?;
    let mut threads = Table::new(["thread", "cut", "proof"]);
    for (thread, cut) in &point.cut.threads {
        threads.row([thread.to_string(), cut.until.to_string(), cut.proof.to_string()]);
    }
    let name = point.name.as_ref().map(ToString::to_string).unwrap_or_default();
    let text = format!(
        "restore point {name} is {operation}, SCN {}\n{}\n{threads}",
        point.cut.scn,
        promise(point.method, point.guarantee)
    );
    screen.result(&text, &json!({ "operation": operation, "point": point }))
}

/// Names cuts at an interval, and says at the end how many there were.
///
/// # Errors
/// What keeps every point from being taken; a single one that fails is shown, and counted.
pub async fn every(file: &Path, screen: &Screen, every: &Every) -> Result<()> {
    let connected = Connected::new(file, screen)?;
    let tally = connected.coordinator.take_points_every(every, |tick| screen.note(&describe(tick))).await?;
    let text = format!("{} restore points taken, {} failed, {} skipped\n", tally.taken, tally.failed, tally.skipped);
    let value = json!({ "taken": tally.taken, "failed": tally.failed, "skipped": tally.skipped });
    screen.result(&text, &value)
}

fn describe(tick: &Tick) -> String {
    let outcome = match &tick.outcome {
        Ok((_, point)) => {
            let name = point.name.as_ref().map(ToString::to_string).unwrap_or_default();
            format!("restore point {name} at SCN {}", point.cut.scn)
        }
        Err(error) => format!("no restore point: {error}"),
    };
    let late = if tick.skipped > 0 { format!("; late, {} skipped", tick.skipped) } else { String::new() };
    format!("{outcome}{late}")
}

/// Shows the restore points of the incarnation in force.
///
/// # Errors
/// Those of the catalog.
pub async fn list(file: &Path, screen: &Screen) -> Result<()> {
    let connected = Connected::new(file, screen)?;
    let points = connected.coordinator.points().await?;
    let value: Vec<Value> = points
        .iter()
        .map(|(operation, point, reached)| json!({ "operation": operation, "point": point, "reachable": reached.is_ok() }))
        .collect();
    let rows = points.iter().map(|(operation, point, reached)| (*operation, point, Some(reached.is_ok())));
    let table = table(rows);
    let text = if table.is_empty() { "there is no restore point yet\n".to_owned() } else { table.to_string() };
    screen.result(&text, &json!({ "points": value }))
}

/// Restore points as a table; whether each is reachable, where that was looked up.
pub fn table<'a>(points: impl Iterator<Item = (OperationId, &'a Point, Option<bool>)>) -> Table {
    let mut table = Table::new(["name", "operation", "scn", "published", "method", "guarantee", "archive"]);
    for (operation, point, reachable) in points {
        let reached = match reachable {
            Some(true) => "reachable",
            Some(false) => "pending",
            None => "-",
        };
        table.row([
            point.name.as_ref().map_or_else(|| "(a backup's end)".to_owned(), ToString::to_string),
            operation.to_string(),
            point.cut.scn.to_string(),
            time(point.ended_ms),
            method_word(point.method).to_owned(),
            point.guarantee.word().to_owned(),
            reached.to_owned(),
        ]);
    }
    table
}
