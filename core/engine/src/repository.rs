//! The catalog in the repository, typed. Every object is created once or not at all; after an ambiguous answer the
//! writer reads back, and its nonce tells it whether it won.

mod digest;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use sheetanchor_core::error::{Error, FaultKind, Result};
use sheetanchor_core::format::catalog::{
    Cluster, Condemned, Ending, IncarnationObject, IncarnationState, Members, NameClaim, Opened, Outcome, Point,
    Registered, Seal, Term, operations_in,
};
use sheetanchor_core::format::hole::Hole;
use sheetanchor_core::format::manifest::{Manifest, Plan};
use sheetanchor_core::format::wal::{self, WalHeader};
use sheetanchor_core::format::{self, Object, keys};
use sheetanchor_core::identity::{
    ContentHash, Epoch, Incarnation, Membership, NodeId, Nonce, OperationId, OperationKind, PointName, ThreadId,
};
use sheetanchor_core::plan::Catalog;
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::time::WallMillis;

use crate::env::{Bucket, Env, Put};
use crate::patience::PatientBucket;
use crate::read_only::ReadOnly;

pub use digest::Ended;

/// How many objects are read at once.
const READS_AT_ONCE: usize = 16;

/// Whose object a create-once name stands for after [`Repository::create`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created<T> {
    /// The caller's own.
    Ours,
    /// Somebody else's, who was first.
    Theirs(T),
}

/// The pieces of a thread's archive in an incarnation.
#[derive(Debug)]
pub struct WalHeaders {
    /// Keys and headers, sorted by timeline and first byte.
    pub sound: Vec<(alloc::string::String, WalHeader)>,
    /// WAL that was let go of before it was archived, sorted likewise.
    pub holes: Vec<Hole>,
    /// For the first one that is damaged: `SA504`, or `SA002` of what says that WAL was let go of.
    pub damaged: Option<Refusal>,
}

/// The repository of a cluster.
#[derive(Clone)]
pub struct Repository {
    bucket: Arc<PatientBucket>,
}

impl core::fmt::Debug for Repository {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.debug_struct("Repository").finish_non_exhaustive()
    }
}

impl Repository {
    /// The repository of an environment.
    pub fn new(env: &Env) -> Self {
        Self { bucket: Arc::new(PatientBucket::new(env)) }
    }

    /// The repository in a bucket, asked by the clock of an environment.
    pub fn of(bucket: Arc<dyn Bucket>, env: &Env) -> Self {
        Self { bucket: Arc::new(PatientBucket::over(bucket, env)) }
    }

    /// A repository that is only read.
    pub fn read_only(bucket: ReadOnly, env: &Env) -> Self {
        Self::of(Arc::new(bucket), env)
    }

    /// The objects underneath.
    pub fn bucket(&self) -> &dyn Bucket {
        self.bucket.as_ref()
    }

    /// Reads an object, if it is there.
    ///
    /// # Errors
    /// `SA001`, `SA002`.
    pub async fn find<T: Object>(&self, key: &str) -> Result<Option<T>> {
        match self.bucket.get(key).await {
            Ok(body) => Ok(Some(format::read(key, &body)?)),
            Err(fault) if fault.kind == FaultKind::NotFound => Ok(None),
            Err(fault) => Err(fault.into()),
        }
    }

    /// Reads an object that must be there.
    ///
    /// # Errors
    /// `SA003` if it is not; `SA001`, `SA002`.
    pub async fn load<T: Object>(&self, key: &str) -> Result<T> {
        let missing = || Refusal::new(Code::Missing, format!("there is no {key}")).into();
        self.find(key).await?.ok_or_else(missing)
    }

    /// Writes an object under a create-once name. `object` must hold a nonce of its writer.
    ///
    /// # Errors
    /// A fault if the name stands for nothing; it may be tried again with the same object. `SA001`, `SA002` if it
    /// stands for something unreadable.
    pub async fn create<T: Object + PartialEq>(&self, key: &str, object: &T) -> Result<Created<T>> {
        let mut last = None;
        let mut pauses = self.bucket.pauses();
        loop {
            match self.bucket.put_new(key, format::write(object).into()).await {
                Ok(Put::Created) => return Ok(Created::Ours),
                Ok(Put::Exists) => {}
                Err(fault) if fault.kind == FaultKind::TimedOut && !planted::is(Bug::TimeoutTakenForFailure) => {
                    last = Some(fault);
                }
                Err(fault) => return Err(fault.into()),
            }
            match self.find::<T>(key).await? {
                Some(found) if found == *object => return Ok(Created::Ours),
                Some(_) if last.is_some() && planted::is(Bug::NonceUnchecked) => return Ok(Created::Ours),
                Some(found) => return Ok(Created::Theirs(found)),
                None => {}
            }
            // Not written, or on its way.
            if !pauses.wait().await {
                return Err(last.map_or_else(|| Error::Bug(format!("{key} exists and cannot be found")), Error::Fault));
            }
        }
    }

