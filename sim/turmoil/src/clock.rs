//! Time of a turmoil host.

use std::time::Duration;

use async_trait::async_trait;
use sheetanchor_core::time::{Moment, WallMillis};
use sheetanchor_engine::env::Clock;

/// The clock of whichever host runs; only to be asked from inside of one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostClock;

#[async_trait]
impl Clock for HostClock {
    fn now(&self) -> Moment {
        Moment::from_nanos(0).after(turmoil::sim_elapsed().unwrap_or(Duration::ZERO))
    }

    fn wall(&self) -> WallMillis {
        WallMillis::new(self.now().nanos() / 1_000_000)
    }

    #[allow(clippy::disallowed_methods, reason = "this is where the port meets the runtime")]
    async fn sleep_until(&self, moment: Moment) {
        loop {
            let left = moment.since(self.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}
