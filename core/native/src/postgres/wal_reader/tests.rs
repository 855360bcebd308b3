//! The reader against WAL of our own making. Real servers' WAL is read in `tests/postgres`.

use proptest::prelude::*;
use sheetanchor_core::identity::TimelineId;
use sheetanchor_core::position::Lsn;

use super::forge::{Forge, origin};
use super::{Broken, Event, Noted, Outcome, Reader, Version};

const START: u64 = 0x1_2300_0000;

fn read(bytes: &[u8], chunk: usize) -> (Reader, Vec<Noted>, Result<(), Broken>) {
    let (mut reader, mut noted) = (Reader::at_page_of(origin(), Lsn::new(START)), Vec::new());
    let outcome = bytes.chunks(chunk).try_for_each(|bytes| reader.feed(bytes, &mut |event| noted.push(event)));
    (reader, noted, outcome)
}

/// Two segments with all that there is: long records over pages and over segments, one that was given up, a switch.
fn varied() -> Forge {
    varied_after(Forge::record_given_up)
}

fn varied_after(crash: impl FnOnce(&mut Forge)) -> Forge {
    let mut forge = Forge::new(Version::V15, START);
    for length in (0..3000).step_by(97) {
        forge.record(10, 0, 700, &vec![0xA5; length]);
    }
    forge.restore_point("one");
    crash(&mut forge);
    forge.record(11, 0x20, 700, &vec![1; 40_000]);
    let room = (1 << 20) - forge.bytes.len() % (1 << 20);
    forge.record(10, 0, 701, &vec![2; room + 20_000]);
    forge.restore_point("two");
    forge.switch();
    forge
}

#[test]
fn a_chain_is_read_whole_in_pieces_of_any_size() {
    let forge = varied();
    let (whole, noted, outcome) = read(&forge.bytes, usize::MAX);
    outcome.unwrap();
    assert_eq!(whole.next(), Lsn::new(START + (2 << 20)));
    let names: Vec<&Event> = noted.iter().map(|noted| &noted.event).collect();
    assert!(matches!(names[0], Event::RestorePoint { name, time_us: 5 } if name == "one"), "{names:?}");
    assert!(matches!(names[1], Event::GivenUp { .. }), "{names:?}");
    assert!(matches!(names[2], Event::RestorePoint { name, .. } if name == "two"), "{names:?}");
    assert_eq!(names[3], &Event::Switch);
    assert_eq!(whole.totals().all().records, 31 + 6);
    assert_eq!(whole.totals().by_manager()[&0].records, 4);
    for chunk in [1, 7, 24, 100, 8191, 8192, 8193] {
        let (reader, again, outcome) = read(&forge.bytes, chunk);
        outcome.unwrap();
        assert_eq!((again, reader.totals()), (noted.clone(), whole.totals()), "{chunk}");
    }
}

