//! Removes what is of no use any more: old backups, what failed ones left, and WAL that no kept backup needs.
//!
//! First the backups are condemned, by one create-once object: no restore that begins from here on chooses them. Then
//! whoever may have begun before is waited for. Only then what they alone needed goes, computed anew. A crash anywhere
//! leaves condemned backups in part, and every other one whole; the next run goes on.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use sheetanchor_core::error::Result;
use sheetanchor_core::expiry::{Keep, choose, objects_to_remove, wal_floor, wal_to_remove};
use sheetanchor_core::format::catalog::{Condemned, Ending, IncarnationObject, Point, Seal};
use sheetanchor_core::format::{keys, manifest::Manifest};
use sheetanchor_core::identity::{OperationId, OperationKind, ThreadId};
use sheetanchor_core::lineage::Lineage;
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::refusal::{Code, Refusal};

use super::{Coordinator, Footing};
use crate::agent::stage::read_list;
use crate::repository::Created;

/// How often to look whether operations have ended.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// From how many outcomes on that are in no digest they are folded into one.
const FOLD_LEAST: usize = 16;

/// What an expiry did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Backups that are no target any more from this run on.
    pub condemned: Vec<OperationId>,
    /// Backups that are kept.
    pub kept: Vec<OperationId>,
    /// Objects of condemned backups, and of backups that failed.
    pub objects: Vec<String>,
    /// Pieces of WAL that no kept backup needs.
    pub wal: Vec<String>,
}

impl Coordinator {
    /// Removes what `keep` does not keep. With `dry_run` nothing is changed, and the answer is what would be removed.
    ///
    /// # Errors
    /// `SA101` if nothing would be kept; `SA214` if backups or restores that began before have no outcome in time: then
    /// the backups are condemned, and nothing has been removed; `SA002`, `SA003` if the repository is damaged.
    pub async fn expire(&self, keep: Keep, dry_run: bool) -> Result<Expired> {
        let footing = self.footing().await?;
        let backups = self.repository.whole_catalog().await?.backups;
        let mut going = choose(&backups, keep, self.env.clock.wall())?;
        if let Some(held) = self.held(&footing, &backups).await? {
            going.retain(|backup| *backup != held);
        }
        if dry_run {
            let mut dead = self.repository.condemned().await?;
            dead.extend(&going);
            return Ok(Expired { condemned: going, ..self.removable(dead).await? });
        }
        self.condemn(&going).await?;
        // Only those: what another run condemns from here on may be the base of a backup that this one does not wait for.
        let dead = self.repository.condemned().await?;
        self.await_outcomes().await?;
        // Marked again: what was sealed meanwhile is kept, and needs its WAL, and packs of earlier ones.
        let mut expired = self.removable(dead).await?;
        for key in expired.objects.iter().chain(&expired.wal) {
            self.repository.bucket().delete(key).await?;
        }
        tracing::info!(target: "sheetanchor::phase", objects = expired.objects.len(), wal = expired.wal.len(), phase = "expired");
        expired.condemned = going;
        self.fold_catalog().await;
        Ok(expired)
    }

    /// Makes lists of the catalog cheap again. What cannot be folded is read one by one as before: no reason to fail.
    async fn fold_catalog(&self) {
        for kind in [OperationKind::Backup, OperationKind::Point] {
            match self.repository.fold(kind, FOLD_LEAST).await {
                Ok(0) => {}
                Ok(held) => tracing::info!(target: "sheetanchor::phase", kind = kind.word(), held, phase = "folded"),
                Err(error) => {
                    tracing::warn!(target: "sheetanchor::phase", kind = kind.word(), %error, phase = "unfolded");
                }
            }
        }
    }

    /// The backup that the incarnation in force was restored from, as long as it has none of its own: a node that is lost
    /// before it has opened is staged again from it.
    async fn held(&self, footing: &Footing, backups: &[(OperationId, Seal)]) -> Result<Option<OperationId>> {
        if backups.iter().any(|(_, seal)| seal.incarnation == footing.incarnation) {
            return Ok(None);
        }
        let object: IncarnationObject = self.repository.load(&keys::incarnation(footing.incarnation)).await?;
        match object.restore {
            Some(restore) => Ok(Some(self.repository.newest_plan(restore).await?.1.backup)),
            None => Ok(None),
        }
    }

