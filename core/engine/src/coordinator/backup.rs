//! Runs a backup.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use core::time::Duration;

use futures_util::future::BoxFuture;
use sheetanchor_core::backup::{Backup, Effect, Event, Evidence, Order, Taken};
use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::format::catalog::{Ending, Method, Outcome, Seal};
use sheetanchor_core::format::manifest::{Manifest, ThreadSpan, Unit};
use sheetanchor_core::format::{self, keys};
use sheetanchor_core::identity::{ContentHash, OperationId, OperationKind, PointName};
use sheetanchor_core::incremental::{Extent, check_base};
use sheetanchor_core::lineage::Way;
use sheetanchor_core::plan::{Choice, Reach};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::point::Floor;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Captured, Request};
use sheetanchor_core::scn::Scn;

use super::{Coordinator, Footing, Term, point};
use crate::pump::{self, Perform, Performed};

/// How many backups are looked at, the newest first, for one to go on from.
const BASES_MAX: usize = 8;

/// How long a transaction is expected to stay prepared at most, where nothing else goes wrong.
const EVIDENCE_APART: Duration = Duration::from_secs(1);

/// A backup that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Which.
    pub operation: OperationId,
    /// Its seal.
    pub seal: Seal,
    /// Its manifest.
    pub manifest: Manifest,
}

impl Coordinator {
    /// Takes a backup of the cluster, cut as `method` says.
    ///
    /// # Errors
    /// `0A000` if the method needs a fence and the engine has none; `SA112` if a node's database is not open; whatever
    /// the nodes refuse with. Then nothing was published, and no pin outlives its lease.
    pub async fn backup(&self, label: Option<PointName>, method: Method) -> Result<Sealed> {
        self.backup_of(Extent::Full, label, method).await
    }

    /// The same of all that is there, or of what has changed since the newest backup that it can go on from. Where nothing
    /// fits, all is copied, and the manifest says why.
    ///
    /// # Errors
    /// Those of [`Coordinator::backup`].
    pub async fn backup_of(&self, extent: Extent, label: Option<PointName>, method: Method) -> Result<Sealed> {
        let mut footing = self.footing().await?;
        let seen = self.check_primitive(&mut footing, method).await?;
        if let Some(node) = seen.values().find(|description| description.state != "open") {
            return Err(Refusal::new(
                Code::DatabaseDown,
                format!("the database of node {} is `{}`", node.node, node.state),
            )
            .into());
        }
        self.begin_evidence(&footing, method).await?;
        let term = self.register(&footing, OperationKind::Backup, footing.incarnation, label.clone()).await?;
        // Only now: what is not condemned when an operation is registered is not removed before it has an outcome.
        let base = match self.base(&footing, extent).await {
            Ok(base) => base,
            Err(error) => {
                self.abort_outcome(term, &error).await?;
                return Err(error);
            }
        };
        let order = Order {
            nodes: footing.members.nodes.keys().copied().collect(),
            shared: footing.members.shared,
            method,
            base: base.as_ref().ok().copied().flatten(),
            compression: self.compression,
            record: format!("sa-{}", term.operation),
            limits: self.limits.backup,
        };
        let mut machine = Backup::new(order);
        let why_full = base.err();
        let performer = BackupPerformer { coordinator: self, footing: &footing, term, label, method, why_full };
        let outcome: Result<()> =
            pump::run(&self.env, term.operation, &mut machine, &performer, &self.cancel, self.watcher.as_deref()).await;
        outcome?;
        match self.repository.outcome(term.operation).await? {
            Some(Outcome { result: Ending::Sealed(seal), .. }) => {
                let manifest = self.repository.manifest(term.operation, &seal).await?;
                Ok(Sealed { operation: term.operation, seal, manifest })
            }
            Some(_) | None => Err(Error::Bug(format!("{} ended well and is not sealed", term.operation))),
        }
    }

    /// What is prepared at a cut can be decided only if an earlier fenced cut tells where the evidence begins, and one before
    /// that what was prepared until then: the end of a transaction need not name it. Where archives do not begin with the
    /// first WAL there is, an incarnation's first backup takes both, without names: no target lies before it anyway.
    async fn begin_evidence(&self, footing: &Footing, method: Method) -> Result<()> {
        if !footing.two_phase || footing.stamped || method != Method::Fence {
            return Ok(());
        }
        if self.repository.newest_point(footing.incarnation).await?.is_none() {
            self.take_point(footing, None, method, &Floor::default(), point::is_passing).await?;
            self.env.clock.sleep(EVIDENCE_APART).await;
            self.take_point(footing, None, method, &Floor::default(), point::is_passing).await?;
        }
        Ok(())
    }

    /// The newest backup that one which is registered now can go on from; or why there is none, in words.
    async fn base(
        &self,
        footing: &Footing,
        extent: Extent,
    ) -> Result<core::result::Result<Option<OperationId>, String>> {
        if extent == Extent::Full {
            return Ok(Ok(None));
        }
        let mut why = None;
        for (operation, seal) in self.repository.whole_catalog().await?.backups.into_iter().rev().take(BASES_MAX) {
            let fits = match self.repository.manifest(operation, &seal).await {
                Ok(manifest) => check_base(&manifest, &footing.members, footing.incarnation),
                Err(Error::Refusal(refusal)) => Err(refusal.to_string()),
                Err(error) => return Err(error),
            };
            match fits {
                Ok(()) => return Ok(Ok(Some(operation))),
                // The newest one's reason is what an operator has to know.
                Err(reason) => why = why.or(Some(reason)),
            }
        }
        let why = why.unwrap_or_else(|| "there is no backup yet".to_string());
        tracing::warn!(target: "sheetanchor::phase", why, phase = "full instead");
        Ok(Err(why))
    }
}

