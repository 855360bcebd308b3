//! Verbs for incremental backups.

use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::identity::OperationId;
use sheetanchor_core::incremental::Extent;
use sheetanchor_engine::coordinator::Sealed;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::world::Failure;

use super::{Begun, Stage};
use crate::cluster::Pace;
use crate::workload::Load;

impl Stage {
    /// Given: separate databases or, more often, shared storage in small chunks; transfers, which have gone on for a while.
    pub fn given_either_storage_at_work(&mut self) -> Result<(), Failure> {
        if self.chance().one_in(3) {
            self.given_separate_databases(Load::HOPPING)?;
        } else {
            self.given_a_cluster_in_small_chunks(Load::SPREAD)?;
        }
        self.transfers_begin();
        self.meanwhile(200, 500)
    }

    /// Given: the cluster, whose agents capture files in chunks of some pages, so that some change and others do not.
    pub fn given_a_cluster_in_small_chunks(&mut self, load: Load) -> Result<(), Failure> {
        self.pace = Pace::BriskInSmallChunks;
        self.given_a_cluster(load)
    }

    /// An operator begins an incremental backup.
    pub fn begin_incremental(&mut self) -> Begun<Sealed> {
        self.operate(|operator| async move { operator.backup_of(Extent::Incremental, None, Method::Fence).await })
    }

    /// An incremental backup is taken, and goes on from `base`.
    pub fn an_incremental_is_taken_on(&mut self, base: OperationId) -> Result<Sealed, Failure> {
        let begun = self.begin_incremental();
        let sealed = self.succeeds("an incremental backup without faults succeeds", &begun)?;
        let (on, units) = (sealed.seal.base, &sealed.manifest.units);
        self.world.note(format!("an incremental backup on {base} stored {} bytes", sealed.seal.stored));
        let detail = format!("{on:?}, not {base}: {units:?}");
        self.holds(
            on == Some(base),
            Violation::new("an incremental backup goes on from the newest that fits", detail),
        )?;
        Ok(sealed)
    }

    /// An incremental backup is asked for, and all is copied since nothing fits: the reason says so.
    pub fn an_incremental_is_full_since(&mut self, why: &str) -> Result<Sealed, Failure> {
        let begun = self.begin_incremental();
        let sealed = self.succeeds("a backup that has nothing to go on from is a full one", &begun)?;
        let reasons: Vec<_> = sealed.manifest.units.values().map(|unit| unit.why_full.clone()).collect();
        let told = reasons.iter().all(|reason| reason.as_ref().is_some_and(|reason| reason.contains(why)));
        let violation = Violation::new("a full backup in place of an incremental one says why", format!("{reasons:?}"));
        self.holds(told && sealed.seal.base.is_none(), violation)?;
        Ok(sealed)
    }
}
