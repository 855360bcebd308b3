//! What is damaged, missing or not ours is refused with its code: messages, pages, packs, WAL. Real processes and files.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "tests may be blunt"
)]
#![allow(clippy::format_push_string, reason = "tests may be blunt")]
#![allow(dead_code, reason = "each test file uses its part of the site")]

mod site;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use sheetanchor_core::format::keys;
use sheetanchor_core::format::wal::{self, WalHeader};
use sheetanchor_core::identity::{ClusterId, Epoch, Incarnation, Membership, NodeId, ThreadId};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::request::{Answer, Failure, Header, Request};
use sheetanchor_core::scn::Scn;
use sheetanchor_core::wire::{self, Answered, Asked};
use sheetanchor_native::env::native_env;
use sheetanchor_refdb::{Ledger, Session};
use site::{Site, eventually};

/// What the agent of node 1 answers to these bytes.
fn told(site: &Site, bytes: &[u8]) -> Answered {
    let mut stream = TcpStream::connect(&site.nodes[0].agent).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(bytes).unwrap();
    let mut prefix = [0; wire::PREFIX_BYTES];
    stream.read_exact(&mut prefix).unwrap();
    let (length, checksum) = wire::decode_prefix(prefix).unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    wire::decode(&body, checksum).unwrap()
}

fn code_of(answered: &Answered) -> &str {
    match &answered.answer {
        Err(Failure::Refused(code, _)) => code,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn what_is_no_message_is_refused_and_the_next_one_is_answered() {
    let site = Site::running("frames");
    let header = Header {
        cluster: ClusterId::default(),
        membership: Membership::default(),
        incarnation: Incarnation::default(),
        node: NodeId::new(1),
        operation: None,
        epoch: Epoch::default(),
    };
    let sound = wire::encode(&Asked { number: 7, scn: Scn::ZERO, header, request: Request::Describe }).unwrap();
    let mut flipped = sound.clone();
    *flipped.last_mut().unwrap() ^= 1;
    assert_eq!(code_of(&told(&site, &flipped)), "SA004");
    let oversized = [&u32::MAX.to_le_bytes()[..], &sound[4..]].concat();
    assert_eq!(code_of(&told(&site, &oversized)), "SA005");
    let mut newer = sound[wire::PREFIX_BYTES..].to_vec();
    newer[0] = wire::VERSION + 1;
    let newer = [&sound[..4], &crc32c::crc32c(&newer).to_le_bytes(), &newer].concat();
    assert_eq!(code_of(&told(&site, &newer)), "SA001");
    // Half a message, and nothing more: hung up on, and nobody waits for the rest.
    TcpStream::connect(&site.nodes[0].agent).unwrap().write_all(&sound[..sound.len() / 2]).unwrap();
    let answered = told(&site, &sound);
    assert!(answered.number == 7 && matches!(answered.answer, Ok(Answer::Described(_))), "{answered:?}");
}

#[test]
fn a_repository_without_a_cluster_is_refused() {
    let mut site = Site::refdb("uninitialised");
    site.start_agents();
    for command in [&["backup"][..], &["restore"], &["restore-point", "create", "x"]] {
        site.run(command).refused("SA102");
    }
}

#[test]
fn a_pack_with_a_flipped_byte_is_refused() {
    let mut site = Site::running("pack");
    let backup = site.run(&["--json", "backup"]).json();
    let pack = site.object("packs/");
    let sound = fs::read(&pack).unwrap();
    let mut damaged = sound.clone();
    damaged[sound.len() / 2] ^= 1;
    fs::write(&pack, damaged).unwrap();
    site.run(&["verify", backup["backup"].as_str().unwrap()]).refused("SA006");
    site.kill_all();
    site.wipe();
    site.start_agents();
    site.run(&["restore"]).refused("SA006");
    fs::write(&pack, sound).unwrap();
    site.run(&["restore"]).done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_fails_its_checksum_is_not_backed_up() {
    let site = Site::running("page");
    let mut ledger = Ledger::new(
        &native_env(site.path("unused")),
        &site.nodes[0].connection,
        Session::Causal,
        Duration::from_secs(20),
    );
    ledger.create(12, 100).await.unwrap();
    // Writes out every page that changed, so that nothing writes over what is damaged next.
    site.run(&["backup"]).done();
    let pages = PathBuf::from(site.path("shared")).join("pages");
    let mut bytes = fs::read(&pages).unwrap();
    let written = bytes.iter().position(|byte| *byte != 0).unwrap();
    bytes[written] ^= 1;
    fs::write(&pages, bytes).unwrap();
    site.run(&["backup"]).refused("SA007");
}

#[test]
fn pages_behind_a_link_are_not_backed_up() {
    let mut site = Site::running("link");
    let (pages, elsewhere) = (PathBuf::from(site.path("shared")).join("pages"), site.path("elsewhere"));
    site.kill_all();
    fs::rename(&pages, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &pages).unwrap();
    site.start_agents();
    let said = site.run(&["backup"]).refused("SA407");
    assert!(said.contains(&elsewhere), "{said}");
    assert!(!site.run(&["history"]).done().contains("sealed"));
    site.kill_all();
    fs::rename(&elsewhere, &pages).unwrap();
    site.start_agents();
    site.run(&["backup"]).done();
}

/// The pieces of the second thread, in order.
fn pieces(site: &Site) -> BTreeSet<PathBuf> {
    let folder = keys::wal_thread(Incarnation::new(1), ThreadId::new(2));
    site.repository_contents().into_keys().filter(|path| path.starts_with(site.repository().join(&folder))).collect()
}

#[test]
fn a_point_beyond_the_archive_is_refused() {
    let mut site = Site::running("beyond");
    site.run(&["backup"]).done();
    let before = pieces(&site);
    site.run(&["restore-point", "create", "after"]).done();
    eventually(|| Some(site.run(&["restore-point", "list"]).done()).filter(|list| !list.contains("pending")));
    site.kill_all();
    site.wipe();
    site.start_agents();
    site.run(&["restore", "--to", "name:after", "--dry-run"]).done();
    for late in pieces(&site).difference(&before) {
        fs::remove_file(late).unwrap();
    }
    site.run(&["restore", "--to", "name:after"]).refused("SA303");
}

#[test]
fn wal_of_a_second_writer_in_the_archive_is_refused() {
    let site = Site::running("conflict");
    let header = |path: &PathBuf| -> (WalHeader, Vec<u8>) {
        let piece = fs::read(path).unwrap();
        let (header, frame) = wal::split("piece", &piece).unwrap();
        (header, frame.to_vec())
    };
    // Another server writes where node 2 is about to, again and again until it is the first to do so.
    let lodged = eventually(|| {
        let all = pieces(&site);
        let (last, frame) = header(all.last()?);
        let until = Lsn::new(last.until.get() + last.until.get() - last.from.get());
        let key = keys::wal(Incarnation::new(1), ThreadId::new(2), last.timeline, last.until);
        let piece = wal::join(&WalHeader { from: last.until, until, ..last }, &frame);
        File::create_new(site.repository().join(&key)).ok()?.write_all(&piece).unwrap();
        Some(key)
    });
    let seen = eventually(|| Some(site.run(&["status"]).done()).filter(|status| status.contains("SA502")));
    assert!(seen.contains(&lodged), "{seen}");
    site.run(&["backup"]).refused("SA502");
}
