//! A simulated object store, shared by all hosts: atomic, and durable at `Created`. A crash takes nothing from it, so a missing
//! fsync does not show here: scenarios about durability keep their repository in a folder of the simulated disk instead.

mod unsure;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sheetanchor_core::error::{Fault, FaultKind};
use sheetanchor_core::identity::ByteCount;
use sheetanchor_engine::env::{Bucket, Clock, Put, folders_in};

use crate::chance::Chance;
use crate::gate::{Cost, Kind, Life, Met, Operation, Said, Volume};
use crate::host::locked;
use crate::plan::Damage;

pub use unsure::UnsureBucket;

/// The objects of one store. Clones are the same store.
#[derive(Clone, Debug, Default)]
pub struct Objects(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

/// The volume name by which a plan fills the store.
pub const VOLUME: &str = "bucket:";

/// The store as one life of one host sees it.
pub struct SimBucket {
    objects: Objects,
    life: Life,
    clock: Arc<dyn Clock>,
    chance: Chance,
}

impl SimBucket {
    /// The view of `life`.
    pub fn new(objects: Objects, life: Life, clock: Arc<dyn Clock>, chance: Chance) -> Self {
        Self { objects, life, clock, chance }
    }

    async fn run<T: Send>(
        &self,
        kind: Kind,
        said: Said<'_>,
        payload: &[u8],
        effect: impl FnOnce(&mut BTreeMap<String, Vec<u8>>, Option<Met>) -> Result<T, Fault> + Send,
    ) -> Result<T, Fault> {
        let cost = Cost {
            before: Duration::from_micros(self.chance.between(1_000, 6_000)),
            after: Duration::from_micros(self.chance.between(1_000, 6_000)),
        };
        let operation = Operation { kind, volume: Volume::Named(VOLUME), said };
        let effect = |injected| effect(&mut locked(&self.objects.0), injected);
        self.life.perform(self.clock.as_ref(), operation, payload, cost, effect).await
    }
}

impl core::fmt::Debug for SimBucket {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.debug_struct("SimBucket").field("life", &self.life).finish_non_exhaustive()
    }
}

fn fault(kind: FaultKind, operation: &str, key: &str) -> Fault {
    Fault::new(kind, format!("{operation} object {key}"), format!("{kind:?}"))
}

/// Keys are relative, `/`-separated, of `[A-Za-z0-9._-]` parts.
fn checked(key: &str) -> Result<(), Fault> {
    let plain = |part: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        !part.is_empty() && part != "." && part != ".." && part.bytes().all(known)
    };
    if key.split('/').all(plain) { Ok(()) } else { Err(fault(FaultKind::Other, "name", key)) }
}

/// Flips a bit of what is read of an object, where it lies, if that is what is met.
fn rots(read: Option<&mut [u8]>, met: Option<Met>) {
    let (Some(bytes), Some(Met::Silent(Damage::Rot, draw))) = (read, met) else { return };
    let bits = bytes.len().saturating_mul(8);
    let Some(bit) = usize::try_from(draw).unwrap_or(usize::MAX).checked_rem(bits) else { return };
    bytes.iter_mut().skip(bit / 8).take(1).for_each(|byte| *byte ^= 1 << (bit % 8));
}

#[async_trait]
impl Bucket for SimBucket {
    async fn put_new(&self, key: &str, body: Bytes) -> Result<Put, Fault> {
        checked(key)?;
        let payload = body.clone();
        self.run(Kind::BucketPut, Said::of("bucket put", key).count(body.len()), &payload, |objects, injected| {
            // A store that is full, and nothing else: the troubles of requests are those of `UnsureBucket`.
            if let Some(Met::Fails(kind)) = injected {
                return Err(fault(kind, "write", key));
            }
            let put = if objects.contains_key(key) { Put::Exists } else { Put::Created };
            let lost = matches!(injected, Some(Met::Silent(Damage::Lost, _)));
            if put == Put::Created && !lost {
                objects.insert(key.into(), body.into());
            }
            Ok(put)
        })
        .await
    }

    async fn get(&self, key: &str) -> Result<Vec<u8>, Fault> {
        self.run(Kind::Read, Said::of("bucket get", key), &[], |objects, met| {
            rots(objects.get_mut(key).map(Vec::as_mut_slice), met);
            objects.get(key).cloned().ok_or_else(|| fault(FaultKind::NotFound, "read", key))
        })
        .await
    }

    async fn get_range(&self, key: &str, from: u64, length: u64) -> Result<Vec<u8>, Fault> {
        self.run(
            Kind::Read,
            Said::of("bucket get", key).range(from, usize::try_from(length).unwrap_or(usize::MAX)),
            &[],
            |objects, met| {
                let body = objects.get_mut(key).ok_or_else(|| fault(FaultKind::NotFound, "read", key))?;
                let clip = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(body.len());
                let range = clip(from)..clip(from.saturating_add(length));
                rots(body.get_mut(range.clone()), met);
                Ok(body.get(range).unwrap_or_default().to_vec())
            },
        )
        .await
    }

    async fn head(&self, key: &str) -> Result<Option<ByteCount>, Fault> {
        self.run(Kind::Read, Said::of("bucket head", key), &[], |objects, _| {
            Ok(objects.get(key).map(|body| ByteCount::new(u64::try_from(body.len()).unwrap_or(u64::MAX))))
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, Fault> {
        self.run(Kind::Read, Said::of("bucket list", prefix), &[], |objects, _| {
            Ok(objects.keys().filter(|key| key.starts_with(prefix)).cloned().collect())
        })
        .await
    }

    async fn folders(&self, prefix: &str) -> Result<Vec<String>, Fault> {
        Ok(folders_in(prefix, &self.list(prefix).await?))
    }

    async fn delete(&self, key: &str) -> Result<(), Fault> {
        self.run(Kind::Name, Said::of("bucket delete", key), &[], |objects, _| {
            objects.remove(key);
            Ok(())
        })
        .await
    }
}
