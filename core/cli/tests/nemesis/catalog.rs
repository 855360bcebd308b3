//! The cuts that may be restored to: what the program lists, with what we know of when each was made.

use std::collections::BTreeMap;

use serde_json::Value;
use sheetanchor_core::scn::Scn;

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
    pub scn: Scn,
    pub window: Window,
    pub state: String,
    pub reason: String,
    pub guarantee: String,
}

/// Every published point, also those without a name: what the program chooses from where an SCN or a time is the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    pub incarnation: u32,
    pub scn: Scn,
    /// When it was made by its coordinator's clock, which may be wrong.
    pub ended_ms: u64,
    /// Whether it can be restored to.
    pub is_target: bool,
}

/// All named points and sealed backups, from `restore-points --json` and `history --json`.
pub fn listed(points: &Value, history: &Value, made: &Made) -> Vec<Listed> {
    let mut all = Vec::new();
    for row in points["restore_points"].as_array().unwrap() {
        let Some(name) = row["name"].as_str() else { continue };
        all.push(Listed {
            target: format!("name:{name}"),
            incarnation: incarnation(row),
            scn: scn(row),
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
            scn: scn(row),
            window: made[row["label"].as_str().unwrap()],
            state: "reachable".to_owned(),
            reason: String::new(),
            guarantee: row["guarantee"].as_str().unwrap().to_owned(),
        });
    }
    all
}

/// Every published point, from `restore-points --json`.
pub fn published(points: &Value) -> Vec<Published> {
    let row = |row: &Value| Published {
        incarnation: incarnation(row),
        scn: scn(row),
        ended_ms: row["created_at"].as_u64().unwrap(),
        is_target: row["state"] == "reachable",
    };
    points["restore_points"].as_array().unwrap().iter().map(row).collect()
}

/// Whatever clocks say: of two cuts the one that was made later has the higher SCN, over incarnations, too.
///
/// # Errors
/// The two.
pub fn scns_ascend(all: &[Listed]) -> Result<(), String> {
    let mut ordered: Vec<&Listed> = all.iter().collect();
    ordered.sort_by_key(|cut| cut.scn);
    // The latest beginning among those with lower SCNs.
    let mut latest: Option<&Listed> = None;
    for cut in ordered {
        if let Some(lower) = latest.filter(|lower| cut.window.ended < lower.window.begun || lower.scn == cut.scn) {
            return Err(format!("the SCNs do not follow the order in which these were made: {lower:?}, {cut:?}"));
        }
        if latest.is_none_or(|latest| cut.window.begun > latest.window.begun) {
            latest = Some(cut);
        }
    }
    Ok(())
}

#[test]
fn an_scn_that_is_used_twice_or_too_late_is_seen() {
    use std::time::{Duration, Instant};
    let start = Instant::now();
    let cut = |scn: u64, begun: u64, ended: u64| Listed {
        target: format!("name:{scn}"),
        incarnation: 1,
        scn: Scn::new(scn),
        window: Window { begun: start + Duration::from_secs(begun), ended: start + Duration::from_secs(ended) },
        state: String::new(),
        reason: String::new(),
        guarantee: String::new(),
    };
    scns_ascend(&[cut(1, 1, 2), cut(3, 4, 9), cut(2, 3, 5), cut(4, 10, 11)]).unwrap();
    assert!(scns_ascend(&[cut(1, 1, 2), cut(1, 1, 3)]).is_err(), "twice");
    assert!(scns_ascend(&[cut(1, 1, 2), cut(3, 3, 4), cut(2, 5, 6)]).is_err(), "2 was made after 3");
    assert!(scns_ascend(&[cut(9, 1, 2), cut(3, 3, 4), cut(4, 5, 6)]).is_err(), "all others were made after 9");
}

fn incarnation(row: &Value) -> u32 {
    row["incarnation"].as_u64().unwrap().try_into().unwrap()
}

fn scn(row: &Value) -> Scn {
    row["scn"].as_str().unwrap().parse().unwrap()
}
