//! Time, from the operating system.

use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use sheetanchor_core::time::{Moment, WallMillis};
use sheetanchor_engine::env::Clock;

/// The process's clocks. Its moments count from when it was made, so one process needs one of them.
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    origin: Instant,
}

impl TokioClock {
    /// A clock that starts now.
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Default for TokioClock {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Clock for TokioClock {
    fn now(&self) -> Moment {
        Moment::from_nanos(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn wall(&self) -> WallMillis {
        // A clock set before 1970 reads as 1970: stamps then come from the counter alone.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        WallMillis::new(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    async fn sleep_until(&self, moment: Moment) {
        match self.origin.checked_add(Duration::from_nanos(moment.nanos())) {
            Some(instant) => tokio::time::sleep_until(instant.into()).await,
            None => std::future::pending().await,
        }
        // The timer has a resolution of a millisecond and may be early by less than one; the port may not.
        while self.now() < moment {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sleep_never_ends_early() {
        let clock = TokioClock::new();
        for wait_us in [0, 1, 999, 1_500] {
            let until = clock.now().after(Duration::from_micros(wait_us));
            clock.sleep_until(until).await;
            assert!(clock.now() >= until, "{wait_us} µs");
        }
    }

    #[test]
    fn the_wall_clock_is_past_2020() {
        assert!(TokioClock::new().wall().get() > 1_577_836_800_000);
    }
}
