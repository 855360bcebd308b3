//! The port to the protocol: what backup, restore points and restore ask of one node.

use core::time::Duration;

use async_trait::async_trait;
use sheetanchor_core::changes::ChangeMap;
use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use sheetanchor_core::identity::{ByteCount, ClusterId, HoldId, Incarnation, LifeId, ThreadId, TimelineId};
use sheetanchor_core::in_doubt::{Fate, Trace};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::database::{
    Begun, Capabilities, CutMade, Database, Ended, FileStream, Identity, Joining, Opening, PageVerdict, Pin, Recovery,
    Search, SourceFile, State, Status, WalPiece, WalSource,
};

use crate::control::{NodeControl, Phase};
use crate::files::CONTROL;
use crate::node::Node;
use crate::pins;
use crate::record::Body;
use crate::running::Running;
use crate::sent::Sent;
use crate::{changes, create, files, in_doubt, over, recover, wal};

/// Bytes in the longest name of a restore point's record.
const RECORD_NAME_MAX: usize = 255;

#[async_trait]
impl Database for Node {
    fn capabilities(&self) -> Capabilities {
        let crate::config::Config { storage, two_phase, .. } = self.shared.config;
        Capabilities { storage, stamped: true, fence: true, two_phase }
    }

    fn data_folder(&self) -> &str {
        self.shared.folder.data()
    }

