//! Listing a long catalog with few reads. What has an outcome never changes, so outcomes are folded into digests, each of
//! which is named by what it hashes to. Whoever only shows the catalog reads those; whoever acts on it, a restore or an
//! expiry, reads the outcomes themselves.
//!
//! Nothing is believed that only a digest says: an operation counts if its outcome is listed, and what no sound digest
//! holds is read one by one. So a digest may be missing, damaged, old, or written twice, at any time.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use futures_util::future::join_all;
use sheetanchor_core::error::Result;
use sheetanchor_core::format::catalog::{Outcome, Registered, operations_in};
use sheetanchor_core::format::digest::{self, Digest};
use sheetanchor_core::format::keys;
use sheetanchor_core::identity::{ContentHash, Incarnation, OperationId, OperationKind};
use sheetanchor_core::plan::Catalog;
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::refusal::Code;

use super::{READS_AT_ONCE, Repository};
use crate::env::Bucket as _;
use crate::zstd;

/// Bytes in the largest digest, unpacked.
const DIGEST_BYTES_MAX: u64 = 64 << 20;

/// A catalog with fewer operations of a kind is read as it is.
const DIGESTS_FROM: usize = 64;

/// Operations in the largest digest: it is not written anew when more come.
const OPERATIONS_MAX: usize = 1 << 16;

/// What of one kind has ended, as a list shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Outcomes, in order of time.
    pub outcomes: BTreeMap<OperationId, Outcome>,
    /// What backups were registered as, as far as a digest says so.
    pub registered: BTreeMap<OperationId, Registered>,
    /// Operations whose outcome was read by itself: no digest holds it.
    pub unfolded: Vec<OperationId>,
}

/// Digests by their keys; none for one that is not what its name says.
type Digests = BTreeMap<String, Option<Digest>>;

impl Repository {
    /// What every operation of a kind came to, for whoever shows it: most of it from digests, where it is long.
    ///
    /// # Errors
    /// `SA002`.
    pub async fn ended_as_listed(&self, kind: OperationKind) -> Result<Ended> {
        self.ended_through_digests(kind, DIGESTS_FROM).await
    }

    /// As [`Repository::ended_as_listed`], from digests if there are `from` outcomes or more.
    ///
    /// # Errors
    /// `SA002`.
    pub async fn ended_through_digests(&self, kind: OperationKind, from: usize) -> Result<Ended> {
        Ok(self.gather(kind, from).await?.0)
    }

    /// As [`Repository::catalog`], for whoever shows it.
    ///
    /// # Errors
    /// `SA002`.
    pub async fn catalog_as_listed(&self, incarnation: Incarnation) -> Result<Catalog> {
        let condemned = self.condemned().await?;
        let mut outcomes = self.ended_as_listed(OperationKind::Backup).await?.outcomes;
        outcomes.append(&mut self.ended_as_listed(OperationKind::Point).await?.outcomes);
        Ok(Catalog::of(outcomes.into_values(), &condemned).within(incarnation))
    }

    /// Folds what no digest holds, if it is `least` operations or more, together with every digest that is no larger: so
    /// there are about as many digests as the number of operations has binary digits. Answers how many operations the new
    /// digest holds; zero if there was nothing to do. May be cut short anywhere, and done by several at once.
    ///
    /// # Errors
    /// `SA002`, `SA003`.
    pub async fn fold(&self, kind: OperationKind, least: usize) -> Result<usize> {
        let (mut ended, digests) = self.gather(kind, 0).await?;
        if ended.unfolded.is_empty() || ended.unfolded.len() < least {
            return Ok(0);
        }
        ended.unfolded.truncate(OPERATIONS_MAX);
        let mut held: BTreeSet<OperationId> = ended.unfolded.iter().copied().collect();
        if kind == OperationKind::Backup {
            for operation in &ended.unfolded {
                ended.registered.insert(*operation, self.registered(*operation).await?);
            }
        }
        let mut replaced = Vec::new();
        let mut by_size: Vec<(usize, String, Digest)> = Vec::new();
        for (key, digest) in digests {
            match digest {
                Some(digest) => by_size.push((digest.outcomes.len(), key, digest)),
                // Before anything is written: what is written may hash to the very name that a damaged one occupies.
                None => self.bucket.delete(&key).await?,
            }
        }
        by_size.sort_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
        for (size, key, digest) in by_size {
            if size > held.len() || held.len().saturating_add(size) > OPERATIONS_MAX {
                break;
            }
            held.extend(digest.outcomes.iter().map(|outcome| outcome.operation));
            replaced.push(key);
        }
        let Ended { mut outcomes, mut registered, unfolded: _ } = ended;
        outcomes.retain(|operation, _| held.contains(operation));
        registered.retain(|operation, _| held.contains(operation));
        let count = outcomes.len();
        let digest =
            Digest { outcomes: outcomes.into_values().collect(), registered: registered.into_values().collect() };
        let body = zstd::compress(&digest::write(&digest));
        let key = keys::digest(kind, count, ContentHash::of(&body));
        self.put_hashed(&key, body).await?;
        // What is in two digests is there twice, until the next run; what is in none is read by itself.
        for old in replaced.into_iter().filter(|old| *old != key) {
            self.bucket.delete(&old).await?;
        }
        Ok(count)
    }

    /// Everything of a kind that has an outcome, and the digests, if there are `from` outcomes or more.
    async fn gather(&self, kind: OperationKind, from: usize) -> Result<(Ended, Digests)> {
        let listed = self.bucket.list(&keys::outcomes(kind)).await?;
        let listed: BTreeSet<OperationId> =
            operations_in(listed.iter().map(String::as_str), kind).into_iter().collect();
        let mut digests = Digests::new();
        let mut ended = Ended::default();
        let names = if listed.len() < from { Vec::new() } else { self.bucket.list(&keys::digests(kind)).await? };
        for names in names.chunks(READS_AT_ONCE) {
            let read = join_all(names.iter().map(|key| self.digest(key))).await;
            digests.extend(names.iter().cloned().zip(read));
        }
        let counts = |operation: &OperationId| {
            operation.kind() == kind && listed.contains(operation) || planted::is(Bug::DigestTrusted)
        };
        for digest in digests.values().flatten() {
            let outcomes = digest.outcomes.iter().filter(|outcome| counts(&outcome.operation));
            ended.outcomes.extend(outcomes.map(|outcome| (outcome.operation, outcome.clone())));
            let registered = digest.registered.iter().filter(|registered| counts(&registered.operation));
            ended.registered.extend(registered.map(|registered| (registered.operation, registered.clone())));
        }
        ended.unfolded = listed.into_iter().filter(|operation| !ended.outcomes.contains_key(operation)).collect();
        let rest: Vec<String> = ended.unfolded.iter().map(|operation| keys::outcome(*operation)).collect();
        for outcome in self.load_all::<Outcome>(&rest).await? {
            ended.outcomes.insert(outcome.operation, outcome);
        }
        Ok((ended, digests))
    }

    /// A digest; none if it is gone, or is not what its name says.
    async fn digest(&self, key: &str) -> Option<Digest> {
        let frame = self.bucket.get(key).await.ok()?;
        let named = key.rsplit('-').next().and_then(|hash| hash.parse().ok());
        if named != Some(ContentHash::of(&frame)) && !planted::is(Bug::DigestTrusted) {
            return None;
        }
        let body = zstd::decompress_up_to(key, &frame, DIGEST_BYTES_MAX, Code::Damaged).ok()?;
        digest::read(key, &body).ok()
    }
}
