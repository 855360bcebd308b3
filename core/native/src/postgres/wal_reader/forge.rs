//! Makes WAL as PostgreSQL would, for tests: pages, records of any length, switches, torn records that a crash gave up.

use sheetanchor_core::identity::TimelineId;
use sheetanchor_core::position::Lsn;

use super::touch::Locator;
use super::version::Version;
use super::{Origin, PAGE_BYTES, SegmentSize};

pub(crate) const SYSTEM: u64 = 7_435_209_318_723;

/// Segments of the least size that there is.
pub(crate) fn origin() -> Origin {
    Origin { system: SYSTEM, segment: SegmentSize::new(1 << 20).unwrap(), timeline: TimelineId::new(2) }
}

/// A page's image in a record, by its bytes there.
#[derive(Clone, Copy)]
pub(crate) enum Image {
    Whole(usize),
    WithHole(usize),
    Packed(usize),
    PackedWithHole(usize),
}

/// A reference to a block: its relation (that of the one before if none is said), the fork's number, the block, an image of
/// it, and data that belongs to it.
pub(crate) type Reference<'a> = (Option<Locator>, u8, u32, Option<Image>, &'a [u8]);

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

    /// A body of references and own data, in the layout of 15.
    pub(crate) fn body(references: &[Reference], own: &[u8]) -> Vec<u8> {
        Self::body_of(Version::V15, references, own)
    }

    /// A body of references and own data.
    pub(crate) fn body_of(version: Version, references: &[Reference], own: &[u8]) -> Vec<u8> {
        let (mut headers, mut rest) = (Vec::new(), Vec::new());
        for (id, (locator, fork, block, image, data)) in (0_u8..).zip(references) {
            let flags = if image.is_some() { 0x10 } else { 0 } | if locator.is_none() { 0x80 } else { 0 };
            headers.extend([id, fork | flags | if data.is_empty() { 0 } else { 0x20 }]);
            headers.extend(u16::try_from(data.len()).unwrap().to_ne_bytes());
            let packed = if version == Version::V14 { 0x02 } else { 0x08 };
            if let Some(image) = image {
                let (bytes, flags) = match *image {
                    Image::Whole(bytes) => (bytes, 0),
                    Image::WithHole(bytes) => (bytes, 1),
                    Image::Packed(bytes) => (bytes, packed),
                    Image::PackedWithHole(bytes) => (bytes, packed | 1),
                };
                headers.extend(u16::try_from(bytes).unwrap().to_ne_bytes());
                headers.extend([9, 9, flags]);
                if flags == packed | 1 {
                    headers.extend([8, 8]);
                }
                rest.extend(vec![0xEE; bytes]);
            }
            if let Some(Locator { space, database, number }) = locator {
                headers.extend([*space, *database, *number].iter().flat_map(|word| word.to_ne_bytes()));
            }
            headers.extend(block.to_ne_bytes());
            rest.extend(*data);
        }
        if !own.is_empty() {
            let data = Self::data(own);
            headers.extend(&data[..data.len() - own.len()]);
        }
        [headers, rest, own.to_vec()].concat()
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
