//! `pins list` and `pins drop`.

use std::path::Path;

use serde_json::json;

use crate::connect::Connected;
use crate::report::Result;
use crate::screen::{Screen, Table};

/// Shows every node's pins.
///
/// # Errors
/// `SA201` if a node does not answer.
pub async fn list(file: &Path, screen: &Screen) -> Result<()> {
    let pins = Connected::new(file, screen)?.coordinator.pins().await?;
    let mut table = Table::new(["node", "pin", "keeps wal from", "lease left"]);
    for (node, pins) in &pins {
        for pin in pins {
            let left = pin.lease_left_ms.map_or_else(|| "for good".to_owned(), |left| format!("{} s", left / 1000));
            table.row([node.to_string(), pin.name.clone(), pin.from.lsn.to_string(), left]);
        }
    }
    let text = if table.is_empty() { "no node keeps WAL for anybody\n".to_owned() } else { table.to_string() };
    screen.result(&text, &json!({ "pins": pins }))
}

/// Drops a pin on every node that has it.
///
/// # Errors
/// `SA301` if no node has it.
pub async fn drop(file: &Path, screen: &Screen, name: &str) -> Result<()> {
    let nodes = Connected::new(file, screen)?.coordinator.drop_pin(name).await?;
    let list: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    screen.result(&format!("pin {name} is dropped on {}\n", list.join(", ")), &json!({ "pin": name, "nodes": nodes }))
}
