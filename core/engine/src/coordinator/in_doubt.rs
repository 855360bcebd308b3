//! Decides, once for all nodes, what becomes of transactions that are prepared at a restore's cut.
//!
//! The evidence is the archive itself: no index that could disagree with it, at the price of reading some WAL once more in
//! a restore that has anything in doubt. How far back is known only then: to a fenced cut after which each half was
//! prepared, and to the one before that, for what ended meanwhile. Newer cuts are tried first.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use futures_util::future::try_join_all;
use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::format::catalog::{Cut, IncarnationObject, IncarnationState, Method, Resolutions};
use sheetanchor_core::format::keys;
use sheetanchor_core::format::manifest::Plan;
use sheetanchor_core::identity::{NodeId, OperationId, ThreadId};
use sheetanchor_core::in_doubt::{
    EqualGids, Evidence, Family, Held, NoManager, Resolved, Searched, Verdict, Why, decide,
};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::Code;
use sheetanchor_core::request::{Answer, Request};

use super::restore::{AGAIN_AFTER, RestorePerformer};
use crate::repository::{Created, Repository};

/// The verdict where more WAL might tell more.
const LACKING: Verdict = Verdict::Left(Why::Evidence);

/// A place in each thread.
type Places = BTreeMap<NodeId, Lsn>;

