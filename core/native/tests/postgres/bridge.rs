//! The bridge to one server: what was copied under load recovers to its cut, exactly, or is refused.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use crate::bench::{Bench, Copy, Segments, code, number, opening, recovery};
use sheetanchor_core::identity::{ByteCount, NodeId, ThreadId, TimelineId};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::Code;
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::database::{Database, PageVerdict, State, Status};
use sheetanchor_native::postgres::WalRoad;
use sheetanchor_native::postgres::postmaster::StopMode;

#[tokio::test]
async fn a_backup_under_load_recovers_to_its_cut_and_so_does_one_of_the_restored_node() {
    let bench = Bench::new("load");
    let source = bench.server("first", &[]).await;
    let node = bench.node("first", NodeId::new(3));
    source.sql("CREATE TABLE mark (what text); CREATE UNLOGGED TABLE fleeting AS SELECT 1 AS one").await;
    source.pgbench(&["-i", "-s", "2", "-q"]).await;
    node.join(&crate::bench::joining()).await.unwrap();
    let load = source.load().await;

    let copy = Copy::take(&node, "backup-1").await;
    source.sql("INSERT INTO mark VALUES ('before')").await;
    let cut = node.cut_alone("cut-1").await.unwrap();
    assert_eq!(node.cut_alone("cut-1").await.unwrap(), cut, "a repeated call says the same");
    source.sql("INSERT INTO mark VALUES ('after')").await;
    load.stop();
    let wal = Segments::read(&node, copy.pinned, cut.proof).await;
    source.server.stop(StopMode::Fast).await.unwrap();

    let restored = bench.restored("second", &copy, NodeId::new(3)).await;
    let plan = recovery(&copy, &cut, "cut-1");
    assert_eq!(restored.status().await.unwrap().state, State::Down);
    restored.recover(&plan, &wal).await.unwrap();
    let reached = restored.status().await.unwrap();
    assert_eq!((reached.state, reached.end.lsn), (State::Reached, cut.until.lsn));
    restored.recover(&plan, &wal).await.expect("a repeated call does nothing more");
    // Another agent process finds it as it is.
    let restored = bench.node("second", NodeId::new(3));
    assert_eq!(restored.status().await.unwrap().state, State::Reached);
    restored.open(&opening()).await.unwrap();
    restored.open(&opening()).await.expect("a repeated call does nothing more");
    assert_eq!(restored.status().await.unwrap().state, State::Open);
    assert_eq!(restored.identity().await.unwrap(), node.identity().await.unwrap());
    assert_eq!(restored.pins().await.unwrap(), [], "a restored node owns no pins");

    let second = bench.client("second");
    assert_eq!(second.column("SELECT what FROM mark").await, ["before"]);
    assert_eq!(second.column("SELECT count(*)::text FROM fleeting").await, ["0"], "unlogged relations are empty");
    let sums = "SELECT concat_ws(' ', (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
        (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(delta) FROM pgbench_history))";
    let sums = second.column(sums).await.remove(0);
    let sums: Vec<i64> = sums.split(' ').map(number).collect();
    assert!(sums.iter().all(|sum| *sum == sums[0]), "transactions were torn: {sums:?}");
    let transactions = number(&second.column("SELECT count(*)::text FROM pgbench_history").await[0]);
    assert!(transactions > 0, "the load ran before the cut");
    bench.amcheck("second").await;

    // A backup of the restored node starts on its new timeline, and needs its history.
    restored.join(&crate::bench::joining()).await.unwrap();
    let copy = Copy::take(&restored, "backup-2").await;
    assert_eq!(copy.begun.start.timeline, TimelineId::new(2));
    second.sql("INSERT INTO mark VALUES ('second life')").await;
    let cut = restored.cut_alone("cut-2").await.unwrap();
    let wal = Segments::read(&restored, copy.pinned, cut.proof).await;
    restored.stop().await.unwrap();
    assert_eq!(restored.status().await.unwrap().state, State::Down);
    let third = bench.restored("third", &copy, NodeId::new(3)).await;
    third.recover(&recovery(&copy, &cut, "cut-2"), &wal).await.unwrap();
    third.open(&opening()).await.unwrap();
    assert_eq!(bench.client("third").column("SELECT what FROM mark ORDER BY 1").await, ["before", "second life"]);
    third.stop().await.unwrap();
    bench.page_checksums("third").await;
}