    async fn condemn(&self, backups: &[OperationId]) -> Result<()> {
        if backups.is_empty() {
            return Ok(());
        }
        let taken = self.repository.bucket().list(keys::CONDEMNED).await?.len();
        let mut generation = u32::try_from(taken).unwrap_or(u32::MAX);
        loop {
            let condemned = Condemned { backups: backups.to_vec(), generation, nonce: self.nonce() };
            match self.repository.create(&keys::condemned(generation), &condemned).await? {
                Created::Ours => return Ok(()),
                Created::Theirs(_) => generation = generation.saturating_add(1),
            }
        }
    }

    /// Waits for every backup and restore that has been registered: it may rely on what is condemned now, or on WAL that
    /// nobody else needs. Whoever registers later, or whose registration is still on its way, sees what is condemned.
    async fn await_outcomes(&self) -> Result<()> {
        let until = self.env.clock.now().after(self.limits.retry);
        loop {
            let mut waiting = self.unfinished().await?;
            waiting.retain(|operation| match operation.kind() {
                OperationKind::Backup => !planted::is(Bug::ExpiryIgnoresBackups),
                OperationKind::Restore | OperationKind::Clone => !planted::is(Bug::ExpiryIgnoresRestores),
                OperationKind::Point => false,
            });
            let Some(first) = waiting.first() else { return Ok(()) };
            if self.env.clock.now() >= until {
                let message = format!("{first} may rely on what would be removed, and has no outcome yet");
                return Err(Refusal::new(Code::Unfinished, message).into());
            }
            self.env.clock.sleep(LOOK_AGAIN_AFTER).await;
        }
    }

    /// What is of no use if the backups in `dead` are not kept.
    async fn removable(&self, mut dead: BTreeSet<OperationId>) -> Result<Expired> {
        let mut kept: Vec<Manifest> = Vec::new();
        for outcome in self.repository.outcomes(OperationKind::Backup).await? {
            match outcome.result {
                Ending::Sealed(seal) if !dead.contains(&outcome.operation) => {
                    match self.repository.manifest(outcome.operation, &seal).await {
                        Ok(manifest) => kept.push(manifest),
                        // Another run has condemned it since, and removed it.
                        Err(error)
                            if error.refusal().is_some_and(|why| why.code == Code::Missing)
                                && self.repository.condemned().await?.contains(&outcome.operation) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ending::Aborted(_) => {
                    dead.insert(outcome.operation);
                }
                Ending::Sealed(_) | Ending::Published(_) | Ending::Cloned(_) => {}
            }
        }
        let used = self.packs_used_by(&kept).await?;
        let mut objects = Vec::new();
        for folder in [keys::PACKS, keys::FILES, keys::MANIFESTS] {
            objects.extend(objects_to_remove(&self.repository.bucket().list(folder).await?, &dead, &used));
        }
        let kept_ids = kept.iter().map(|manifest| manifest.operation).collect();
        let wal = self.removable_wal(&kept).await?;
        Ok(Expired { condemned: Vec::new(), kept: kept_ids, objects, wal })
    }

    /// Packs that incremental backups name. A full one names its own only.
    async fn packs_used_by(&self, kept: &[Manifest]) -> Result<BTreeSet<String>> {
        let mut used = BTreeSet::new();
        let units = kept.iter().flat_map(|manifest| manifest.units.values()).filter(|unit| unit.base.is_some());
        for list in units.flat_map(|unit| &unit.lists) {
            used.extend(read_list(&self.repository, list).await?.packs);
        }
        Ok(used)
    }

    async fn removable_wal(&self, kept: &[Manifest]) -> Result<Vec<String>> {
        let (current, _, _) = self.repository.current_incarnation().await?;
        let incarnations = self.repository.incarnations().await?;
        let lineage = Lineage::of(&incarnations)?;
        let members = self.repository.members().await?;
        let mut points: Vec<Point> = Vec::new();
        if kept.iter().any(|manifest| !manifest.shared) {
            points.extend(self.repository.whole_catalog().await?.points.into_iter().map(|(_, point)| point));
        }
        let mut wal = Vec::new();
        for object in &incarnations {
            let floor = wal_floor(object.incarnation, current, &lineage, kept, &points);
            for thread in members.nodes.keys().copied().map(ThreadId::of) {
                let keys = self.repository.bucket().list(&keys::wal_thread(object.incarnation, thread)).await?;
                wal.extend(wal_to_remove(thread, &keys, &floor));
            }
        }
        Ok(wal)
    }
}
