//! Feeds the oracle of kept WAL with what agents and databases said in a run: pinned, unpinned, recycled.

use sheetanchor_core::position::Lsn;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::oracle::wal::WalKept;
use sheetanchor_sim::world::World;

use crate::cluster::{NODES, host};

/// Judges every node's recycling of WAL, from the beginning of the run to its end.
pub fn judge(world: &World) -> Result<(), Violation> {
    for node in NODES {
        let name = host(node);
        let milestones = world.milestones(&name);
        judge_host(&name, milestones.iter().map(|event| event.what.as_str()))?;
    }
    Ok(())
}

fn judge_host<'a>(host: &str, milestones: impl Iterator<Item = &'a str>) -> Result<(), Violation> {
    let mut kept = WalKept::default();
    let mut incarnation = None;
    for what in milestones {
        let field = |key: &str| what.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let lsn = |key: &str| field(key).and_then(|text| text.parse::<Lsn>().ok()).unwrap_or_default();
        if what.starts_with("agent pinned") {
            kept.pinned(host, field("pin").unwrap_or_default(), lsn("from"));
        } else if what.starts_with("agent unpinned") {
            kept.unpinned(host, field("pin").unwrap_or_default());
        } else if what.starts_with("refdb recycled") {
            kept.removed(host, lsn("until"))?;
        } else if what.starts_with("refdb opened") && field("incarnation") != incarnation {
            // Another incarnation's nodes own no pin of the one before.
            incarnation = field("incarnation");
            kept = WalKept::default();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PINNED: &str = "agent pinned node=1 pin=backup-1 from=0/100";

    #[test]
    fn recycling_below_a_pin_is_seen_and_other_recycling_is_not() {
        let judge = |milestones: &[&str]| judge_host("n1", milestones.iter().copied());
        let [at, below] = ["refdb recycled WAL node=1 last=0/50 until=0/100", "refdb recycled WAL node=1 until=0/101"];
        assert_eq!(judge(&["refdb opened node=1 incarnation=1", PINNED, at]), Ok(()));
        assert!(judge(&["refdb opened node=1 incarnation=1", PINNED, below]).is_err());
        assert!(judge(&[PINNED, "agent unpinned node=1 pin=backup-2", below]).is_err());
        assert_eq!(judge(&[PINNED, "agent unpinned node=1 pin=backup-1", below]), Ok(()));
        assert!(judge(&["refdb opened incarnation=1", PINNED, "refdb opened incarnation=1", below]).is_err());
        assert_eq!(judge(&["refdb opened incarnation=1", PINNED, "refdb opened incarnation=2", below]), Ok(()));
    }
}