    fn control_file(&self) -> &'static str {
        CONTROL
    }

    async fn identity(&self) -> Result<Identity> {
        let control = self.shared.control().await?;
        let system = control.map(|control| format!("{}/{}", control.cluster, self.shared.config.node));
        Ok(Identity {
            engine: "refdb".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            system: system.unwrap_or_default(),
        })
    }

    async fn status(&self) -> Result<Status> {
        if let Ok(running) = self.shared.open() {
            let state = running.state();
            return Ok(Status {
                state: State::Open,
                life: running.life_id(),
                scn: state.clock.last(),
                frontier: state.log.frontier(state.clock.last()),
                end: running.position(state.log.end()),
                incarnation: Some(running.incarnation),
                in_doubt: Vec::new(),
            });
        }
        let control = self.shared.control().await?;
        let own = if control.is_some() { self.shared.node_control().await? } else { None };
        let state = match (&control, own.as_ref().map(|own| own.phase)) {
            (None, _) => State::Empty,
            (Some(_), Some(Phase::Reached(_))) => State::Reached,
            (Some(_), Some(Phase::Open) | None) => State::Down,
        };
        let incarnation = control.map(|control| control.incarnation);
        let end = self.position_at_rest(own.as_ref(), incarnation);
        let scn = own.as_ref().map_or(Scn::ZERO, |own| own.ceiling);
        let in_doubt = own.map(in_doubt::undecided).unwrap_or_default();
        // At rest everything is on disk, and the next life stamps above the ceiling.
        Ok(Status { state, life: LifeId::default(), scn, frontier: scn, end, incarnation, in_doubt })
    }

    async fn join(&self, joining: &Joining) -> Result<()> {
        create::join(&self.shared, joining).await
    }

    async fn observe(&self, scn: Scn) -> Result<Scn> {
        let running = self.shared.open()?;
        let now = running.now();
        let known = running.state().clock.observe(scn, now);
        Ok(known?)
    }

    async fn pin(&self, name: &str) -> Result<Position> {
        pins::pin(&*self.shared.open()?, name).await
    }

    async fn unpin(&self, name: &str) -> Result<()> {
        pins::unpin(&self.shared, name).await
    }

    async fn pins(&self) -> Result<Vec<Pin>> {
        let running = self.shared.open()?;
        let state = running.state();
        let pin = |(name, from): (&String, &Lsn)| Pin { name: name.clone(), from: running.position(*from) };
        Ok(state.pins.iter().map(pin).collect())
    }

    async fn advance_pin(&self, name: &str, from: Lsn) -> Result<()> {
        pins::advance(&*self.shared.open()?, name, from).await
    }

    async fn resume_at(&self) -> Result<Position> {
        let running = self.shared.open()?;
        let state = running.state();
        let durable = state.log.durable();
        // A segment holds whole records, so its first byte is one's.
        let start = state.log.segment_of(durable).map_or(durable, |(segment, _)| segment);
        Ok(running.position(start))
    }

    async fn skip_pin(&self, name: &str, until: Position) -> Result<Position> {
        let running = self.shared.open()?;
        running.check_position(until)?;
        pins::skip(&running, name, until.lsn).await
    }

    async fn begin_backup(&self, label: &str) -> Result<Begun> {
        let running = self.shared.open()?;
        if let Some(begun) = running.state().backups.begun(label) {
            return Ok(begun);
        }
        running.state().backups.make_room()?;
        let redo = running.checkpoint().await?;
        let mut state = running.state();
        if let Some(begun) = state.backups.begun(label) {
            return Ok(begun);
        }
        let begun = Begun { start: running.position(redo), scn: state.clock.last() };
        state.backups.add(label, begun);
        Ok(begun)
    }

    async fn end_backup(&self, label: &str) -> Result<Ended> {
        let running = self.shared.open()?;
        let mut state = running.state();
        let now = Ended { stop: running.position(state.log.end()), scn: state.clock.last(), files: Vec::new() };
        Ok(state.backups.end(label, now, running.config.sends_files)?)
    }

    async fn abandon_backup(&self, label: &str) -> Result<()> {
        let running = self.shared.open()?;
        running.state().backups.abandon(label);
        Ok(())
    }

    async fn files(&self) -> Result<Vec<SourceFile>> {
        files::list(&*self.shared.open()?).await
    }

    async fn file_stream(&self, label: &str) -> Result<Option<Box<dyn FileStream>>> {
        if !self.shared.config.sends_files {
            return Ok(None);
        }
        Ok(Some(Box::new(Sent::begin(self.shared.open()?, label).await?)))
    }

    async fn changes(&self, since: Position, until: Position, wal: &dyn WalSource) -> Result<Option<ChangeMap>> {
        // What is sent comes whole or not at all.
        if self.shared.config.sends_files { Ok(None) } else { changes::between(since, until, wal).await }
    }

    fn check_pages(&self, name: &str, offset: u64, bytes: &[u8]) -> PageVerdict {
        files::check(name, offset, bytes)
    }

    async fn close(&self, hold: HoldId, _lease: Duration) -> Result<()> {
        let running = self.shared.open()?;
        running.state().fence.close(hold)?;
        tracing::info!(target: "sheetanchor::refdb", node = %running.node(), %hold, "fence closed");
        Ok(())
    }

    async fn drain(&self, hold: HoldId) -> Result<(Scn, Position)> {
        let running = self.shared.open()?;
        let deadline = running.env.clock.now().after(running.config.flush_timeout);
        loop {
            let mut seen = running.watch();
            {
                let mut state = running.state();
                state.check().map_err(Error::from)?;
                state.fence.check(hold)?;
                if state.transactions.is_drained() || planted::is(Bug::DrainNotAwaited) {
                    state.fence.drained();
                    return Ok((state.clock.last(), running.position(state.log.end())));
                }
            }
            if running.changed(&mut seen, deadline, "draining").await.is_err() {
                return Err(Fault::new(FaultKind::TimedOut, "drain commits", "they are not durable in time").into());
            }
        }
    }

    async fn cut(&self, hold: HoldId, scn: Scn, record: &str) -> Result<CutMade> {
        check_record_name(record)?;
        let running = self.shared.open()?;
        running.ready_to_stamp(running.statement_deadline()).await?;
        let now = running.now();
        let mut state = running.state();
        state.fence.check_drained(hold)?;
        if let Some(made) = state.fence.cut_made(record) {
            return Ok(made);
        }
        state.clock.observe(scn, now)?;
        let until = state.log.end();
        let (stamp, proof) = state.append(now, Body::RestorePoint { name: record.into() })?;
        assert!(stamp > scn, "the record after the cut at {scn} is stamped {stamp}");
        let made = CutMade { until: running.position(until), proof };
        state.fence.made_cut(record, made);
        Ok(made)
    }

    async fn release(&self, hold: HoldId) -> Result<()> {
        let running = self.shared.open()?;
        let stood = running.state().fence.release(hold);
        if stood {
            running.tell();
            tracing::info!(target: "sheetanchor::refdb", node = %running.node(), %hold, "fence released");
        }
        Ok(())
    }

    async fn cut_alone(&self, _record: &str) -> Result<CutMade> {
        let message = "the nodes are cut together, under the fence or at one SCN, and not each by itself";
        Err(Refusal::new(Code::NotSupported, message).into())
    }

    async fn mark(&self, scn: Scn, record: &str) -> Result<CutMade> {
        check_record_name(record)?;
        self.shared.open()?.mark(scn, record).await
    }

    async fn flush(&self, until: Lsn) -> Result<()> {
        let running = self.shared.open()?;
        let end = running.state().log.end();
        if until > end {
            let message = format!("node {} has WAL up to {end}, not to {until}", running.node());
            return Err(Refusal::new(Code::LifeChanged, message).into());
        }
        Ok(running.flush_to(until).await?)
    }

    async fn durable_wal(&self, from: Position, bytes_max: ByteCount) -> Result<Option<WalPiece>> {
        wal::durable(&*self.shared.open()?, from, bytes_max).await
    }

    async fn recover(&self, recovery: &Recovery, wal: &dyn WalSource) -> Result<()> {
        recover::recover(&self.shared, recovery, wal).await
    }

    async fn search(&self, search: &Search, wal: &dyn WalSource) -> Result<Vec<Trace>> {
        in_doubt::search(search, wal).await
    }

    async fn resolve(&self, fates: &[(String, Fate)]) -> Result<()> {
        in_doubt::resolve(&self.shared, fates).await
    }

    async fn open(&self, opening: &Opening) -> Result<()> {
        recover::open(&self.shared, opening).await
    }

    async fn stop(&self) -> Result<()> {
        self.shared.stop().await;
        Ok(())
    }

    async fn check_unused(&self) -> Result<()> {
        over::check_unused(&self.shared).await
    }

    async fn check_own(&self, cluster: ClusterId, _system: &str) -> Result<()> {
        over::check_own(&self.shared, cluster).await
    }
}

impl Node {
    fn position_at_rest(&self, own: Option<&NodeControl>, incarnation: Option<Incarnation>) -> Position {
        Position {
            thread: ThreadId::of(self.shared.config.node),
            timeline: TimelineId::new(incarnation.map_or(0, Incarnation::get)),
            lsn: own.map_or_else(Lsn::default, |own| own.redo),
        }
    }
}

fn check_record_name(record: &str) -> Result<(), Refusal> {
    if (1..=RECORD_NAME_MAX).contains(&record.len()) {
        return Ok(());
    }
    Err(Refusal::new(Code::BadName, format!("a record's name of {} bytes", record.len())))
}

/// A piece of WAL is asked of the node that has it.
impl Running {
    /// # Errors
    /// `SA501` for another thread or branch: this node does not keep it.
    pub(crate) fn check_position(&self, position: Position) -> Result<(), Refusal> {
        if self.position(position.lsn) == position {
            return Ok(());
        }
        let message = format!("this node writes thread {} of incarnation {}", self.node(), self.incarnation);
        Err(Refusal::new(Code::WalGap, format!("{position} (timeline {}) is not kept: {message}", position.timeline)))
    }
}
