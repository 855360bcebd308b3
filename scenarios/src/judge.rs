//! What every run is judged for, whatever its story: feeds oracles with what agents and databases said on the way.

use std::time::Duration;

use sheetanchor_core::position::Lsn;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::oracle::fence::FenceLease;
use sheetanchor_sim::oracle::wal::WalKept;
use sheetanchor_sim::world::World;

use crate::cluster::{LEASE, NODES, clone_host, host, new_host};

/// How much later than its lease a fence may open: a turn of the agent's timer.
const SLACK: Duration = Duration::from_millis(50);

/// Judges every node, where it has moved to, and that of a clone: no WAL was recycled under a pin, and no fence stayed closed
/// beyond its lease.
pub fn judge(world: &World) -> Result<(), Violation> {
    for name in [host, new_host, clone_host].into_iter().flat_map(|host| NODES.map(host)) {
        let milestones = world.milestones(&name);
        judge_host(&name, milestones.iter().map(|event| event.what.as_str()))?;
        let fence = judge_fence(&name, milestones.iter().map(|event| (event.at, event.what.as_str())))?;
        if !world.is_down(&name) {
            fence.check(world.elapsed())?;
        }
    }
    Ok(())
}

/// Answers the fence as it stands after the last milestone.
fn judge_fence<'a>(host: &str, milestones: impl Iterator<Item = (Duration, &'a str)>) -> Result<FenceLease, Violation> {
    let mut fence = FenceLease::new(LEASE, SLACK);
    let mut paused = None;
    for (at, what) in milestones {
        if what.starts_with("paused ") {
            paused = Some(at);
        } else if what == "woken" {
            fence.stood_still(host, at.saturating_sub(paused.take().unwrap_or(at)));
        } else if what.starts_with("refdb fence closed") {
            fence.closed(host, at);
        } else if what.starts_with("refdb fence released") {
            fence.check(at)?;
            fence.opened(host);
        } else if what.starts_with("refdb opened") || what.starts_with("agent listening") {
            // Another life: the fence went down with the one before.
            fence.opened(host);
        }
    }
    Ok(fence)
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

    #[test]
    fn a_fence_that_outlasts_its_lease_is_seen() {
        let closed = (Duration::ZERO, "refdb fence closed node=1");
        let released = |ms| (Duration::from_millis(ms), "refdb fence released node=1");
        let judge = |milestones: &[(Duration, &'static str)]| judge_fence("n1", milestones.iter().copied());
        assert!(judge(&[closed, released(2_050)]).is_ok());
        assert!(judge(&[closed, released(2_051)]).is_err());
        let slept = [(Duration::from_secs(1), "paused for_ms=3000"), (Duration::from_secs(4), "woken")];
        assert!(judge(&[closed, slept[0], slept[1], released(5_050)]).is_ok());
        assert!(judge(&[closed, slept[0], slept[1], released(5_051)]).is_err());
        assert!(judge(&[closed, (Duration::from_secs(9), "agent listening node=1"), released(9_001)]).is_ok());
        assert!(judge(&[closed]).is_ok_and(|fence| fence.check(Duration::from_secs(3)).is_err()));
    }
}