struct BackupPerformer<'a> {
    coordinator: &'a Coordinator,
    footing: &'a Footing,
    term: Term,
    label: Option<PointName>,
    method: Method,
    /// Why it is a full one although an incremental one was asked for.
    why_full: Option<String>,
}

impl BackupPerformer<'_> {
    /// Makes a manifest of the evidence, checks all that a restore will rely on, and seals.
    async fn seal(&self, evidence: Evidence) -> Result<()> {
        let repository = &self.coordinator.repository;
        let (Some(cut), Some(guarantee)) = (evidence.cut, evidence.guarantee) else {
            return Err(Error::Bug(format!("{} is to be sealed without a cut", self.term.operation)));
        };
        let spans = evidence.starts.iter().filter_map(|(thread, start)| {
            let stop = evidence.stops.get(thread)?;
            Some((*thread, ThreadSpan { start: start.lsn, stop: stop.lsn, timeline: start.timeline }))
        });
        let mut manifest = Manifest {
            begun_scn: evidence.begun_scn,
            cluster: self.footing.cluster.id,
            cut: cut.clone(),
            durable_scn: cut.scn,
            engine: self.footing.members.engine.clone(),
            guarantee,
            incarnation: self.footing.incarnation,
            label: self.label.clone(),
            membership: self.footing.members.membership,
            method: self.method,
            nodes: self.footing.members.nodes.clone(),
            operation: self.term.operation,
            shared: self.footing.members.shared,
            started_ms: sheetanchor_core::time::WallMillis::new(self.term.operation.started_ms()),
            threads: spans.collect(),
            units: evidence.captured.iter().map(|(node, captured)| (*node, self.unit(captured))).collect(),
        };
        manifest.validate()?;
        manifest.durable_scn = manifest.durable_scn.max(self.check_repository(&manifest).await?);
        let body = format::write(&manifest);
        let hash = ContentHash::of(&body);
        repository.put_hashed(&keys::manifest(self.term.operation, hash), body).await?;
        let seal = Seal {
            base: manifest.base(),
            cut,
            ended_ms: self.coordinator.env.clock.wall(),
            guarantee,
            incarnation: self.footing.incarnation,
            manifest: hash,
            point: evidence.point,
            stored: manifest.stored(),
            why_full: manifest.why_full(),
        };
        let result = Ending::Sealed(seal);
        repository.decide(&Outcome { nonce: self.term.nonce, operation: self.term.operation, result }).await
    }

    fn unit(&self, captured: &[Captured]) -> Unit {
        let mut unit = Unit::of(captured);
        unit.why_full = unit.why_full.or_else(|| self.why_full.clone());
        unit
    }

    /// Reads back what the manifest names: the files, and WAL without a gap from start to cut. Answers the SCN up to which
    /// every thread is archived, the least of their last stamps.
    async fn check_repository(&self, manifest: &Manifest) -> Result<Scn> {
        if planted::is(Bug::SealedUnread) {
            return Ok(Scn::ZERO);
        }
        let archived = self.coordinator.archive_of(manifest).await?;
        let choice = Choice {
            backup: manifest.operation,
            cut: manifest.cut.clone(),
            guarantee: manifest.guarantee,
            incarnation: manifest.incarnation,
            resolved: format!("{}", manifest.operation),
            sought: false,
        };
        let replay = archived.replay(manifest, &Way::within(manifest.incarnation), &choice)?;
        let tell = |done, total| {
            if let Some(watcher) = &self.coordinator.watcher {
                watcher.reading(self.term.operation, done, total);
            }
        };
        self.coordinator.read_back(manifest, &replay, self.coordinator.read_back, &tell).await?;
        let last = |thread, start| {
            let pieces = archived.archive.get(&(manifest.incarnation, thread)).cloned().unwrap_or_default();
            Reach::from(start, pieces).pieces.iter().rev().find_map(|(_, header)| header.scn_last)
        };
        let lasts = manifest.threads.iter().map(|(thread, span)| last(*thread, span.start).unwrap_or_default());
        Ok(lasts.min().unwrap_or_default())
    }
}

impl Perform<Backup, Result<()>> for BackupPerformer<'_> {
    fn perform(&self, effect: Effect) -> BoxFuture<'_, Performed<Event, Result<()>>> {
        Box::pin(async move {
            match effect {
                Effect::Ask(step, node, request) => {
                    let header = self.footing.header(node, Some(self.term));
                    let answer = async {
                        if let (Request::Capture { .. }, Some(rate)) = (&request, self.coordinator.rate) {
                            self.coordinator.caller.ask(&header, &Request::Throttle { rate }).await?;
                        }
                        self.coordinator.caller.ask(&header, &request).await
                    };
                    Performed::Event(Event::Answered(step, node, answer.await))
                }
                Effect::TakePoint(floor) => {
                    let taken =
                        self.coordinator.take_point(self.footing, None, self.method, &floor, point::is_passing).await;
                    let taken = taken.map(|(point, taken)| Taken { point, cut: taken.cut, guarantee: taken.guarantee });
                    Performed::Event(Event::PointTaken(taken))
                }
                Effect::Seal(evidence) => Performed::Event(Event::Settled(self.seal(evidence).await)),
                Effect::Abort(why) => {
                    Performed::Event(Event::Settled(self.coordinator.abort_outcome(self.term, &why).await))
                }
                Effect::Finish(outcome) => Performed::Finished(outcome),
            }
        })
    }
}
