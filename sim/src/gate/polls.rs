//! A bound on polls between which no time passes: a program that wakes itself for ever would stop time on every backend.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// More polls than all hosts together need before time goes on. Fewer than any backend allows in one turn: what never rests
/// is the fault of a program, and is reported as such.
pub(super) const POLLS_MAX: u64 = 1_000_000;

/// Every so many polls the clock is looked at.
const LOOK_EVERY: u64 = 4_096;

/// The polls of one world. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Polls {
    since: Arc<AtomicU64>,
    looked_at_ns: Arc<AtomicU64>,
    too_many: Arc<AtomicBool>,
}

impl Polls {
    /// Counts one. False: there were too many, and nothing is polled any more.
    pub(super) fn count(&self, elapsed: impl FnOnce() -> Duration) -> bool {
        let since = self.since.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if since.is_multiple_of(LOOK_EVERY) {
            let now_ns = u64::try_from(elapsed().as_nanos()).unwrap_or(u64::MAX);
            if self.looked_at_ns.swap(now_ns, Ordering::Relaxed) != now_ns {
                self.since.store(0, Ordering::Relaxed);
            } else if since >= POLLS_MAX {
                self.too_many.store(true, Ordering::Relaxed);
            }
        }
        !self.were_too_many()
    }

    pub(super) fn were_too_many(&self) -> bool {
        self.too_many.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polls_are_bounded_only_while_no_time_passes() {
        let polls = Polls::default();
        for at in 0..3 * POLLS_MAX {
            assert!(polls.count(|| Duration::from_nanos(at)));
        }
        let still = (0..2 * POLLS_MAX).take_while(|_| polls.count(|| Duration::ZERO)).count();
        assert!(u64::try_from(still).unwrap() < POLLS_MAX + 2 * LOOK_EVERY && polls.were_too_many(), "{still}");
    }
}
