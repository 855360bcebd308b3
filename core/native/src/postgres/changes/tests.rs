//! Change maps from WAL of our own making. Real servers' are compared with their files in `tests/postgres`.

use proptest::prelude::*;
use sheetanchor_core::changes::{ChangeMap, Changed};
use sheetanchor_core::identity::TimelineId;
use sheetanchor_core::position::Lsn;

use super::super::wal_reader::forge::{Forge, Image, origin};
use super::super::wal_reader::{Fork, Locator, Noted, Reader, Sink, Touch, Version};
use super::collected::Collected;
use super::names::Names;
use super::{Place, Reading};

const START: u64 = 0x1_2300_0000;
const VERSIONS: [Version; 5] = [Version::V14, Version::V15, Version::V16, Version::V17, Version::V18];

const HEAP: u8 = 10;
const SPECIAL: u8 = 1;

fn relation(number: u32) -> Locator {
    Locator { space: 1663, database: 5, number }
}

#[derive(Default)]
struct Touches(Vec<Touch>);

impl Sink for Touches {
    const TOUCHES: bool = true;

    fn noted(&mut self, _noted: Noted) {}

    fn touched(&mut self, touch: Touch) {
        self.0.push(touch);
    }
}

fn read(forge: &Forge, chunk: usize, sink: &mut impl Sink) -> Result<(), String> {
    let mut reader = Reader::at_page_of(origin(), Lsn::new(START));
    let outcome = forge.bytes.chunks(chunk).try_for_each(|bytes| reader.read(bytes, sink));
    outcome.map_err(|broken| broken.to_string())
}

fn map_of(forge: &Forge, checksums: bool) -> Result<ChangeMap, String> {
    let mut collected = Collected::new(TimelineId::new(2));
    read(forge, 8192, &mut collected)?;
    collected.into_map(&Names::of(15, 202_209_061), checksums)
}