    /// The cluster that the repository belongs to.
    ///
    /// # Errors
    /// `SA102` if there is none.
    pub async fn cluster(&self) -> Result<Cluster> {
        let none = || Refusal::new(Code::NotInitialised, "the repository holds no cluster").into();
        self.find(keys::CLUSTER).await?.ok_or_else(none)
    }

    /// The members in force.
    ///
    /// # Errors
    /// `SA102` if there are none.
    pub async fn members(&self) -> Result<Members> {
        let lists = self.bucket.list(keys::MEMBERS).await?;
        let none = || Refusal::new(Code::NotInitialised, "the repository lists no members");
        self.load(lists.last().ok_or_else(none)?).await
    }

    /// One list of members.
    ///
    /// # Errors
    /// `SA003`.
    pub async fn membership(&self, membership: Membership) -> Result<Members> {
        self.load(&keys::members(membership)).await
    }

    /// Every incarnation's object, ascending, tombstones among them.
    ///
    /// # Errors
    /// `SA002`.
    pub async fn incarnations(&self) -> Result<Vec<IncarnationObject>> {
        let mut all = Vec::new();
        for key in self.bucket.list(keys::INCARNATIONS).await? {
            all.push(self.load(&key).await?);
        }
        Ok(all)
    }

    /// The incarnation in force, and the first number that nothing stands under.
    ///
    /// # Errors
    /// `SA102` if there is none.
    pub async fn current_incarnation(&self) -> Result<(Incarnation, Opened, Incarnation)> {
        let all = self.incarnations().await?;
        let none = || Refusal::new(Code::NotInitialised, "the repository has no incarnation");
        let last = all.last().ok_or_else(none)?.incarnation;
        let next = last.next().ok_or_else(|| Error::Bug("incarnations are used up".to_string()))?;
        let opened = all.into_iter().rev().find_map(|object| match object.state {
            IncarnationState::Opened(opened) => Some((object.incarnation, opened)),
            IncarnationState::Aborted(_) => None,
        });
        let (current, opened) = opened.ok_or_else(none)?;
        Ok((current, opened, next))
    }

    /// Registers an operation at epoch 1.
    ///
    /// # Errors
    /// A bug if the id was used before: ids hold time and chance.
    pub async fn register(&self, registered: &Registered) -> Result<Epoch> {
        match self.create(&keys::registration(registered.operation), registered).await? {
            Created::Ours => self.take_over(registered.operation, registered.nonce).await,
            Created::Theirs(_) => Err(Error::Bug(format!("{} was registered before", registered.operation))),
        }
    }

    /// What an operation was registered as.
    ///
    /// # Errors
    /// `SA208` if it was not.
    pub async fn registered(&self, operation: OperationId) -> Result<Registered> {
        let none = || Refusal::new(Code::NotRegistered, format!("{operation} is not in the repository")).into();
        self.find(&keys::registration(operation)).await?.ok_or_else(none)
    }

    /// Begins the next term in an operation, and says its number.
    ///
    /// # Errors
    /// A fault if others keep taking it over.
    pub async fn take_over(&self, operation: OperationId, nonce: Nonce) -> Result<Epoch> {
        let used_up = || Error::Bug(format!("the epochs of {operation} are used up"));
        let mut epoch = self.epoch(operation).await?.next().ok_or_else(used_up)?;
        loop {
            let term = Term { epoch, nonce, operation };
            match self.create(&keys::epoch(operation, epoch), &term).await? {
                Created::Ours => return Ok(epoch),
                Created::Theirs(_) => epoch = epoch.next().ok_or_else(used_up)?,
            }
        }
    }

    /// The term that an operation is in; zero before its first.
    ///
    /// # Errors
    /// Faults only.
    pub async fn epoch(&self, operation: OperationId) -> Result<Epoch> {
        let terms = self.bucket.list(&keys::epochs(operation)).await?;
        let number = terms.last().and_then(|key| key.rsplit('/').next()).and_then(|number| number.parse().ok());
        Ok(Epoch::new(number.unwrap_or(0)))
    }

