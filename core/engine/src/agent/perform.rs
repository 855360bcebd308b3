//! What each admitted request does.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use sheetanchor_core::agent::Belonging;
use sheetanchor_core::compression::Compression;
use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::format::catalog::{Ending, IncarnationObject, IncarnationState, NodeOpened};
use sheetanchor_core::format::keys;
use sheetanchor_core::format::manifest::Plan;
use sheetanchor_core::identity::{ContentHash, LifeId, NodeId, Nonce, OperationId, OperationKind, ThreadId};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::position::Position;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Answer, Description, Doing, FenceSeen, Header, PinSeen, Request};

use super::Agent;
use super::archive::ARCHIVE_PIN;
use super::archived_wal::{ArchivedWal, Replaying};
use super::capture::progress_of;
use super::stage::other_restore;
use super::state::{self, MarkerPhase};
use crate::database::{CutMade, Joining, Opening, Recovery, Span, State, Storage, ThreadRange};

impl Agent {
    /// Performs one admitted request.
    pub(super) async fn perform(&self, header: &Header, request: Request) -> Result<Answer> {
        let database = &self.database;
        let operation = || header.operation.ok_or_else(|| Error::Bug("admitted without an operation".to_string()));
        match request {
            Request::Describe => self.describe().await,
            Request::Join { nodes } => self.join(header, nodes).await,
            Request::Enlist { fence } => self.enlist(operation()?, fence).await,
            Request::Pin { .. } => self.pin(operation()?).await,
            Request::Renew { .. } => Ok(Answer::Done),
            Request::Unpin => self.let_go(operation()?).await.map(|()| Answer::Done),
            Request::Begin => {
                let begun = database.begin_backup(&operation()?.to_string()).await?;
                Ok(Answer::Begun { start: begun.start, scn: begun.scn })
            }
            Request::Capture { base, starts, compression } => {
                self.capture_once(operation()?, base, &starts, compression).await
            }
            Request::Throttle { rate } => self.throttle(operation()?, rate).await,
            Request::End { .. } => self.end(operation()?).await,
            Request::Archive { through } => Ok(Answer::Archived { until: self.await_archive(through).await? }),
            Request::Close { hold, lease_ms } => {
                database.close(hold, Duration::from_millis(lease_ms)).await?;
                Ok(Answer::Closed { life: database.status().await?.life })
            }
            Request::Drain { hold, .. } => {
                let (scn, end) = database.drain(hold).await?;
                Ok(Answer::Drained { scn, end })
            }
            Request::Cut { hold, scn, record, .. } => {
                let made = database.cut(hold, scn, &record).await?;
                if planted::is(Bug::ArchiveUnderFence) {
                    database.flush(made.proof).await?;
                    self.env.clock.sleep(self.config.archive_interval).await;
                    self.await_archive(Position { lsn: made.proof, ..made.until }).await?;
                }
                Ok(cut_made(made))
            }
            Request::CutAlone { record } => Ok(cut_made(database.cut_alone(&record).await?)),
            Request::Release { hold } => database.release(hold).await.map(|()| Answer::Done),
            Request::Flush { life, through } => {
                if !planted::is(Bug::FlushNotAwaited) {
                    database.flush(through).await?;
                }
                self.still_in(life).await.map(|()| Answer::Done)
            }
            Request::Mark { life, scn, record } => {
                let made = database.mark(scn, &record).await?;
                self.still_in(life).await.map(|()| cut_made(made))
            }
            Request::Inspect { plan } => self.inspect(operation()?, plan).await,
            Request::Stage { plan } => self.stage_plan(operation()?, plan).await,
            Request::Recover { plan } => self.recover(operation()?, plan).await,
            Request::Prove { plan } => self.prove(operation()?, plan).await,
            Request::Search { plan, from, gids } => self.search(operation()?, plan, from, gids).await,
            Request::Resolve { plan } => self.resolve(operation()?, plan).await,
            Request::Open { plan } => self.open(operation()?, plan).await,
            Request::Discard => self.discard(operation()?).await,
            Request::Pins => self.pins().await,
            Request::DropPin { name } => {
                // A pin that an operation still renews ends that operation: its next renewal is refused.
                match name.parse() {
                    Ok(operation) => self.let_go(operation).await?,
                    Err(_) => database.unpin(&name).await?,
                }
                Ok(Answer::Done)
            }
        }
    }

