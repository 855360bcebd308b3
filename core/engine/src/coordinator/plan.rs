//! Plans a restore: from what an operator asks for to files, WAL and the number of an incarnation. Changes nothing.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use sheetanchor_core::error::Result;
use sheetanchor_core::format::catalog::IncarnationState;
use sheetanchor_core::format::manifest::{Manifest, Plan, Resolved};
use sheetanchor_core::hole::Holes;
use sheetanchor_core::identity::{Incarnation, OperationId, OperationKind, ThreadId};
use sheetanchor_core::lineage::{Lineage, Way};
use sheetanchor_core::plan::{Aim, Archive, Catalog, Choice, Replay, choices, high_water, is_stamped, replay};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;
use sheetanchor_core::time::WallMillis;

use super::{Coordinator, Footing};
use crate::repository::{Repository, WalHeaders};

/// What a restore would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The plan as it would be written; its operation is registered only by [`Coordinator::restore`].
    pub plan: Plan,
    /// What the target resolved to, in words.
    pub resolved: String,
    /// Newer cuts that were passed over because the archive does not reach them, and why.
    pub passed_over: Vec<Refusal>,
}

/// What is archived, and what of that is damaged.
#[derive(Default)]
pub(super) struct Archived {
    /// Every piece whose header is sound.
    pub archive: Archive,
    /// What was let go of before it was archived.
    pub holes: Holes,
    /// Why one is not among them.
    pub damaged: Option<Refusal>,
}

impl Archived {
    async fn add(&mut self, incarnation: Incarnation, thread: ThreadId, repository: &Repository) -> Result<()> {
        let WalHeaders { sound, holes, damaged } = repository.wal_headers(incarnation, thread).await?;
        self.archive.insert((incarnation, thread), sound);
        self.holes.insert((incarnation, thread), holes);
        self.damaged = self.damaged.take().or(damaged);
        Ok(())
    }

    /// What a choice replays. A damaged piece is in nobody's way who does not need it; to whoever misses one it is said that
    /// it is damaged, not that it is gone.
    ///
    /// # Errors
    /// As [`replay`]; `SA504` instead of `SA303` and `SA501` where a piece is damaged.
    pub(super) fn replay(&self, manifest: &Manifest, way: &Way, choice: &Choice) -> Result<Replay, Refusal> {
        replay(manifest, way, choice, &self.archive, &self.holes).map_err(|refusal| match &self.damaged {
            Some(damaged) if is_out_of_reach(&refusal) => damaged.clone(),
            Some(_) | None => refusal,
        })
    }
}

fn is_out_of_reach(refusal: &Refusal) -> bool {
    matches!(refusal.code, Code::NotReachable | Code::WalGap)
}

impl Coordinator {
    /// Resolves a target and lists everything that restoring to it takes. Changes nothing.
    ///
    /// # Errors
    /// `SA301` to `SA307`, `SA501`; `SA002`, `SA003`, `SA504` if the repository is damaged.
    pub async fn plan_restore(&self, aim: impl Into<Aim> + Send) -> Result<Planned> {
        let aim = aim.into();
        let footing = self.footing().await?;
        self.plan(&footing, &aim, self.new_id(OperationKind::Restore)).await
    }

    pub(super) async fn plan(&self, footing: &Footing, aim: &Aim, operation: OperationId) -> Result<Planned> {
        let lineage = Lineage::of(&self.repository.incarnations().await?)?;
        let way = lineage.way_to(aim.incarnation.unwrap_or(footing.incarnation))?;
        let catalog = self.repository.whole_catalog().await?;
        let archived = self.archive_along(footing, &way).await?;
        let mut passed_over = Vec::new();
        for choice in choices(&catalog, &lineage, &way, aim, is_stamped(&archived.archive))? {
            let manifest = self.manifest_of(&catalog, choice.backup).await?;
            let replay = match archived.replay(&manifest, &way, &choice) {
                Ok(replay) => replay,
                Err(refusal) if is_out_of_reach(&refusal) => {
                    passed_over.push(refusal);
                    continue;
                }
                Err(refusal) => return Err(refusal.into()),
            };
            let scn_floor = self.high_water(&catalog).await?;
            let resolved = self.resolved(&way, &choice, is_stamped(&archived.archive));
            let words = resolved.words.clone();
            let plan = plan_of(footing, aim, operation, manifest, &choice, replay, resolved, scn_floor);
            return Ok(Planned { plan, resolved: words, passed_over });
        }
        let none = || Refusal::new(Code::NotReachable, "the archive reaches no cut");
        Err(passed_over.into_iter().next().unwrap_or_else(none).into())
    }

