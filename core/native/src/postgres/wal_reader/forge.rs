//! Makes WAL as PostgreSQL would, for tests: pages, records of any length, switches, torn records that a crash gave up.

use sheetanchor_core::identity::TimelineId;
use sheetanchor_core::position::Lsn;

use super::version::Version;
use super::{Origin, PAGE_BYTES, SegmentSize};

pub(crate) const SYSTEM: u64 = 7_435_209_318_723;

/// Segments of the least size that there is.
pub(crate) fn origin() -> Origin {
    Origin { system: SYSTEM, segment: SegmentSize::new(1 << 20).unwrap(), timeline: TimelineId::new(2) }
}

/// WAL being made.
pub(crate) struct Forge {
    pub(crate) origin: Origin,
    pub(crate) start: u64,
    pub(crate) bytes: Vec<u8>,
    version: Version,
    previous: u64,
    /// The flags of the next page, and what it continues.
    next_page: (u16, u32),
}

impl Forge {
    /// Begins at a segment's start.
    pub(crate) fn new(version: Version, start: u64) -> Self {
        Self { origin: origin(), start, bytes: Vec::new(), version, previous: start - 16, next_page: (0, 0) }
    }

    pub(crate) fn at(&self) -> Lsn {
        Lsn::new(self.start + self.bytes.len() as u64)
    }

    fn page_if_due(&mut self) {
        let at = self.at().get();
        if !at.is_multiple_of(PAGE_BYTES) {
            return;
        }
        let (flags, continued) = std::mem::take(&mut self.next_page);
        let long = at.is_multiple_of(self.origin.segment.bytes());
        self.bytes.extend(self.version.magic().to_ne_bytes());
        self.bytes.extend((flags | if long { 2 } else { 0 }).to_ne_bytes());
        self.bytes.extend(self.origin.timeline.get().to_ne_bytes());
        self.bytes.extend(at.to_ne_bytes());
        self.bytes.extend(u64::from(continued).to_ne_bytes());
        if long {
            self.bytes.extend(self.origin.system.to_ne_bytes());
            self.bytes.extend(u32::try_from(self.origin.segment.bytes()).unwrap().to_ne_bytes());
            self.bytes.extend(8192_u32.to_ne_bytes());
        }
    }

    /// A record of `body`; answers its start and its end.
    pub(crate) fn record(&mut self, manager: u8, info: u8, transaction: u32, body: &[u8]) -> (Lsn, Lsn) {
        self.page_if_due();
        let start = self.at();
        let mut record = Vec::new();
        record.extend(u32::try_from(24 + body.len()).unwrap().to_ne_bytes());
        record.extend(transaction.to_ne_bytes());
        record.extend(self.previous.to_ne_bytes());
        record.extend([info, manager, 0, 0]);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(body), &record);
        record.extend(checksum.to_ne_bytes());
        record.extend(body);
        self.put(&record);
        self.align();
        self.previous = start.get();
        (start, self.at())
    }

    fn put(&mut self, mut record: &[u8]) {
        while !record.is_empty() {
            self.page_if_due();
            let room = usize::try_from(PAGE_BYTES - self.at().get() % PAGE_BYTES).unwrap();
            let (now, later) = record.split_at(room.min(record.len()));
            self.bytes.extend(now);
            self.next_page = if later.is_empty() { (0, 0) } else { (1, u32::try_from(later.len()).unwrap()) };
            record = later;
        }
    }

    fn align(&mut self) {
        while !self.bytes.len().is_multiple_of(8) {
            self.bytes.push(0);
        }
    }

    /// Data behind the short header that announces it.
    pub(crate) fn data(data: &[u8]) -> Vec<u8> {
        match u8::try_from(data.len()) {
            Ok(length) => [&[255, length], data].concat(),
            Err(_) => [&[254][..], &u32::try_from(data.len()).unwrap().to_ne_bytes(), data].concat(),
        }
    }

    pub(crate) fn restore_point(&mut self, name: &str) -> (Lsn, Lsn) {
        let mut data = 5_i64.to_ne_bytes().to_vec();
        data.extend(name.bytes());
        data.resize(72, 0);
        self.record(0, 0x70, 0, &Self::data(&data))
    }

    /// A switch: zeros up to the segment's end.
    pub(crate) fn switch(&mut self) {
        self.record(0, 0x40, 0, &[]);
        let end = self.at().get().next_multiple_of(self.origin.segment.bytes());
        self.bytes.resize(usize::try_from(end - self.start).unwrap(), 0);
    }

    /// A record that breaks off at its page's end, as a crash leaves it, and what the server writes in its place.
    pub(crate) fn record_given_up(&mut self) {
        let (previous, start) = (self.previous, self.at().get());
        self.record(10, 0, 3, &[7; 9000]);
        let torn = start.next_multiple_of(PAGE_BYTES);
        self.bytes.truncate(usize::try_from(torn - self.start).unwrap());
        self.previous = previous;
        self.next_page = (8, 0);
        let data = [start.to_ne_bytes(), 9_i64.to_ne_bytes()].concat();
        self.record(0, 0xD0, 0, &Self::data(&data));
    }
}
