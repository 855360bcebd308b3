//! WAL of a server beside which nobody can read its folder, for what is else read there: the server streams it over a
//! connection of its own, for no slot. So a cut's record is proven, a stream is led in, and a timeline tells its ancestors.

use std::time::Duration;

use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use sheetanchor_core::identity::TimelineId;
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use tokio::time::Instant;

use super::replication::{Replication, Streamed};
use super::target::Target;
use super::wal::{FIRST_TIMELINE, Place, history};
use super::wal_chain::{PAGE_BYTES, Sought, judge_page_before};
use super::wal_reader::Reader;

/// How long a stretch of durable WAL may take to arrive: at most about a segment.
const STRETCH_WAIT: Duration = Duration::from_secs(30);

/// Proves that the record named `record` ends at `until`, in the durable WAL of the server.
///
/// # Errors
/// `SA204` if something else lies there: the server crashed, and lost the record. `SA501`, `SA504`, and faults.
pub(super) async fn prove_record(target: &Target, place: &Place, record: &str, until: Lsn) -> Result<()> {
    let last = until.get().saturating_sub(1);
    if ends_at(target, place, record, Lsn::new(last), until).await? {
        return Ok(());
    }
    let before = Lsn::new(last.saturating_sub(PAGE_BYTES));
    judge_page_before(ends_at(target, place, record, before, until).await, record, until)
}

/// A reader that stands at `place`, having read the segment before it if the server still has it. Else what continues a
/// record into this segment is taken as it is.
pub(super) async fn primed(target: &Target, place: &Place) -> Reader {
    let fresh = Reader::at_page_of(place.origin(), place.start);
    let Some(before) = place.before() else { return fresh };
    let reader = Reader::at_page_of(before.origin(), before.start);
    match read(target, place, reader, place.start, &mut Sought::new("")).await {
        Ok(reader) => reader,
        Err(error) => {
            tracing::info!(segment = before.file_name(), %error, "a stream begins without the segment before it");
            fresh
        }
    }
}

/// The timelines that `timeline` descends from, and where each was left, in the order of their numbers.
///
/// # Errors
/// `SA504` if its history is not understood; faults, and what a connection is refused for.
pub(super) async fn ancestors(target: &Target, timeline: TimelineId) -> Result<Vec<(TimelineId, Lsn)>> {
    if timeline == FIRST_TIMELINE {
        return Ok(Vec::new());
    }
    let mut link = Replication::connect(target).await?;
    let found = link.history(timeline).await?;
    link.goodbye().await;
    match found {
        Some(text) => history(&format!("the history of timeline {timeline}"), &String::from_utf8_lossy(&text)),
        None => Ok(Vec::new()),
    }
}

/// Whether the last record named `record` between the page of `from` and `until` ends there.
async fn ends_at(target: &Target, place: &Place, record: &str, from: Lsn, until: Lsn) -> Result<bool> {
    let mut sought = Sought::new(record);
    read(target, place, Reader::at_page_of(place.origin(), from), until, &mut sought).await?;
    Ok(sought.ends.last() == Some(&until))
}

/// Reads durable WAL, from where `reader` stands up to `until`.
async fn read(target: &Target, place: &Place, mut reader: Reader, until: Lsn, sought: &mut Sought) -> Result<Reader> {
    let deadline = Instant::now() + STRETCH_WAIT;
    let mut link = Replication::connect(target).await?;
    link.check_system(place.system).await?;
    link.start(None, place.timeline, reader.next()).await?;
    while reader.next() < until {
        let came = tokio::time::timeout_at(deadline, link.next()).await;
        let late = |_| stream_fault(FaultKind::TimedOut, format!("WAL up to {until} does not come"));
        match came.map_err(late)?? {
            Streamed::Wal(start, bytes) if start == reader.next() => {
                let wanted = usize::try_from(until.get().saturating_sub(start.get())).unwrap_or(usize::MAX);
                let bytes = bytes.get(..wanted).unwrap_or(&bytes);
                let segment = Place { start: place.size.start(start), ..*place };
                reader.feed(bytes, &mut |noted| sought.see(&noted)).map_err(|broken| segment.damaged(&broken))?;
            }
            Streamed::Wal(start, _) => {
                let message = format!("the server's stream goes on at {start}, not at {}", reader.next());
                return Err(Refusal::new(Code::WalGap, message).into());
            }
            Streamed::Alive(_) => {}
            Streamed::Over => {
                return Err(stream_fault(FaultKind::Unreachable, format!("the server ends the stream before {until}")));
            }
        }
    }
    link.goodbye().await;
    Ok(reader)
}

fn stream_fault(kind: FaultKind, cause: String) -> Error {
    Fault::new(kind, "read WAL from afar", cause).into()
}
