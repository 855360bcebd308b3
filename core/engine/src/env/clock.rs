//! Time and chance.

use alloc::boxed::Box;
use core::time::Duration;

use async_trait::async_trait;
use sheetanchor_core::time::{Moment, WallMillis};

/// Monotonic and wall time of one process.
#[async_trait]
pub trait Clock: Send + Sync {
    /// The monotonic clock. Never falls within one process; means nothing in another.
    fn now(&self) -> Moment;

    /// The wall clock. May jump, both ways.
    fn wall(&self) -> WallMillis;

    /// Returns once [`Clock::now`] is at or after `moment`. Cancelling is harmless.
    async fn sleep_until(&self, moment: Moment);
}

impl dyn Clock {
    /// Returns once `wait` has passed.
    pub async fn sleep(&self, wait: Duration) {
        self.sleep_until(self.now().after(wait)).await;
    }
}

/// Random words, unpredictable natively and drawn from the seed in a simulator.
pub trait Entropy: Send + Sync {
    /// The next random word.
    fn word(&self) -> u64;
}
