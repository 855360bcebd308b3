//! `history`, `restore-points`, `pitr-status` and `incarnations`: the views of `sheetanchor_core::views` as tables and JSON.

use std::path::Path;

use serde_json::json;
use sheetanchor_core::time::WallMillis;
use sheetanchor_core::views::Scene;
use sheetanchor_core::views::backups::{BackupPhase, BackupRow, BackupState, HistoryRow, backup, history};
use sheetanchor_core::views::incarnations::{IncarnationRow, incarnations};
use sheetanchor_core::views::pitr::{PitrRow, PitrThreadRow, Window, pitr_status};
use sheetanchor_core::views::points::{PointRow, restore_points};

use super::backup::{kind_word, method_word};
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
    let mut table = Table::new([
        "backup",
        "label",
        "state",
        "kind",
        "stored",
        "started",
        "took",
        "scn",
        "inc",
        "method",
        "guarantee",
    ]);
    let rows = history(scene);
    for row in &rows {
        table.row(history_cells(row));
    }
    let failed = rows.iter().filter_map(|row| Some(format!("  {}: {}", row.backup_id, row.error.as_ref()?)));
    let failed = lines(failed);
    let failed = if failed.is_empty() { failed } else { format!("\nwhy they came to nothing\n{failed}") };
    let whole = rows.iter().filter_map(|row| Some(format!("  {}: {}", row.backup_id, row.why_full.as_ref()?)));
    let whole = lines(whole);
    let whole = if whole.is_empty() { whole } else { format!("\nwhy they are full, or full of a node\n{whole}") };
    format!("{}{whole}{failed}", table_or(&table, "no backup was ever begun"))
}

fn history_cells(row: &HistoryRow) -> [String; 11] {
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
        row.stored_bytes.map_or_else(none, |_| kind_word(row.base_id.is_some()).to_owned()),
        row.stored_bytes.map_or_else(none, bytes),
        time(row.started_at),
        row.duration_ms.map_or_else(none, seconds),
        shown(row.scn.as_ref()),
        row.incarnation.to_string(),
        row.method.map_or_else(none, |method| method_word(method).to_owned()),
        row.guarantee.map_or_else(none, |guarantee| guarantee.word().to_owned()),
    ]
}

/// Milliseconds, shown as seconds.
pub fn seconds(millis: u64) -> String {
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

/// Restore points, for `restore-points` and for `status`.
pub fn points_table<'a>(rows: impl IntoIterator<Item = &'a PointRow>) -> Table {
    let mut table =
        Table::new(["name", "point", "scn", "created", "inc", "method", "guarantee", "state", "from backup"]);
    for row in rows {
        table.row(point_cells(row));
    }
    table
}