    /// Checks that the database is in the life that an operation speaks of.
    async fn still_in(&self, life: LifeId) -> Result<()> {
        let now = self.database.status().await?.life;
        if now == life {
            return Ok(());
        }
        Err(Refusal::new(Code::LifeChanged, format!("cut in life {life}, the database is in life {now}")).into())
    }

    async fn describe(&self) -> Result<Answer> {
        let (status, identity) = (self.database.status().await?, self.database.identity().await?);
        let capabilities = self.database.capabilities();
        let belonging = self.belonging.get();
        let archive = self.archive.get();
        let (fenced_by, _) = self.look().await;
        let wal_kept = self.gauge.lock().await.kept();
        let progress = self.copies.lock().await.values().map(|progress| *progress.borrow()).collect();
        Ok(Answer::Described(Box::new(Description {
            node: self.config.node,
            cluster: belonging.map(|belonging| belonging.cluster),
            incarnation: belonging.map(|belonging| belonging.incarnation),
            state: state_word(status.state).to_string(),
            engine: identity.engine,
            version: identity.version,
            system: identity.system,
            shared: capabilities.storage == Storage::Shared,
            fence: match self.database.fence_missing() {
                _ if capabilities.fence => FenceSeen::Ready,
                Some(missing) => FenceSeen::Missing(missing),
                None => FenceSeen::Absent,
            },
            scn: status.scn,
            end: status.end,
            archived: archive.until.map(|until| until.lsn).unwrap_or_default(),
            archive_trouble: archive.trouble.map(|error| error.to_string()),
            fenced_by,
            progress,
            stamped: capabilities.stamped,
            frontier: status.frontier,
            missed: self.missed.get().filter(|missed| belonging.is_some_and(|own| own.incarnation < *missed)),
            two_phase: capabilities.two_phase,
            exposed_ms: if status.state == State::Open { self.exposed_for(status.end).await } else { None },
            wal_kept,
            hole: self.memory.get().holes.pop(),
        })))
    }

    async fn join(&self, header: &Header, nodes: Vec<NodeId>) -> Result<Answer> {
        let cluster = self.repository.cluster().await?;
        if cluster.id != header.cluster {
            let message =
                format!("this node's repository is of cluster {}, asked to join {}", cluster.id, header.cluster);
            return Err(Refusal::new(Code::OtherCluster, message).into());
        }
        self.database.join(&Joining { cluster: header.cluster, nodes, incarnation: header.incarnation }).await?;
        let belonging =
            Belonging { cluster: header.cluster, membership: header.membership, incarnation: header.incarnation };
        self.remember(belonging).await?;
        self.belongs(belonging).await;
        Ok(Answer::Done)
    }

    async fn enlist(&self, operation: OperationId, fence: bool) -> Result<Answer> {
        if fence && !self.database.capabilities().fence {
            let identity = self.database.identity().await?;
            let node = format!("node {} ({} {})", self.config.node, identity.engine, identity.version);
            return Err(without_fence(&node, self.database.fence_missing().as_deref()).into());
        }
        self.repository.registered(operation).await?;
        if let Some(outcome) = self.repository.outcome(operation).await?
            && let Ending::Aborted(abort) = outcome.result
        {
            return Err(Refusal::new(Code::Aborted, format!("{operation} was aborted: {}", abort.message)).into());
        }
        let epoch = self.repository.epoch(operation).await?;
        let life = match self.database.status().await {
            Ok(status) => status.life,
            // What was staged in part cannot say anything about itself; a restore quotes no life, and must go on or clean up.
            Err(Error::Refusal(_)) if operation.kind() == OperationKind::Restore => LifeId::default(),
            Err(error) => return Err(error),
        };
        Ok(Answer::Enlisted { life, epoch })
    }

