//! WAL records as they lie in segments and in the archive.
//!
//! ```text
//! length u32 | crc32c u32 | lsn u64 | scn u64 | durable u64 | version u8 | body (postcard)
//! ```
//! The checksum covers everything but itself, the address included: bytes of an older use of the place cannot pass.
//! `durable` is how far the thread was known to be durable when the record was made; so a later record proves that a bad
//! one before it is damage, and not the torn end of the log.

use serde::{Deserialize, Serialize};
use sheetanchor_core::merge::PageChange;
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::scn::Scn;

use crate::fields;
use crate::layout::PageNo;
use crate::page::Page;
use crate::prepared::Held;
use crate::transaction::Xid;

const VERSION: u8 = 0;

/// Bytes before the body.
pub(crate) const HEADER_BYTES: usize = 33;

/// Bytes in the longest record.
pub(crate) const RECORD_BYTES_MAX: usize = 8192;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) lsn: Lsn,
    pub(crate) scn: Scn,
    pub(crate) durable: Lsn,
    pub(crate) body: Body,
}

/// What a record says. The version that a change makes is the record's own SCN.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Body {
    /// A page changed.
    Changed {
        page: PageNo,
        /// The version that the change was made on.
        previous: Scn,
        change: Change,
    },
    /// The page was written, synced and given to another node; this thread's earlier changes of it are history.
    Released { page: PageNo, version: Scn },
    /// A cut was made here.
    RestorePoint { name: String },
    /// Nothing happened: the thread shows that it has come this far.
    Barrier,
    /// A transaction was prepared.
    Prepared { gid: String, xid: Xid },
    /// A prepared transaction committed: a change of its page of the transaction table.
    Committed { page: PageNo, previous: Scn, change: Change, gid: String, xid: Xid },
    /// A prepared transaction was rolled back.
    RolledBack { gid: String, xid: Xid },
    /// Every transaction that is prepared here and has not ended.
    InDoubt { held: Vec<Held> },
}

impl Body {
    /// The page that changed, the version that it was changed from, and the change.
    pub(crate) fn page_change(&self) -> Option<(PageNo, Scn, &Change)> {
        match self {
            Self::Changed { page, previous, change } | Self::Committed { page, previous, change, .. } => {
                Some((*page, *previous, change))
            }
            Self::Released { .. }
            | Self::RestorePoint { .. }
            | Self::Barrier
            | Self::Prepared { .. }
            | Self::RolledBack { .. }
            | Self::InDoubt { .. } => None,
        }
    }
}

/// What changed on a page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Change {
    /// The whole body after the change, without zeros at its end.
    Whole(Vec<u8>),
    /// Some bytes of the body.
    Patch { offset: u16, bytes: Vec<u8> },
}

impl Change {
    /// The place of this change, made by a record stamped `scn`, in its page's history.
    pub(crate) fn place(&self, previous: Scn, scn: Scn) -> PageChange {
        PageChange { previous, version: scn, whole: matches!(self, Self::Whole(_)) }
    }

    /// Makes the change. `None` if no page takes it.
    #[must_use]
    pub(crate) fn apply(&self, page: &mut Page, version: Scn) -> Option<()> {
        match self {
            Self::Whole(image) => {
                *page = Page::from_image(version, image)?;
                Some(())
            }
            Self::Patch { offset, bytes } => page.patch(version, usize::from(*offset), bytes),
        }
    }
}

/// What lies at a place in a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A record, and where it ends.
    Record(Record, Lsn),
    /// The bytes end before the record does.
    Short,
    /// No record that was written here.
    Bad,
}

impl Record {
    /// The record's bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        // Plain data without maps or floats: postcard has no way to fail on it, short of memory.
        let body = postcard::to_allocvec(&self.body).unwrap_or_default();
        assert!(!body.is_empty(), "a record has a body");
        bytes.extend_from_slice(&body);
        assert!(bytes.len() <= RECORD_BYTES_MAX, "a record of {} bytes", bytes.len());
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        fields::put(&mut bytes, 0, &length.to_le_bytes());
        fields::put(&mut bytes, 8, &self.lsn.get().to_le_bytes());
        fields::put(&mut bytes, 16, &self.scn.get().to_le_bytes());
        fields::put(&mut bytes, 24, &self.durable.get().to_le_bytes());
        fields::put(&mut bytes, 32, &[VERSION]);
        let sum = checksum(&bytes);
        fields::put(&mut bytes, 4, &sum.to_le_bytes());
        bytes
    }

    /// Reads what lies at `lsn`, the first of `bytes`.
    pub(crate) fn read(bytes: &[u8], lsn: Lsn) -> Found {
        let Some(length) = fields::u32_at(bytes, 0) else { return Found::Short };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if !(HEADER_BYTES..=RECORD_BYTES_MAX).contains(&length) {
            return Found::Bad;
        }
        match bytes.get(..length) {
            None => Found::Short,
            Some(bytes) => Self::parse(bytes, lsn).map_or(Found::Bad, |(record, until)| Found::Record(record, until)),
        }
    }

    fn parse(bytes: &[u8], lsn: Lsn) -> Option<(Self, Lsn)> {
        let matches = fields::u32_at(bytes, 4)? == checksum(bytes) || planted::is(Bug::RecordUnchecked);
        let sound = matches && fields::u64_at(bytes, 8)? == lsn.get() && *bytes.get(32)? == VERSION;
        if !sound {
            return None;
        }
        let (body, rest) = postcard::take_from_bytes(bytes.get(HEADER_BYTES..)?).ok()?;
        let (scn, durable) = (fields::u64_at(bytes, 16)?, fields::u64_at(bytes, 24)?);
        let record = Self { lsn, scn: Scn::new(scn), durable: Lsn::new(durable), body };
        let until = lsn.plus(fields::count(bytes.len()))?;
        rest.is_empty().then_some((record, until))
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    let (length, rest) = (bytes.get(..4).unwrap_or_default(), bytes.get(8..).unwrap_or_default());
    crc32c::crc32c_append(crc32c::crc32c(length), rest)
}

