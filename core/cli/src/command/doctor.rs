//! `doctor`.

use std::path::Path;

use serde_json::{Value, json};
use sheetanchor_core::error::Result as Outcome;
use sheetanchor_core::identity::NodeId;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Description, FenceSeen};

use crate::connect::Connected;
use crate::report::Result;
use crate::screen::{Screen, lines};

/// Asks every agent how its database stands, and says what each lacks for points and backups of the whole cluster. It
/// needs no repository, so it can be asked before `init`.
///
/// # Errors
/// What is wrong with the first node that lacks something, after all of them were shown: `0A000` without a commit fence,
/// `SA112` if the database is not open, `SA115` with the SQL to run if its role lacks a privilege, what asking it came to if
/// it is silent.
pub async fn run(file: &Path, screen: &Screen) -> Result<()> {
    let seen = Connected::new(file, screen)?.coordinator.describe_all().await;
    let shown = lines(seen.iter().map(|(node, description)| format!("node {node}: {}", verdict(description))));
    let value: Vec<Value> = seen.iter().map(|(node, description)| value(*node, description)).collect();
    screen.result(&shown, &json!({ "nodes": value }))?;
    for (node, description) in seen {
        fit(node, &description?)?;
    }
    Ok(())
}

fn verdict(description: &Outcome<Description>) -> String {
    match description {
        Err(error) => error.to_string(),
        Ok(seen) => {
            let missed =
                seen.missed.map(|newest| format!("; the cluster was opened in incarnation {newest} without it"));
            // What is afar and never answered has not said its version.
            let engine = format!("{} {}", seen.engine, seen.version);
            let name = format!("{}, {}{}", engine.trim_end(), seen.state, missed.unwrap_or_default());
            match &seen.fence {
                FenceSeen::Ready => format!("{name}; the commit fence holds"),
                FenceSeen::Absent => format!("{name}; no commit fence"),
                FenceSeen::Missing(missing) => format!("{name}; no commit fence: {missing}"),
            }
        }
    }
}

fn value(node: NodeId, description: &Outcome<Description>) -> Value {
    match description {
        Ok(seen) => json!({ "node": node, "description": seen }),
        Err(error) => json!({ "node": node, "silent": error.to_string() }),
    }
}

fn fit(node: NodeId, seen: &Description) -> std::result::Result<(), Refusal> {
    let refuse = |code, message| Err(Refusal::new(code, message));
    if let Some(why) = seen.missed_change() {
        return refuse(Code::OtherIncarnation, format!("node {node} {why}"));
    }
    match (seen.state.as_str(), &seen.fence) {
        ("open", FenceSeen::Ready) => Ok(()),
        ("open", FenceSeen::Absent) => refuse(Code::NotSupported, format!("node {node} has no commit fence")),
        ("open", FenceSeen::Missing(missing)) => {
            refuse(Code::NotSupported, format!("node {node} has no commit fence: {missing}"))
        }
        (state, _) => refuse(Code::DatabaseDown, format!("the database of node {node} is `{state}`, not open")),
    }
}