    async fn pin(&self, operation: OperationId) -> Result<Answer> {
        let _order = self.pinning.lock().await;
        let from = self.database.pin(&pin_of(operation)).await?;
        tracing::info!(target: "sheetanchor::agent", node = %self.config.node, pin = %operation, from = %from.lsn, "pinned");
        Ok(Answer::Pinned { from })
    }

    /// Ends everything that an operation has on this node.
    pub(super) async fn let_go(&self, operation: OperationId) -> Result<()> {
        self.copies.lock().await.remove(&operation);
        self.captured.lock().await.remove(&operation);
        self.rates.lock().await.remove(&operation);
        let name = operation.to_string();
        self.database.abandon_backup(&name).await?;
        if planted::is(Bug::AbortTouchesOthers) {
            for pin in self.database.pins().await?.into_iter().filter(|pin| pin.name != ARCHIVE_PIN) {
                self.database.abandon_backup(&pin.name).await?;
                self.database.unpin(&pin.name).await?;
            }
        }
        let _order = self.pinning.lock().await;
        tracing::info!(target: "sheetanchor::agent", node = %self.config.node, pin = %operation, "unpinned");
        self.database.unpin(&pin_of(operation)).await
    }

    /// Captures once in a life: a repeated request waits for the first one, and gets the same answer.
    async fn capture_once(
        &self,
        operation: OperationId,
        base: Option<OperationId>,
        starts: &[Position],
        compression: Compression,
    ) -> Result<Answer> {
        let progress = loop {
            if let Some(answer) = self.captured.lock().await.get(&operation) {
                return Ok(answer.clone());
            }
            let mut copies = self.copies.lock().await;
            let Some(running) = copies.get(&operation) else {
                let (progress, watched) = progress_of(operation, Doing::Copying);
                copies.insert(operation, watched);
                break progress;
            };
            let mut running = running.clone();
            drop(copies);
            while running.changed().await.is_ok() {}
        };
        let outcome = self.capture_from(operation, base, starts, compression, progress).await.map(Answer::Captured);
        self.copies.lock().await.remove(&operation);
        if let Ok(answer) = &outcome {
            self.captured.lock().await.insert(operation, answer.clone());
        }
        outcome
    }

    async fn end(&self, operation: OperationId) -> Result<Answer> {
        let ended = self.database.end_backup(&operation.to_string()).await?;
        let extra = self.capture_extra(operation, ended.files).await?;
        Ok(Answer::Ended { stop: ended.stop, scn: ended.scn, extra })
    }

    async fn pins(&self) -> Result<Answer> {
        let (_, leases) = self.look().await;
        let pins = self.database.pins().await?.into_iter().map(|pin| PinSeen {
            lease_left_ms: pin
                .name
                .parse()
                .ok()
                .and_then(|operation: OperationId| leases.get(&operation))
                .map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            name: pin.name,
            from: pin.from,
        });
        Ok(Answer::Pins(pins.collect()))
    }

    pub(super) async fn plan(&self, operation: OperationId, hash: ContentHash) -> Result<Plan> {
        let plan = self.repository.plan(operation, hash).await?;
        let cluster = self.repository.cluster().await?;
        if plan.operation != operation || plan.cluster != cluster.id {
            return Err(Refusal::new(
                Code::OtherCluster,
                format!("the plan is of {} in {}", plan.operation, plan.cluster),
            )
            .into());
        }
        Ok(plan)
    }

    async fn stage_plan(&self, operation: OperationId, hash: ContentHash) -> Result<Answer> {
        let plan = self.plan(operation, hash).await?;
        let _folder = self.folder.lock().await;
        let (progress, watched) = progress_of(operation, Doing::Staging);
        self.copies.lock().await.insert(operation, watched);
        let outcome = self.stage(&plan, hash, &progress).await;
        self.copies.lock().await.remove(&operation);
        outcome?;
        self.rates.lock().await.remove(&operation);
        Ok(Answer::Done)
    }

