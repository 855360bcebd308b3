//! One record: its header (`XLogRecord`), and what has come of it where it runs over pages or pieces.

/// Bytes of a record's header.
pub(super) const HEAD_BYTES: usize = 24;

/// Of these, the ones before the checksum, which covers them after the body.
const CHECKED_BYTES: usize = 20;

/// No version writes longer ones.
const TOTAL_MAX: u32 = 1 << 30;

/// The fixed part of every record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHead {
    /// Bytes of the whole record, this header included.
    pub total: u32,
    /// The transaction.
    pub transaction: u32,
    /// The start of the record before it.
    pub previous: u64,
    /// What kind of record of its resource manager it is.
    pub info: u8,
    /// The resource manager.
    pub manager: u8,
    /// The checksum over the body and then over the header up to here.
    pub checksum: u32,
    checked: [u8; CHECKED_BYTES],
}

impl RecordHead {
    pub(super) fn of(bytes: &[u8; HEAD_BYTES]) -> Self {
        Self {
            total: u32_at(bytes, 0).unwrap_or_default(),
            transaction: u32_at(bytes, 4).unwrap_or_default(),
            previous: u64_at(bytes, 8).unwrap_or_default(),
            info: bytes[16],
            manager: bytes[17],
            checksum: u32_at(bytes, CHECKED_BYTES).unwrap_or_default(),
            checked: bytes.first_chunk().copied().unwrap_or_default(),
        }
    }

    /// The record's checksum, given its body's.
    pub(super) fn checksum_over(&self, body: u32) -> u32 {
        crc32c::crc32c_append(body, &self.checked)
    }
}

/// Refuses a length that no record has. Zero is where WAL ends.
///
/// # Errors
/// What was seen.
pub(super) fn check_length(total: u32) -> Result<(), String> {
    let least = u32::try_from(HEAD_BYTES).unwrap_or(u32::MAX);
    match total {
        0 => Err("no record".to_owned()),
        _ if (least..=TOTAL_MAX).contains(&total) => Ok(()),
        _ => Err(format!("a record of {total} bytes")),
    }
}

/// A record of which not all has come.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    start: u64,
    head: [u8; HEAD_BYTES],
    /// Bytes that have come, those of the header included.
    have: u64,
    checksum: u32,
    /// As much of the body as somebody wants to read.
    kept: Vec<u8>,
    kept_max: usize,
}

impl Pending {
    /// A record that starts at `start`.
    pub(super) fn new(start: u64) -> Self {
        Self { start, head: [0; HEAD_BYTES], have: 0, checksum: 0, kept: Vec::new(), kept_max: 0 }
    }

    /// Its first byte.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Takes what `bytes` has of the header, and says how many bytes that are.
    pub(super) fn take_head(&mut self, bytes: &[u8]) -> usize {
        let have = usize::try_from(self.have).unwrap_or(usize::MAX).min(HEAD_BYTES);
        let room = self.head.get_mut(have..).unwrap_or_default();
        let used = room.len().min(bytes.len());
        for (room, byte) in room.iter_mut().zip(bytes) {
            *room = *byte;
        }
        self.have = self.have.saturating_add(super::widen(used));
        used
    }

    /// Its length, once that has come.
    pub(super) fn total(&self) -> Option<u32> {
        if self.have < 4 { None } else { u32_at(&self.head, 0) }
    }

    /// Its header, once that is whole.
    pub(super) fn head(&self) -> Option<RecordHead> {
        (self.have >= super::length(&self.head)).then(|| RecordHead::of(&self.head))
    }

    /// Keeps so many bytes of the body, which has not begun to come.
    pub(super) fn keep(&mut self, bytes_max: usize) {
        self.kept_max = bytes_max;
    }

    /// Takes bytes of the body.
    pub(super) fn take_body(&mut self, bytes: &[u8]) {
        self.checksum = crc32c::crc32c_append(self.checksum, bytes);
        let room = self.kept_max.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        self.have = self.have.saturating_add(super::length(bytes));
    }

    /// Bytes to come. Its length has: it lies whole in the page that the record starts in.
    pub(super) fn left(&self) -> u64 {
        u64::from(self.total().unwrap_or_default()).saturating_sub(self.have)
    }

    /// The checksum of the body, as far as it has come.
    pub(super) fn checksum(&self) -> u32 {
        self.checksum
    }

    /// What is kept of the body.
    pub(super) fn kept(&self) -> &[u8] {
        &self.kept
    }
}

/// The half-word at an offset.
pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|word| u16::from_ne_bytes(*word))
}

/// The word at an offset.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

/// The double word at an offset.
pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().map(|word| u64::from_ne_bytes(*word))
}
