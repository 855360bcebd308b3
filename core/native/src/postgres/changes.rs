//! What changed in a server's relations between two backups, by its proven WAL.
//!
//! The rules, by PostgreSQL's sources (`walsummarizer.c` of release 17 goes by nearly the same):
//! - A block that a record refers to has changed. Hints are set without a record, but the first one on a page after a
//!   checkpoint logs the page where pages carry checksums; without them, a lost hint is set again by the next reader.
//! - A fork that was made or removed is read as a whole, and one that was cut short from there on. So are a
//!   database's files after it was made or removed, since a copy of a database by files is one record, and a tablespace's.
//! - The visibility map is *not* told by references: a row's change clears bits of it by a flag in its own record. It counts as
//!   changed wherever anything of its relation is.
//! - The free space map is not in the WAL, and nor is anything that is no relation: nobody vouches for those.
//! - The first page of an SP-GiST index caches which pages have room, and this is not logged: what is restored may have an
//!   older cache, as any index has after a crash.
//! - Whether `full_page_writes` is on does not matter: references are there without images, too.
//!
//! Nothing is told across what WAL does not show: another timeline, `wal_level` minimal, records that are marked as changing
//! relations and are not known here, and a shutdown, unless pages are known to have carried checksums before it: else
//! `pg_checksums` may have rewritten every page meanwhile, and pages from before would fail their check after a restore.

mod collected;
mod names;
#[cfg(test)]
mod tests;

use sheetanchor_core::changes::ChangeMap;
use sheetanchor_core::error::Result;
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::database::WalSource;

use self::collected::Collected;
use self::names::Names;
use super::database::PostgresDatabase;
use super::look::segment_size;
use super::session::Session;
use super::wal::{Place, read_segment};
use super::wal_reader::{CHECKSUMS_MESSAGE, Reader, Version};
use crate::faults::blocking;

/// Writes into the WAL whether pages carry checksums, for who reads it later.
///
/// # Errors
/// Faults.
pub(super) async fn note_checksums(session: &Session) -> Result<()> {
    let state = if session.facts().checksums { "on" } else { "off" };
    let sql = "SELECT pg_logical_emit_message(false, $1, $2)::text";
    session.row(sql, &[&CHECKSUMS_MESSAGE, &state]).await.map(|_| ())
}

/// What changed from the start of one backup to that of another, which is running here. `None`, with a word in the log, if
/// nobody can tell.
///
/// # Errors
/// `SA504` if the WAL does not hold, or `wal` ends before `until`; `SA501` if the server's own does. Faults.
pub(super) async fn changes(
    database: &PostgresDatabase,
    since: Position,
    until: Position,
    wal: &dyn WalSource,
) -> Result<Option<ChangeMap>> {
    let cannot = |why: String| {
        tracing::info!(%since, %until, why, "what changed between two backups cannot be told");
        Ok(None)
    };
    if (since.thread, since.timeline) != (until.thread, until.timeline) {
        return cannot("they are on two timelines".to_owned());
    }
    // A backup's start is said as that of its segment. What changed there up to its true start is not replayed.
    let Some(redo) = database.backups().redo(until).await else {
        return cannot("the later backup does not run here any more".to_owned());
    };
    let session = database.session().await?;
    let (facts, size) = (session.facts(), segment_size(&session)?);
    let names = Names::read(database.data(), facts.major())?;
    let Some(version) = Version::of_major(facts.major()) else {
        return cannot(format!("the WAL of release {} is unknown", facts.major()));
    };
    let place = Place { system: facts.system, size, timeline: until.timeline, start: size.start(since.lsn) };
    let mut reading = Reading::new(place, version, since.lsn);
    while reading.reader.next() < until.lsn {
        reading = reading.take_piece(until, wal).await?;
    }
    let data = database.data().to_owned();
    let reading = blocking(move || Ok(reading.take_rest(&data, redo))).await??;
    if !reading.reader.is_between_records() {
        return cannot(format!("no record starts at {redo}"));
    }
    match reading.collected.into_map(&names, facts.checksums) {
        Ok(map) => Ok(Some(map)),
        Err(why) => cannot(why),
    }
}

/// WAL being read.
struct Reading {
    place: Place,
    reader: Reader,
    collected: Collected,
}

impl Reading {
    fn new(place: Place, version: Version, since: Lsn) -> Self {
        let reader = if since == place.start {
            Reader::at_page_of(place.origin(), since)
        } else {
            Reader::at_record(place.origin(), version, since)
        };
        Self { place, reader, collected: Collected::new(place.timeline) }
    }

    /// Reads on by an archived piece, up to `until` at most.
    async fn take_piece(mut self, until: Position, wal: &dyn WalSource) -> Result<Self> {
        let at = Position { lsn: self.reader.next(), ..until };
        let piece = wal.piece(at).await?.filter(|piece| piece.from == at && !piece.bytes.is_empty());
        let Some(piece) = piece else {
            let message = format!("the WAL of thread {} ends at {}, before {}", at.thread, at.lsn, until.lsn);
            return Err(Refusal::new(Code::WalDamaged, message).into());
        };
        let wanted = offset(at.lsn, until.lsn);
        blocking(move || Ok(self.take(piece.bytes.get(..wanted).unwrap_or(&piece.bytes)).map(|()| self))).await?
    }

    /// Reads on in the server's own folder, up to `redo`. It was checkpointed, so all before it is durable there.
    fn take_rest(mut self, data: &str, redo: Lsn) -> Result<Self> {
        while self.reader.next() < redo {
            let start = self.place.size.start(self.reader.next());
            let bytes = read_segment(data, &Place { start, ..self.place })?;
            let (from, to) = (offset(start, self.reader.next()), offset(start, redo).min(bytes.len()));
            self.take(bytes.get(from..to).unwrap_or_default())?;
        }
        Ok(self)
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        let place = Place { start: self.place.size.start(self.reader.next()), ..self.place };
        self.reader.read(bytes, &mut self.collected).map_err(|broken| place.damaged(&broken))
    }
}

fn offset(from: Lsn, to: Lsn) -> usize {
    usize::try_from(to.get().saturating_sub(from.get())).unwrap_or(usize::MAX)
}
