//! WAL on its way into the archive and out of it: proven to be one chain, segment after segment, and proven to hold the
//! record of a cut where the cut says.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use sheetanchor_core::error::Result;
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};

use super::wal::{Place, read_segment};
use super::wal_reader::{Event, Noted, Origin, Reader};

/// Bytes of a WAL page.
pub(super) const PAGE_BYTES: u64 = 8192;

/// Segments whose beginnings are remembered: the next one, and the last one, which is asked for again if it could not be
/// stored.
const PLACES_MAX: usize = 2;

/// How far a server's WAL was read, so that the next segment must go on from there.
#[derive(Debug, Default)]
pub(super) struct Chain(Mutex<VecDeque<(Origin, Reader)>>);

impl Chain {
    /// The segment that a server has in its folder, which goes on where the one before it ended. After a start that one
    /// is read again, if it is still there; else what continues a record into this segment is taken as it is.
    ///
    /// # Errors
    /// `SA501` if it is not there, `SA504` if it is not what belongs there.
    pub(super) fn read(&self, data: &str, place: &Place) -> Result<Vec<u8>> {
        let bytes = read_segment(data, place)?;
        let mut reader = self.known(place).unwrap_or_else(|| primed(data, place));
        reader.feed(&bytes, &mut |_| ()).map_err(|broken| place.damaged(&broken))?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, other)| other.next() != reader.next());
        known.push_back((place.origin(), reader));
        while known.len() > PLACES_MAX {
            known.pop_front();
        }
        Ok(bytes)
    }

    fn known(&self, place: &Place) -> Option<Reader> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let here = known.iter().find(|(origin, reader)| *origin == place.origin() && reader.next() == place.start);
        here.map(|(_, reader)| reader.clone())
    }
}

/// A reader that stands at `place`, having read the segment before it if it can.
pub(super) fn primed(data: &str, place: &Place) -> Reader {
    let fresh = Reader::at_page_of(place.origin(), place.start);
    let Some(before) = place.before() else { return fresh };
    let Ok(bytes) = read_segment(data, &before) else { return fresh };
    let mut reader = Reader::at_page_of(before.origin(), before.start);
    match reader.feed(&bytes, &mut |_| ()) {
        Ok(()) => reader,
        Err(broken) => {
            tracing::warn!(segment = before.file_name(), %broken, "a segment that was archived before does not hold any more");
            fresh
        }
    }
}

/// Proves that the record named `record` ends at `until`, in the durable WAL that a server has in its folder.
///
/// # Errors
/// `SA204` if something else lies there: the server crashed, and lost the record. `SA501`, `SA504`.
pub(super) fn prove_record(data: &str, place: &Place, record: &str, until: Lsn) -> Result<()> {
    let last = until.get().saturating_sub(1);
    if ends_at(data, place, record, Lsn::new(last), until)? {
        return Ok(());
    }
    judge_page_before(ends_at(data, place, record, Lsn::new(last.saturating_sub(PAGE_BYTES)), until), record, until)
}

/// What it means whether a record that should end at `until` was `found` from the page before on, having not been from the
/// page that it ends in. It is shorter than a page, so it may start there. That one is empty if the last segment was
/// switched: what does not hold there says no more than that the record is not.
///
/// # Errors
/// `SA204` if it was not found, and faults.
pub(super) fn judge_page_before(found: Result<bool>, record: &str, until: Lsn) -> Result<()> {
    match found {
        Ok(true) => Ok(()),
        Err(error) if error.refusal().is_none() => Err(error),
        Ok(false) | Err(_) => {
            let message = format!("no record {record} ends at {until}: the database crashed since, and lost it");
            Err(Refusal::new(Code::LifeChanged, message).into())
        }
    }
}

/// Whether the last record named `record` between the page of `from` and `until` ends there.
fn ends_at(data: &str, place: &Place, record: &str, from: Lsn, until: Lsn) -> Result<bool> {
    let mut reader = Reader::at_page_of(place.origin(), from);
    let mut sought = Sought::new(record);
    while reader.next() < until {
        let segment = Place { start: place.size.start(reader.next()), ..*place };
        let bytes = read_segment(data, &segment)?;
        let offset = |lsn: Lsn| usize::try_from(lsn.get().saturating_sub(segment.start.get())).unwrap_or(usize::MAX);
        let (from, to) = (offset(reader.next()), offset(until).min(bytes.len()));
        let fed = reader.feed(bytes.get(from..to).unwrap_or_default(), &mut |noted| sought.see(&noted));
        fed.map_err(|broken| segment.damaged(&broken))?;
    }
    Ok(sought.ends.last() == Some(&until))
}

/// Restore points of one name, seen in passing.
#[derive(Debug)]
pub(super) struct Sought {
    name: String,
    /// The ends of those that were found, in their order.
    pub ends: Vec<Lsn>,
}

