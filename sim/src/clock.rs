//! Clocks of the simulated hosts. The backend's monotonic clock drives them; each host's wall clock stands a little off.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use sheetanchor_core::time::{Moment, WallMillis};
use sheetanchor_engine::env::Clock;

use crate::host::locked;

/// Wall-clock time at the start of every run: 2023-11-14 22:13:20 UTC.
pub const WALL_AT_START: WallMillis = WallMillis::new(1_700_000_000_000);

/// How far a host's wall clock is ahead of true time; negative if it is behind. Survives the host's crashes.
#[derive(Clone, Debug, Default)]
pub struct WallOffset(Arc<Mutex<Setting>>);

#[derive(Clone, Copy, Debug, Default)]
struct Setting {
    /// In milliseconds, at `since_ms` after the start of the run.
    ahead_ms: i64,
    since_ms: u64,
    /// How much it gains from then on, in millionths.
    drift_ppm: i64,
}

impl WallOffset {
    /// A clock that is `ahead_ms` milliseconds ahead.
    pub fn new(ahead_ms: i64) -> Self {
        Self(Arc::new(Mutex::new(Setting { ahead_ms, ..<_>::default() })))
    }

    /// Makes the clock jump, to `ahead_ms` ahead of true time, and go right from there.
    pub fn set(&self, ahead_ms: i64) {
        *locked(&self.0) = Setting { ahead_ms, ..<_>::default() };
    }

    /// Makes the clock jump by `by_ms`, and gain `drift_ppm` millionths from now on: `now_ms` after the start of the run.
    pub fn shift(&self, now_ms: u64, by_ms: i64, drift_ppm: i64) {
        let ahead_ms = self.at(now_ms).saturating_add(by_ms);
        *locked(&self.0) = Setting { ahead_ms, since_ms: now_ms, drift_ppm };
    }

    /// How far ahead it is, `now_ms` after the start of the run.
    pub fn at(&self, now_ms: u64) -> i64 {
        let Setting { ahead_ms, since_ms, drift_ppm } = *locked(&self.0);
        let run = i64::try_from(now_ms.saturating_sub(since_ms)).unwrap_or(i64::MAX);
        ahead_ms.saturating_add(run.saturating_mul(drift_ppm) / 1_000_000)
    }
}

/// The clock of one life of one host. Moments start anywhere, so that comparing those of two processes shows.
pub struct SimClock {
    inner: Arc<dyn Clock>,
    started: Moment,
    elapsed_at_start_ms: u64,
    origin: Moment,
    offset: WallOffset,
}

impl SimClock {
    /// A clock over the backend's, whose moments start at `origin`. `elapsed_at_start_ms` is the simulated time now.
    pub fn new(inner: Arc<dyn Clock>, elapsed_at_start_ms: u64, origin: Moment, offset: WallOffset) -> Self {
        let started = inner.now();
        Self { inner, started, elapsed_at_start_ms, origin, offset }
    }
}

#[async_trait]
impl Clock for SimClock {
    fn now(&self) -> Moment {
        self.origin.after(self.inner.now().since(self.started))
    }

    fn wall(&self) -> WallMillis {
        let lived_ms = u64::try_from(self.inner.now().since(self.started).as_millis()).unwrap_or(u64::MAX);
        let now_ms = self.elapsed_at_start_ms.saturating_add(lived_ms);
        WallMillis::new(WALL_AT_START.get().saturating_add(now_ms).saturating_add_signed(self.offset.at(now_ms)))
    }

    async fn sleep_until(&self, moment: Moment) {
        self.inner.sleep_until(self.started.after(moment.since(self.origin))).await;
    }
}

impl core::fmt::Debug for SimClock {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.debug_struct("SimClock").field("offset", &self.offset).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    struct Stopped(AtomicU64);

    #[async_trait]
    impl Clock for Stopped {
        fn now(&self) -> Moment {
            Moment::from_nanos(self.0.load(Ordering::Relaxed) * 1_000_000)
        }
        fn wall(&self) -> WallMillis {
            WallMillis::new(0)
        }
        async fn sleep_until(&self, _: Moment) {}
    }

    #[test]
    fn a_clock_that_drifts_goes_on_from_where_it_is() {
        let offset = WallOffset::new(-30);
        offset.shift(1_000, 500, 2_000);
        assert_eq!((offset.at(1_000), offset.at(2_000), offset.at(11_000)), (470, 472, 490));
        offset.shift(11_000, -490, -1_000);
        assert_eq!((offset.at(11_000), offset.at(12_000)), (0, -1));
    }

    #[test]
    fn the_wall_clock_is_off_and_jumps_while_the_monotonic_one_goes_on() {
        let inner = Arc::new(Stopped(AtomicU64::new(100)));
        let offset = WallOffset::new(-30);
        let clock = SimClock::new(inner.clone(), 100, Moment::from_nanos(5), offset.clone());
        assert_eq!(clock.now(), Moment::from_nanos(5));
        assert_eq!(clock.wall().get(), WALL_AT_START.get() + 100 - 30);
        inner.0.store(107, Ordering::Relaxed);
        assert_eq!(clock.now(), Moment::from_nanos(7_000_005));
        offset.set(1_000);
        assert_eq!(clock.wall().get(), WALL_AT_START.get() + 107 + 1_000);
        assert_eq!(clock.now(), Moment::from_nanos(7_000_005));
    }
}
