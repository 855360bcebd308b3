//! `history`, `restore-points`, `pitr-status` and `incarnations`: the views of `sheetanchor_core::views` as tables and JSON.

use std::path::Path;

use serde_json::json;
use sheetanchor_core::time::WallMillis;
use sheetanchor_core::views::Scene;
use sheetanchor_core::views::backups::{BackupPhase, BackupRow, BackupState, HistoryRow, backup, history};
use sheetanchor_core::views::incarnations::{IncarnationRow, incarnations};
use sheetanchor_core::views::pitr::{PitrRow, PitrThreadRow, Window, pitr_status};
use sheetanchor_core::views::points::{PointRow, restore_points};

use super::backup::method_word;
use crate::connect::Connected;
use crate::report::Result;
use crate::screen::{Screen, Table, bytes, lines, time};

/// Which view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Every backup that was ever begun.
    History,
    /// Every restore point.
    RestorePoints,
    /// What the cluster can be restored to.
    PitrStatus,
    /// Every branch of its history.
    Incarnations,
}

/// Shows a view.
///
/// # Errors
/// Those of the catalog; a node that is silent leaves its columns empty.
pub async fn show(file: &Path, screen: &Screen, view: View) -> Result<()> {
    let scene = Connected::new(file, screen)?.coordinator.scene().await?;
    match view {
        View::History => screen.result(&history_text(&scene), &json!({ "history": history(&scene) })),
        View::RestorePoints => {
            screen.result(&points_text(&scene), &json!({ "restore_points": restore_points(&scene) }))
        }
        View::PitrStatus => screen.result(&pitr_text(&scene), &json!({ "pitr_status": pitr_status(&scene) })),
        View::Incarnations => {
            screen.result(&incarnations_text(&scene), &json!({ "incarnations": incarnations(&scene) }))
        }
    }
}

fn none() -> String {
    "-".to_owned()
}

fn shown<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(none, ToString::to_string)
}

fn moment(value: Option<WallMillis>) -> String {
    value.map_or_else(none, time)
}

fn or_else(text: String, otherwise: &str) -> String {
    if text.is_empty() { format!("{otherwise}\n") } else { text }
}

fn table_or(table: &Table, otherwise: &str) -> String {
    or_else(if table.is_empty() { String::new() } else { table.to_string() }, otherwise)
}

fn history_text(scene: &Scene) -> String {
    let mut table = Table::new(["backup", "label", "state", "started", "took", "scn", "inc", "method", "guarantee"]);
    let rows = history(scene);
    for row in &rows {
        table.row(history_cells(row));
    }
    let failed = rows.iter().filter_map(|row| Some(format!("  {}: {}", row.backup_id, row.error.as_ref()?)));
    let failed = lines(failed);
    let failed = if failed.is_empty() { failed } else { format!("\nwhy they came to nothing\n{failed}") };
    format!("{}{failed}", table_or(&table, "no backup was ever begun"))
}

fn history_cells(row: &HistoryRow) -> [String; 9] {
    let state = match row.state {
        BackupState::Running => "running",
        BackupState::Sealed => "sealed",
        BackupState::Aborted => "aborted",
        BackupState::Expired => "expired",
    };
    [
        row.backup_id.to_string(),
        shown(row.label.as_ref()),
        state.to_owned(),
        time(row.started_at),
        row.duration_ms.map_or_else(none, seconds),
        shown(row.scn.as_ref()),
        row.incarnation.to_string(),
        row.method.map_or_else(none, |method| method_word(method).to_owned()),
        row.guarantee.map_or_else(none, |guarantee| guarantee.word().to_owned()),
    ]
}

fn seconds(millis: u64) -> String {
    format!("{}.{:01} s", millis / 1000, millis % 1000 / 100)
}

/// Backups without an outcome, for `status`.
pub fn running_table(scene: &Scene) -> Table {
    let mut table = Table::new(["backup", "label", "phase", "for", "copied", "of", "term", "pins"]);
    for row in backup(scene) {
        table.row(running_cells(&row));
    }
    table
}

fn running_cells(row: &BackupRow) -> [String; 8] {
    let phase = match row.phase {
        BackupPhase::Unpinned => "unpinned",
        BackupPhase::Pinned => "pinned",
        BackupPhase::Copying => "copying",
    };
    let pins: Vec<String> = row
        .nodes
        .iter()
        .filter_map(|node| {
            let left = node.lease_left_ms.map(|left| format!(" ({} s)", left / 1000)).unwrap_or_default();
            Some(format!("{}: {}{left}", node.node, node.pinned_from?))
        })
        .collect();
    [
        row.backup_id.to_string(),
        shown(row.label.as_ref()),
        phase.to_owned(),
        seconds(row.elapsed_ms),
        bytes(row.bytes_done),
        bytes(row.bytes_total),
        row.epoch.to_string(),
        if pins.is_empty() { none() } else { pins.join(", ") },
    ]
}

