//! A repository whose requests may end without an answer, with a wrong one, or with a refusal, as those of an object store
//! do: it stands before every repository of a world, the folder's and the store's alike.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sheetanchor_core::error::{Fault, FaultKind};
use sheetanchor_core::identity::ByteCount;
use sheetanchor_engine::env::{Bucket, Clock, Put};

use super::{VOLUME, fault};
use crate::gate::{Cost, Kind, Life, Operation, PutTrouble, Request, RequestMet, Said, Volume};

/// Another repository, as one life of one host sees it.
pub struct UnsureBucket {
    inner: Arc<dyn Bucket>,
    life: Life,
    clock: Arc<dyn Clock>,
}

/// How long a refusal takes.
const REFUSAL: Duration = Duration::from_millis(3);

/// How long a request takes that ends without an answer.
const SILENCE: Duration = Duration::from_millis(200);

impl UnsureBucket {
    /// The view of `life` on `inner`.
    pub fn new(inner: Arc<dyn Bucket>, life: Life, clock: Arc<dyn Clock>) -> Self {
        Self { inner, life, clock }
    }

    /// Fails, through the gate.
    async fn fails<T: Send>(
        &self,
        kind: FaultKind,
        after: Duration,
        what: &'static str,
        key: &str,
    ) -> Result<T, Fault> {
        let operation = Operation { kind: Kind::Read, volume: Volume::Named(VOLUME), said: Said::of(what, key) };
        let cost = Cost { before: after, ..Cost::default() };
        self.life.perform(self.clock.as_ref(), operation, &[], cost, |_| Err(fault(kind, what, key))).await
    }

    /// A request that is neither read nor write.
    async fn may_pass(&self, request: Request, key: &str) -> Result<(), Fault> {
        match self.life.request_meets(request) {
            Some(RequestMet::Refused) => self.fails(FaultKind::Unavailable, REFUSAL, "bucket refuse", key).await,
            Some(RequestMet::BreaksOff) => self.fails(FaultKind::Unreachable, REFUSAL, "bucket break-off", key).await,
            Some(RequestMet::Put(_)) | None => Ok(()),
        }
    }
}

impl core::fmt::Debug for UnsureBucket {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.debug_struct("UnsureBucket").field("life", &self.life).finish_non_exhaustive()
    }
}

#[async_trait]
impl Bucket for UnsureBucket {
    async fn put_new(&self, key: &str, body: Bytes) -> Result<Put, Fault> {
        let timed_out = || Err(fault(FaultKind::TimedOut, "write", key));
        if let Some(late) = self.life.take_late(key) {
            self.inner.put_new(key, late).await?;
        }
        let trouble = match self.life.request_meets(Request::Put) {
            None | Some(RequestMet::BreaksOff) => return self.inner.put_new(key, body).await,
            Some(RequestMet::Refused) => {
                return self.fails(FaultKind::Unavailable, REFUSAL, "bucket refuse", key).await;
            }
            Some(RequestMet::Put(trouble)) => trouble,
        };
        match trouble {
            PutTrouble::TimesOutBefore => self.fails(FaultKind::TimedOut, SILENCE, "bucket lose", key).await,
            PutTrouble::TimesOutAfter => {
                self.inner.put_new(key, body).await?;
                timed_out()
            }
            PutTrouble::Echoes => self.inner.put_new(key, body).await.map(|_| Put::Exists),
            PutTrouble::Waits(length) => {
                self.clock.sleep(length).await;
                self.inner.put_new(key, body).await
            }
            PutTrouble::LandsLater => {
                self.life.keep_late(key, body);
                timed_out()
            }
        }
    }

    async fn get(&self, key: &str) -> Result<Vec<u8>, Fault> {
        self.may_pass(Request::Get, key).await?;
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &str, from: u64, length: u64) -> Result<Vec<u8>, Fault> {
        self.may_pass(Request::Get, key).await?;
        self.inner.get_range(key, from, length).await
    }

    async fn head(&self, key: &str) -> Result<Option<ByteCount>, Fault> {
        self.may_pass(Request::Other, key).await?;
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, Fault> {
        self.may_pass(Request::Other, prefix).await?;
        self.inner.list(prefix).await
    }

    async fn folders(&self, prefix: &str) -> Result<Vec<String>, Fault> {
        self.may_pass(Request::Other, prefix).await?;
        self.inner.folders(prefix).await
    }

    async fn delete(&self, key: &str) -> Result<(), Fault> {
        self.may_pass(Request::Other, key).await?;
        self.inner.delete(key).await
    }
}
