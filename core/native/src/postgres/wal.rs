//! Segments of PostgreSQL's WAL: their names, their bounds, and how to tell one from what merely lies in its place.

use std::fs;
use std::io;

use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use sheetanchor_core::identity::TimelineId;
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};

use crate::faults::fault;

/// Bytes of a WAL page.
const PAGE_BYTES: usize = 8192;

/// The upper half of the magic number is the same on all versions.
const MAGIC_HIGH: u16 = 0xD1;

/// The flag of a page that begins a segment and says whose it is.
const LONG_HEADER: u16 = 0x0002;

/// The size of a WAL segment of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentSize(u64);

impl SegmentSize {
    /// A size in bytes, a power of two from a mebibyte to a gibibyte.
    ///
    /// # Errors
    /// A fault for any other number.
    pub(super) fn new(bytes: u64) -> Result<Self> {
        if bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes) {
            return Ok(Self(bytes));
        }
        Err(Fault::new(FaultKind::Other, "take the size of a WAL segment", format!("{bytes} bytes is none")).into())
    }

    /// The bare number.
    pub(super) fn bytes(self) -> u64 {
        self.0
    }

    /// The start of the segment that `lsn` lies in.
    pub(super) fn start(self, lsn: Lsn) -> Lsn {
        Lsn::new(lsn.get() & !self.0.wrapping_sub(1))
    }

    /// The end of the segment that starts at `start`.
    pub(super) fn end(self, start: Lsn) -> Lsn {
        Lsn::new(start.get().saturating_add(self.0))
    }

    /// The name of the file that holds the segment that starts at `start`.
    pub(super) fn file_name(self, timeline: TimelineId, start: Lsn) -> String {
        let number = start.get() / self.0;
        let per_id = (1_u64 << 32) / self.0;
        format!("{:08X}{:08X}{:08X}", timeline.get(), number / per_id, number % per_id)
    }
}

/// The segment that a server has in its folder at `start`.
///
/// # Errors
/// `SA501` if it is not there, `SA504` if what lies there is something else.
pub(super) fn read_segment(data: &str, place: &Place) -> Result<Vec<u8>> {
    let name = place.size.file_name(place.timeline, place.start);
    let path = format!("{data}/pg_wal/{name}");
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let message = format!("segment {name} is not in {data}/pg_wal any more");
            return Err(Refusal::new(Code::WalGap, message).into());
        }
        Err(error) => return Err(fault(format!("read {path}"), &error).into()),
    };
    place.check(&bytes).map_err(|seen| damaged(&name, &seen))?;
    Ok(bytes)
}

fn damaged(name: &str, seen: &str) -> Error {
    Refusal::new(Code::WalDamaged, format!("segment {name}: {seen}")).into()
}

/// What a segment must say of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The server's system identifier.
    pub system: u64,
    /// Its segments' size.
    pub size: SegmentSize,
    /// The timeline in the segment's name.
    pub timeline: TimelineId,
    /// Its first byte.
    pub start: Lsn,
}

impl Place {
    /// Checks a whole segment: each page must be the one that belongs there. After a switch the rest of a segment is
    /// zeros; anything after that is not. Records are not read: recovery checks each by its CRC.
    ///
    /// # Errors
    /// What was seen.
    pub(super) fn check(&self, bytes: &[u8]) -> Result<(), String> {
        if u64::try_from(bytes.len()) != Ok(self.size.bytes()) {
            return Err(format!("{} bytes, not {}", bytes.len(), self.size.bytes()));
        }
        let (pages, _) = bytes.as_chunks::<PAGE_BYTES>();
        let mut ended = false;
        let step = u64::try_from(PAGE_BYTES).unwrap_or(u64::MAX);
        for (index, page) in (0_u64..).zip(pages) {
            let at = Lsn::new(self.start.get().saturating_add(index.saturating_mul(step)));
            let header = Header::of(page).ok_or("a page without a header")?;
            if index > 0 && header.is_blank() {
                ended = true;
                continue;
            }
            if ended {
                return Err(format!("a page at {at} after the segment's end"));
            }
            self.check_page(&header, at)?;
            if index == 0 {
                self.check_first(&header, page)?;
            }
        }
        Ok(())
    }