#[tokio::test]
async fn recovery_ends_at_the_cut_or_refuses() {
    let bench = Bench::new("refuse");
    let source = bench.server("source", &[("fsync", "off")]).await;
    let node = bench.node("source", NodeId::new(1));
    let copy = Copy::take(&node, "backup-1").await;
    let cut = node.cut_alone("cut-1").await.unwrap();
    source.sql("CREATE TABLE later (n int)").await;
    let later = node.cut_alone("cut-2").await.unwrap();
    let wal = Segments::read(&node, copy.pinned, later.proof).await;
    source.server.stop(StopMode::Fast).await.unwrap();
    let plan = recovery(&copy, &cut, "cut-1");

    // The cut's end, moved by one record's alignment.
    let mut moved = plan.clone();
    moved.threads.get_mut(&ThreadId::new(1)).unwrap().until = Lsn::new(cut.until.lsn.get() - 8);
    let node = bench.restored("moved", &copy, NodeId::new(1)).await;
    assert_eq!(code(node.recover(&moved, &wal).await), Code::CutMissed);
    assert_eq!(node.status().await.unwrap().state, State::Down, "its server was ended");

    let node = bench.restored("no-such-record", &copy, NodeId::new(1)).await;
    let mut other = plan.clone();
    other.record = "cut-9".to_owned();
    assert_eq!(code(node.recover(&other, &wal).await), Code::ThreadShort);
    assert_eq!(code(node.open(&opening()).await), Code::OutOfOrder, "it did not come to its cut");

    let node = bench.restored("short", &copy, NodeId::new(1)).await;
    assert_eq!(code(node.recover(&plan, &Segments(BTreeMap::new())).await), Code::ThreadShort);
    assert_eq!(code(node.open(&opening()).await), Code::OutOfOrder, "nothing was recovered");

    let mut damaged = Segments(wal.0.clone());
    let first = Lsn::new(copy.begun.start.lsn.get() & !0xFF_FFFF);
    damaged.damage(first, |bytes| bytes[8] ^= 1);
    assert_eq!(code(node.recover(&plan, &damaged).await), Code::WalDamaged);
    // What a failed attempt left is no hindrance.
    node.recover(&plan, &wal).await.unwrap();
    assert_eq!(code(node.recover(&other, &wal).await), Code::OutOfOrder, "it stands at another cut");
    // The machine fails after the cut was reached: opening goes there again, by what is in the folder.
    node.stop().await.unwrap();
    let status = node.status().await.unwrap();
    assert_eq!((status.state, status.end), (State::Reached, cut.until));
    assert_eq!(code(node.recover(&other, &wal).await), Code::OutOfOrder, "it stood at another cut");
    node.open(&opening()).await.unwrap();
    let tables = "SELECT count(*)::text FROM pg_class WHERE relname = 'later'";
    assert_eq!(bench.client("short").column(tables).await, ["0"]);
    node.stop().await.unwrap();

    // The machine fails after promotion, before the server was opened.
    let node = bench.restored("promoted", &copy, NodeId::new(1)).await;
    node.recover(&plan, &wal).await.unwrap();
    fs::remove_file(bench.path("promoted/sheetanchor.prepared")).unwrap();
    assert_eq!(node.status().await.unwrap().state, State::Down, "what is prepared there is not known yet");
    assert_eq!(code(node.open(&opening()).await), Code::OutOfOrder);
    node.recover(&plan, &wal).await.unwrap();
    assert_eq!(node.status().await.unwrap().state, State::Reached);
    node.recover(&plan, &wal).await.expect("a repeated call does nothing more");
    node.open(&opening()).await.unwrap();
    assert_eq!(bench.client("promoted").column(tables).await, ["0"]);
    node.stop().await.unwrap();

    let node = bench.restored("unlabelled", &copy, NodeId::new(1)).await;
    fs::remove_file(bench.path("unlabelled/backup_label")).unwrap();
    assert_eq!(code(node.recover(&plan, &wal).await), Code::RecoveryFailed);
}

