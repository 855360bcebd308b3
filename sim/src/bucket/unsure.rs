//! A repository whose writes may end without an answer, as those of an object store do: the write has taken effect, or it
//! takes effect later, and its writer is told neither.

use std::sync::Arc;

use async_trait::async_trait;
use sheetanchor_core::error::{Fault, FaultKind};
use sheetanchor_core::identity::ByteCount;
use sheetanchor_engine::env::{Bucket, Clock, Put};

use super::fault;
use crate::gate::{Life, PutTrouble};

/// Another repository, as one life of one host sees it.
pub struct UnsureBucket {
    inner: Arc<dyn Bucket>,
    life: Life,
    clock: Arc<dyn Clock>,
}

impl UnsureBucket {
    /// The view of `life` on `inner`.
    pub fn new(inner: Arc<dyn Bucket>, life: Life, clock: Arc<dyn Clock>) -> Self {
        Self { inner, life, clock }
    }
}

impl core::fmt::Debug for UnsureBucket {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.debug_struct("UnsureBucket").field("life", &self.life).finish_non_exhaustive()
    }
}

#[async_trait]
impl Bucket for UnsureBucket {
    async fn put_new(&self, key: &str, body: Vec<u8>) -> Result<Put, Fault> {
        let timed_out = || Err(fault(FaultKind::TimedOut, "write", key));
        if let Some(late) = self.life.take_late(key) {
            self.inner.put_new(key, late).await?;
        }
        match self.life.put_trouble() {
            None => self.inner.put_new(key, body).await,
            Some(PutTrouble::TimesOutAfter) => {
                self.inner.put_new(key, body).await?;
                timed_out()
            }
            Some(PutTrouble::Waits(length)) => {
                self.clock.sleep(length).await;
                self.inner.put_new(key, body).await
            }
            Some(PutTrouble::LandsLater) => {
                self.life.keep_late(key, body);
                timed_out()
            }
        }
    }

    async fn get(&self, key: &str) -> Result<Vec<u8>, Fault> {
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &str, from: u64, length: u64) -> Result<Vec<u8>, Fault> {
        self.inner.get_range(key, from, length).await
    }

    async fn head(&self, key: &str) -> Result<Option<ByteCount>, Fault> {
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, Fault> {
        self.inner.list(prefix).await
    }

    async fn delete(&self, key: &str) -> Result<(), Fault> {
        self.inner.delete(key).await
    }
}