impl RestorePerformer<'_> {
    /// Makes the decision, unless this restore has made it before.
    pub(super) async fn judge(&self, in_doubt: &BTreeMap<NodeId, Vec<Held>>) -> Result<()> {
        let repository = &self.coordinator.repository;
        let (operation, key) = (self.term.operation, keys::in_doubt(self.term.operation));
        if repository.find::<Resolutions>(&key).await?.is_some() {
            return Ok(());
        }
        let resolved = self.weigh(in_doubt).await?;
        for half in &resolved {
            tracing::info!(target: "sheetanchor::restore", node = %half.node, gid = half.gid, verdict = ?half.verdict, "judged");
        }
        match repository.create(&key, &Resolutions { nonce: self.term.nonce, operation, resolved }).await? {
            // Another coordinator of this restore was first: every node goes by what it wrote.
            Created::Ours | Created::Theirs(_) => Ok(()),
        }
    }

    /// Goes back from cut to cut until the evidence suffices, or ends.
    async fn weigh(&self, in_doubt: &BTreeMap<NodeId, Vec<Held>>) -> Result<Vec<Resolved>> {
        let Some(family) = self.family().await? else {
            return Ok(decide(in_doubt, &Evidence::default(), &NoManager));
        };
        let cuts = self.known_cuts().await?;
        let (mut at, mut step) = (cuts.len(), 1);
        let mut settled: Vec<Resolved> = Vec::new();
        loop {
            // The beginning comes last, and by itself: of some engines' WAL the archive lacks the very first.
            at = if at > 1 { at.saturating_sub(step).max(1) } else { 0 };
            step *= 2;
            let Some(known_from) = cuts.get(at) else { return Ok(decide(in_doubt, &Evidence::default(), family)) };
            let from = if planted::is(Bug::EvidenceRangeIgnored) {
                starts_of(self.plan)
            } else {
                cuts.get(at.saturating_sub(1)).unwrap_or(known_from).clone()
            };
            let mut searched = self.search(&from, in_doubt).await?;
            // From the cut on is enough, but that fewer ends have a name: the archive of an engine that had written WAL
            // before it joined begins after the place that stands for its beginning.
            if from != *known_from && searched.values().any(|node| !node.whole) {
                searched = self.search(known_from, in_doubt).await?;
            }
            let mut resolved = decide(in_doubt, &Evidence { known_from: known_from.clone(), searched }, family);
            // What newer WAL has settled stays so where older WAL is missing.
            for (half, before) in resolved.iter_mut().zip(settled) {
                if half.verdict == LACKING {
                    half.verdict = before.verdict;
                }
            }
            let lacking = resolved.iter().any(|half| half.verdict == LACKING);
            if at == 0 || !lacking {
                return Ok(resolved);
            }
            settled = resolved;
        }
    }

    /// Which gids stand for one transaction; `None` where not every node says that what spans nodes is committed in two
    /// phases: then a gid may be anybody's, also that of a manager which will yet ask for it.
    async fn family(&self) -> Result<Option<&'static dyn Family>> {
        if self.footing.members.shared {
            return Ok(Some(&EqualGids));
        }
        loop {
            let all: Result<Vec<_>> = self.coordinator.describe_all().await.into_values().collect();
            match all {
                Ok(all) => {
                    let equal: &'static dyn Family = &EqualGids;
                    return Ok(all.iter().all(|node| node.two_phase).then_some(equal));
                }
                // It may restart meanwhile; the machine has a deadline for the judgement.
                Err(Error::Refusal(refusal)) if refusal.code == Code::NodeSilent => {
                    self.coordinator.env.clock.sleep(AGAIN_AFTER).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The cuts of the incarnation to be restored, up to the restore's own, oldest first, such that no transaction whose
    /// half was prepared after one had ended anywhere before it: where the incarnation begins, and those that were taken
    /// under a fence.
    async fn known_cuts(&self) -> Result<Vec<Places>> {
        let (repository, plan) = (self.coordinator.repository_of(self.plan)?, self.plan);
        let own: IncarnationObject = repository.load(&keys::incarnation(plan.incarnation)).await?;
        let begins = match own.state {
            IncarnationState::Opened(opened) => opened.begins().map(places),
            IncarnationState::Aborted(_) => None,
        };
        // A thread that is archived from its very first byte has nothing before it.
        let first = plan.nodes.keys().map(|node| (*node, Lsn::default())).collect();
        let mut cuts = Vec::from([begins.unwrap_or(first)]);
        if planted::is(Bug::EvidenceRangeIgnored) {
            return Ok(cuts);
        }
        let target = places(&plan.cut);
        for (_, point) in repository.catalog(plan.incarnation).await?.points {
            let places = places(&point.cut);
            let not_after = target.iter().all(|(node, end)| places.get(node).is_some_and(|until| until <= end));
            if point.method == Method::Fence && not_after && places != target {
                cuts.push(places);
            }
        }
        Ok(cuts)
    }

    async fn search(
        &self,
        from: &Places,
        in_doubt: &BTreeMap<NodeId, Vec<Held>>,
    ) -> Result<BTreeMap<NodeId, Searched>> {
        let gids: BTreeSet<&String> = in_doubt.values().flatten().map(|held| &held.gid).collect();
        let gids: Vec<String> = gids.into_iter().cloned().collect();
        let asked = self.plan.nodes.keys().map(async |node| {
            let from = from.get(node).copied().unwrap_or_default();
            let request = Request::Search { plan: self.hash, from, gids: gids.clone() };
            let answer = self.ask(*node, &request).await?;
            let Answer::Searched(searched) = answer else {
                return Err(Error::Bug(format!("node {node} answers a search with {answer:?}")));
            };
            Ok((*node, searched))
        });
        Ok(try_join_all(asked).await?.into_iter().collect())
    }
}

fn places(cut: &Cut) -> Places {
    cut.threads.iter().map(|(thread, cut)| (NodeId::new(thread.get()), cut.until)).collect()
}

/// Where the backup's own WAL begins.
fn starts_of(plan: &Plan) -> Places {
    let start = |node: &NodeId| plan.threads.get(&ThreadId::of(*node)).and_then(|wal| wal.spans.last());
    plan.nodes.keys().filter_map(|node| Some((*node, start(node)?.from))).collect()
}

/// What a restore has decided of what was in doubt, if anything was.
///
/// # Errors
/// `SA002`.
pub(super) async fn resolutions(repository: &Repository, restore: OperationId) -> Result<Vec<Resolved>> {
    let decided = repository.find::<Resolutions>(&keys::in_doubt(restore)).await?;
    Ok(decided.map(|decided| decided.resolved).unwrap_or_default())
}
