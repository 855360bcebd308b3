//! Ships durable WAL into the repository, piece by piece, each starting where the last one ends. A gap or a conflict is
//! found here, when it appears, not at restore time.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;
use sheetanchor_core::agent::Belonging;
use sheetanchor_core::error::{Error, FaultKind, Result};
use sheetanchor_core::exposure::Exposure;
use sheetanchor_core::format::keys;
use sheetanchor_core::format::wal::{self, WalHeader};
use sheetanchor_core::hole::resumes;
use sheetanchor_core::identity::{ByteCount, ContentHash, LifeId};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::{Code, Refusal};

use tokio::sync::oneshot;

use super::Agent;
use crate::database::{State, Status, WalPiece};
use crate::env::Put;
use crate::zstd;

/// The name of the pin that keeps WAL until it is archived.
pub const ARCHIVE_PIN: &str = "archive";

/// How soon whoever waits for the archive has it look for more.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// How many pieces may be packed beside the one that is stored next. Each is up to a whole segment, twice, in memory.
const PACKING_AHEAD_MAX: usize = 1;

/// How far the archive of this node's thread has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArchiveState {
    /// Its end. `None` before anything is known.
    pub until: Option<Position>,
    /// Why it does not move on.
    pub trouble: Option<Error>,
}

impl Agent {
    /// Ships for as long as the agent lives.
    pub(super) async fn keep_archiving(&self) {
        let mut belongings = self.belonging.watch();
        let mut shipping: Option<Shipping> = None;
        let mut settled = None;
        loop {
            let belonging = belongings.get();
            if shipping.is_some_and(|shipping| Some(shipping.belonging) != belonging) {
                shipping = None;
                self.archive.set(ArchiveState::default());
                *self.exposure.lock().await = Exposure::default();
            }
            let more = match belonging {
                Some(belonging) => self.ship_within_bound(belonging, &mut shipping, &mut settled).await,
                None => Ok(false),
            };
            let more = match more {
                Ok(more) => more,
                Err(error) => {
                    tracing::warn!(target: "sheetanchor::archive", node = %self.config.node, %error, "the archive does not move on");
                    self.show(ArchiveState { trouble: Some(error), ..self.archive.get() });
                    // Its life is remembered: whoever answers next is looked at.
                    shipping = shipping.map(|known| Shipping { from: None, ..known });
                    false
                }
            };
            if !more {
                tokio::select! {
                    biased;
                    () = self.ship.notified() => {}
                    () = belongings.changed() => {}
                    () = self.env.clock.sleep(self.config.archive_interval) => {}
                }
            }
        }
    }

    /// Ships what is durable, and says whether to go on at once, unless WAL has to be let go of meanwhile.
    async fn ship_within_bound(
        &self,
        belonging: Belonging,
        shipping: &mut Option<Shipping>,
        settled: &mut Option<LifeId>,
    ) -> Result<bool> {
        if self.keep_bound(belonging, settled).await {
            *shipping = shipping.map(|known| Shipping { from: None, ..known });
        }
        let shipped = tokio::select! {
            biased;
            shipped = self.ship(belonging, shipping) => Some(shipped),
            // The repository may hold one write up for as long as it likes.
            () = self.bound_is_passed(belonging) => None,
        };
        // Where the archive goes on behind a hole is found out anew.
        match shipped {
            Some(Err(error)) => match self.lost_wal(&error).await {
                Some(lost) => {
                    self.declare(belonging, lost).await?;
                    *shipping = shipping.map(|known| Shipping { from: None, ..known });
                    Ok(false)
                }
                None => Err(error),
            },
            Some(shipped) => shipped,
            None => {
                *shipping = shipping.map(|known| Shipping { from: None, ..known });
                Ok(true)
            }
        }
    }

