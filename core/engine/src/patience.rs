//! A repository that cannot just now is asked again: a little later each time, never two askers in step, and not for ever.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use sheetanchor_core::error::{Fault, FaultKind};
use sheetanchor_core::identity::ByteCount;
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::time::Moment;

use crate::env::{Bucket, Clock, Entropy, Env, Put};

/// How long somebody goes on asking before it is given up as a fault.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The pause after the first attempt; each one is twice as long as the one before, up to the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The pauses between the attempts at one thing.
pub struct Pauses {
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    until: Moment,
    next: Duration,
}

impl core::fmt::Debug for Pauses {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.debug_struct("Pauses").field("until", &self.until).field("next", &self.next).finish_non_exhaustive()
    }
}

impl Pauses {
    /// Pauses that add up to [`PATIENCE`] at most, from now on.
    pub fn new(clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Self {
        let until = clock.now().after(PATIENCE);
        Self { clock, entropy, until, next: PAUSE_FIRST }
    }

    /// Waits for the next attempt. False, at once: there has been enough of them.
    pub async fn wait(&mut self) -> bool {
        let shortest = self.next / 2;
        let spread_ns = u64::try_from(shortest.as_nanos()).unwrap_or(u64::MAX);
        let pause = shortest + Duration::from_nanos(self.entropy.word().checked_rem(spread_ns).unwrap_or(0));
        let at = self.clock.now().after(pause);
        if at > self.until && !planted::is(Bug::RetryUnbounded) {
            return false;
        }
        self.next = (self.next * 2).min(PAUSE_MAX);
        self.clock.sleep_until(at).await;
        true
    }
}

/// A repository that is asked again. An unknown answer to a write is passed on: only its writer can tell whose object is
/// there.
pub struct PatientBucket {
    inner: Arc<dyn Bucket>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

impl PatientBucket {
    /// The repository of an environment.
    pub fn new(env: &Env) -> Self {
        Self::over(env.bucket.clone(), env)
    }

    /// Another repository, asked by the clock of an environment.
    pub fn over(inner: Arc<dyn Bucket>, env: &Env) -> Self {
        Self { inner, clock: env.clock.clone(), entropy: env.entropy.clone() }
    }

    /// The pauses between attempts at one thing.
    pub fn pauses(&self) -> Pauses {
        Pauses::new(self.clock.clone(), self.entropy.clone())
    }

    async fn again<'a, T>(
        &'a self,
        wanted: fn(FaultKind) -> bool,
        attempt: impl Fn() -> BoxFuture<'a, Result<T, Fault>> + Send,
    ) -> Result<T, Fault> {
        let mut pauses = None;
        loop {
            match attempt().await {
                Err(fault) if wanted(fault.kind) => {
                    if !pauses.get_or_insert_with(|| self.pauses()).wait().await {
                        return Err(fault);
                    }
                }
                outcome => return outcome,
            }
        }
    }
}

impl core::fmt::Debug for PatientBucket {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.debug_struct("PatientBucket").finish_non_exhaustive()
    }
}

/// Whether the same may succeed later, where doing it twice does no harm.
fn passes(kind: FaultKind) -> bool {
    matches!(kind, FaultKind::Unavailable | FaultKind::TimedOut | FaultKind::Unreachable)
}

#[async_trait]
impl Bucket for PatientBucket {
    async fn put_new(&self, key: &str, body: Bytes) -> Result<Put, Fault> {
        self.again(|kind| kind == FaultKind::Unavailable, || self.inner.put_new(key, body.clone())).await
    }

    async fn get(&self, key: &str) -> Result<Vec<u8>, Fault> {
        self.again(passes, || self.inner.get(key)).await
    }

    async fn get_range(&self, key: &str, from: u64, length: u64) -> Result<Vec<u8>, Fault> {
        self.again(passes, || self.inner.get_range(key, from, length)).await
    }

    async fn head(&self, key: &str) -> Result<Option<ByteCount>, Fault> {
        self.again(passes, || self.inner.head(key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, Fault> {
        self.again(passes, || self.inner.list(prefix)).await
    }

    async fn folders(&self, prefix: &str) -> Result<Vec<String>, Fault> {
        self.again(passes, || self.inner.folders(prefix)).await
    }

    async fn delete(&self, key: &str) -> Result<(), Fault> {
        self.again(passes, || self.inner.delete(key)).await
    }
}