/// `same`, `whole`, or the blocks; perhaps of what lies before one only.
fn shown(map: &ChangeMap, name: &str) -> String {
    let (name, until) = name.split_once(" before ").unwrap_or((name, "9999"));
    match map.of_until(name, until.parse::<u64>().unwrap() * 8192) {
        Changed::Same => "same".to_owned(),
        Changed::Whole => "whole".to_owned(),
        Changed::Blocks { size, numbers } => {
            assert_eq!(size, 8192);
            format!("{numbers:?}")
        }
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A record that changes one block of `base/5/<number>`.
fn change(forge: &mut Forge, number: u32, block: u32) {
    let body = Forge::body(&[(Some(relation(number)), 0, block, None, b"row")], &[7; 10]);
    forge.record(HEAP, 0, 700, &body);
}

#[test]
fn every_reference_is_found_in_each_version_and_in_pieces_of_any_size() {
    for version in VERSIONS {
        let mut forge = Forge::new(version, START);
        let mut expected = Vec::new();
        for length in (0..9000).step_by(701) {
            let block = u32::try_from(length).unwrap();
            let references = [
                (Some(relation(1)), 0, block, None, &b"four"[..]),
                // The next three are of the same relation.
                (None, 2, 1, Some(Image::Whole(8192)), b""),
                (None, 0, block + 1, Some(Image::WithHole(length)), b"data"),
                (None, 3, 7, Some(Image::Packed(length / 2)), b""),
                (Some(relation(2)), 1, 9, Some(Image::PackedWithHole(100)), b"x"),
            ];
            let own = vec![1; length / 3];
            forge.record(HEAP, 0, 700, &Forge::body_of(version, &references, &own));
            let block = |number, fork, block| Touch::Block { locator: relation(number), fork, block };
            expected.extend([
                block(1, Fork::Main, u32::try_from(length).unwrap()),
                block(1, Fork::Visibility, 1),
                block(1, Fork::Main, u32::try_from(length).unwrap() + 1),
                block(1, Fork::Init, 7),
                block(2, Fork::FreeSpace, 9),
            ]);
        }
        for chunk in [1, 24, 1000, 8192, usize::MAX] {
            let mut touches = Touches::default();
            read(&forge, chunk, &mut touches).unwrap();
            assert_eq!(touches.0, expected, "{version} {chunk}");
        }
    }
}

#[test]
fn a_record_whose_references_are_cut_off_or_of_no_fork_is_refused() {
    let good = Forge::body(&[(Some(relation(1)), 0, 7, None, b"row")], b"own");
    let mut fork = good.clone();
    fork[1] = 5;
    let mut follows_none = good.clone();
    follows_none[1] |= 0x80;
    for bad in [&good[..good.len() - 1], &[&good[..], &[0]].concat(), &good[..9], &fork, &follows_none, &[40, 0, 0]] {
        let mut forge = Forge::new(Version::V15, START);
        forge.record(HEAP, 0, 700, bad);
        let said = read(&forge, 8192, &mut Touches::default()).unwrap_err();
        assert!(said.contains("not understood"), "{said}");
    }
}

#[test]
fn blocks_are_told_by_file_and_the_maps_of_a_changed_relation_are_not() {
    let mut forge = Forge::new(Version::V15, START);
    for (number, block) in [(1, 5), (1, 131_072 + 4), (1, 131_071), (1, 5), (2, 0)] {
        change(&mut forge, number, block);
    }
    let elsewhere = Locator { space: 16_400, database: 6, number: 3 };
    let global = Locator { space: 1664, database: 0, number: 1262 };
    let references = [(Some(elsewhere), 0, 8, None, &b""[..]), (Some(global), 0, 9, None, b"")];
    forge.record(HEAP, 0, 700, &Forge::body(&references, &[]));
    let map = map_of(&forge, true).unwrap();
    for (name, expected) in [
        ("base/5/1", "{5, 131071}"),
        ("base/5/1.1", "{4}"),
        ("base/5/1.2", "same"),
        ("base/5/1_vm", "whole"),
        ("base/5/1_fsm", "whole"),
        ("base/5/2", "{0}"),
        ("base/5/7", "same"),
        ("base/5/7_vm", "same"),
        ("base/5/7_init", "same"),
        ("base/5/7_fsm", "whole"),
        ("base/6/1", "same"),
        ("base/6/3", "same"),
        ("pg_tblspc/16400/PG_15_202209061/6/3", "{8}"),
        ("pg_tblspc/16400/PG_14_202107181/6/3", "whole"),
        ("global/1262", "{9}"),
        ("global/pg_filenode.map", "whole"),
        ("global/pg_control", "whole"),
        ("pg_xact/0000", "whole"),
        ("base/5/PG_VERSION", "whole"),
        ("postgresql.auto.conf", "whole"),
    ] {
        assert_eq!(shown(&map, name), expected, "{name}");
    }
}

/// Made and removed relations, databases and tablespaces, by all versions' layouts.
#[test]
fn what_was_made_removed_or_cut_short_is_whole() {
    for version in VERSIONS {
        let mut forge = Forge::new(version, START);
        for number in [1, 2, 3, 4, 5, 6, 7] {
            change(&mut forge, number, 1);
        }
        forge.record(2, 0x10 | SPECIAL, 700, &Forge::data(&words(&[1663, 5, 1, 0])));
        forge.record(2, 0x20 | SPECIAL, 700, &Forge::data(&words(&[131_072 + 7, 1663, 5, 2, 7])));
        forge.record(2, 0x10 | SPECIAL, 700, &Forge::data(&words(&[1663, 5, 3, 3])));
        // A commit that removes two relations, an abort of a prepared one that removes another.
        let time = 5_i64.to_ne_bytes();
        let removed = [&time[..], &words(&[1 << 2, 2, 1663, 5, 4, 1663, 5, 5])].concat();
        forge.record(1, 0x80 | SPECIAL, 700, &Forge::data(&removed));
        let removed = [&time[..], &words(&[1 << 2 | 1 << 4, 1, 1663, 5, 6, 742])].concat();
        forge.record(1, 0xC0 | SPECIAL, 0, &Forge::data(&removed));
        let (by_files, drops) = (0x00, if version == Version::V14 { 0x10 } else { 0x20 });
        forge.record(4, by_files | SPECIAL, 700, &Forge::data(&words(&[20, 1663, 1, 1663])));
        if version != Version::V14 {
            forge.record(4, 0x10 | SPECIAL, 700, &Forge::data(&words(&[21, 1663])));
        }
        forge.record(4, drops | SPECIAL, 700, &Forge::data(&words(&[22, 2, 1663, 16_400])));
        forge.record(5, 0x10, 700, &Forge::data(&words(&[16_401])));
        let map = map_of(&forge, true).unwrap();
        for (name, expected) in [
            ("base/5/1", "whole"),
            ("base/5/1.3", "whole"),
            ("base/5/1_init", "same"),
            ("base/5/2", "{1}"),
            ("base/5/2.1", "whole"),
            ("base/5/2.1 before 7", "same"),
            ("base/5/2.1 before 8", "whole"),
            ("base/5/2.2", "whole"),
            ("base/5/2_vm", "whole"),
            ("base/5/3", "{1}"),
            ("base/5/3_init", "whole"),
            ("base/5/4", "whole"),
            ("base/5/5_init", "whole"),
            ("base/5/6", "whole"),
            ("base/5/7", "{1}"),
            ("base/20/7", "whole"),
            ("base/21/7", if version == Version::V14 { "same" } else { "whole" }),
            ("base/22/7", "whole"),
            ("base/23/7", "same"),
            ("pg_tblspc/16400/PG_15_202209061/22/3", "whole"),
            ("pg_tblspc/16400/PG_15_202209061/5/3", "same"),
            ("pg_tblspc/16401/PG_15_202209061/5/3", "whole"),
        ] {
            assert_eq!(shown(&map, name), expected, "{version} {name}");
        }
    }
}

/// A backup's start is said as that of its segment, and what comes before its true start is not replayed.
#[test]
fn what_changed_in_the_segment_before_the_true_start_is_told() {
    let folder = std::env::temp_dir().join(format!("sa-changes-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("pg_wal")).unwrap();
    let mut forge = Forge::new(Version::V15, START);
    change(&mut forge, 1, 1);
    forge.switch();
    change(&mut forge, 1, 2);
    let redo = forge.at();
    change(&mut forge, 1, 3);
    forge.switch();
    let origin = origin();
    let place =
        Place { system: origin.system, size: origin.segment, timeline: origin.timeline, start: Lsn::new(START) };
    let (first, second) = forge.bytes.split_at(1 << 20);
    let name = origin.segment.file_name(origin.timeline, Lsn::new(START + (1 << 20)));
    std::fs::write(folder.join("pg_wal").join(name), second).unwrap();
    let mut reading = Reading::new(place, Version::V15, Lsn::new(START));
    reading.take(first).unwrap();
    let reading = reading.take_rest(folder.to_str().unwrap(), redo);
    std::fs::remove_dir_all(&folder).unwrap();
    let map = reading.unwrap().collected.into_map(&Names::of(15, 1), true).unwrap();
    assert_eq!(shown(&map, "base/5/1"), "{1, 2}");
}

#[test]
fn what_wal_does_not_show_is_not_told() {
    let why = |record: &dyn Fn(&mut Forge)| {
        let mut forge = Forge::new(Version::V15, START);
        change(&mut forge, 1, 1);
        record(&mut forge);
        change(&mut forge, 1, 2);
        map_of(&forge, true).err()
    };
    let setting = |wal_level| Forge::data(&words(&[100, 8, 10, 0, 64, wal_level, 0]));
    let minimal = why(&|forge| record(forge, 0, 0x60, &setting(0))).unwrap();
    assert_eq!(minimal, "resource manager 0 wrote a record of kind 60");
    assert_eq!(why(&|forge| record(forge, 0, 0x60, &setting(1))), None);
    // Of an extension, a kind of a known manager that no release has, a database made in a way that none knows.
    for (manager, kind) in [(130, 0x30), (HEAP, 0x50), (2, 0x30), (4, 0x70)] {
        let special = why(&|forge| record(forge, manager, kind | SPECIAL, &Forge::data(&[1; 40])));
        assert_eq!(special, Some(format!("resource manager {manager} wrote a record of kind {kind:02X}")));
    }
    assert_eq!(why(&|forge| record(forge, 130, 0x30, &Forge::data(&[1; 40]))), None);
    let recovered = words(&[1, 0, 2, 1, 0]);
    assert!(why(&|forge| record(forge, 0, 0x90, &Forge::data(&recovered))).unwrap().starts_with("timeline 2"));
    let checkpoint = why(&|forge| checkpoint(forge, 0x10, 1)).unwrap();
    assert!(checkpoint.ends_with("is of timeline 1"), "{checkpoint}");
}

fn record(forge: &mut Forge, manager: u8, info: u8, body: &[u8]) {
    forge.record(manager, info, 0, body);
}

fn checkpoint(forge: &mut Forge, info: u8, timeline: u32) {
    let mut data = words(&[8, 1, timeline, timeline]);
    data.resize(88, 0);
    forge.record(0, info, 0, &Forge::data(&data));
}

/// `pg_checksums` works on servers that are shut down, and writes to every page.
#[test]
fn across_a_shutdown_pages_must_have_carried_checksums_before_it() {
    let told = |before: Option<&str>, after: Option<&str>, now: bool| {
        let mut forge = Forge::new(Version::V15, START);
        let say = |forge: &mut Forge, state: &str| {
            let prefix = "sheetanchor.checksums\0";
            let lengths = [prefix.len() as u64, state.len() as u64].map(u64::to_ne_bytes).concat();
            let data = [&words(&[5, 0])[..], &lengths, prefix.as_bytes(), state.as_bytes()].concat();
            forge.record(21, 0, 0, &Forge::data(&data));
        };
        // Somebody else's.
        forge.record(21, 0, 0, &Forge::data(&[&[0; 24][..], b"sheetanchor.check\0on"].concat()));
        forge.record(21, 0, 0, &Forge::data(&vec![0; 30_000]));
        if let Some(state) = before {
            say(&mut forge, state);
        }
        checkpoint(&mut forge, 0x00, 2);
        if let Some(state) = after {
            say(&mut forge, state);
        }
        map_of(&forge, now).is_ok()
    };
    assert!(told(Some("on"), None, true));
    assert!(told(Some("off"), None, false), "pages without are not checked");
    assert!(told(Some("on"), Some("off"), false));
    assert!(!told(Some("off"), None, true));
    assert!(!told(None, None, true));
    assert!(!told(None, Some("on"), true), "it may be the reason why it is on");
    assert!(!told(Some("strange"), None, true));
}

#[test]
fn what_is_too_much_to_hold_is_whole() {
    let mut forge = Forge::new(Version::V15, START);
    for (number, block) in [(1, 1), (1, 2), (2, 1), (1, 3), (1, 1), (3, 1)] {
        change(&mut forge, number, block);
    }
    let mut collected = Collected::holding(3, TimelineId::new(2));
    read(&forge, 8192, &mut collected).unwrap();
    let map = collected.into_map(&Names::of(15, 1), true).unwrap();
    let seen = [1, 2, 3].map(|number| shown(&map, &format!("base/5/{number}")));
    assert_eq!(seen, ["whole", "{1}", "{1}"], "what went over to whole makes room");
}

proptest! {
    /// Arbitrary bodies of records of all managers, behind right checksums.
    #[test]
    fn no_record_makes_it_panic(
        manager in 0_u8..23,
        info in any::<u8>(),
        start in prop::collection::vec(any::<u8>(), 0..120),
        own in prop::collection::vec(any::<u8>(), 0..120),
        framed in any::<bool>(),
        version in 0_usize..5,
    ) {
        let mut forge = Forge::new(VERSIONS[version], START);
        let body = if framed { Forge::body(&[(Some(relation(1)), 0, 1, None, &start)], &own) } else { start };
        forge.record(manager, info, 5, &body);
        read(&forge, 40, &mut Collected::new(TimelineId::new(2))).ok();
    }

    /// Against a plain set, with blocks that share places among the recent ones.
    #[test]
    fn no_block_is_lost(changes in prop::collection::vec((0_u32..4, 0_u32..9, 0_u32..3), 1..300)) {
        let mut forge = Forge::new(Version::V16, START);
        let mut expected = std::collections::BTreeSet::new();
        for (number, low, high) in &changes {
            let block = low + (high << 17);
            change(&mut forge, *number, block);
            expected.insert((*number, *high, u64::from(*low)));
        }
        let map = map_of(&forge, false).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for (number, segment) in (0..4).flat_map(|number| (0..3).map(move |segment| (number, segment))) {
            let suffix = if segment == 0 { String::new() } else { format!(".{segment}") };
            if let Changed::Blocks { numbers, .. } = map.of(&format!("base/5/{number}{suffix}")) {
                seen.extend(numbers.iter().map(|block| (number, segment, *block)));
            }
        }
        prop_assert_eq!(seen, expected);
    }
}