    /// Ships what is durable, and says whether to go on at once. While a piece is packed the next ones are read and packed,
    /// too, but they are stored in their order: the archive never holds a piece without all before it.
    async fn ship(&self, belonging: Belonging, shipping: &mut Option<Shipping>) -> Result<bool> {
        self.record_holes(belonging).await?;
        let Some((status, known)) = self.look_at_database(belonging, shipping.as_ref()).await? else {
            return Ok(false);
        };
        let Some(first) = self.first_piece(&status, known, shipping).await? else { return Ok(false) };
        let (archived, mut read) = (first.from, Position { lsn: first.until, ..first.from });
        let mut packing = VecDeque::from([self.pack(belonging, first)]);
        while let Some(mut first) = packing.pop_front() {
            let packed = loop {
                let is_more = read.timeline == status.end.timeline && read.lsn < status.end.lsn;
                tokio::select! {
                    biased;
                    packed = &mut first => break packed,
                    Some(piece) = self.piece_ahead(read), if is_more && packing.len() < PACKING_AHEAD_MAX => {
                        read.lsn = piece.until;
                        packing.push_back(self.pack(belonging, piece));
                    }
                }
            };
            let packed = packed.map_err(|_| Error::Bug("packing WAL panicked".to_string()))?;
            if packed.header.from != archived.lsn && !self.is_as_known(known).await? {
                break;
            }
            let until = Position { lsn: self.store(&packed).await?, ..read };
            self.database.advance_pin(ARCHIVE_PIN, until.lsn).await?;
            *shipping = Some(Shipping { from: Some(until), ..known });
            self.exposure.lock().await.archived(until);
            self.show(ArchiveState { until: Some(until), trouble: None });
            tracing::debug!(target: "sheetanchor::archive", node = %self.config.node, %until, "archived");
            if until.lsn != packed.header.until {
                // What was read ahead does not go on there.
                break;
            }
        }
        Ok(true)
    }

    /// Whether the database is one to ship from, and in which life.
    async fn look_at_database(
        &self,
        belonging: Belonging,
        shipping: Option<&Shipping>,
    ) -> Result<Option<(Status, Shipping)>> {
        let status = self.database.status().await?;
        if status.state != State::Open || status.incarnation.is_some_and(|known| known != belonging.incarnation) {
            return Ok(None);
        }
        if shipping.is_none_or(|known| known.life != status.life) {
            // In another life it may be another database, and nobody saw the one before an agent's start.
            let members = self.repository.membership(belonging.membership).await?;
            members.check_identity(self.config.node, &self.database.identity().await?.system)?;
        }
        let from = shipping.and_then(|known| known.from);
        let known = Shipping { belonging, life: status.life, from };
        Ok(Some((status, known)))
    }

    /// The piece that the archive goes on with, if one is durable.
    async fn first_piece(
        &self,
        status: &Status,
        known: Shipping,
        shipping: &mut Option<Shipping>,
    ) -> Result<Option<WalPiece>> {
        let mut from = match known.from {
            Some(from) => from,
            None => self.archive_start(known.belonging, status.end).await?,
        };
        *shipping = Some(Shipping { from: Some(from), ..known });
        self.exposure.lock().await.looked(self.env.clock.now(), status.end, from);
        self.show(ArchiveState { until: Some(from), ..self.archive.get() });
        let mut piece = self.durable_wal(from, status.end).await;
        if from.timeline < status.end.timeline && is_gap(&piece) {
            tracing::warn!(target: "sheetanchor::archive", node = %self.config.node, left = %from, now = %status.end, "the database has left its timeline");
            from = self.timeline_start(status.end).await?;
            *shipping = Some(Shipping { from: Some(from), ..known });
            self.show(ArchiveState { until: Some(from), ..self.archive.get() });
            piece = self.durable_wal(from, status.end).await;
        }
        let Some(piece) = piece? else {
            self.show(ArchiveState { until: Some(from), trouble: None });
            return Ok(None);
        };
        if piece.from != from || piece.until <= from.lsn {
            return Err(Error::Bug(format!("asked for WAL from {from}, was given {piece:?}")));
        }
        Ok(Some(piece))
    }

    /// The piece after what was read up to `from`, if it is durable already. Whatever stands against it is met again, and
    /// said, once it is first. Only reads: it is given up as soon as there is something to store.
    async fn piece_ahead(&self, from: Position) -> Option<WalPiece> {
        let piece = self.database.durable_wal(from, self.config.archive_piece).await.ok().flatten()?;
        (piece.from == from && piece.until > from.lsn).then_some(piece)
    }

    /// Whether what was read ahead was read in the life, and for the belonging, that it is stored for.
    async fn is_as_known(&self, known: Shipping) -> Result<bool> {
        let status = self.database.status().await?;
        let is_same_life = status.state == State::Open && status.life == known.life;
        Ok(is_same_life && self.belonging.get() == Some(known.belonging))
    }

    /// How long ago the oldest WAL was written, at most, that is not archived, in milliseconds, of a database whose WAL ends at
    /// `end`.
    pub(super) async fn exposed_for(&self, end: Position) -> Option<u64> {
        let (now, archived) = (self.env.clock.now(), self.archive.get().until?);
        let mut exposure = self.exposure.lock().await;
        exposure.looked(now, end, archived);
        exposure.age(now).map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
    }