#[test]
fn a_restore_point_ends_where_the_server_says_it_does() {
    let mut forge = Forge::new(Version::V17, START);
    // The record runs over the page's end in one of these, and ends with it in another.
    for length in (8000..8192).step_by(8) {
        forge.record(10, 0, 1, &vec![9; length]);
        let (start, end) = forge.restore_point("here");
        let (_, noted, outcome) = read(&forge.bytes, 1000);
        outcome.unwrap();
        let last = noted.last().unwrap();
        assert_eq!((last.start, last.end), (start, end), "{length}");
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    // Of a record that was given up nothing is known but that it is not replayed.
    let forge = varied_after(|_| ());
    let (clean, ..) = read(&forge.bytes, usize::MAX);
    let mut bytes = forge.bytes.clone();
    // Each byte where records are short, each 401st of the zeros and long bodies; another bit each time.
    let dense = |index: usize| index < 20_000 || (1 << 20) - 200 < index && index < (1 << 20) + 200;
    for index in (0..bytes.len()).filter(|index| dense(*index) || index % 401 == 0) {
        let bit = 1_u8 << (index % 8);
        if index % 8192 == 2 && bit == 4 {
            continue;
        }
        bytes[index] ^= bit;
        let (reader, _, outcome) = read(&bytes, usize::MAX);
        let broken = outcome.expect_err(&format!("byte {index}, bit {bit}"));
        assert!(broken.at.get() <= START + index as u64, "byte {index}: {broken}");
        assert!(reader.totals().all().records <= clean.totals().all().records);
        bytes[index] ^= bit;
    }
}

#[test]
fn what_is_cut_off_is_told_from_what_is_damaged() {
    let mut forge = Forge::new(Version::V15, START);
    forge.record(10, 0, 1, &[1; 500]);
    let (start, end) = forge.record(10, 0, 1, &vec![2; 20_000]);
    let mut bytes = forge.bytes.clone();

    let half = usize::try_from(start.get() - START).unwrap() + 9000;
    let (reader, _, outcome) = read(&bytes[..half], 512);
    outcome.unwrap();
    assert_eq!(reader.whole_until(), start, "half a record is no record");

    bytes.resize(1 << 20, 0);
    let (_, _, outcome) = read(&bytes, usize::MAX);
    let broken = outcome.unwrap_err();
    assert_eq!((broken.at, broken.why.as_str()), (end, "no record"));
    assert!(broken.may_be_torn_end(end), "WAL is durable up to there, and ends there");
    assert!(!broken.may_be_torn_end(Lsn::new(START + (1 << 20))), "WAL is durable beyond");

    bytes[half] ^= 1;
    let (reader, _, outcome) = read(&bytes, usize::MAX);
    let broken = outcome.unwrap_err();
    assert!(broken.at == start && broken.why.contains("CRC"), "{broken}");
    assert_eq!(reader.whole_until(), start);
    assert!(broken.may_be_torn_end(Lsn::new(start.get() + 100)) && !broken.may_be_torn_end(end));
}

#[test]
fn what_does_not_belong_there_is_refused() {
    let forge = varied();
    let of = |change: &dyn Fn(&mut Reader)| {
        let mut reader = Reader::at_page_of(origin(), Lsn::new(START));
        change(&mut reader);
        reader.feed(&forge.bytes, &mut |_| ()).unwrap_err().why
    };
    assert!(of(&|reader| reader.origin.system += 1).contains("of system"));
    assert!(of(&|reader| reader.origin.timeline = TimelineId::new(1)).contains("timeline 2, not 1"));
    assert!(of(&|reader| reader.next += 1 << 20).contains("the page of"));
    assert!(of(&|reader| reader.version = Some(Version::V14)).contains("not one of version 14"));
    assert!(of(&|reader| reader.last = Some(START - 24)).contains("a record that follows"));
    let mut skipped = forge.bytes.clone();
    skipped.drain(8192..16_384);
    assert!(read(&skipped, 8192).2.unwrap_err().why.contains("the page of"));
}

#[test]
fn reading_may_begin_at_any_page() {
    let forge = varied();
    let (whole, ..) = read(&forge.bytes, usize::MAX);
    for page in [1_u64, 2, 9, 100, 128, 129, 130] {
        let mut reader = Reader::at_page_of(origin(), Lsn::new(START + page * 8192 + 77));
        let from = usize::try_from(reader.next().get() - START).unwrap();
        let mut points = 0;
        reader
            .feed(&forge.bytes[from..], &mut |noted| {
                points += usize::from(matches!(noted.event, Event::RestorePoint { .. }));
            })
            .unwrap_or_else(|broken| panic!("page {page}: {broken}"));
        assert!(points >= 1, "page {page}");
        assert_eq!((reader.whole_until(), reader.last_record()), (whole.whole_until(), whole.last_record()));
    }
}

#[test]
fn the_ends_of_transactions_are_read_in_each_version() {
    for (version, stats_bytes) in [
        (Version::V14, None),
        (Version::V15, Some(12)),
        (Version::V16, Some(12)),
        (Version::V17, Some(12)),
        (Version::V18, Some(16)),
    ] {
        let mut forge = Forge::new(version, START);
        let (gid_at, head) = if version == Version::V14 { (46, 64) } else { (54, 72) };
        let mut data = vec![0; head];
        data[8..12].copy_from_slice(&742_u32.to_ne_bytes());
        data[16..24].copy_from_slice(&11_i64.to_ne_bytes());
        data[gid_at..gid_at + 2].copy_from_slice(&6_u16.to_ne_bytes());
        data.extend(b"gid-1\0 and more");
        forge.record(1, 0x10, 742, &Forge::data(&data));
        // Everything that may stand before a two-phase number, and after it.
        let flags = 0xFF | if stats_bytes.is_some() { 0x100 } else { 0 };
        let mut data = 12_i64.to_ne_bytes().to_vec();
        data.extend(u32::to_ne_bytes(flags));
        data.extend([0; 8]);
        for item in [Some(4), Some(12), stats_bytes, Some(16)].into_iter().flatten() {
            data.extend(3_u32.to_ne_bytes());
            data.extend(vec![0xEE; 3 * item]);
        }
        data.extend(742_u32.to_ne_bytes());
        data.extend(b"gid-1\0");
        data.extend([1; 16]);
        let headers = [&[253, 1, 0, 252, 9, 0, 0, 0][..], &Forge::data(&data)].concat();
        forge.record(1, 0xB0, 0, &headers);
        forge.record(1, 0x20, 743, &Forge::data(&13_i64.to_ne_bytes()));
        let (_, noted, outcome) = read(&forge.bytes, 50);
        outcome.unwrap();
        let events: Vec<Event> = noted.into_iter().map(|noted| noted.event).collect();
        let gid = "gid-1".to_owned();
        assert_eq!(
            events,
            [
                Event::Prepared { transaction: 742, gid: gid.clone(), time_us: 11 },
                Event::Ended {
                    transaction: 742,
                    outcome: Outcome::Committed,
                    time_us: 12,
                    prepared: true,
                    gid: Some(gid)
                },
                Event::Ended { transaction: 743, outcome: Outcome::Aborted, time_us: 13, prepared: false, gid: None },
            ],
            "{version}"
        );
    }
}

#[test]
fn a_record_that_is_not_laid_out_as_its_version_says_is_refused() {
    let mut forge = Forge::new(Version::V15, START);
    forge.record(0, 0x70, 0, &Forge::data(&[1; 30]));
    let broken = read(&forge.bytes, 8192).2.unwrap_err();
    assert!(broken.why.contains("not understood"), "{broken}");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..20_000), chunk in 1_usize..9000) {
        let (reader, _, _) = read(&bytes, chunk);
        prop_assert!(reader.whole_until() <= Lsn::new(START + 20_008));
    }

    /// Right up to some byte, and anything from there on.
    #[test]
    fn nor_do_bytes_after_a_good_start(
        seed in prop::collection::vec((any::<u8>(), 0_u8..2, prop::collection::vec(any::<u8>(), 0..600)), 1..60),
        keep in 0_usize..40_000,
        noise in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        let mut forge = Forge::new(Version::V16, START);
        let mut good = 0;
        for (info, manager, body) in &seed {
            // Of managers that are not understood: arbitrary bodies would be refused.
            forge.record(manager + 2, *info, 5, body);
            good += 1;
        }
        let (reader, _, outcome) = read(&forge.bytes, 777);
        prop_assert_eq!(outcome, Ok(()));
        prop_assert_eq!(reader.totals().all().records, good);
        prop_assert_eq!(reader.whole_until(), forge.at());
        forge.bytes.truncate(keep);
        forge.bytes.extend(noise);
        let (reader, _, _) = read(&forge.bytes, 777);
        prop_assert!(reader.totals().all().records <= good + 100);
    }

    /// Arbitrary bodies of records that are understood, behind right checksums.
    #[test]
    fn nor_do_strange_records_that_hold(
        manager in 0_u8..2,
        info in any::<u8>(),
        body in prop::collection::vec(any::<u8>(), 0..300),
        framed in any::<bool>(),
    ) {
        let mut forge = Forge::new(Version::V18, START);
        let body = if framed { Forge::data(&body) } else { body };
        forge.record(manager, info, 5, &body);
        let (_, noted, outcome) = read(&forge.bytes, 40);
        prop_assert!(outcome.is_ok() || noted.is_empty());
    }
}