fn points_text(scene: &Scene) -> String {
    let rows = restore_points(scene);
    let table = points_table(&rows);
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
    let mut threads = Table::new(["thread", "archived", "archived scn", "wal end", "lag", "behind", "at risk"]);
    for thread in &row.threads {
        threads.row(thread_cells(thread));
    }
    let holes = row.holes.iter().map(|hole| {
        let declared = hole.declared.as_ref();
        let declared = declared.map_or_else(String::new, |why| format!(": declared at {}, {}", why.at, why.message));
        format!(
            "  WAL of thread {} (timeline {}) is missing from {} to {}{declared}",
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

fn thread_cells(thread: &PitrThreadRow) -> [String; 7] {
    [
        thread.thread.to_string(),
        shown(thread.archived_until.as_ref()),
        shown(thread.archived_scn.as_ref()),
        shown(thread.wal_end.as_ref()),
        thread.lag_bytes.map_or_else(none, bytes),
        thread.lag_ms.map_or_else(none, seconds),
        thread.exposed_ms.map_or_else(none, seconds),
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use sheetanchor_core::format::catalog::{
        Abort, Branch, Cut, Ending, Guarantee, IncarnationObject, IncarnationState, Method, Opened, Outcome, Point,
        Registered, Seal, ThreadCut,
    };
    use sheetanchor_core::format::hole::{Hole, HoleReason};
    use sheetanchor_core::identity::{
        ByteCount, ContentHash, Epoch, Incarnation, Membership, NodeId, Nonce, OperationId, OperationKind, ThreadId,
        TimelineId,
    };
    use sheetanchor_core::lineage::Lineage;
    use sheetanchor_core::position::{Lsn, Position};
    use sheetanchor_core::request::PinSeen;
    use sheetanchor_core::scn::Scn;
    use sheetanchor_core::views::archive::Run;
    use sheetanchor_snapshots::assert_snapshot;

    use super::*;

    const HOUR: u64 = 3_600_000;
    const START: u64 = 1_767_225_600_000;

    fn id(kind: OperationKind, hour: u64) -> OperationId {
        OperationId::new(kind, START + hour * HOUR, u32::try_from(hour).unwrap_or(0))
    }

    fn scn(hour: u64) -> Scn {
        Scn::at(WallMillis::new(START + hour * HOUR))
    }

    fn cut(incarnation: u32, hour: u64) -> Cut {
        let place = |thread: u16| {
            let until = Lsn::new(hour * 0x1000 + u64::from(thread));
            let timeline = TimelineId::new(incarnation);
            (ThreadId::new(thread), ThreadCut { proof: Lsn::new(until.get() + 0x20), timeline, until })
        };
        Cut { record: format!("sa-{hour}"), scn: scn(hour), threads: [place(1), place(2)].into() }
    }

    fn sealed(hour: u64) -> Outcome {
        let seal = Seal {
            base: (hour == 4).then(|| id(OperationKind::Backup, 1)),
            cut: cut(1, hour),
            ended_ms: WallMillis::new(START + hour * HOUR + 90_500),
            guarantee: Guarantee::Atomic,
            incarnation: Incarnation::new(1),
            manifest: ContentHash::of(b""),
            point: Some(id(OperationKind::Point, hour)),
            stored: ByteCount::new(if hour == 4 { 9_000_000 } else { 812_000_000 }),
            why_full: (hour == 4)
                .then(|| "node 2: thread 2 was at 0/9000 of timeline 1, and is at 0/A000 of timeline 2".to_owned()),
        };
        Outcome { nonce: Nonce::new(1), operation: id(OperationKind::Backup, hour), result: Ending::Sealed(seal) }
    }

    fn published(incarnation: u32, hour: u64, name: Option<&str>) -> Outcome {
        let point = Point {
            cut: cut(incarnation, hour),
            ended_ms: WallMillis::new(START + hour * HOUR + 1000),
            guarantee: Guarantee::Atomic,
            incarnation: Incarnation::new(incarnation),
            membership: Membership::new(1),
            method: Method::Fence,
            name: name.and_then(|name| name.parse().ok()),
        };
        let operation = id(OperationKind::Point, hour);
        Outcome { nonce: Nonce::new(1), operation, result: Ending::Published(point) }
    }

    fn run(incarnation: u32, from: u64, until: u64) -> Run {
        Run {
            timeline: TimelineId::new(incarnation),
            from: Lsn::new(from * 0x1000),
            until: Lsn::new(until * 0x1000),
            scn_last: Some(scn(until)),
        }
    }

    fn incarnation(number: u32, state: IncarnationState) -> IncarnationObject {
        let restore = (number > 1).then(|| id(OperationKind::Restore, u64::from(number) + 20));
        IncarnationObject { incarnation: Incarnation::new(number), nonce: Nonce::new(1), restore, state }
    }

    fn opened(parent: Option<u32>, hour: u64) -> IncarnationState {
        let branch = parent.map(|parent| Branch { cut: cut(parent, 10), parent: Incarnation::new(parent) });
        IncarnationState::Opened(Opened {
            branch,
            membership: Membership::new(1),
            origin: None,
            opened_ms: WallMillis::new(START + hour * HOUR),
            scn_floor: scn(hour),
            scn_offset_ms: 0,
        })
    }

    /// Four backups: one expired, one sealed, one that failed, one under way; WAL of thread 2 is missing for a while; a
    /// second incarnation that lives on the first one's backup, and one that was never opened.
    fn scene() -> Scene {
        let begun = [1, 4, 8, 30].map(|hour| {
            let registered = Registered {
                incarnation: Incarnation::new(if hour == 30 { 3 } else { 1 }),
                label: (hour == 4).then(|| "nightly".parse().ok()).flatten(),
                membership: Membership::new(1),
                nonce: Nonce::new(1),
                operation: id(OperationKind::Backup, hour),
            };
            (registered, Epoch::new(1))
        });
        let abort = |message: &str| Abort { code: "SA201".into(), message: message.into() };
        let failed = Outcome {
            nonce: Nonce::new(1),
            operation: id(OperationKind::Backup, 8),
            result: Ending::Aborted(abort("node 2 did not answer in phase `capturing`")),
        };
        let pin = PinSeen {
            name: id(OperationKind::Backup, 30).to_string(),
            from: Position { thread: ThreadId::new(1), timeline: TimelineId::new(3), lsn: Lsn::new(0x1_9000) },
            lease_left_ms: Some(41_000),
        };
        let archive = [((1, 1), vec![run(1, 0, 20)]), ((1, 2), vec![run(1, 0, 12), run(1, 14, 20)])];
        let archive = archive.into_iter().chain([((3, 1), vec![run(3, 10, 26)]), ((3, 2), vec![run(3, 10, 24)])]);
        let incarnations = vec![
            incarnation(1, opened(None, 0)),
            incarnation(2, IncarnationState::Aborted(abort("node 1 did not answer"))),
            incarnation(3, opened(Some(1), 21)),
        ];
        Scene {
            current: Incarnation::new(3),
            now: WallMillis::new(START + 30 * HOUR + 65_000),
            lineage: Lineage::of(&incarnations).unwrap(),
            incarnations,
            begun: begun.into(),
            backups: vec![sealed(1), sealed(4), failed],
            points: vec![
                published(1, 1, None),
                published(1, 2, Some("before-the-flood")),
                published(1, 4, None),
                published(1, 6, Some("release-7")),
                published(1, 18, Some("after-the-gap")),
                published(3, 22, Some("reopened")),
                published(3, 25, Some("just-now")),
            ],
            condemned: BTreeSet::from([id(OperationKind::Backup, 1)]),
            archive: archive
                .map(|((of, thread), runs)| ((Incarnation::new(of), ThreadId::new(thread)), runs))
                .collect(),
            holes: BTreeMap::new(),
            nodes: [1, 2].map(|node| (NodeId::new(node), Err("silent".to_owned()))).into(),
            pins: BTreeMap::from([(NodeId::new(1), vec![pin])]),
        }
    }

    #[test]
    fn each_view_is_a_table() {
        let scene = scene();
        let screens = [
            ("status (backups under way)", running_table(&scene).to_string()),
            ("history", history_text(&scene)),
            ("restore-points", points_text(&scene)),
            ("pitr-status", pitr_text(&scene)),
            ("incarnations", incarnations_text(&scene)),
        ];
        let text: String = screens.map(|(name, text)| format!("$ sheetanchor {name}\n{text}\n")).concat();
        assert_snapshot!("cli", "views", text);
    }

    #[test]
    fn a_declared_hole_is_told_from_a_gap_that_nobody_has_declared() {
        let mut scene = scene();
        let gap = "WAL of thread 2 (timeline 1) is missing from 0/C000 to 0/E000";
        assert!(pitr_text(&scene).contains(&format!("{gap}\n")), "{}", pitr_text(&scene));
        let hole = Hole {
            declared_ms: WallMillis::new(START),
            from: Lsn::new(0xC000),
            incarnation: Incarnation::new(1),
            message: "9 bytes of WAL waited for the archive, and 8 may".to_owned(),
            nonce: Nonce::new(1),
            reason: HoleReason::Bound,
            thread: ThreadId::new(2),
            timeline: TimelineId::new(1),
            until: Lsn::new(0xE000),
        };
        scene.holes.insert((hole.incarnation, hole.thread), vec![hole]);
        let shown = pitr_text(&scene);
        assert!(shown.contains(&format!("{gap}: declared at ")) && shown.contains("9 bytes"), "{shown}");
        assert_eq!(shown.matches(gap).count(), 1, "{shown}");
        assert!(points_text(&scene).contains("is a hole, declared at"), "{}", points_text(&scene));
    }

    #[test]
    fn an_empty_repository_has_something_to_say() {
        let scene = Scene::default();
        assert_eq!(history_text(&scene), "no backup was ever begun\n");
        assert_eq!(points_text(&scene), "there is no restore point yet\n");
        assert_eq!(pitr_text(&scene), "no incarnation was opened yet\n");
    }

    #[test]
    fn rows_are_json_with_the_documented_columns() {
        let page = include_str!("../../../../docs/views.md");
        let scene = scene();
        let rows =
            json!([backup(&scene), history(&scene), restore_points(&scene), pitr_status(&scene), incarnations(&scene)]);
        let mut columns = 0;
        for view in rows.as_array().into_iter().flatten() {
            for column in view.get(0).and_then(|row| row.as_object()).into_iter().flat_map(|row| row.keys()) {
                assert!(page.contains(&format!("`{column}`")), "views.md does not explain `{column}`");
                columns += 1;
            }
        }
        assert!(columns > 40, "{columns} columns");
    }
}
