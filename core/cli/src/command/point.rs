//! `restore-point create` and `restore-point every`.

use std::path::Path;

use serde_json::json;
use sheetanchor_engine::coordinator::{Every, Tick};

use super::backup::promise;
use crate::args::MethodArgument;
use crate::connect::Connected;
use crate::report::Result;
use crate::screen::{Screen, Table};

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
