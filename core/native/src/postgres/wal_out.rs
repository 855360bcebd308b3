//! WAL out of the archive: proven once more, piece after piece, to be one chain that holds the record of a cut where the cut
//! is, and written as the segments that a server reads. While one piece is proven the next is read.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::identity::{ThreadId, TimelineId};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::database::{WalPiece, WalSource};

use super::wal::Place;
use super::wal_chain::Sought;
use super::wal_reader::Reader;
use crate::faults::{blocking, fault};

/// What a recovery replays: where it starts and must end, on the one timeline that it can follow.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnRange {
    /// That timeline.
    pub timeline: TimelineId,
    /// Where the WAL of the backup starts.
    pub start: Lsn,
    /// The cut.
    pub until: Lsn,
    /// The end of the record that proves it.
    pub proof: Lsn,
}

/// The WAL of one recovery, from the start of its first segment on.
pub(super) struct WalOut<'a> {
    source: &'a dyn WalSource,
    thread: ThreadId,
    range: OwnRange,
    /// The name of the restore point.
    record: String,
    /// The segment that comes next.
    place: Place,
    next: Lsn,
    /// What was read while the piece before it was proven.
    ahead: Option<Result<Option<WalPiece>>>,
    /// What has read all before `next`, and what it has found.
    proof: Option<(Reader, Sought)>,
}

impl<'a> WalOut<'a> {
    /// The WAL of `range`, which begins with the segment of `place`, and holds the restore point `record` at its cut.
    pub(super) fn new(
        source: &'a dyn WalSource,
        thread: ThreadId,
        range: OwnRange,
        place: Place,
        record: &str,
    ) -> Self {
        let proof = (Reader::at_page_of(place.origin(), place.start), Sought::new(record));
        Self {
            source,
            thread,
            range,
            record: record.to_owned(),
            place,
            next: place.start,
            ahead: None,
            proof: Some(proof),
        }
    }

    /// The segment that comes next; `None` once all have come.
    pub(super) fn next(&self) -> Option<Place> {
        (self.next < self.range.proof).then_some(self.place)
    }

    /// Reads and proves the next segment, which may lie in the archive in several pieces, and writes it to `path`, if one is
    /// given. What the last segment does not hold is zeros, as its server left it.
    ///
    /// # Errors
    /// `SA404` if the WAL ends before the cut, or holds no record of it, `SA403` if that is elsewhere, `SA504` for what does
    /// not hold; faults.
    pub(super) async fn segment(&mut self, path: Option<String>) -> Result<()> {
        let end = self.place.size.end(self.place.start);
        while self.next < end.min(self.range.proof) {
            self.piece(path.clone()).await?;
        }
        if self.next >= self.range.proof {
            self.check_found()?;
        }
        self.place.start = end;
        Ok(())
    }

    async fn piece(&mut self, path: Option<String>) -> Result<()> {
        let from = Position { thread: self.thread, timeline: self.range.timeline, lsn: self.next };
        let piece = match self.ahead.take() {
            Some(read) => read?,
            None => self.source.piece(from).await?,
        };
        let Some(piece) = piece else {
            let message =
                format!("the WAL of thread {} ends at {}, before its cut {}", self.thread, self.next, self.range.until);
            return Err(Refusal::new(Code::ThreadShort, message).into());
        };
        // No piece crosses the end of a segment.
        let bytes = piece.until.bytes_since(self.next).filter(|_| piece.until <= self.place.size.end(self.place.start));
        let fits =
            piece.from == from && bytes.is_some_and(|bytes| bytes > 0 && u64::try_from(piece.bytes.len()) == Ok(bytes));
        if !fits {
            let message = format!("{piece:?} does not go on at {} of timeline {}", self.next, self.range.timeline);
            return Err(Refusal::new(Code::WalDamaged, message).into());
        }
        let Some((mut reader, mut sought)) = self.proof.take() else {
            return Err(Error::Bug("WAL is read on after it did not hold".to_owned()));
        };
        let (place, next, until) = (self.place, self.next, piece.until);
        let proving = blocking(move || {
            let taken = take_piece(&place, next, &piece.bytes, path.as_deref(), &mut reader, &mut sought);
            Ok(taken.map(|()| (reader, sought)))
        });
        let reading = async {
            if until < self.range.proof { Some(self.source.piece(Position { lsn: until, ..from }).await) } else { None }
        };
        let (proven, ahead) = tokio::join!(proving, reading);
        self.proof = Some(proven??);
        self.ahead = ahead;
        self.next = until;
        Ok(())
    }

    /// All is read: the cut's record is where the cut is.
    fn check_found(&self) -> Result<()> {
        let (thread, record, until) = (self.thread, &self.record, self.range.until);
        let ends = self.proof.as_ref().map(|(_, sought)| sought.ends.as_slice()).unwrap_or_default();
        let Some(first) = ends.first() else {
            let message = format!("the WAL of thread {thread} up to {} holds no record {record}", self.next);
            return Err(Refusal::new(Code::ThreadShort, message).into());
        };
        if *first == until {
            return Ok(());
        }
        let ends = ends.iter().map(Lsn::to_string).collect::<Vec<_>>().join(", ");
        let message = format!("the record {record} ends at {ends}, and the cut of thread {thread} is {until}");
        Err(Refusal::new(Code::CutMissed, message).into())
    }
}

/// Proves a piece of a segment that goes on from where `reader` stands, and writes it to `path`.
fn take_piece(
    place: &Place,
    from: Lsn,
    bytes: &[u8],
    path: Option<&str>,
    reader: &mut Reader,
    sought: &mut Sought,
) -> Result<()> {
    reader.feed(bytes, &mut |noted| sought.see(&noted)).map_err(|broken| place.damaged(&broken))?;
    let Some(path) = path else { return Ok(()) };
    let offset = from.get().saturating_sub(place.start.get());
    write_piece(path, offset, bytes, place.size.bytes()).map_err(|error| fault(format!("write {path}"), &error).into())
}

/// It is not synced: whatever power takes away comes again, before the server is started again.
fn write_piece(path: &str, offset: u64, bytes: &[u8], segment_bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(offset == 0).mode(0o600).open(path)?;
    file.set_len(segment_bytes)?;
    file.write_all_at(bytes, offset)
}

/// Makes the folder for a server's WAL.
///
/// # Errors
/// The system's.
pub(super) fn make_folder(data: &str) -> io::Result<()> {
    fs::create_dir_all(Path::new(data).join("pg_wal/archive_status"))
}
