//! Restore points at an interval: when the next one is due, and which are skipped because the one before is late. None is
//! queued: after a late point the next is taken at the next tick, and not at once.

use core::time::Duration;

use crate::planted::{self, Bug};
use crate::time::Moment;

/// How many points came to what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tally {
    /// Published.
    pub taken: u64,
    /// Refused, or ended by a fault.
    pub failed: u64,
    /// Not begun, because the one before had not ended when they were due.
    pub skipped: u64,
}

/// Ticks at an interval, from a beginning on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Schedule {
    every: Duration,
    due: Moment,
    tally: Tally,
}

impl Schedule {
    /// The first point is due at `now`, and then one `every` so often, at least a millisecond.
    pub fn new(now: Moment, every: Duration) -> Self {
        Self { every: every.max(Duration::from_millis(1)), due: now, tally: Tally::default() }
    }

    /// When the next point is due.
    pub fn due(&self) -> Moment {
        self.due
    }

    /// How the points have ended so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// The point that was due has ended at `now`. Answers how many others were due meanwhile, and are skipped.
    pub fn ended(&mut self, now: Moment, published: bool) -> u64 {
        if published {
            self.tally.taken += 1;
        } else {
            self.tally.failed += 1;
        }
        let interval = self.every.as_nanos().max(1);
        let late = if planted::is(Bug::TicksQueued) { 0 } else { now.since(self.due).as_nanos() / interval };
        let skipped = u32::try_from(late).unwrap_or(u32::MAX);
        self.tally.skipped += u64::from(skipped);
        self.due = self.due.after(self.every.saturating_mul(skipped)).after(self.every);
        u64::from(skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn a_late_point_skips_the_ticks_it_overran_and_keeps_the_beat() {
        let mut schedule = Schedule::new(ms(0), Duration::from_millis(100));
        for (ended, skipped, due) in [(30, 0, 100), (199, 0, 200), (510, 3, 600), (700, 1, 800)] {
            assert_eq!(schedule.ended(ms(ended), true), skipped, "ended at {ended}");
            assert_eq!(schedule.due(), ms(due), "ended at {ended}");
        }
        schedule.ended(ms(810), false);
        assert_eq!(schedule.tally(), Tally { taken: 4, failed: 1, skipped: 4 });
    }

    proptest! {
        #[test]
        fn the_next_point_is_due_on_the_beat_after_the_end_and_none_is_forgotten(
            every in 1_u64..500, lengths in proptest::collection::vec(0_u64..2_000, 1..30),
        ) {
            let mut schedule = Schedule::new(ms(7), Duration::from_millis(every));
            for length in lengths {
                let end = Moment::from_nanos(schedule.due().nanos() + length * 1_000_000);
                schedule.ended(end, true);
                prop_assert!(schedule.due() > end);
                prop_assert!(schedule.due().since(end) <= Duration::from_millis(every));
                let Tally { taken, failed, skipped } = schedule.tally();
                prop_assert_eq!(schedule.due(), ms(7 + every * (taken + failed + skipped)));
            }
        }
    }
}