    /// What became of a backup or a restore point, if it is decided.
    ///
    /// # Errors
    /// `SA002`.
    pub async fn outcome(&self, operation: OperationId) -> Result<Option<Outcome>> {
        self.find(&keys::outcome(operation)).await
    }

    /// Decides a backup or a restore point.
    ///
    /// # Errors
    /// `SA207` if somebody else has decided it before.
    pub async fn decide(&self, outcome: &Outcome) -> Result<()> {
        match self.create(&keys::outcome(outcome.operation), outcome).await? {
            Created::Ours => Ok(()),
            // Another coordinator of this operation may have come to the same end.
            Created::Theirs(theirs)
                if matches!((&theirs.result, &outcome.result), (Ending::Aborted(_), Ending::Aborted(_))) =>
            {
                Ok(())
            }
            Created::Theirs(_) if planted::is(Bug::SealOverAbort) && matches!(outcome.result, Ending::Sealed(_)) => {
                let key = keys::outcome(outcome.operation);
                self.bucket.delete(&key).await?;
                self.create(&key, outcome).await.map(|_| ())
            }
            Created::Theirs(theirs) => {
                let ending = match theirs.result {
                    Ending::Aborted(abort) => format!("aborted: {} ({})", abort.message, abort.code),
                    Ending::Published(_) | Ending::Sealed(_) | Ending::Cloned(_) => "completed".to_string(),
                };
                Err(Refusal::new(Code::Aborted, format!("{} was {ending} by another coordinator", outcome.operation))
                    .into())
            }
        }
    }

    /// Claims a name for an operation. A name is free if it was never claimed, or only by operations that were aborted.
    ///
    /// # Errors
    /// `SA213` if it is taken.
    pub async fn claim_name(&self, name: &PointName, operation: OperationId, nonce: Nonce) -> Result<()> {
        let taken = |by: OperationId| Refusal::new(Code::NameTaken, format!("the name `{name}` belongs to {by}"));
        let claims = self.bucket.list(&keys::name_claims(name)).await?;
        let mut next = u32::try_from(claims.len()).unwrap_or(u32::MAX);
        loop {
            if let Some(last) = next.checked_sub(1) {
                let claim: NameClaim = self.load(&keys::name(name, last)).await?;
                match self.outcome(claim.operation).await? {
                    Some(Outcome { result: Ending::Aborted(_), .. }) => {}
                    Some(_) | None => return Err(taken(claim.operation).into()),
                }
            }
            let claim = NameClaim { name: name.clone(), nonce, operation };
            match self.create(&keys::name(name, next), &claim).await? {
                Created::Ours => return Ok(()),
                Created::Theirs(_) => next = next.saturating_add(1),
            }
        }
    }

    /// Every operation of a kind that anybody meant to begin, in order of time. One that came no further may be among them:
    /// [`Repository::is_registered`] tells.
    ///
    /// # Errors
    /// Faults only.
    pub async fn operations(&self, kind: OperationKind) -> Result<Vec<OperationId>> {
        let folders = self.bucket.folders(keys::OPERATIONS).await?;
        Ok(operations_in(folders.iter().map(alloc::string::String::as_str), kind))
    }

    /// Whether an operation was registered.
    ///
    /// # Errors
    /// Faults only.
    pub async fn is_registered(&self, operation: OperationId) -> Result<bool> {
        Ok(self.bucket.head(&keys::registration(operation)).await?.is_some())
    }

    /// Every backup that was ever condemned.
    ///
    /// # Errors
    /// `SA002`.
    pub async fn condemned(&self) -> Result<BTreeSet<OperationId>> {
        let condemned: Vec<Condemned> = self.load_all(&self.bucket.list(keys::CONDEMNED).await?).await?;
        Ok(condemned.into_iter().flat_map(|condemned| condemned.backups).collect())
    }

    /// Sealed backups and published points of an incarnation, oldest first. Condemned backups are left out.
    ///
    /// # Errors
    /// `SA002`.
    pub async fn catalog(&self, incarnation: Incarnation) -> Result<Catalog> {
        Ok(self.whole_catalog().await?.within(incarnation))
    }

    /// Sealed backups and published points of all incarnations, oldest first. Condemned backups are left out.
    ///
    /// # Errors
    /// `SA002`.
    pub async fn whole_catalog(&self) -> Result<Catalog> {
        let condemned = self.condemned().await?;
        let backups = self.outcomes(OperationKind::Backup).await?;
        Ok(Catalog::of(backups.into_iter().chain(self.outcomes(OperationKind::Point).await?), &condemned))
    }

