//! Archives of our own making. What real servers send is compared with their folders in `tests/postgres`.

use sheetanchor_core::identity::ThreadId;
use sheetanchor_core::position::Position;
use sheetanchor_core::scn::Scn;

use super::super::control::CONTROL_FILE;
use super::super::pages::PAGE_BYTES;
use super::super::replication::Tablespace;
use super::super::tar::forge;
use super::*;

fn plan(tablespaces: &[(u32, &str)]) -> CopyPlan {
    let listed = tablespaces.iter().map(|(oid, location)| Tablespace { oid: *oid, location: (*location).to_owned() });
    CopyPlan {
        start: Lsn::new(0x200_0028),
        timeline: TimelineId::new(1),
        tablespaces: listed.collect(),
        total: ByteCount::new(0),
    }
}

fn taking(tablespaces: &[(u32, &str)]) -> Taking {
    Taking::new(plan(tablespaces), "/srv/pg", true).unwrap()
}

fn control() -> Vec<u8> {
    let mut file = vec![7; 292];
    file.extend(crc32c::crc32c(&file).to_le_bytes());
    file.resize(PAGE_BYTES, 0);
    forge::file(CONTROL_FILE, &file)
}

fn end() -> Vec<u8> {
    vec![0; 1024]
}

/// The data folder's archive, with `more` in it.
fn folder(more: &[Vec<u8>]) -> Vec<u8> {
    let mut archive = [forge::file(LABEL, b"START WAL LOCATION"), forge::file("tablespace_map", b"x")].concat();
    archive.extend(more.concat());
    archive.extend([forge::folder("global/"), control(), end()].concat());
    archive
}

/// What is handed on, in words.
fn words(taking: &mut Taking) -> Vec<String> {
    let words = taking.ready.drain(..).map(|part| match part {
        FilePart::Entry(SourceFile { name, kind: SourceKind::File { length }, .. }) => format!("{name}: {length}"),
        FilePart::Entry(SourceFile { name, kind: SourceKind::Folder, .. }) => format!("{name}/"),
        FilePart::Entry(SourceFile { name, kind: SourceKind::Link { target }, .. }) => format!("{name} -> {target}"),
        FilePart::Bytes(bytes) => format!("{} bytes", bytes.len()),
    });
    words.collect()
}

/// All of it: the data folder's archive after `earlier` ones.
fn take(taking: &mut Taking, earlier: &[(u32, Vec<u8>)], folder: &[u8]) -> Result<Vec<u8>> {
    for (oid, archive) in earlier {
        taking.open(Some(*oid))?;
        taking.take(archive)?;
    }
    taking.open(None)?;
    for bytes in folder.chunks(1000) {
        taking.take(bytes)?;
    }
    taking.finish()
}

#[test]
fn archives_become_the_names_that_a_look_at_the_folder_finds() {
    let mut taking = taking(&[(16400, "/srv/fast")]);
    let fast =
        [forge::folder("PG_15_202209061/"), forge::file("PG_15_202209061/notes", &vec![1; 300_000]), end()].concat();
    let more = [
        forge::file("postmaster.pid", b"77"),
        forge::file("sheetanchor.restore", b"x"),
        forge::folder("base/pgsql_tmp"),
        forge::file("base/pgsql_tmp/x", b"x"),
        forge::file("PG_VERSION", b"15\n"),
        forge::folder("./pg_wal/archive_status"),
        forge::file("empty", b""),
    ];
    let label = take(&mut taking, &[(16400, fast)], &folder(&more)).unwrap();
    assert_eq!(label, b"START WAL LOCATION");
    assert_eq!(
        words(&mut taking),
        [
            "pg_tblspc/16400 -> /srv/fast",
            "pg_tblspc/16400/PG_15_202209061/",
            "pg_tblspc/16400/PG_15_202209061/notes: 300000",
            "294912 bytes",
            "5088 bytes",
            "PG_VERSION: 3",
            "3 bytes",
            "pg_wal/archive_status/",
            "empty: 0",
            "global/",
            "global/pg_control: 8192",
            "8192 bytes",
        ]
    );
}

