//! The headers of WAL pages (`XLogPageHeaderData`, `XLogLongPageHeaderData`), in the byte order of the machine that wrote
//! them, which must be ours.

use super::record::{u16_at, u32_at, u64_at};
use super::version::Version;
use super::{Origin, PAGE_BYTES};
use sheetanchor_core::position::Lsn;

/// Bytes of an ordinary header.
pub(super) const SHORT_BYTES: u64 = 24;

/// Bytes of the header of a segment's first page, which also says whose it is.
pub(super) const LONG_BYTES: u64 = 40;

/// The page begins with the rest of a record.
const CONTINUES: u16 = 0x0001;

/// The header is a long one.
const LONG: u16 = 0x0002;

/// Blocks on the page may be left out by an archiver; nobody does.
const REMOVABLE: u16 = 0x0004;

/// The record that the page before leaves open was lost in a crash.
const GIVES_UP: u16 = 0x0008;

/// A header, as far as its bytes have come.
#[derive(Clone, Debug)]
pub(super) struct PageHead {
    bytes: [u8; 40],
    have: usize,
}

impl Default for PageHead {
    fn default() -> Self {
        Self { bytes: [0; 40], have: 0 }
    }
}

impl PageHead {
    /// Takes further bytes; never more than a header has.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        let until = self.have.saturating_add(bytes.len());
        if let Some(room) = self.bytes.get_mut(self.have..until) {
            room.copy_from_slice(bytes);
            self.have = until;
        }
    }

    /// Checks a whole header against the place that it was found at, and says whose format it has.
    ///
    /// # Errors
    /// What was seen.
    pub(super) fn check(
        &self,
        origin: &Origin,
        page: u64,
        version: Option<Version>,
        timeline: u32,
    ) -> Result<Version, String> {
        let magic = u16_at(&self.bytes, 0).unwrap_or_default();
        let known = Version::of_magic(magic).filter(|known| version.is_none_or(|version| version == *known));
        let Some(known) = known else {
            let wanted = version.map_or_else(|| "14 to 18".to_owned(), |version| version.to_string());
            return Err(format!("a page with magic {magic:04X}, not one of version {wanted},"));
        };
        let address = u64_at(&self.bytes, 8).unwrap_or_default();
        if address != page {
            return Err(format!("the page of {} lies", Lsn::new(address)));
        }
        let own = self.timeline();
        if own == 0 || own < timeline || own > origin.timeline.get() {
            return Err(format!("a page of timeline {own}, not {},", origin.timeline));
        }
        let is_first = page.is_multiple_of(origin.segment.bytes());
        let flags = self.flags();
        if flags & !(CONTINUES | LONG | REMOVABLE | GIVES_UP) != 0 || (flags & LONG != 0) != is_first {
            return Err(format!("a page with flags {flags:04X}"));
        }
        // Of eight bytes, a record's rest has four; it is zero where no record goes on.
        let rest = u64_at(&self.bytes, 16).unwrap_or_default();
        if rest > u64::from(u32::MAX) || (flags & CONTINUES == 0 && rest != 0) || (flags & CONTINUES != 0 && rest == 0)
        {
            return Err(format!("a page with flags {flags:04X} that continues {rest:X} bytes"));
        }
        if flags & CONTINUES != 0 && flags & GIVES_UP != 0 {
            return Err(format!("a page with flags {flags:04X}"));
        }
        if is_first {
            self.check_long(origin)?;
        }
        Ok(known)
    }

    fn check_long(&self, origin: &Origin) -> Result<(), String> {
        let system = u64_at(&self.bytes, 24).unwrap_or_default();
        if system != origin.system {
            return Err(format!("a segment of system {system}, not {},", origin.system));
        }
        let (segment, page) = (u32_at(&self.bytes, 32), u32_at(&self.bytes, 36));
        if segment.map(u64::from) != Some(origin.segment.bytes()) || page.map(u64::from) != Some(PAGE_BYTES) {
            return Err(format!("a segment of {} bytes and pages of {}", shown(segment), shown(page)));
        }
        Ok(())
    }

    /// The timeline that the page was written on.
    pub(super) fn timeline(&self) -> u32 {
        u32_at(&self.bytes, 4).unwrap_or_default()
    }

    /// Bytes of an earlier record that the page has, or has the first of.
    pub(super) fn continues(&self) -> Option<u64> {
        (self.flags() & CONTINUES != 0).then(|| u32_at(&self.bytes, 16).map_or(0, u64::from))
    }

    /// Whether the record that is open was lost in a crash, and its place is given to others.
    pub(super) fn gives_record_up(&self) -> bool {
        self.flags() & GIVES_UP != 0
    }

    fn flags(&self) -> u16 {
        u16_at(&self.bytes, 2).unwrap_or_default()
    }
}

fn shown(word: Option<u32>) -> u32 {
    word.unwrap_or_default()
}