    /// The newest published point of an incarnation.
    ///
    /// # Errors
    /// `SA002`.
    pub async fn newest_point(&self, incarnation: Incarnation) -> Result<Option<Point>> {
        for key in self.bucket.list(&keys::outcomes(OperationKind::Point)).await?.iter().rev() {
            let outcome: Outcome = self.load(key).await?;
            if let Ending::Published(point) = outcome.result
                && point.incarnation == incarnation
            {
                return Ok(Some(point));
            }
        }
        Ok(None)
    }

    /// Of an incarnation's published points the one with the highest SCN, among the newest one at `now` and all that claim to be
    /// newer than that: a coordinator's clock that was ahead may have named them, and hides what was made after it.
    ///
    /// # Errors
    /// `SA002`.
    pub async fn highest_point(&self, incarnation: Incarnation, now: WallMillis) -> Result<Option<Point>> {
        let mut highest: Option<Point> = None;
        for id in self.ended(OperationKind::Point).await?.into_iter().rev() {
            let outcome: Outcome = self.load(&keys::outcome(id)).await?;
            let Ending::Published(point) = outcome.result else { continue };
            if point.incarnation != incarnation {
                continue;
            }
            if highest.as_ref().is_none_or(|highest| point.cut.scn > highest.cut.scn) {
                highest = Some(point);
            }
            if id.started_ms() <= now.get() {
                break;
            }
        }
        Ok(highest)
    }

    /// Every operation of a kind that has an outcome, in order of time.
    ///
    /// # Errors
    /// Faults only.
    pub async fn ended(&self, kind: OperationKind) -> Result<Vec<OperationId>> {
        let keys = self.bucket.list(&keys::outcomes(kind)).await?;
        Ok(operations_in(keys.iter().map(alloc::string::String::as_str), kind))
    }

    /// Every outcome of a kind, in order of time.
    ///
    /// # Errors
    /// `SA002`.
    pub async fn outcomes(&self, kind: OperationKind) -> Result<Vec<Outcome>> {
        self.load_all(&self.bucket.list(&keys::outcomes(kind)).await?).await
    }

    async fn load_all<T: Object>(&self, keys: &[alloc::string::String]) -> Result<Vec<T>> {
        let mut objects = Vec::with_capacity(keys.len());
        for keys in keys.chunks(READS_AT_ONCE) {
            objects.extend(try_join_all(keys.iter().map(|key| self.load::<T>(key))).await?);
        }
        Ok(objects)
    }

    /// The manifest of a sealed backup, verified.
    ///
    /// # Errors
    /// `SA002`, `SA003`.
    pub async fn manifest(&self, backup: OperationId, seal: &Seal) -> Result<Manifest> {
        let key = keys::manifest(backup, seal.manifest);
        let manifest: Manifest = self.load_hashed(&key, seal.manifest).await?;
        manifest.validate()?;
        Ok(manifest)
    }

    /// The plan of a restore, found by its operation, and what it hashes to.
    ///
    /// # Errors
    /// `SA209` if the restore came to no plan; `SA002`, `SA003`.
    pub async fn newest_plan(&self, restore: OperationId) -> Result<(ContentHash, Plan)> {
        let prefix = keys::plans(restore);
        let plans = self.bucket.list(&prefix).await?;
        let hash = plans.first().and_then(|key| key.strip_prefix(&prefix)).and_then(|hash| hash.parse().ok());
        let none = || Refusal::new(Code::OutOfOrder, format!("{restore} came to no plan: abort it and start again"));
        let hash = hash.ok_or_else(none)?;
        Ok((hash, self.plan(restore, hash).await?))
    }

    /// The plan of a restore, verified.
    ///
    /// # Errors
    /// `SA002`, `SA003`.
    pub async fn plan(&self, restore: OperationId, hash: ContentHash) -> Result<Plan> {
        self.load_hashed(&keys::plan(restore, hash), hash).await
    }

    async fn load_hashed<T: Object>(&self, key: &str, hash: ContentHash) -> Result<T> {
        let body = self.get(key).await?;
        if ContentHash::of(&body) != hash {
            return Err(Refusal::new(Code::Damaged, format!("{key} hashes to {}", ContentHash::of(&body))).into());
        }
        Ok(format::read(key, &body)?)
    }