#[test]
fn what_is_not_all_of_a_backup_is_refused() {
    let whole = folder(&[]);
    let cut_short = |length: usize| take(&mut taking(&[]), &[], &whole[..length]);
    assert!(take(&mut taking(&[]), &[], &whole).is_ok());
    for length in [0, 100, 1536, whole.len() - 1024 - 8192, whole.len() - 1025] {
        assert!(cut_short(length).is_err(), "{length} bytes");
    }
    let without_control = [forge::file(LABEL, b"x"), end()].concat();
    assert!(take(&mut taking(&[]), &[], &without_control).is_err());
    let without_label = [control(), end()].concat();
    assert!(take(&mut taking(&[]), &[], &without_label).is_err());
    assert!(take(&mut taking(&[(16400, "/srv/fast")]), &[], &whole).is_err(), "a tablespace is missing");
    assert!(take(&mut taking(&[]), &[(16400, end())], &whole).is_err(), "a tablespace that was not listed");
    let twice = [(16400, end()), (16400, end())];
    assert!(take(&mut taking(&[(16400, "/srv/fast")]), &twice, &whole).is_err(), "an archive twice");
    assert!(taking(&[]).take(&whole).is_err(), "no archive at all");
    let long_label = [forge::file(LABEL, &vec![b'x'; 70_000]), control(), end()].concat();
    assert!(take(&mut taking(&[]), &[], &long_label).is_err());
}

#[test]
fn damage_and_what_leads_elsewhere_are_refused_by_their_codes() {
    let code = |more: Vec<u8>| take(&mut taking(&[]), &[], &folder(&[more])).unwrap_err().refusal().unwrap().code;
    let mut page = [0; PAGE_BYTES];
    page[14] = 1;
    assert_eq!(code(forge::file("base/5/16384", &page)), Code::PageDamaged);
    // It was written after the start.
    page[4..8].copy_from_slice(&0x200_0028_u32.to_le_bytes());
    take(&mut taking(&[]), &[], &folder(&[forge::file("base/5/16384", &page)])).unwrap();
    assert_eq!(code(forge::header("pg_tblspc/16400", b'2', b"00000000000 ")), Code::UnsafePath);
    assert_eq!(code(forge::header("x", b'x', b"00000000000 ")), Code::FrameDamaged);
    for inside in ["/srv/pg", "/srv/pg/fast", "pg_tblspc/16400"] {
        let refused = Taking::new(plan(&[(16400, inside)]), "/srv/pg", true).err().unwrap();
        assert_eq!(refused.refusal().unwrap().code, Code::UnsafePath, "{inside}");
    }
    Taking::new(plan(&[(16400, "/srv/pg2")]), "/srv/pg", true).unwrap();
}

#[test]
fn a_backup_that_is_not_running_is_over() {
    let backups = Arc::new(BaseBackups::default());
    assert_eq!(backups.begun("a"), None);
    for refused in [backups.take("a").err(), backups.sent("a").err()] {
        assert_eq!(refused.unwrap().refusal().unwrap().code, Code::LifeChanged);
    }
    let sent = Sent { stop: Lsn::new(9), label: Vec::new() };
    assert_eq!(backups.end("a", sent.clone()).unwrap_err().refusal().unwrap().code, Code::LifeChanged);
    let start = Position { thread: ThreadId::new(1), timeline: TimelineId::new(1), lsn: Lsn::new(1) };
    let begun = Begun { start, scn: Scn::ZERO };
    backups.lock().insert("a".to_owned(), BaseBackup { begun, stage: Stage::Taken });
    assert_eq!(backups.sent("a").unwrap_err().refusal().unwrap().code, Code::LifeChanged, "cut short");
    backups.end("a", sent.clone()).unwrap();
    assert_eq!(backups.sent("a").unwrap(), (begun, sent));
    assert!(backups.take("a").is_err(), "it was sent");
    assert!(backups.sent("a").is_ok(), "and stays so");
    backups.abandon("a");
    assert_eq!(backups.begun("a"), None);
}