    fn check_page(&self, header: &Header, at: Lsn) -> Result<(), String> {
        if header.magic >> 8 != MAGIC_HIGH {
            return Err(format!("magic {:04X} at {at}", header.magic));
        }
        if header.address != at {
            return Err(format!("the page of {} lies at {at}", header.address));
        }
        // The first segment of a timeline begins with a copy of its parent's.
        if header.timeline == 0 || header.timeline > self.timeline.get() {
            return Err(format!("timeline {} at {at}, not {}", header.timeline, self.timeline));
        }
        Ok(())
    }

    fn check_first(&self, header: &Header, page: &[u8; PAGE_BYTES]) -> Result<(), String> {
        let system = page.get(24..).and_then(<[u8]>::first_chunk).map_or(0, |word| u64::from_ne_bytes(*word));
        if header.flags & LONG_HEADER == 0 || system != self.system {
            return Err(format!("it is of system {system}, not {}", self.system));
        }
        Ok(())
    }
}

/// The start of every WAL page, in the byte order of the machine that wrote it: magic, flags, timeline, address.
struct Header {
    magic: u16,
    flags: u16,
    timeline: u32,
    address: Lsn,
}

impl Header {
    fn of(page: &[u8; PAGE_BYTES]) -> Option<Self> {
        Some(Self {
            magic: u16::from_ne_bytes(*page.get(0..)?.first_chunk()?),
            flags: u16::from_ne_bytes(*page.get(2..)?.first_chunk()?),
            timeline: u32::from_ne_bytes(*page.get(4..)?.first_chunk()?),
            address: Lsn::new(u64::from_ne_bytes(*page.get(8..)?.first_chunk()?)),
        })
    }

    fn is_blank(&self) -> bool {
        self.magic == 0 && self.flags == 0 && self.timeline == 0 && self.address == Lsn::new(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Lsn = Lsn::new(0x1_2300_0000);

    fn place() -> Place {
        let size = SegmentSize::new(1 << 20).unwrap();
        Place { system: 77, size, timeline: TimelineId::new(2), start: START }
    }

    fn segment(pages: u64) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        for index in 0..pages {
            let page = &mut bytes[usize::try_from(index).unwrap() * PAGE_BYTES..][..PAGE_BYTES];
            page[0..2].copy_from_slice(&0xD110_u16.to_ne_bytes());
            page[2..4].copy_from_slice(&u16::from(index == 0).wrapping_mul(2).to_ne_bytes());
            page[4..8].copy_from_slice(&2_u32.to_ne_bytes());
            page[8..16].copy_from_slice(&(START.get() + index * 8192).to_ne_bytes());
            if index == 0 {
                page[24..32].copy_from_slice(&77_u64.to_ne_bytes());
            }
        }
        bytes
    }

    #[test]
    fn a_segment_is_named_as_postgresql_names_it() {
        let size = SegmentSize::new(16 << 20).unwrap();
        let name = |text: &str| size.file_name(TimelineId::new(1), size.start(text.parse().unwrap()));
        assert_eq!(name("0/16B3748"), "000000010000000000000001");
        assert_eq!(name("5/FF000000"), "0000000100000005000000FF");
        assert_eq!(name("6/0"), "000000010000000600000000");
        assert_eq!(size.end(size.start("0/16B3748".parse().unwrap())), "0/2000000".parse().unwrap());
        for bad in [0, 3, 1 << 19, 1 << 31] {
            assert!(SegmentSize::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_whole_segment_and_one_that_ends_early_hold() {
        assert_eq!(place().check(&segment(128)), Ok(()));
        assert_eq!(place().check(&segment(5)), Ok(()));
    }

    #[test]
    fn what_merely_lies_in_its_place_does_not() {
        let mut recycled = segment(128);
        recycled[64 * PAGE_BYTES + 8] ^= 1;
        let mut resumed = segment(5);
        resumed[7 * PAGE_BYTES] = 0x10;
        resumed[7 * PAGE_BYTES + 1] = 0xD1;
        let mut foreign = segment(128);
        foreign[24] ^= 1;
        let mut ahead = segment(128);
        ahead[4] = 3;
        for (bytes, why) in [
            (&recycled, "the page of"),
            (&resumed, "after the segment's end"),
            (&foreign, "it is of system 76"),
            (&ahead, "timeline 3"),
            (&segment(0), "magic 0000"),
            (&segment(128)[..PAGE_BYTES].to_vec(), "8192 bytes"),
        ] {
            let seen = place().check(bytes).unwrap_err();
            assert!(seen.contains(why), "{seen}");
        }
    }
}