impl Sought {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ends: Vec::new() }
    }

    pub(super) fn see(&mut self, noted: &Noted) {
        if let Event::RestorePoint { name, .. } = &noted.event
            && *name == self.name
        {
            self.ends.push(noted.end);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::wal_reader::Version;
    use super::super::wal_reader::forge::{Forge, SYSTEM, origin};
    use super::*;
    use sheetanchor_core::error::Error;

    const START: u64 = 0x1_2300_0000;
    const SEGMENT: u64 = 1 << 20;

    struct Folder(String);

    impl Folder {
        /// A folder with the segments of `forge`.
        fn of(test: &str, forge: &Forge) -> Self {
            let folder = std::env::temp_dir().join(format!("sa-chain-{test}-{}", std::process::id()));
            fs::create_dir_all(folder.join("pg_wal")).unwrap();
            let folder = Self(folder.to_str().unwrap().to_owned());
            for (index, bytes) in (0..).zip(forge.bytes.chunks(1 << 20)) {
                folder.put(&place(index), bytes);
            }
            folder
        }

        fn put(&self, place: &Place, bytes: &[u8]) {
            fs::write(format!("{}/pg_wal/{}", self.0, place.file_name()), bytes).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    fn place(index: u64) -> Place {
        let origin = origin();
        let start = Lsn::new(START + index * SEGMENT);
        Place { system: SYSTEM, size: origin.segment, timeline: origin.timeline, start }
    }

    /// Three segments; a record runs from the first into the second, and from the second into the third.
    fn three() -> Forge {
        let mut forge = Forge::new(Version::V15, START);
        for _ in 0..3 {
            let room = usize::try_from(SEGMENT).unwrap() - forge.bytes.len() % (1 << 20);
            forge.record(10, 0, 1, &vec![1; room - 20_000]);
            forge.restore_point("point");
            forge.record(10, 0, 1, &vec![2; 30_000]);
        }
        forge.restore_point("last");
        forge.switch();
        forge
    }

    fn code(outcome: Result<impl std::fmt::Debug, Error>) -> Code {
        outcome.unwrap_err().refusal().unwrap().code
    }

    #[test]
    fn each_segment_goes_on_from_the_one_before_it() {
        let folder = Folder::of("goes-on", &three());
        let chain = Chain::default();
        for index in 0..3 {
            chain.read(&folder.0, &place(index)).unwrap();
            chain.read(&folder.0, &place(index)).expect("it could not be stored, and is asked for again");
        }
    }

    #[test]
    fn a_segment_of_another_life_is_refused_even_where_it_holds_by_itself() {
        let forge = three();
        let folder = Folder::of("another-life", &forge);
        let mut other = Forge::new(Version::V15, START);
        for _ in 0..3 {
            let room = usize::try_from(SEGMENT).unwrap() - other.bytes.len() % (1 << 20);
            other.record(10, 0, 1, &vec![3; room - 20_000]);
            other.restore_point("point");
            other.record(10, 0, 1, &vec![4; 30_000]);
        }
        let chain = Chain::default();
        chain.read(&folder.0, &place(0)).unwrap();
        folder.put(&place(1), &other.bytes[1 << 20..2 << 20]);
        assert_eq!(code(chain.read(&folder.0, &place(1))), Code::WalDamaged, "the record's first half is ours");
        // After a start nothing is remembered; the segment before is there to be read again.
        assert_eq!(code(Chain::default().read(&folder.0, &place(1))), Code::WalDamaged);
        fs::remove_file(format!("{}/pg_wal/{}", folder.0, place(0).file_name())).unwrap();
        Chain::default().read(&folder.0, &place(1)).expect("now nothing says otherwise");
        folder.put(&place(1), &forge.bytes[1 << 20..2 << 20]);
        chain.read(&folder.0, &place(1)).expect("a refused segment is not remembered");
    }

    #[test]
    fn a_missing_a_short_and_a_damaged_segment_are_refused() {
        let forge = three();
        let folder = Folder::of("refused", &forge);
        let chain = Chain::default();
        assert_eq!(code(chain.read(&folder.0, &place(7))), Code::WalGap);
        folder.put(&place(1), &forge.bytes[1 << 20..(2 << 20) - 8192]);
        assert_eq!(code(chain.read(&folder.0, &place(1))), Code::WalDamaged);
        let mut bytes = forge.bytes[1 << 20..2 << 20].to_vec();
        bytes[500_000] ^= 1;
        folder.put(&place(1), &bytes);
        let said = chain.read(&folder.0, &place(1)).unwrap_err().to_string();
        assert!(said.contains(&place(1).file_name()) && said.contains("at 1/2310"), "{said}");
    }

    #[test]
    fn a_cut_is_proven_by_its_record_and_by_nothing_else() {
        let forge = three();
        let folder = Folder::of("cut", &forge);
        let mut reader = Reader::at_page_of(origin(), Lsn::new(START));
        let mut ends = Vec::new();
        reader.feed(&forge.bytes, &mut |noted| ends.push((noted.event, noted.end))).unwrap();
        for (event, end) in ends {
            let Event::RestorePoint { name, .. } = event else { continue };
            prove_record(&folder.0, &place(0), &name, end).unwrap();
            assert_eq!(code(prove_record(&folder.0, &place(0), "other", end)), Code::LifeChanged);
            let beside = Lsn::new(end.get() - 8);
            assert_eq!(code(prove_record(&folder.0, &place(0), &name, beside)), Code::LifeChanged);
        }
        assert_eq!(code(prove_record(&folder.0, &place(0), "point", Lsn::new(START + 9 * SEGMENT))), Code::WalGap);
    }

    #[test]
    fn a_cut_at_the_start_of_a_segment_is_proven_after_a_switch() {
        let mut forge = Forge::new(Version::V15, START);
        forge.restore_point("first");
        forge.switch();
        let (_, end) = forge.restore_point("second");
        let (_, later) = forge.record(10, 0, 1, &[1; 50]);
        forge.switch();
        let folder = Folder::of("switched", &forge);
        prove_record(&folder.0, &place(0), "second", end).unwrap();
        assert_eq!(code(prove_record(&folder.0, &place(0), "first", end)), Code::LifeChanged);
        assert_eq!(code(prove_record(&folder.0, &place(0), "second", later)), Code::LifeChanged, "it ends before");
    }
}
