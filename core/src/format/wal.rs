//! A piece of archived WAL: magic, length of the header, header (an object of kind `wal`), then the bytes as one zstd
//! frame. The name holds the start alone, the end is inside, so that the next piece starts at the stored end and an
//! unfinished segment can be shipped at intervals.

use alloc::format;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::Object;
use crate::identity::{ByteCount, ContentHash, Incarnation, ThreadId, TimelineId};
use crate::position::Lsn;
use crate::refusal::{Code, Refusal};
use crate::scn::Scn;

/// The first bytes of every piece.
pub const MAGIC: [u8; 8] = *b"SAwal\0\0\0";

/// Bytes of magic and length before the header.
const PREFIX_BYTES: usize = 12;

/// Bytes in the longest header.
pub const HEADER_BYTES_MAX: usize = 4096;

/// What a piece says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WalHeader {
    /// Its first byte.
    pub from: Lsn,
    /// What the bytes hash to, uncompressed.
    pub hash: ContentHash,
    /// The incarnation that wrote it.
    pub incarnation: Incarnation,
    /// How many bytes, uncompressed.
    pub length: ByteCount,
    /// The highest SCN in it, on engines that stamp.
    pub scn_last: Option<Scn>,
    /// How many bytes the stored frame has.
    pub stored: ByteCount,
    /// Its thread.
    pub thread: ThreadId,
    /// Its thread's log branch.
    pub timeline: TimelineId,
    /// Its end, exclusive.
    pub until: Lsn,
}

impl Object for WalHeader {
    const KIND: &'static str = "wal";
}

/// A piece: header and stored frame.
pub fn join(header: &WalHeader, frame: &[u8]) -> Vec<u8> {
    let header = super::write(header);
    assert!(header.len() <= HEADER_BYTES_MAX, "a header is a handful of numbers");
    let length = u32::try_from(header.len()).unwrap_or(u32::MAX);
    let mut piece = Vec::with_capacity(PREFIX_BYTES + header.len() + frame.len());
    piece.extend_from_slice(&MAGIC);
    piece.extend_from_slice(&length.to_le_bytes());
    piece.extend_from_slice(&header);
    piece.extend_from_slice(frame);
    piece
}

/// Reads the header of the piece `name` from its first bytes, and says where the frame starts.
///
/// # Errors
/// `SA504` if it is not whole, `SA001` if a newer version wrote it.
pub fn header(name: &str, piece: &[u8]) -> Result<(WalHeader, usize), Refusal> {
    let damaged = || Refusal::new(Code::WalDamaged, format!("{name} is not a whole piece of WAL"));
    let rest = piece.strip_prefix(&MAGIC).ok_or_else(damaged)?;
    let (length, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > HEADER_BYTES_MAX {
        return Err(damaged());
    }
    let newer = |refusal: Refusal| if refusal.code == Code::FormatNewer { refusal } else { damaged() };
    let header: WalHeader = super::read(name, rest.get(..length).ok_or_else(damaged)?).map_err(newer)?;
    if header.from >= header.until {
        return Err(damaged());
    }
    Ok((header, PREFIX_BYTES + length))
}

/// Splits the whole piece `name` into header and stored frame.
///
/// # Errors
/// As for [`header`].
pub fn split<'a>(name: &str, piece: &'a [u8]) -> Result<(WalHeader, &'a [u8]), Refusal> {
    let (header, start) = header(name, piece)?;
    let frame = piece.get(start..).unwrap_or_default();
    if u64::try_from(frame.len()) != Ok(header.stored.get()) {
        return Err(Refusal::new(
            Code::WalDamaged,
            format!("{name} holds {} of {} stored bytes", frame.len(), header.stored),
        ));
    }
    Ok((header, frame))
}