/// Whether `bytes`, which start with what is no record at `bad`, hold a later record that proves `bad` was durable once.
pub(crate) fn proves_damage(bytes: &[u8], bad: Lsn) -> bool {
    (1..bytes.len()).any(|skip| {
        let Some(place) = bad.plus(fields::count(skip)) else { return false };
        let here = bytes.get(skip..).unwrap_or_default();
        if fields::u64_at(here, 8) != Some(place.get()) {
            return false;
        }
        match Record::read(here, place) {
            Found::Record(record, _) => record.durable > bad,
            Found::Short | Found::Bad => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(lsn: u64, durable: u64) -> Record {
        let change = Change::Patch { offset: 40, bytes: b"patched".to_vec() };
        let body = Body::Changed { page: PageNo::new(5), previous: Scn::new(70), change };
        Record { lsn: Lsn::new(lsn), scn: Scn::new(80), durable: Lsn::new(durable), body }
    }

    #[test]
    fn any_flipped_bit_of_a_record_is_found() {
        let record = record(1_000, 900);
        let bytes = record.encode();
        let until = Lsn::new(1_000 + bytes.len() as u64);
        assert_eq!(Record::read(&bytes, record.lsn), Found::Record(record.clone(), until));
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                let found = Record::read(&damaged, record.lsn);
                assert!(matches!(found, Found::Bad | Found::Short), "byte {at} bit {bit}: {found:?}");
            }
        }
    }

    #[test]
    fn a_record_at_another_address_or_cut_short_is_none() {
        let bytes = record(1_000, 900).encode();
        assert_eq!(Record::read(&bytes, Lsn::new(1_001)), Found::Bad);
        for length in 0..bytes.len() {
            assert_eq!(Record::read(&bytes[..length], Lsn::new(1_000)), Found::Short, "{length} bytes");
        }
    }

    #[test]
    fn a_later_record_proves_damage_only_if_the_bad_one_was_durable() {
        let bad = record(1_000, 0).encode();
        let next = 1_000 + bad.len() as u64;
        for (durable, expected) in [(1_000, false), (1_001, true), (next, true)] {
            let mut bytes = [bad.clone(), record(next, durable).encode()].concat();
            bytes[12] ^= 1;
            assert_eq!(proves_damage(&bytes, Lsn::new(1_000)), expected, "durable to {durable}");
        }
        assert!(!proves_damage(&bad[..20], Lsn::new(1_000)));
    }

    proptest! {
        #[test]
        fn every_body_reads_back(page in any::<u64>(), word in any::<u64>(), bytes in prop::collection::vec(any::<u8>(), 0..4072), name in "[a-z]{0,63}") {
            let page = PageNo::new(page);
            let xid = Xid::from_word(word);
            let gid = name.clone();
            let held = Held { gid: gid.clone(), xid, at: Lsn::new(word), scn: Scn::new(word) };
            for body in [
                Body::Changed { page, previous: Scn::new(word), change: Change::Whole(bytes.clone()) },
                Body::Changed { page, previous: Scn::ZERO, change: Change::Patch { offset: 7, bytes: bytes.clone() } },
                Body::Committed { page, previous: Scn::ZERO, change: Change::Patch { offset: 7, bytes }, gid: gid.clone(), xid },
                Body::Prepared { gid: gid.clone(), xid },
                Body::RolledBack { gid, xid },
                Body::InDoubt { held: vec![held] },
                Body::Released { page, version: Scn::new(word) },
                Body::RestorePoint { name },
                Body::Barrier,
            ] {
                let record = Record { lsn: Lsn::new(3), scn: Scn::new(word), durable: Lsn::new(2), body };
                let encoded = record.encode();
                let until = Lsn::new(3 + encoded.len() as u64);
                prop_assert_eq!(Record::read(&encoded, Lsn::new(3)), Found::Record(record, until));
            }
        }
    }
}
