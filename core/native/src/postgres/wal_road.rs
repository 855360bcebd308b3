//! The two roads on which a server's WAL comes into the archive: streamed by the server, which is the usual one, or read
//! from its folder, segment by segment, where a server lets nobody replicate. Both hand on proven bytes that go on where
//! the archive ends, so a node may change roads.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sheetanchor_core::error::{Error, FaultKind, Result};
use sheetanchor_core::identity::TimelineId;
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::agent::archive::ARCHIVE_PIN;
use sheetanchor_engine::database::{State, Status, WalPiece};

use super::database::PostgresDatabase;
use super::look::{end_of_wal, finish_segment, segment_size};
use super::pins;
use super::postmaster::POLL;
use super::replication::Replication;
use super::session::{Session, is_down, over_is_down};
use super::wal::{Place, ancestors};
use super::wal_chain::primed;
use super::wal_from_afar;
use super::wal_stream::{Haste, WalStream};
use crate::faults::blocking;

/// How WAL comes from a server into the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalRoad {
    /// The server streams it. An open segment is archived as far as it goes when a cut waits for it, and otherwise when
    /// `every` has passed: so much of what was committed may be lost with the node's disk.
    Stream {
        /// How long WAL may wait in an open segment.
        every: Duration,
    },
    /// Whole segments are read from the server's folder. A cut finishes its segment.
    Folder,
}

/// How often a slot that is in use is tried again, [`POLL`] apart: a connection that was given up takes a moment to end.
const TRIES_MAX: usize = 100;

impl Default for WalRoad {
    fn default() -> Self {
        Self::Stream { every: Duration::from_secs(5) }
    }
}

impl PostgresDatabase {
    /// Durable WAL from `from` on, by the road that is configured.
    pub(super) async fn wal_from(&self, from: Position) -> Result<Option<WalPiece>> {
        if from.thread != self.thread() {
            let message = format!("WAL is read of thread {}: {from} is of another", self.thread());
            return Err(Refusal::new(Code::OutOfOrder, message).into());
        }
        match self.road() {
            WalRoad::Stream { every } => self.streamed_wal(from, every).await,
            WalRoad::Folder => self.folder_wal(from).await,
        }
    }

    /// Sees to it that WAL up to `until` is archived soon.
    pub(super) async fn hurry(&self, session: &Session, until: Lsn) -> Result<()> {
        match self.road() {
            WalRoad::Stream { .. } => {
                let (timeline, _) = end_of_wal(session).await?;
                self.wanted().raise(timeline, until);
                Ok(())
            }
            WalRoad::Folder => finish_segment(session, until).await,
        }
    }

    /// Whether the road can be taken at all: asked before anything relies on it.
    pub(super) async fn try_road(&self) -> Result<()> {
        match self.road() {
            WalRoad::Stream { .. } => Replication::connect(self.target()).await.map(|_| ()),
            WalRoad::Folder => Ok(()),
        }
    }

    /// Tells the server that the archive holds all up to `until`. Whether that was done: only a stream can.
    pub(super) async fn confirm(&self, until: Lsn) -> bool {
        match self.stream().lock().await.as_ref().filter(|stream| !stream.is_over()) {
            Some(stream) => {
                stream.confirm(until);
                true
            }
            None => false,
        }
    }

    /// What to say of a server that lets nobody in. One that is shutting down streams its last WAL, and ends once the
    /// archive has it. It has no life that could be asked for: nothing that was said of it is confirmed any more.
    pub(super) fn ending_status(&self, is_stopping: bool) -> Status {
        let stream = self.stream().try_lock().ok().filter(|_| is_stopping);
        let end = stream.and_then(|stream| Some(stream.as_ref().filter(|stream| !stream.is_over())?.end()));
        let Some((timeline, end)) = end else { return self.status_of(State::Down, Lsn::new(0)) };
        let mut status = self.status_of(State::Open, end);
        status.end.timeline = timeline;
        status
    }