    pub(super) async fn manifest_of(&self, catalog: &Catalog, backup: OperationId) -> Result<Manifest> {
        let seal = catalog.backups.iter().find(|(id, _)| *id == backup).map(|(_, seal)| seal);
        let unknown = || Refusal::new(Code::NoSuchTarget, alloc::format!("{backup} is no sealed backup"));
        self.repository.manifest(backup, seal.ok_or_else(unknown)?).await
    }

    /// What is archived of every incarnation on a way.
    async fn archive_along(&self, footing: &Footing, way: &Way) -> Result<Archived> {
        let mut archived = Archived::default();
        for stretch in way.stretches() {
            for thread in footing.members.nodes.keys().copied().map(ThreadId::of) {
                archived.add(stretch.incarnation, thread, &self.repository).await?;
            }
        }
        Ok(archived)
    }

    /// What a manifest's own WAL needs.
    pub(super) async fn archive_of(&self, manifest: &Manifest) -> Result<Archived> {
        let mut archived = Archived::default();
        for thread in manifest.threads.keys() {
            archived.add(manifest.incarnation, *thread, &self.repository).await?;
        }
        Ok(archived)
    }

    fn resolved(&self, way: &Way, choice: &Choice, stamped: bool) -> Resolved {
        let offset_ms = way.stretch(choice.incarnation).map_or(0, |stretch| stretch.offset_ms);
        let wall = WallMillis::new(choice.cut.scn.millis().saturating_sub(offset_ms));
        Resolved {
            clock_bound_ms: u64::try_from(self.limits.clock_bound.as_millis()).unwrap_or(u64::MAX),
            sought: choice.sought,
            time_ms: stamped.then_some(wall),
            words: choice.resolved.clone(),
        }
    }

    /// Above every SCN that any incarnation has used, as far as anything of it is left.
    async fn high_water(&self, catalog: &Catalog) -> Result<Scn> {
        let mut used = Vec::new();
        for object in self.repository.incarnations().await? {
            let IncarnationState::Opened(opened) = object.state else { continue };
            let members = self.repository.membership(opened.membership).await?;
            let ends = self.repository.wal_ends(object.incarnation, &members).await?;
            used.push(opened.scn_floor);
            used.extend(ends.values().filter_map(|header| header.scn_last));
        }
        Ok(high_water(catalog, used))
    }
}

#[allow(clippy::too_many_arguments, reason = "the parts of a plan, each from another source")]
fn plan_of(
    footing: &Footing,
    aim: &Aim,
    operation: OperationId,
    manifest: Manifest,
    choice: &Choice,
    replay: Replay,
    resolved: Resolved,
    scn_floor: Scn,
) -> Plan {
    Plan {
        backup: choice.backup,
        begun_scn: manifest.begun_scn,
        cluster: manifest.cluster,
        cut: replay.cut,
        delta: false,
        engine: manifest.engine,
        guarantee: choice.guarantee,
        incarnation: choice.incarnation,
        membership: manifest.membership,
        nodes: manifest.nodes,
        opens: footing.next,
        operation,
        resolved,
        scn_floor,
        shared: manifest.shared,
        source: None,
        target: aim.to_string(),
        threads: replay.threads,
        units: manifest.units,
    }
}
