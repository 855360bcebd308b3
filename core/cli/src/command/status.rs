//! `status`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use sheetanchor_core::format::catalog::{IncarnationObject, IncarnationState, Method, Point, Seal};
use sheetanchor_core::format::hole::Hole;
use sheetanchor_core::identity::{Incarnation, OperationId};
use sheetanchor_core::request::{Description, Progress};
use sheetanchor_core::round::name_nodes;
use sheetanchor_core::views::backups::backup;
use sheetanchor_core::views::points::{PointRow, restore_points};
use sheetanchor_engine::coordinator::{ClusterStatus, NodeStatus};

use super::backup::{kind_word, method_word};
use super::views::{points_table, running_table, seconds};
use crate::connect::Connected;
use crate::report::Result;
use crate::screen::{Screen, Table, bytes, lines, time};

/// Shows the cluster at a glance.
///
/// # Errors
/// Those of the catalog; a node that is silent is shown as such.
pub async fn show(file: &Path, screen: &Screen) -> Result<()> {
    let connected = Connected::new(file, screen)?;
    let coordinator = &connected.coordinator;
    let (status, scene) = tokio::try_join!(coordinator.status(), coordinator.scene())?;
    let mut points = restore_points(&scene);
    points.retain(|point| point.incarnation == status.incarnation);
    let running = unless_empty(&running_table(&scene));
    let running = if running.is_empty() { running } else { format!("\nbackups under way\n{running}") };
    let holes = scene.holes_without_backup();
    let mut value = value(&status, &points);
    if let Some(value) = value.as_object_mut() {
        value.insert("running".to_owned(), json!(backup(&scene)));
        value.insert("holes".to_owned(), json!(holes));
    }
    screen.result(&format!("{}{}{running}", text(&status, &points), holes_text(&holes)), &value)
}

/// What nobody can restore to before there is a new backup.
fn holes_text(holes: &[&Hole]) -> String {
    if holes.is_empty() {
        return String::new();
    }
    let holes = lines(holes.iter().map(|hole| format!("  {hole}")));
    format!(
        "\nWAL was let go of before it was archived: take a new backup, nothing after this can be restored to\n{holes}"
    )
}

fn text(status: &ClusterStatus, points: &[PointRow]) -> String {
    let mut text = format!(
        "cluster {} ({}), {} nodes of {}, incarnation {}\n\n{}",
        status.cluster.name,
        status.cluster.id,
        status.members.nodes.len(),
        status.members.engine,
        status.incarnation,
        nodes(&status.nodes),
    );
    let troubles = status.nodes.iter().filter_map(|node| Some(format!("  node {}: {}", node.node, trouble(node)?)));
    let part = |title: &str, body: String| if body.is_empty() { body } else { format!("\n{title}\n{body}") };
    let points = points_table(points);
    let unfinished = lines(status.unfinished.iter().map(|operation| format!("  {operation}")));
    text += &part("troubles", lines(troubles));
    text += &part("at work", unless_empty(&at_work(&status.nodes)));
    text += &part("backups of this incarnation", unless_empty(&backups(&status.backups, &status.points)));
    text += &part("restore points of this incarnation", unless_empty(&points));
    text += &part("incarnations", tree(&status.incarnations));
    let half_open = status.half_open.iter().map(|(restore, nodes)| format!("  {restore}: {}", name_nodes(nodes)));
    text += &part("not opened yet (`sheetanchor restore --resume ID` goes on)", lines(half_open));
    text += &part("without an outcome yet (`sheetanchor abort ID` ends one whose coordinator is gone)", unfinished);
    text
}

fn unless_empty(table: &Table) -> String {
    if table.is_empty() { String::new() } else { table.to_string() }
}

fn nodes(nodes: &[NodeStatus]) -> Table {
    let mut table = Table::new(["node", "agent", "state", "scn", "wal end", "archived", "lag", "at risk", "fenced by"]);
    let none = || "-".to_owned();
    for node in nodes {
        let cells = match &node.description {
            Ok(seen) => [
                seen.state.clone(),
                seen.scn.to_string(),
                seen.end.lsn.to_string(),
                seen.archived.to_string(),
                lag(seen).unwrap_or_else(none),
                seen.exposed_ms.map_or_else(none, seconds),
                seen.fenced_by.map_or_else(none, |operation| operation.to_string()),
            ],
            Err(_) => ["silent".to_owned(), none(), none(), none(), none(), none(), none()],
        };
        let [state, scn, end, archived, lag, risk, fenced] = cells;
        table.row([node.node.to_string(), node.address.clone(), state, scn, end, archived, lag, risk, fenced]);
    }
    table
}