    async fn streamed_wal(&self, from: Position, every: Duration) -> Result<Option<WalPiece>> {
        let mut held = self.stream().lock().await;
        let session = match self.session().await {
            Ok(session) => Some(session),
            // It is shutting down: what it still streams is the last.
            Err(error) if is_down(&error) && held.as_ref().is_some_and(|stream| !stream.is_over()) => None,
            Err(error) => return Err(error),
        };
        let reach = match &session {
            Some(session) => Some(self.reach_of(session, from).await?),
            None => None,
        };
        let durable = reach.map(|reach| reach.durable);
        if !held.as_ref().is_some_and(|stream| stream.serves(from.timeline, from.lsn)) {
            // A new one, then; before that the slot must be free.
            *held = None;
            let (Some(session), Some(durable)) = (&session, durable) else { return Ok(None) };
            let stream = self.open_stream(session, from).await?;
            stream.begins(durable).await?;
            *held = Some(stream);
        }
        let Some(stream) = held.as_mut() else { return Ok(None) };
        // Nothing is added any more to what a server that ends, or a timeline that was left, holds.
        let left = reach.is_none_or(|reach| reach.left);
        let every = if left { Duration::ZERO } else { every };
        let wanted = self.wanted().on(from.timeline);
        let wanted = durable.filter(|_| left).map_or(wanted, |durable| wanted.max(durable));
        let haste = Haste { wanted, every, durable };
        match stream.piece(from.lsn, haste).await {
            Ok(piece) => Ok(piece.map(|(until, bytes)| WalPiece { from, until, scn_last: None, bytes })),
            Err(error) => {
                *held = None;
                // A server that has ended sends nothing more: that is no trouble of the archive's.
                if session.is_none() && error.is(FaultKind::Unreachable) { Ok(None) } else { Err(error) }
            }
        }
    }

    /// A stream that begins with the segment of `from`.
    async fn open_stream(&self, session: &Session, from: Position) -> Result<WalStream> {
        // A slot that has lost its WAL looks sound again once it streams from a later place.
        let stood = pins::standing(session, ARCHIVE_PIN).await?;
        let slot = pins::slot(ARCHIVE_PIN)?;
        let size = segment_size(session)?;
        let start = size.start(from.lsn);
        let place = Place { system: session.facts().system, size, timeline: from.timeline, start };
        let reader = if self.is_afar() {
            wal_from_afar::primed(self.target(), &place).await
        } else {
            let data = self.data().to_owned();
            blocking(move || Ok(primed(&data, &place))).await?
        };
        let mut tries = 0;
        loop {
            let link = Replication::connect(self.target()).await?;
            match WalStream::open(link, &slot, stood, place, reader.clone()).await {
                Err(error) if error.is(FaultKind::Exists) && tries < TRIES_MAX => {
                    tries += 1;
                    tokio::time::sleep(POLL).await;
                }
                opened => return opened,
            }
        }
    }

    /// Moves the slot of a pin to `until`, past WAL that was let go of, or makes it anew; answers where it stands.
    pub(super) async fn skip_slot(&self, name: &str, until: Lsn) -> Result<Lsn> {
        let mut held = self.stream().lock().await;
        if name == ARCHIVE_PIN {
            // What it has read lies before, and the slot must be free.
            *held = None;
        }
        let session = self.session().await?;
        let mut tries = 0;
        loop {
            match pins::skip(&session, name, until).await {
                Err(error) if error.is(FaultKind::Exists) && tries < TRIES_MAX => {
                    tries += 1;
                    tokio::time::sleep(POLL).await;
                }
                skipped => return skipped,
            }
        }
    }

    /// How far WAL of the timeline of `from` is durable.
    async fn reach_of(&self, session: &Session, from: Position) -> Result<ReachOf> {
        let (writes, durable) = end_of_wal(session).await.map_err(over_is_down)?;
        if writes == from.timeline {
            return Ok(ReachOf { durable, left: false });
        }
        let ancestors = self.ancestors(writes).await?;
        match ancestors.into_iter().find(|(timeline, _)| *timeline == from.timeline) {
            Some((_, at)) if at > from.lsn => Ok(ReachOf { durable: at, left: true }),
            Some((_, at)) => Err(gone(from, at)),
            None => Err(gone(from, format!("it writes timeline {writes}"))),
        }
    }

