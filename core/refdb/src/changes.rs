//! What has changed in the pages, as the WAL of one thread tells it: every change of a page is a record.

use sheetanchor_core::changes::ChangeMap;
use sheetanchor_core::error::Result;
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::position::Position;
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::database::{Span, WalSource};

use crate::files::PAGES;
use crate::page::PAGE_BYTES;
use crate::recover::{Next, Reader};

/// How much of the end a planted bug leaves out.
const LAST_BYTES: u64 = 4096;

/// Reads the records from `since` until `until`. `None` if they end before.
///
/// # Errors
/// `SA504` if there is something else than records, up to the very end of the range.
pub(crate) async fn between(since: Position, until: Position, wal: &dyn WalSource) -> Result<Option<ChangeMap>> {
    let block = u32::try_from(PAGE_BYTES).unwrap_or(u32::MAX);
    let mut changes = ChangeMap::new(block, Box::new(|name| name == PAGES));
    let span = Span { timeline: since.timeline, from: since.lsn, until: until.lsn, scn: Scn::new(u64::MAX) };
    let mut reader = Reader::new(since.thread, &[span]);
    let mut at = since.lsn;
    while at < until.lsn {
        let Some(Next::Record(record, end)) = reader.next(wal).await? else { return Ok(None) };
        let is_last = until.lsn.bytes_since(at).is_some_and(|left| left <= LAST_BYTES);
        at = end;
        if let Some((page, ..)) = record.body.page_change()
            && !(is_last && planted::is(Bug::LastWalPageMissed))
        {
            changes.block(PAGES, page.get());
        }
    }
    Ok(Some(changes))
}
