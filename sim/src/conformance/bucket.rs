//! The `Bucket` port, short of crashes.

use sheetanchor_core::error::FaultKind;
use sheetanchor_core::identity::ByteCount;
use sheetanchor_engine::env::{Bucket, Put};

use super::{Breach, fails, promise, same};

/// Checks create-once writes, ranges, listing and deletion in an empty bucket.
///
/// # Errors
/// The first promise that is not kept.
pub async fn bucket(bucket: &dyn Bucket) -> Result<(), Breach> {
    same(bucket.list("").await?, Vec::new(), "an empty bucket")?;
    fails(bucket.get("a/b").await, FaultKind::NotFound, "reading what is not there")?;
    fails(bucket.get_range("a/b", 0, 1).await, FaultKind::NotFound, "a range of what is not there")?;
    same(bucket.head("a/b").await?, None, "the size of what is not there")?;
    same(bucket.put_new("a/b", b"first".to_vec().into()).await?, Put::Created, "a new object")?;
    same(bucket.put_new("a/b", b"second".to_vec().into()).await?, Put::Exists, "an object that is there")?;
    same(bucket.get("a/b").await?, b"first".to_vec(), "the object is unchanged")?;
    same(bucket.head("a/b").await?, Some(ByteCount::new(5)), "its size")?;
    same(bucket.get_range("a/b", 1, 3).await?, b"irs".to_vec(), "a range")?;
    same(bucket.get_range("a/b", 3, 100).await?, b"st".to_vec(), "a range over the end")?;
    same(bucket.get_range("a/b", 100, 1).await?, Vec::new(), "a range beyond the end")?;
    same(bucket.put_new("empty", Vec::new().into()).await?, Put::Created, "an empty object")?;
    same(bucket.get("empty").await?, Vec::new(), "an empty object's bytes")?;
    same(bucket.get_range("a/b", 2, 0).await?, Vec::new(), "nothing of an object")?;
    rivals(bucket).await?;
    listing(bucket).await?;
    bucket.delete("a/b").await?;
    bucket.delete("a/b").await?;
    same(bucket.head("a/b").await?, None, "a deleted object")?;
    same(bucket.put_new("a/b", b"third".to_vec().into()).await?, Put::Created, "a name used again after deletion")?;
    for key in ["", "/a", "a/", "a//b", "../a", "a/..", "a b", "."] {
        promise(bucket.put_new(key, Vec::new().into()).await.is_err(), &format!("`{key}` is refused as a key"))?;
    }
    Ok(())
}

/// Of two that write one name at once, one has created it, and what is there is that one's, whole.
async fn rivals(bucket: &dyn Bucket) -> Result<(), Breach> {
    let (one, other) = (vec![1; 100_000], vec![2; 100_000]);
    let puts = futures_util::join!(
        bucket.put_new("rivals", one.clone().into()),
        bucket.put_new("rivals", other.clone().into())
    );
    let winner = match (puts.0?, puts.1?) {
        (Put::Created, Put::Exists) => one,
        (Put::Exists, Put::Created) => other,
        both => return promise(false, &format!("one of two rivals creates the object: {both:?}")),
    };
    promise(bucket.get("rivals").await? == winner, "the winner's object is there")?;
    bucket.delete("rivals").await?;
    same(bucket.list("rivals").await?, Vec::new(), "what is deleted is not listed")
}

async fn listing(bucket: &dyn Bucket) -> Result<(), Breach> {
    for key in ["list/b", "list/a/x", "list/a.b", "listed"] {
        same(bucket.put_new(key, b"x".to_vec().into()).await?, Put::Created, key)?;
    }
    let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_string()).collect::<Vec<_>>();
    same(bucket.list("list/").await?, keys(&["list/a.b", "list/a/x", "list/b"]), "a listed folder, sorted")?;
    same(bucket.list("list/a").await?, keys(&["list/a.b", "list/a/x"]), "a prefix need not end a part")?;
    same(bucket.list("list").await?, keys(&["list/a.b", "list/a/x", "list/b", "listed"]), "a shorter prefix")?;
    same(bucket.list("nothing").await?, Vec::new(), "a prefix of nothing")?;
    for key in ["parts/x/y/1", "parts/x/2", "parts/x-y/3", "parts/z"] {
        same(bucket.put_new(key, b"x".to_vec().into()).await?, Put::Created, key)?;
    }
    same(bucket.folders("parts/").await?, keys(&["parts/x", "parts/x-y"]), "folders, sorted and each once")?;
    same(bucket.folders("nothing/").await?, Vec::new(), "folders of nothing")
}