#[tokio::test]
async fn a_backup_ends_with_its_session_and_a_pin_does_not() {
    let bench = Bench::new("lives");
    let source = bench.server("source", &[("fsync", "off")]).await;
    let node = bench.node("source", NodeId::new(1));
    let first = node.status().await.unwrap();
    let pinned = node.pin("backup-1").await.unwrap();
    assert_eq!(node.pin("backup-1").await.unwrap(), pinned, "a repeated call moves nothing");

    let begun = node.begin_backup("one").await.unwrap();
    assert_eq!(node.begin_backup("one").await.unwrap(), begun);
    node.begin_backup("two").await.unwrap();
    node.abandon_backup("two").await.unwrap();
    node.abandon_backup("two").await.unwrap();
    assert_eq!(code(node.end_backup("two").await), Code::LifeChanged);
    let ended = node.end_backup("one").await.unwrap();
    assert_eq!(node.end_backup("one").await.unwrap(), ended, "a repeated call says the same");
    assert!(ended.stop.lsn > begun.start.lsn && ended.files[0].0 == "backup_label");

    node.begin_backup("cut off").await.unwrap();
    let holds = "application_name = 'sheetanchor backup cut off'";
    source.sql(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {holds}")).await;
    assert_eq!(code(node.end_backup("cut off").await), Code::LifeChanged);

    node.begin_backup("killed").await.unwrap();
    source.server.stop(StopMode::Kill).await.unwrap();
    assert_eq!(node.status().await.unwrap().state, State::Down);
    assert_eq!(code(node.pin("backup-1").await), Code::DatabaseDown);
    source.start().await;
    assert_eq!(code(node.end_backup("killed").await), Code::LifeChanged);
    let second = node.status().await.unwrap();
    assert_eq!(second.state, State::Open);
    assert_ne!(first.life, second.life);
    assert_eq!(node.pins().await.unwrap()[0].from, pinned, "the pin outlives the crash");

    // A backend that dies takes all of shared memory with it: another life under the same postmaster.
    source.kill_a_backend().await;
    let is_another = |status: &Status| status.state == State::Open && status.life != second.life;
    crate::bench::eventually(async || node.status().await.ok().filter(is_another)).await;

    // A pin that is let go of while the database is down is gone once it is up.
    source.server.stop(StopMode::Kill).await.unwrap();
    node.pin("backup-2").await.expect_err("it is down");
    node.unpin("backup-1").await.unwrap();
    source.start().await;
    assert_eq!(node.pins().await.unwrap(), []);
    node.pin("backup-1").await.unwrap();
    node.unpin("backup-1").await.unwrap();
    node.unpin("backup-1").await.expect("one that is not there is no error");
    assert_eq!(node.pins().await.unwrap(), []);
}

#[tokio::test]
async fn pins_move_forward_only_and_say_when_they_lost_their_wal() {
    let bench = Bench::new("pins");
    let settings =
        [("fsync", "off"), ("max_slot_wal_keep_size", "16MB"), ("min_wal_size", "32MB"), ("max_wal_size", "32MB")];
    let source = bench.server("source", &settings).await;
    let node = bench.node_by("source", NodeId::new(1), WalRoad::Folder);
    let pinned = node.pin("archive").await.unwrap();
    let next = Lsn::new(pinned.lsn.get() + (16 << 20));
    node.cut_alone("one").await.unwrap();
    let piece = node.durable_wal(pinned, ByteCount::new(1)).await.unwrap().unwrap();
    assert_eq!((piece.from, piece.until, piece.bytes.len()), (pinned, next, 16 << 20));
    assert_eq!(
        node.durable_wal(Position { lsn: next, ..pinned }, ByteCount::new(1)).await.unwrap(),
        None,
        "it is being written"
    );
    let within = Position { lsn: Lsn::new(pinned.lsn.get() + 8), ..pinned };
    let rest = node.durable_wal(within, ByteCount::new(1)).await.unwrap().unwrap();
    assert_eq!((rest.from, rest.until, &rest.bytes[..]), (within, next, &piece.bytes[8..]), "an open segment's rest");
    let elsewhere = Position { timeline: TimelineId::new(7), ..pinned };
    assert_eq!(code(node.durable_wal(elsewhere, ByteCount::new(1)).await), Code::WalGap);

    node.advance_pin("archive", next).await.unwrap();
    node.advance_pin("archive", pinned.lsn).await.expect("going back does nothing");
    assert_eq!(node.pins().await.unwrap()[0].from.lsn, next);

    // Far more WAL than the server was allowed to keep: the slot is invalidated, and says so.
    for _ in 0..8 {
        source.sql("SELECT pg_logical_emit_message(false, 'fill', repeat('x', 100000)); SELECT pg_switch_wal()").await;
    }
    source.sql("CHECKPOINT").await;
    source.sql("CHECKPOINT").await;
    assert_eq!(code(node.pin("archive").await), Code::PinLost);
    assert_eq!(code(node.advance_pin("archive", next).await), Code::PinLost);
    assert_eq!(code(node.durable_wal(Position { lsn: next, ..pinned }, ByteCount::new(1)).await), Code::WalGap);
}

#[tokio::test]
async fn what_cannot_be_done_is_refused() {
    let bench = Bench::new("cannot");
    let _source = bench.server("source", &[("fsync", "off"), ("wal_level", "minimal"), ("max_wal_senders", "0")]).await;
    let node = bench.node("source", NodeId::new(1));
    let hold = sheetanchor_core::identity::HoldId::new(1);
    assert_eq!(code(node.close(hold, Duration::from_secs(2)).await), Code::NotSupported);
    assert_eq!(code(node.drain(hold).await), Code::HoldLost);
    assert_eq!(code(node.cut(hold, Scn::ZERO, "x").await), Code::HoldLost);
    node.release(hold).await.expect("one that does not stand is no error");
    assert_eq!(code(node.join(&crate::bench::joining()).await), Code::ConfigInvalid, "wal_level is minimal");
    assert_eq!(code(node.cut_alone(&"x".repeat(64)).await), Code::BadName);
    assert_eq!(code(node.pin("UPPER").await), Code::BadName);

    assert_eq!(
        code(node.durable_wal(crate::bench::nowhere(), ByteCount::new(1)).await),
        Code::OutOfOrder,
        "another's thread"
    );
    // Another server answers where this node's should: its connection names the wrong one.
    let other = bench.server("other", &[("fsync", "off")]).await;
    let confused = bench.node_at("source", "other", NodeId::new(1));
    assert_eq!(code(confused.pin("archive").await), Code::OtherNode);
    assert_eq!(code(confused.status().await), Code::OtherNode);
    drop(other);

    assert_eq!(bench.node("nothing", NodeId::new(1)).status().await.unwrap().state, State::Empty);
    assert_eq!(bench.node("nothing", NodeId::new(1)).identity().await.unwrap().system, "");
    assert_eq!(code(bench.node("nothing", NodeId::new(1)).join(&crate::bench::joining()).await), Code::DatabaseDown);

    // A link that nobody knows leads out of the data folder.
    std::os::unix::fs::symlink("/etc", bench.path("source/elsewhere")).unwrap();
    assert_eq!(code(node.files().await), Code::UnsafePath);
}

#[tokio::test]
async fn real_pages_hold_and_a_flipped_bit_in_any_is_found() {
    let bench = Bench::new("pages");
    let source = bench.server("source", &[("fsync", "off")]).await;
    let node = bench.node("source", NodeId::new(1));
    source.sql("CREATE TABLE wide AS SELECT repeat('x', 1000) AS t FROM generate_series(1, 2000); CHECKPOINT").await;
    let files = node.files().await.unwrap();
    source.server.stop(StopMode::Fast).await.unwrap();
    let mut pages = 0;
    for file in files.iter().filter(|file| file.name.starts_with("base/") || file.name.starts_with("global/")) {
        let Ok(mut bytes) = fs::read(bench.path(&format!("source/{}", file.name))) else { continue };
        assert_eq!(node.check_pages(&file.name, 0, &bytes), PageVerdict::Sound, "{}", file.name);
        let has_pages = file.name.rsplit('/').next().unwrap().starts_with(|letter: char| letter.is_ascii_digit());
        if !has_pages {
            continue;
        }
        for page in 0..bytes.len() / 8192 {
            bytes[page * 8192 + 4000] ^= 0x10;
            assert_eq!(
                node.check_pages(&file.name, 0, &bytes),
                PageVerdict::Fails(page as u64 * 8192),
                "{}",
                file.name
            );
            bytes[page * 8192 + 4000] ^= 0x10;
            pages += 1;
        }
    }
    assert!(pages > 500, "{pages} pages are too few to say anything");
}