    /// Tells whoever waits, if it is news: they look at every change, and have more shipped.
    fn show(&self, state: ArchiveState) {
        if self.archive.get() != state {
            self.archive.set(state);
        }
    }

    /// Durable WAL from `from` on, of the timeline that the database writes or of one that it has left.
    async fn durable_wal(&self, from: Position, end: Position) -> Result<Option<WalPiece>> {
        if from.timeline != end.timeline {
            // The database that wrote the older timeline may have been another machine's, which had the pin.
            self.database.pin(ARCHIVE_PIN).await?;
        }
        self.database.durable_wal(from, self.config.archive_piece).await
    }

    /// Where the archive of this incarnation goes on: where it ends, be it on an earlier timeline, or behind a declared hole,
    /// or where its pin starts if there is none yet.
    async fn archive_start(&self, belonging: Belonging, end: Position) -> Result<Position> {
        self.check_repository(belonging).await?;
        let prefix = keys::wal_thread(belonging.incarnation, end.thread);
        let keys = self.repository.bucket().list(&prefix).await?;
        let newest = keys.iter().filter_map(|key| Some((keys::parse_wal(key)?, key))).max();
        let archived = match newest {
            Some(((timeline, _), key)) if timeline > end.timeline => {
                let message = format!("{key} in the archive is of a later timeline than {end}, which this node writes");
                return Err(Refusal::new(Code::WalConflict, message).into());
            }
            Some(((timeline, _), key)) => Some((timeline, self.repository.wal_header(key).await?.until)),
            None => None,
        };
        let holes = self.holes_from(&keys, newest.map(|(place, _)| place)).await?;
        match resumes(archived, &holes) {
            Some((timeline, lsn)) if timeline > end.timeline => {
                let message = format!(
                    "a hole up to {lsn} of timeline {timeline} was declared, and {end} is what this node writes"
                );
                Err(Refusal::new(Code::WalConflict, message).into())
            }
            Some((timeline, lsn)) => Ok(Position { timeline, lsn, ..end }),
            None => self.timeline_start(end).await,
        }
    }

    /// Where the pin starts on the timeline that the database writes.
    pub(super) async fn timeline_start(&self, end: Position) -> Result<Position> {
        let pins = self.database.pins().await?;
        let pin = pins.iter().find(|pin| pin.name == ARCHIVE_PIN && pin.from.timeline == end.timeline);
        match pin {
            Some(pin) => Ok(pin.from),
            None => Ok(self.database.pin(ARCHIVE_PIN).await?),
        }
    }

    /// A node writes only into the repository of its own cluster, whichever it is given: a clone's WAL among that of the
    /// cluster it was made from would pass for that cluster's own.
    pub(super) async fn check_repository(&self, belonging: Belonging) -> Result<()> {
        let found = self.repository.cluster().await?.id;
        if found == belonging.cluster || planted::is(Bug::RepositoryUnchecked) {
            return Ok(());
        }
        let (node, own) = (self.config.node, belonging.cluster);
        let message = format!("node {node} belongs to cluster {own}, the repository is of cluster {found}");
        Err(Refusal::new(Code::OtherCluster, message).into())
    }

    /// Begins to hash and compress a piece, beside the caller.
    fn pack(&self, belonging: Belonging, piece: WalPiece) -> oneshot::Receiver<Packed> {
        let (done, packed) = oneshot::channel();
        self.env.work.start(Box::new(move || drop(done.send(Packed::of(belonging, piece)))));
        packed
    }

    /// Stores a piece, and says where the stored one ends.
    async fn store(&self, packed: &Packed) -> Result<Lsn> {
        let Packed { header, body } = packed;
        let key = keys::wal(header.incarnation, header.thread, header.timeline, header.from);
        match self.repository.bucket().put_new(&key, body.clone()).await {
            Ok(Put::Created) => return Ok(header.until),
            Ok(Put::Exists) => {}
            // Written, or not, or on its way: where nothing is there, the next attempt settles it.
            Err(fault) if fault.kind == FaultKind::TimedOut => match self.repository.bucket().head(&key).await? {
                Some(_) => {}
                None if planted::is(Bug::PieceTimeoutBelieved) => return Ok(header.until),
                None => return Err(fault.into()),
            },
            Err(fault) => return Err(fault.into()),
        }
        let (_, frame) = wal::split(&key, body)?;
        let ours = zstd::decompress(&key, frame, header.length.get(), Code::WalDamaged)?;
        self.agree(&key, header, &ours).await
    }

