//! How fast an operation may read a node's files, or put them in place: told before it begins, forgotten with it.

use alloc::format;
use core::time::Duration;

use sheetanchor_core::error::Result;
use sheetanchor_core::identity::{ByteCount, OperationId};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::Answer;
use sheetanchor_core::throttle::{Rate, Throttle};

use super::Agent;

/// How often whoever waits for a turn looks whether the operation is still wanted.
const LOOK_AFTER: Duration = Duration::from_millis(500);

impl Agent {
    /// Takes note of an operation's rate. One that is told again, or anew, holds for what is asked for from then on.
    pub(super) async fn throttle(&self, operation: OperationId, rate: Rate) -> Result<Answer> {
        let mut rates = self.rates.lock().await;
        rates.entry(operation).or_insert_with(|| Throttle::new(rate)).change(rate);
        Ok(Answer::Done)
    }

    /// Waits until an operation may read or write so many bytes; not at all where no rate was told.
    ///
    /// # Errors
    /// `SA207` once the operation has ended.
    pub(super) async fn await_turn(&self, operation: OperationId, bytes: u64) -> Result<()> {
        let mut left = match self.rates.lock().await.get_mut(&operation) {
            Some(throttle) => throttle.turn(self.env.clock.now(), ByteCount::new(bytes)),
            None => return Ok(()),
        };
        while !left.is_zero() && !planted::is(Bug::RateIgnored) {
            let wait = left.min(LOOK_AFTER);
            self.env.clock.sleep(wait).await;
            left = left.saturating_sub(wait);
            if !self.rates.lock().await.contains_key(&operation) {
                return Err(Refusal::new(Code::Aborted, format!("{operation} has ended")).into());
            }
        }
        Ok(())
    }
}
