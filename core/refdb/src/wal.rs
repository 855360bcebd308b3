//! Durable WAL, for the archive.

use sheetanchor_core::error::{FaultKind, Result};
use sheetanchor_core::identity::ByteCount;
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::database::WalPiece;
use sheetanchor_engine::env::OpenMode;

use crate::fields;
use crate::record::{Found, RECORD_BYTES_MAX, Record};
use crate::running::Running;
use crate::segments;

/// Bytes in the largest piece.
const PIECE_BYTES_MAX: u64 = 16 << 20;

/// Whole durable records from `from` on, of one segment.
///
/// # Errors
/// `SA501` if `from` is not kept, `SA504` if no sound record is there.
pub(crate) async fn durable(running: &Running, from: Position, bytes_max: ByteCount) -> Result<Option<WalPiece>> {
    running.check_position(from)?;
    let (segment, until) = {
        let state = running.state();
        let durable = state.log.durable();
        if from.lsn == durable || (from.lsn > durable && from.lsn <= state.log.end()) {
            return Ok(None);
        }
        match state.log.segment_of(from.lsn) {
            Some((segment, next)) if from.lsn < durable => (segment, next.map_or(durable, |next| next.min(durable))),
            Some(_) | None => {
                let message = format!("{from} is not kept: WAL is there from {} to {durable}", state.log.first());
                return Err(Refusal::new(Code::WalGap, message).into());
            }
        }
    };
    let wanted = bytes_max.get().clamp(fields::count(RECORD_BYTES_MAX), PIECE_BYTES_MAX);
    let length = until.bytes_since(from.lsn).unwrap_or(0).min(wanted);
    let path = segments::path(&running.folder.wal(running.node(), running.incarnation), segment);
    let file = match running.env.disk.open(&path, OpenMode::Read).await {
        Ok(file) => file,
        Err(fault) if fault.kind == FaultKind::NotFound => {
            return Err(Refusal::new(Code::WalGap, format!("{from} is not kept any more: {path} is gone")).into());
        }
        Err(fault) => return Err(fault.into()),
    };
    let offset = from.lsn.bytes_since(segment).unwrap_or(0);
    let mut bytes = file.read_at(offset, fields::length(length)).await?;
    let (end, scn) = whole_records(&bytes, from.lsn);
    let Some(scn) = scn else {
        let message = format!("{from}: no sound record is there, though the WAL is durable to {until}");
        return Err(Refusal::new(Code::WalDamaged, message).into());
    };
    bytes.truncate(fields::length(end.bytes_since(from.lsn).unwrap_or(0)));
    Ok(Some(WalPiece { from, until: end, scn_last: Some(scn), bytes: bytes.into() }))
}

/// The end of the last whole record from `at` on, and its stamp.
fn whole_records(bytes: &[u8], mut at: Lsn) -> (Lsn, Option<Scn>) {
    let (mut rest, mut last) = (bytes, None);
    while let Found::Record(record, until) = Record::read(rest, at) {
        let length = fields::length(until.bytes_since(at).unwrap_or(0));
        rest = rest.get(length..).unwrap_or_default();
        (at, last) = (until, Some(record.scn));
    }
    (at, last)
}
