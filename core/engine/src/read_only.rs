//! A repository that cannot be written to, whoever holds it.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use async_trait::async_trait;
use bytes::Bytes;
use sheetanchor_core::error::{Fault, FaultKind};
use sheetanchor_core::identity::ByteCount;

use crate::env::{Bucket, Put};

/// A [`Bucket`] that is only read. What it wraps is never handed out again, so that who has it cannot write there.
#[derive(Clone)]
pub struct ReadOnly {
    bucket: Arc<dyn Bucket>,
}

impl ReadOnly {
    /// Reads what is in `bucket`.
    pub fn new(bucket: Arc<dyn Bucket>) -> Self {
        Self { bucket }
    }
}

impl core::fmt::Debug for ReadOnly {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.debug_struct("ReadOnly").finish_non_exhaustive()
    }
}

fn refused(what: &str, key: &str) -> Fault {
    Fault::new(FaultKind::Other, format!("{what} `{key}`"), "the repository is another cluster's, and only read here")
}

#[async_trait]
impl Bucket for ReadOnly {
    async fn put_new(&self, key: &str, _body: Bytes) -> Result<Put, Fault> {
        Err(refused("write", key))
    }

    async fn get(&self, key: &str) -> Result<Vec<u8>, Fault> {
        self.bucket.get(key).await
    }

    async fn get_range(&self, key: &str, from: u64, length: u64) -> Result<Vec<u8>, Fault> {
        self.bucket.get_range(key, from, length).await
    }

    async fn head(&self, key: &str) -> Result<Option<ByteCount>, Fault> {
        self.bucket.head(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, Fault> {
        self.bucket.list(prefix).await
    }

    async fn folders(&self, prefix: &str) -> Result<Vec<String>, Fault> {
        self.bucket.folders(prefix).await
    }

    async fn delete(&self, key: &str) -> Result<(), Fault> {
        Err(refused("remove", key))
    }
}