    /// An earlier life may have shipped the same WAL, to an earlier or a later end. Anything else is a second writer.
    async fn agree(&self, key: &str, ours: &WalHeader, bytes: &[u8]) -> Result<Lsn> {
        let (theirs, stored) = read_piece(key, &self.repository.get(key).await?)?;
        let (shorter, longer) = if stored.len() <= bytes.len() { (&stored[..], bytes) } else { (bytes, &stored[..]) };
        let same_place = (theirs.incarnation, theirs.thread, theirs.timeline, theirs.from)
            == (ours.incarnation, ours.thread, ours.timeline, ours.from);
        let one_is_the_others_start =
            if planted::is(Bug::ShortPieceRefused) { longer == shorter } else { longer.starts_with(shorter) };
        if same_place && one_is_the_others_start {
            return Ok(theirs.until);
        }
        let message = format!("{key} in the archive differs from this node's WAL from {} to {}", ours.from, ours.until);
        Err(Refusal::new(Code::WalConflict, message).into())
    }

    /// Waits until the archive has passed `through`.
    pub(super) async fn await_archive(&self, through: Position) -> Result<Lsn> {
        tokio::select! {
            biased;
            reached = self.archive_passes(through) => reached,
            () = self.env.clock.sleep(self.config.archive_patience) => {
                let message = format!("node {} has not archived {through}", self.config.node);
                Err(Refusal::new(Code::ArchiveBehind, message).into())
            }
        }
    }

    async fn archive_passes(&self, through: Position) -> Result<Lsn> {
        let mut states = self.archive.watch();
        loop {
            self.ship.notify_one();
            let state = states.get();
            self.check_not_let_go(through).await?;
            if let Some(until) = state.until
                && until.timeline == through.timeline
                && until.lsn >= through.lsn
            {
                return Ok(until.lsn);
            }
            if let Some(until) = state.until.filter(|until| until.timeline > through.timeline) {
                let message =
                    format!("the database has left the timeline of {through}, and its archive stands at {until}");
                return Err(Refusal::new(Code::WalGap, message).into());
            }
            if let Some(error @ (Error::Refusal(_) | Error::Bug(_))) = state.trouble {
                return Err(error);
            }
            tokio::select! {
                biased;
                () = states.changed() => {}
                // It may not have been durable yet when it was looked for.
                () = self.env.clock.sleep(LOOK_AGAIN_AFTER) => {}
            }
        }
    }
}

/// What is shipped, in which life of the database, and up to where it is.
#[derive(Clone, Copy)]
struct Shipping {
    belonging: Belonging,
    life: LifeId,
    /// None after a failure: it is found out anew.
    from: Option<Position>,
}

/// A piece as it is stored.
struct Packed {
    header: WalHeader,
    /// The whole object, header and frame.
    body: Bytes,
}

impl Packed {
    fn of(belonging: Belonging, piece: WalPiece) -> Self {
        let WalPiece { from, until, scn_last, bytes } = piece;
        let count = |length: usize| ByteCount::new(u64::try_from(length).unwrap_or(u64::MAX));
        let frame = zstd::compress(&bytes);
        let header = WalHeader {
            from: from.lsn,
            hash: ContentHash::of(&bytes),
            incarnation: belonging.incarnation,
            length: count(bytes.len()),
            scn_last,
            stored: count(frame.len()),
            thread: from.thread,
            timeline: from.timeline,
            until,
        };
        let body = wal::join(&header, &frame).into();
        Self { header, body }
    }
}

fn is_gap(piece: &Result<Option<WalPiece>>) -> bool {
    matches!(piece, Err(Error::Refusal(refusal)) if refusal.code == Code::WalGap)
}

/// Reads and verifies a whole piece.
///
/// # Errors
/// `SA504`.
pub fn read_piece(key: &str, body: &[u8]) -> Result<(WalHeader, Vec<u8>)> {
    let (header, frame) = wal::split(key, body)?;
    let bytes = zstd::decompress(key, frame, header.length.get(), Code::WalDamaged)?;
    if ContentHash::of(&bytes) != header.hash && !planted::is(Bug::PieceUnchecked) {
        return Err(Refusal::new(Code::WalDamaged, format!("{key} does not hash to {}", header.hash)).into());
    }
    Ok((header, bytes))
}