    /// The nodes that a restore has begun to open.
    ///
    /// # Errors
    /// Faults only.
    pub async fn opened_by(&self, restore: OperationId) -> Result<BTreeSet<NodeId>> {
        let keys = self.bucket.list(&keys::opened_by(restore)).await?;
        let node = |key: &alloc::string::String| key.rsplit('/').next()?.parse().ok().map(NodeId::new);
        Ok(keys.iter().filter_map(node).collect())
    }

    /// The bytes of an object that must be there.
    ///
    /// # Errors
    /// `SA003` if it is not.
    pub async fn get(&self, key: &str) -> Result<Vec<u8>> {
        self.bucket.get(key).await.map_err(|fault| match fault.kind {
            FaultKind::NotFound => Refusal::new(Code::Missing, format!("there is no {key}")).into(),
            FaultKind::Exists
            | FaultKind::NoSpace
            | FaultKind::SyncFailed
            | FaultKind::Unreachable
            | FaultKind::TimedOut
            | FaultKind::Unavailable
            | FaultKind::Other => Error::Fault(fault),
        })
    }

    /// Writes an object that is named by what it hashes to, so that whoever was first wrote the same.
    ///
    /// # Errors
    /// Faults only.
    pub async fn put_hashed(&self, key: &str, body: Vec<u8>) -> Result<()> {
        let body = Bytes::from(body);
        let mut pauses = self.bucket.pauses();
        loop {
            match self.bucket.put_new(key, body.clone()).await {
                Ok(Put::Created | Put::Exists) => return Ok(()),
                Err(fault) if fault.kind == FaultKind::TimedOut => {
                    if !pauses.wait().await {
                        return Err(fault.into());
                    }
                }
                Err(fault) => return Err(fault.into()),
            }
        }
    }

    /// The header of one piece of WAL.
    ///
    /// # Errors
    /// `SA504`, `SA003`.
    pub async fn wal_header(&self, key: &str) -> Result<WalHeader> {
        let longest = u64::try_from(wal::HEADER_BYTES_MAX).unwrap_or(u64::MAX) + 12;
        let start = self.bucket.get_range(key, 0, longest).await?;
        Ok(wal::header(key, &start)?.0)
    }

    /// The headers of a thread's pieces in an incarnation.
    ///
    /// # Errors
    /// `SA003`, and faults.
    pub async fn wal_headers(&self, incarnation: Incarnation, thread: ThreadId) -> Result<WalHeaders> {
        let keys = self.bucket.list(&keys::wal_thread(incarnation, thread)).await?;
        let (holes, keys): (Vec<_>, Vec<_>) = keys.into_iter().partition(|key| keys::is_hole(key));
        let mut headers = WalHeaders { sound: Vec::with_capacity(keys.len()), holes: Vec::new(), damaged: None };
        for key in &holes {
            match self.hole(key).await {
                Ok(hole) => headers.holes.push(hole),
                Err(Error::Refusal(refusal)) if refusal.code == Code::Damaged => {
                    headers.damaged.get_or_insert(refusal);
                }
                Err(error) => return Err(error),
            }
        }
        headers.holes.sort_by_key(|hole| (hole.timeline, hole.from));
        for keys in keys.chunks(READS_AT_ONCE) {
            let read = join_all(keys.iter().map(|key| self.wal_header(key))).await;
            for (key, header) in keys.iter().zip(read) {
                match header {
                    Ok(header) => headers.sound.push((key.clone(), header)),
                    Err(Error::Refusal(refusal))
                        if refusal.code == Code::WalDamaged && !planted::is(Bug::AnyDamageHinders) =>
                    {
                        headers.damaged.get_or_insert(refusal);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        headers.sound.sort_by_key(|(_, header)| (header.timeline, header.from));
        Ok(headers)
    }

    /// A declared hole.
    ///
    /// # Errors
    /// `SA003` if it is not there; `SA001`, `SA002`.
    pub async fn hole(&self, key: &str) -> Result<Hole> {
        Ok(self.load::<Hole>(key).await?.checked(key)?)
    }

    /// The newest piece's header of every thread of a list of members, in an incarnation.
    ///
    /// # Errors
    /// `SA504`.
    pub async fn wal_ends(&self, incarnation: Incarnation, members: &Members) -> Result<BTreeMap<ThreadId, WalHeader>> {
        let mut ends = BTreeMap::new();
        for thread in members.nodes.keys().copied().map(ThreadId::of) {
            let keys = self.bucket.list(&keys::wal_thread(incarnation, thread)).await?;
            if let Some(key) = keys.iter().rfind(|key| !keys::is_hole(key)) {
                ends.insert(thread, self.wal_header(key).await?);
            }
        }
        Ok(ends)
    }
}