    /// Where the archive of the timeline that the server writes starts, if its pin keeps WAL from `kept` on: the segment in
    /// which the timeline began is the first that has its name.
    pub(super) async fn archive_from(&self, session: &Session, kept: Lsn, writes: TimelineId) -> Result<Lsn> {
        Ok(segment_size(session)?.start(kept.max(self.began(writes).await?)))
    }

    /// Where a timeline began, by its history.
    pub(super) async fn began(&self, timeline: TimelineId) -> Result<Lsn> {
        let ancestors = self.ancestors(timeline).await?;
        Ok(ancestors.last().map_or(Lsn::new(0), |(_, at)| *at))
    }

    /// The timelines that `timeline` descends from, and where each was left.
    async fn ancestors(&self, timeline: TimelineId) -> Result<Vec<(TimelineId, Lsn)>> {
        if self.is_afar() {
            return wal_from_afar::ancestors(self.target(), timeline).await;
        }
        let data = self.data().to_owned();
        blocking(move || Ok(ancestors(&data, timeline))).await?
    }

    async fn folder_wal(&self, from: Position) -> Result<Option<WalPiece>> {
        let session = self.session().await?;
        let size = segment_size(&session)?;
        let reach = self.reach_of(&session, from).await?;
        let start = size.start(from.lsn);
        let until = size.end(start);
        if reach.durable < until {
            // The rest of it was never a whole segment.
            return if reach.left { Err(gone(from, reach.durable)) } else { Ok(None) };
        }
        let place = Place { system: session.facts().system, size, timeline: from.timeline, start };
        let (data, chain) = (self.data().to_owned(), Arc::clone(self.chain()));
        let mut bytes = blocking(move || Ok(chain.read(&data, &place))).await??;
        // An open segment was streamed up to here.
        let archived = usize::try_from(from.lsn.get().saturating_sub(start.get())).unwrap_or(usize::MAX);
        bytes.drain(..archived.min(bytes.len()));
        Ok(Some(WalPiece { from, until, scn_last: None, bytes: bytes.into() }))
    }
}

/// Up to where somebody waits until WAL is archived: on one timeline, the newest that was asked for.
#[derive(Debug, Default)]
pub(super) struct Wanted(Mutex<(TimelineId, Lsn)>);

impl Wanted {
    fn raise(&self, timeline: TimelineId, until: Lsn) {
        let mut wanted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = if wanted.0 == timeline { wanted.1 } else { Lsn::new(0) };
        *wanted = (timeline, until.max(before));
    }

    fn on(&self, timeline: TimelineId) -> Lsn {
        let wanted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted.0 == timeline { wanted.1 } else { Lsn::new(0) }
    }

    /// Nobody waits: another restore may begin the same timeline again, from an earlier place.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = <_>::default();
    }
}

/// How far a timeline goes on a server.
#[derive(Clone, Copy)]
struct ReachOf {
    durable: Lsn,
    /// The server has left it there, for a later one.
    left: bool,
}

fn gone(from: Position, seen: impl std::fmt::Display) -> Error {
    Refusal::new(Code::WalGap, format!("WAL from {from} was asked for, and the server has left that timeline: {seen}"))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_of_one_timeline_is_not_of_another() {
        let (wanted, [first, second]) = (Wanted::default(), [1, 2].map(TimelineId::new));
        assert_eq!(wanted.on(first), Lsn::new(0));
        wanted.raise(first, Lsn::new(70));
        wanted.raise(first, Lsn::new(50));
        assert_eq!((wanted.on(first), wanted.on(second)), (Lsn::new(70), Lsn::new(0)));
        // A standby takes over that had not come as far.
        wanted.raise(second, Lsn::new(60));
        assert_eq!((wanted.on(first), wanted.on(second)), (Lsn::new(0), Lsn::new(60)));
        wanted.forget();
        assert_eq!(wanted.on(second), Lsn::new(0));
    }
}