    async fn recover(&self, operation: OperationId, hash: ContentHash) -> Result<Answer> {
        let plan = self.plan(operation, hash).await?;
        let _folder = self.folder.lock().await;
        match state::marker(&self.env, &self.config).await? {
            Some(marker) if marker.operation != operation => return Err(other_restore(&marker)),
            Some(marker) if marker.phase == MarkerPhase::Reached => return Ok(Answer::Done),
            Some(marker) if marker.phase >= MarkerPhase::Staged => {}
            // Once it is decided: what is there without a marker, since it was opened or the marker was lost, proves itself.
            None if self.is_decided(&plan).await? => return Ok(Answer::Done),
            Some(_) | None => {
                return Err(Refusal::new(
                    Code::OutOfOrder,
                    format!("node {} has not staged {operation}", self.config.node),
                )
                .into());
            }
        }
        self.mark(&plan, hash, MarkerPhase::Recovering).await?;
        let own = ThreadId::of(self.config.node);
        let threads = plan
            .threads
            .iter()
            .filter(|(thread, _)| plan.shared || **thread == own)
            .filter_map(|(thread, wal)| {
                let cut = plan.cut.threads.get(thread)?;
                let spans = wal.spans.iter().map(|span| Span {
                    timeline: span.timeline,
                    from: span.from,
                    until: span.until,
                    scn: span.scn,
                });
                Some((*thread, ThreadRange { spans: spans.collect(), until: cut.until, proof: cut.proof }))
            })
            .collect();
        let recovery = Recovery {
            record: plan.cut.record.clone(),
            scn: plan.cut.scn,
            sought: plan.resolved.sought,
            begun_scn: plan.begun_scn,
            threads,
        };
        let (progress, watched) = progress_of(operation, Doing::Fetching);
        let replaying = Replaying::new(&recovery.threads, progress);
        let source = ArchivedWal { repository: self.origin(&plan).await?, plan: &plan, replaying: Some(replaying) };
        self.copies.lock().await.insert(operation, watched);
        let outcome = self.database.recover(&recovery, &source).await;
        self.copies.lock().await.remove(&operation);
        outcome?;
        self.mark(&plan, hash, MarkerPhase::Reached).await?;
        Ok(Answer::Done)
    }

    async fn prove(&self, operation: OperationId, hash: ContentHash) -> Result<Answer> {
        self.plan(operation, hash).await?;
        self.check_folder(operation).await?;
        let status = self.database.status().await?;
        if status.state == State::Open && self.repository.opened_by(operation).await?.contains(&self.config.node) {
            // It has gone on from the cut since this restore opened it.
            return Ok(Answer::Done);
        }
        if matches!(status.state, State::Reached | State::Open) {
            return Ok(Answer::Reached { scn: status.scn, until: status.end, in_doubt: status.in_doubt });
        }
        let message = format!("node {} is `{}`, not at a cut", self.config.node, state_word(status.state));
        Err(Refusal::new(Code::DatabaseDown, message).into())
    }

    /// What another restore has staged here must not pass for this one's: its disk may have died in between.
    pub(super) async fn check_folder(&self, operation: OperationId) -> Result<()> {
        match state::marker(&self.env, &self.config).await? {
            Some(marker) if marker.operation != operation => Err(other_restore(&marker)),
            Some(_) | None => Ok(()),
        }
    }

    async fn open(&self, operation: OperationId, hash: ContentHash) -> Result<Answer> {
        let plan = self.plan(operation, hash).await?;
        let _folder = self.folder.lock().await;
        let object: IncarnationObject = self.repository.load(&keys::incarnation(plan.opens)).await?;
        let IncarnationState::Opened(opened) = object.state else {
            return Err(Refusal::new(Code::Aborted, format!("{operation} was aborted")).into());
        };
        if object.restore != Some(operation) {
            let message = format!("incarnation {} was opened by another restore than {operation}", plan.opens);
            return Err(Refusal::new(Code::IncarnationTaken, message).into());
        }
        self.check_folder(operation).await?;
        self.check_newest(&plan).await?;
        self.note_opening(operation).await?;
        let opening = Opening {
            cluster: plan.cluster,
            nodes: plan.nodes.keys().copied().collect(),
            incarnation: plan.opens,
            scn_floor: opened.scn_floor,
            scn_offset_ms: opened.scn_offset_ms,
        };
        self.database.open(&opening).await?;
        let belonging = Belonging { cluster: plan.cluster, membership: opened.membership, incarnation: plan.opens };
        self.remember(belonging).await?;
        state::unmark(&self.env, &self.config).await?;
        self.belongs(belonging).await;
        Ok(Answer::Done)
    }