/// How far each node is with what it is busy with.
fn at_work(nodes: &[NodeStatus]) -> Table {
    let mut table = Table::new(["node", "operation", "doing", "done", "of", "share"]);
    let busy = nodes.iter().filter_map(|node| Some((node.node, &node.description.as_ref().ok()?.progress)));
    for (node, progress) in busy.flat_map(|(node, all)| all.iter().map(move |progress| (node, progress))) {
        table.row([
            node.to_string(),
            progress.operation.to_string(),
            progress.doing.word().to_owned(),
            bytes(progress.done),
            bytes(progress.total),
            percent(progress),
        ]);
    }
    table
}

fn percent(progress: &Progress) -> String {
    let hundredfold = u128::from(progress.done.get()).saturating_mul(100);
    let share = hundredfold.checked_div(u128::from(progress.total.get()));
    share.map_or_else(|| "-".to_owned(), |share| format!("{share} %"))
}

/// How much WAL is not archived yet; nothing where nothing was ever archived.
fn lag(seen: &Description) -> Option<String> {
    if seen.archived.get() == 0 {
        return None;
    }
    let behind = seen.end.lsn.bytes_since(seen.archived).unwrap_or_default();
    Some(bytes(sheetanchor_core::identity::ByteCount::new(behind)))
}

fn trouble(node: &NodeStatus) -> Option<String> {
    match &node.description {
        Ok(seen) => seen.trouble(),
        Err(error) => Some(error.to_string()),
    }
}

fn backups(backups: &[(OperationId, Seal)], points: &[(OperationId, Point)]) -> Table {
    let mut table = Table::new(["backup", "kind", "stored", "scn", "sealed", "method", "guarantee"]);
    for (operation, seal) in backups {
        let point = points.iter().find(|(id, _)| Some(*id) == seal.point);
        let method = point.map_or(Method::Alone, |(_, point)| point.method);
        table.row([
            operation.to_string(),
            kind_word(seal.base.is_some()).to_owned(),
            bytes(seal.stored),
            seal.cut.scn.to_string(),
            time(seal.ended_ms),
            method_word(method).to_owned(),
            seal.guarantee.word().to_owned(),
        ]);
    }
    table
}

/// Every incarnation under the one that it branched off.
fn tree(incarnations: &[IncarnationObject]) -> String {
    let mut children: BTreeMap<Option<Incarnation>, Vec<&IncarnationObject>> = BTreeMap::new();
    for object in incarnations {
        let parent = match &object.state {
            IncarnationState::Opened(opened) => opened.branch.as_ref().map(|branch| branch.parent),
            IncarnationState::Aborted(_) => None,
        };
        // What is older comes first, so that a damaged catalog cannot make a circle of it.
        children.entry(parent.filter(|parent| *parent < object.incarnation)).or_default().push(object);
    }
    let mut shown = Vec::new();
    let mut waiting: Vec<(usize, &IncarnationObject)> =
        children.get(&None).into_iter().flatten().rev().map(|root| (0, *root)).collect();
    while let Some((depth, object)) = waiting.pop() {
        shown.push(format!("  {}{}", "   ".repeat(depth), incarnation_line(object)));
        let under = children.get(&Some(object.incarnation)).into_iter().flatten().rev();
        waiting.extend(under.map(|child| (depth.saturating_add(1), *child)));
    }
    lines(shown)
}

fn incarnation_line(object: &IncarnationObject) -> String {
    let number = object.incarnation;
    let by = object.restore.map(|restore| format!(" by {restore}")).unwrap_or_default();
    match &object.state {
        IncarnationState::Opened(opened) => {
            let from = match &opened.branch {
                Some(branch) => format!(" from SCN {} of {}", branch.cut.scn, branch.parent),
                None => String::new(),
            };
            format!("{number}  opened {}{from}{by}", time(opened.opened_ms))
        }
        IncarnationState::Aborted(abort) => format!("{number}  never opened{by}: {} ({})", abort.message, abort.code),
    }
}

fn value(status: &ClusterStatus, points: &[PointRow]) -> Value {
    let node = |node: &NodeStatus| match &node.description {
        Ok(seen) => json!({ "node": node.node, "agent": node.address, "description": seen }),
        Err(error) => json!({ "node": node.node, "agent": node.address, "silent": error.to_string() }),
    };
    let nodes: Vec<Value> = status.nodes.iter().map(node).collect();
    let backups: Vec<Value> =
        status.backups.iter().map(|(backup, seal)| json!({ "backup": backup, "seal": seal })).collect();
    json!({
        "cluster": status.cluster, "members": status.members, "incarnation": status.incarnation,
        "incarnations": status.incarnations, "nodes": nodes, "backups": backups, "restore_points": points,
        "unfinished": status.unfinished, "half_open": status.half_open,
    })
}