fn points_text(scene: &Scene) -> String {
    let mut table =
        Table::new(["name", "point", "scn", "created", "inc", "method", "guarantee", "state", "from backup"]);
    let rows = restore_points(scene);
    for row in &rows {
        table.row(point_cells(row));
    }
    let why = rows.iter().filter_map(|row| Some(format!("  {}: {}", row.point_id, row.reason.as_ref()?)));
    let why = lines(why);
    let why = if why.is_empty() { why } else { format!("\nwhy they are no targets\n{why}") };
    format!("{}{why}", table_or(&table, "there is no restore point yet"))
}

fn point_cells(row: &PointRow) -> [String; 9] {
    [
        row.name.as_ref().map_or_else(|| "(a backup's end)".to_owned(), ToString::to_string),
        row.point_id.to_string(),
        row.scn.to_string(),
        time(row.created_at),
        row.incarnation.to_string(),
        method_word(row.method).to_owned(),
        row.guarantee.word().to_owned(),
        row.state.word().to_owned(),
        shown(row.backup_id.as_ref()),
    ]
}

fn pitr_text(scene: &Scene) -> String {
    let shown = pitr_status(scene).iter().map(incarnation_text).collect::<Vec<_>>().join("\n");
    or_else(shown, "no incarnation was opened yet")
}

fn incarnation_text(row: &PitrRow) -> String {
    let mut windows = Table::new(["from", "until", "from scn", "until scn", "backups", "targets", "newest"]);
    for window in &row.windows {
        windows.row(window_cells(window));
    }
    let mut threads = Table::new(["thread", "archived", "archived scn", "wal end", "lag", "behind"]);
    for thread in &row.threads {
        threads.row(thread_cells(thread));
    }
    let holes = row.holes.iter().map(|hole| {
        format!(
            "  WAL of thread {} (timeline {}) is missing from {} to {}",
            hole.thread, hole.timeline, hole.from, hole.until
        )
    });
    let troubles = row
        .threads
        .iter()
        .filter_map(|thread| Some(format!("  thread {}: {}", thread.thread, thread.trouble.as_ref()?)));
    let force = if row.current { ", in force" } else { "" };
    format!(
        "incarnation {}{force}\n{}{}{}{}",
        row.incarnation,
        table_or(&windows, "  nothing of it can be restored to"),
        lines(holes),
        if threads.is_empty() { String::new() } else { threads.to_string() },
        lines(troubles),
    )
}

fn window_cells(window: &Window) -> [String; 7] {
    let newest = window.newest_name.as_ref().map(ToString::to_string).or(window.newest_point.map(|id| id.to_string()));
    [
        time(window.from_at),
        time(window.until_at),
        window.from_scn.to_string(),
        shown(window.until_scn.as_ref()),
        window.backups.to_string(),
        window.points.to_string(),
        newest.unwrap_or_else(none),
    ]
}

fn thread_cells(thread: &PitrThreadRow) -> [String; 6] {
    [
        thread.thread.to_string(),
        shown(thread.archived_until.as_ref()),
        shown(thread.archived_scn.as_ref()),
        shown(thread.wal_end.as_ref()),
        thread.lag_bytes.map_or_else(none, bytes),
        thread.lag_ms.map_or_else(none, seconds),
    ]
}

fn incarnations_text(scene: &Scene) -> String {
    let mut table = Table::new(["inc", "state", "parent", "branch scn", "opened", "backups", "points", "restore"]);
    let rows = incarnations(scene);
    for row in &rows {
        table.row(line_cells(row));
    }
    let why = rows.iter().filter_map(|row| Some(format!("  {}: {}", row.incarnation, row.error.as_ref()?)));
    let why = lines(why);
    let why = if why.is_empty() { why } else { format!("\nwhy they were never opened\n{why}") };
    format!("{table}{why}")
}

fn line_cells(row: &IncarnationRow) -> [String; 8] {
    [
        row.incarnation.to_string(),
        row.state.word().to_owned(),
        shown(row.parent.as_ref()),
        shown(row.branch_scn.as_ref()),
        moment(row.opened_at),
        row.backups.to_string(),
        row.points.to_string(),
        shown(row.restore_id.as_ref()),
    ]
}