    /// An incarnation that others have followed is not opened any more.
    async fn check_newest(&self, plan: &Plan) -> Result<()> {
        let (newest, _, _) = self.repository.current_incarnation().await?;
        if newest == plan.opens {
            return Ok(());
        }
        let message = format!("{} opens incarnation {}, and incarnation {newest} is open", plan.operation, plan.opens);
        Err(Refusal::new(Code::OtherIncarnation, message).into())
    }

    /// Says in the repository that the node is about to be opened, if something is there to open: from then on it is not
    /// staged again.
    async fn note_opening(&self, operation: OperationId) -> Result<()> {
        let (node, state) = (self.config.node, self.database.status().await?.state);
        if self.repository.opened_by(operation).await?.contains(&node) {
            return Ok(());
        }
        if !matches!(state, State::Reached | State::Open) {
            let message = format!("node {node} is `{}`, not at a cut", state_word(state));
            return Err(Refusal::new(Code::DatabaseDown, message).into());
        }
        let opened = NodeOpened { node, nonce: Nonce::new(self.env.entropy.word()), operation };
        self.repository.create(&keys::opened(operation, node), &opened).await?;
        Ok(())
    }

    async fn discard(&self, operation: OperationId) -> Result<Answer> {
        // Staging holds the folder; taking its progress away ends it, and its rate, whatever it waits for.
        self.copies.lock().await.remove(&operation);
        self.rates.lock().await.remove(&operation);
        let _folder = self.folder.lock().await;
        let Some(marker) = state::marker(&self.env, &self.config).await? else { return Ok(Answer::Done) };
        if marker.operation != operation {
            return Ok(Answer::Done);
        }
        let plan = self.plan(operation, marker.plan).await?;
        let object: Option<IncarnationObject> = self.repository.find(&keys::incarnation(plan.opens)).await?;
        match object {
            Some(IncarnationObject { restore: Some(winner), state: IncarnationState::Opened(_), .. })
                if winner == operation =>
            {
                let message = format!("{operation} has opened incarnation {}: only forward from here", plan.opens);
                return Err(Refusal::new(Code::OutOfOrder, message).into());
            }
            Some(_) => {}
            None => {
                return Err(Refusal::new(Code::OutOfOrder, format!("{operation} is not decided yet")).into());
            }
        }
        if plan.delta {
            self.leave_closed(marker.phase).await?;
        } else {
            self.database.stop().await?;
            self.clear_staged(&plan).await?;
        }
        state::unmark(&self.env, &self.config).await?;
        Ok(Answer::Done)
    }
}

/// The name of an operation's pin: its own, so that no operation's end ends the pin of another.
fn pin_of(operation: OperationId) -> String {
    if planted::is(Bug::OnePinSlot) { "backup".to_string() } else { operation.to_string() }
}

/// The refusal of what needs a commit fence where there is none.
pub(crate) fn without_fence(node: &str, missing: Option<&str>) -> Refusal {
    let missing = missing.map(|missing| format!(": {missing}")).unwrap_or_default();
    Refusal::new(Code::NotSupported, format!("{node} has no commit fence{missing}"))
}

fn cut_made(made: CutMade) -> Answer {
    Answer::CutMade { until: made.until, proof: made.proof }
}

pub(crate) fn state_word(state: State) -> &'static str {
    match state {
        State::Empty => "empty",
        State::Down => "down",
        State::Reached => "reached",
        State::Open => "open",
    }
}
