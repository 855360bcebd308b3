//! What an open server says of its run and of its WAL, and how WAL is made durable.

use std::time::Duration;

use sheetanchor_core::error::{Fault, FaultKind, Result};
use sheetanchor_core::identity::{ContentHash, LifeId, TimelineId};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};

use super::session::{Fields, Session};
use super::wal::SegmentSize;

/// How long WAL may take to become durable once asked for.
const FLUSH_WAIT: Duration = Duration::from_secs(30);

/// The timeline that a server writes, and how far its WAL is durable, in its own words. A standby refuses both.
const TIMELINE: &str = "substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)";
const FLUSHED: &str = "pg_current_wal_flush_lsn()::text";

/// What an open server says of its run.
pub(super) struct Seen {
    /// Which run it is.
    pub life: LifeId,
    /// Timeline and end of durable WAL; `None` on a standby.
    pub end: Option<(TimelineId, Lsn)>,
    /// Whether transactions can be prepared there.
    pub can_prepare: bool,
}

/// Looks at an open server.
///
/// # Errors
/// Faults.
pub(super) async fn look(session: &Session) -> Result<Seen> {
    // A crash of one process restarts all but the postmaster, and may lose WAL that was not flushed: it is another life,
    // and the checkpointer's start tells.
    let sql = format!(
        "SELECT CASE WHEN NOT pg_is_in_recovery() THEN {TIMELINE} END, \
        CASE WHEN NOT pg_is_in_recovery() THEN {FLUSHED} END, \
        extract(epoch FROM pg_postmaster_start_time())::text, \
        (SELECT pid::text || ' ' || extract(epoch FROM backend_start)::text FROM pg_stat_activity \
            WHERE backend_type = 'checkpointer'), current_setting('max_prepared_transactions')"
    );
    let row = session.row(&sql, &[]).await?;
    let end = if row.maybe(0)?.is_none() { None } else { Some(end_in(&row)?) };
    let run = format!("{} {} {}", session.facts().system, row.text(2)?, row.maybe(3)?.unwrap_or_default());
    Ok(Seen { life: life_of(&run), end, can_prepare: row.text(4)? != "0" })
}

fn life_of(run: &str) -> LifeId {
    let hash = ContentHash::of(run.as_bytes()).to_string();
    hash.get(..16).and_then(|word| word.parse().ok()).unwrap_or_default()
}

/// The timeline that the server writes, and how far its WAL is durable.
///
/// # Errors
/// Faults.
pub(super) async fn end_of_wal(session: &Session) -> Result<(TimelineId, Lsn)> {
    end_in(&session.row(&format!("SELECT {TIMELINE}, {FLUSHED}"), &[]).await?)
}

/// The timeline and the end of durable WAL that a row begins with.
fn end_in(row: &Fields) -> Result<(TimelineId, Lsn)> {
    let timeline = row.text(0)?;
    let timeline = u32::from_str_radix(&timeline, 16)
        .map_err(|_| Fault::new(FaultKind::Other, "read the timeline", format!("`{timeline}` is none")))?;
    Ok((TimelineId::new(timeline), row.lsn(1)?))
}

/// Returns once WAL up to `until` is durable. A committed message of no content makes the server flush.
///
/// # Errors
/// `SA204` if the WAL ends before `until`, and faults.
pub(super) async fn flush(session: &Session, until: Lsn) -> Result<()> {
    let durable = async {
        loop {
            let (_, durable) = end_of_wal(session).await?;
            if durable >= until {
                return Ok(());
            }
            let end = session.row("SELECT pg_current_wal_insert_lsn()::text", &[]).await?.lsn(0)?;
            if end < until {
                let message = format!("WAL ends at {end}, before {until}: the database crashed since");
                return Err(Refusal::new(Code::LifeChanged, message).into());
            }
            let sql = "SET synchronous_commit = local; SELECT pg_logical_emit_message(true, 'sheetanchor', '')";
            session.command(FLUSH_WAIT, sql).await?;
        }
    };
    let late = |_| Fault::new(FaultKind::TimedOut, format!("flush WAL up to {until}"), "it is not durable in time");
    tokio::time::timeout(FLUSH_WAIT, durable).await.map_err(late)?
}

/// Finishes the segment that ends with `until`, so that the archive need not wait until it is full.
///
/// # Errors
/// Faults.
pub(super) async fn finish_segment(session: &Session, until: Lsn) -> Result<()> {
    let size = segment_size(session)?;
    let end = session.row("SELECT pg_current_wal_insert_lsn()::text", &[]).await?.lsn(0)?;
    if size.start(end) == size.start(until) && end >= until {
        session.row("SELECT pg_switch_wal()::text", &[]).await?;
    }
    Ok(())
}

/// The size of the server's WAL segments.
///
/// # Errors
/// A fault if it is none.
pub(super) fn segment_size(session: &Session) -> Result<SegmentSize> {
    SegmentSize::new(session.facts().segment_bytes)
}
