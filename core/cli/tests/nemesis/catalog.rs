//! The cuts that may be restored to: what the program lists, with what we know of when each was made.

use std::collections::BTreeMap;

use serde_json::Value;

use super::oracle::Window;

/// Operations by the name that we gave them: when each was made, at the earliest and at the latest.
pub type Made = BTreeMap<String, Window>;

/// A cut that is listed. (What is never read is shown where something is wrong with it.)
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "shown by Debug")]
pub struct Listed {
    /// As the program takes it: `name:x` or `backup:x`.
    pub target: String,
    pub incarnation: u32,
    pub window: Window,
    pub state: String,
    pub reason: String,
    pub guarantee: String,
}

/// All named points and sealed backups, from `restore-points --json` and `history --json`.
pub fn listed(points: &Value, history: &Value, made: &Made) -> Vec<Listed> {
    let mut all = Vec::new();
    for row in points["restore_points"].as_array().unwrap() {
        let Some(name) = row["name"].as_str() else { continue };
        all.push(Listed {
            target: format!("name:{name}"),
            incarnation: incarnation(row),
            window: made[name],
            state: row["state"].as_str().unwrap().to_owned(),
            reason: row["reason"].as_str().unwrap_or_default().to_owned(),
            guarantee: row["guarantee"].as_str().unwrap().to_owned(),
        });
    }
    for row in history["history"].as_array().unwrap().iter().filter(|row| row["state"] == "sealed") {
        all.push(Listed {
            target: format!("backup:{}", row["backup_id"].as_str().unwrap()),
            incarnation: incarnation(row),
            window: made[row["label"].as_str().unwrap()],
            state: "reachable".to_owned(),
            reason: String::new(),
            guarantee: row["guarantee"].as_str().unwrap().to_owned(),
        });
    }
    all
}

fn incarnation(row: &Value) -> u32 {
    row["incarnation"].as_u64().unwrap().try_into().unwrap()
}
