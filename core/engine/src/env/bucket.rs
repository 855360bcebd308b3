//! The repository as the engine sees it.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use async_trait::async_trait;
use bytes::Bytes;
use sheetanchor_core::error::Fault;
use sheetanchor_core::identity::ByteCount;

/// What became of a create-once write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The object is there now, whole and durable, and this call wrote it.
    Created,
    /// An object of that key was there before, whole and durable; it is unchanged.
    Exists,
}

/// Immutable objects, each created once or not at all. Keys are relative, `/`-separated, of `[A-Za-z0-9._-]` parts.
/// There is no conditional update to rely on: not every object store has one. What breaks off on its way is a fault, never a
/// part of an object.
#[async_trait]
pub trait Bucket: Send + Sync {
    /// Writes an object that must not exist yet. All or nothing; durable once it answers.
    ///
    /// # Errors
    /// [`TimedOut`](sheetanchor_core::error::FaultKind::TimedOut) if the effect is unknown: read back and compare.
    /// [`NoSpace`](sheetanchor_core::error::FaultKind::NoSpace). Other faults mean that nothing was written; after
    /// [`Unavailable`](sheetanchor_core::error::FaultKind::Unavailable), as of every method, asking again may help.
    /// `Exists` may stand for the caller's own object, written by an attempt that it was not told of: read back and compare.
    async fn put_new(&self, key: &str, body: Bytes) -> Result<Put, Fault>;

    /// The whole object.
    ///
    /// # Errors
    /// [`NotFound`](sheetanchor_core::error::FaultKind::NotFound).
    async fn get(&self, key: &str) -> Result<Vec<u8>, Fault>;

    /// The bytes `from..from + length` of the object, fewer only at its end.
    ///
    /// # Errors
    /// [`NotFound`](sheetanchor_core::error::FaultKind::NotFound).
    async fn get_range(&self, key: &str, from: u64, length: u64) -> Result<Vec<u8>, Fault>;

    /// The object's size, or `None` if there is none of that key.
    ///
    /// # Errors
    /// Any [`Fault`].
    async fn head(&self, key: &str) -> Result<Option<ByteCount>, Fault>;

    /// The keys that start with `prefix`, sorted. Only durable objects are listed. Object sizes come with `head`.
    ///
    /// # Errors
    /// Any [`Fault`].
    async fn list(&self, prefix: &str) -> Result<Vec<String>, Fault>;

    /// The parts of keys from `prefix`, which ends with `/`, up to the next `/`, sorted and each once: what an object store
    /// lists with a delimiter, and a file system as folders. One that holds no durable object yet may be among them.
    ///
    /// # Errors
    /// Any [`Fault`].
    async fn folders(&self, prefix: &str) -> Result<Vec<String>, Fault>;

    /// Removes an object; one that is not there is no error.
    ///
    /// # Errors
    /// Any [`Fault`].
    async fn delete(&self, key: &str) -> Result<(), Fault>;
}

/// What [`Bucket::folders`] answers, by the keys that a bucket without folders has listed under `prefix`.
pub fn folders_in(prefix: &str, keys: &[String]) -> Vec<String> {
    let inner = keys.iter().filter_map(|key| key.strip_prefix(prefix)?.split_once('/'));
    let folders: BTreeSet<String> = inner.map(|(folder, _)| format!("{prefix}{folder}")).collect();
    folders.into_iter().collect()
}
