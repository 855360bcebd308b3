//! WAL as real servers stream it: what arrives is what they hold, from one message to the next, over crashes and ends of
//! servers and agents; what is lost is said to be lost.

use std::fs;
use std::time::{Duration, Instant};

use sheetanchor_core::error::{FaultKind, Result};
use sheetanchor_core::identity::{ByteCount, NodeId, TimelineId};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::Code;
use sheetanchor_engine::database::{Database, State, WalPiece};
use sheetanchor_native::postgres::postmaster::StopMode;
use sheetanchor_native::postgres::{PostgresConfig, PostgresDatabase, WalRoad};

use crate::bench::{Bench, Copy, Running, Segments, code, eventually, opening, recovery};

const NODE: NodeId = NodeId::new(1);
const SEGMENT: u64 = 16 << 20;

/// A road on which an open segment waits for `every`.
fn stream(every: Duration) -> WalRoad {
    WalRoad::Stream { every }
}

/// An open segment waits for a cut alone.
fn patient() -> WalRoad {
    stream(Duration::from_hours(1))
}

async fn wal(node: &PostgresDatabase, from: Position) -> Option<WalPiece> {
    try_wal(node, from).await.unwrap()
}

async fn try_wal(node: &PostgresDatabase, from: Position) -> Result<Option<WalPiece>> {
    node.durable_wal(from, ByteCount::new(1 << 20)).await
}

/// What an archive does, without a repository.
struct Archive {
    next: Position,
    bytes: Vec<u8>,
    ends: Vec<Lsn>,
}

impl Archive {
    async fn of(node: &PostgresDatabase) -> Self {
        Self { next: node.pin("archive").await.unwrap(), bytes: Vec::new(), ends: Vec::new() }
    }

    /// Takes a piece, if there is one, and says so.
    async fn take(&mut self, node: &PostgresDatabase) -> Option<Lsn> {
        let piece = wal(node, self.next).await?;
        Some(self.keep(piece))
    }

    fn keep(&mut self, piece: WalPiece) -> Lsn {
        assert_eq!(piece.from, self.next);
        assert_eq!(piece.bytes.len() as u64, piece.until.get() - piece.from.lsn.get());
        assert!(piece.until.get() <= (piece.from.lsn.get() / SEGMENT + 1) * SEGMENT, "within one segment");
        self.next.lsn = piece.until;
        self.bytes.extend(piece.bytes);
        self.ends.push(piece.until);
        piece.until
    }

    /// Takes a piece of an open server, if there is one, and lets the server know. It may close at any moment.
    async fn take_while_open(&mut self, node: &PostgresDatabase) -> Result<()> {
        if node.status().await?.state == State::Open
            && let Some(piece) = try_wal(node, self.next).await?
        {
            let until = self.keep(piece);
            node.advance_pin("archive", until).await?;
        }
        Ok(())
    }

    async fn reach(&mut self, node: &PostgresDatabase, until: Lsn) {
        let begun = Instant::now();
        while self.next.lsn < until {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "the archive stands at {}, before {until}",
                self.next.lsn
            );
            if self.take(node).await.is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// What is there is what the server has in its folder.
    fn compare(&self, bench: &Bench, name: &str) {
        let start = self.next.lsn.get() - self.bytes.len() as u64;
        for (number, archived) in (start / SEGMENT..).zip(self.bytes.chunks(16 << 20)) {
            let path = format!("{name}/pg_wal/{:08X}{:08X}{number:08X}", self.next.timeline.get(), 0);
            let file = fs::read(bench.path(&path)).unwrap();
            assert!(file.starts_with(archived), "{path} is not what was streamed");
        }
    }
}

async fn restart_lsn(bench: &Bench) -> Lsn {
    let sql = "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = 'sheetanchor_archive'";
    bench.client("source").column(sql).await[0].parse().unwrap()
}

#[tokio::test]
async fn what_is_streamed_is_what_the_server_holds_and_is_let_go_of_only_once_archived() {
    let bench = Bench::new("stream");
    let source = bench.server("source", &[("wal_keep_size", "1GB")]).await;
    let node = bench.node_by("source", NODE, stream(Duration::ZERO));
    node.join(&crate::bench::joining()).await.unwrap();
    let mut archive = Archive::of(&node).await;
    let first = restart_lsn(&bench).await;
    source.pgbench(&["-i", "-s", "3", "-q"]).await;
    let load = source.load().await;
    while archive.bytes.len() < 40 << 20 {
        archive.take(&node).await;
    }
    load.stop();
    assert!(archive.ends.iter().any(|end| end.get() % SEGMENT != 0), "open segments, too: {:?}", archive.ends);
    assert!(archive.ends.iter().any(|end| end.get() % SEGMENT == 0), "and whole ones");
    archive.compare(&bench, "source");

    // All of it has arrived; nothing of it is archived.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(restart_lsn(&bench).await, first, "the server keeps what the archive does not have");
    let half = Lsn::new(archive.next.lsn.get() - (8 << 20));
    node.advance_pin("archive", half).await.unwrap();
    eventually(async || (restart_lsn(&bench).await == half).then_some(())).await;
    node.advance_pin("archive", first).await.expect("going back does nothing");
    assert_eq!(restart_lsn(&bench).await, half);
    // What could not be stored is asked for again.
    let last = Position { lsn: half, ..archive.next };
    assert!(eventually(async || wal(&node, last).await).await.until > half);
    // Nor does a stream that has begun anew lead it back.
    drop(node);
    let node = bench.node_by("source", NODE, stream(Duration::ZERO));
    eventually(async || wal(&node, last).await).await;
    node.advance_pin("archive", first).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(restart_lsn(&bench).await, half, "the server was led back");
    let later = Lsn::new(half.get() + (1 << 20));
    node.advance_pin("archive", later).await.unwrap();
    eventually(async || (restart_lsn(&bench).await == later).then_some(())).await;
}

#[tokio::test]
async fn an_open_segment_is_archived_when_a_cut_waits_for_it_and_at_intervals() {
    let bench = Bench::new("stream-open");
    let source = bench.server("source", &[]).await;
    let node = bench.node_by("source", NODE, patient());
    let mut archive = Archive::of(&node).await;
    source.sql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await;
    assert_eq!(archive.take(&node).await, None, "nobody waits for it");
    let cut = node.cut_alone("cut-1").await.unwrap();
    let begun = Instant::now();
    archive.reach(&node, cut.proof).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(cut.proof.get() % SEGMENT != 0 && archive.next.lsn.get() % SEGMENT != 0, "its segment is open");
    source.sql("INSERT INTO t VALUES (2)").await;
    assert_eq!(archive.take(&node).await, None, "nobody waits for that");
    drop(node);

    let node = bench.node_by("source", NODE, stream(Duration::from_secs(1)));
    let durable = node.status().await.unwrap().end.lsn;
    let begun = Instant::now();
    archive.reach(&node, durable).await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    archive.compare(&bench, "source");
    // The other road goes on where this one stood, inside a segment.
    drop(node);
    source.sql("SELECT pg_switch_wal(); INSERT INTO t VALUES (3)").await;
    let node = bench.node_by("source", NODE, WalRoad::Folder);
    archive.take(&node).await.unwrap();
    assert_eq!(archive.next.lsn.get() % SEGMENT, 0);
    archive.compare(&bench, "source");
}

#[tokio::test]
async fn a_stream_goes_on_after_crashes_of_the_server_and_of_the_agent() {
    let bench = Bench::new("stream-crash");
    let source = bench.server("source", &[("wal_keep_size", "1GB")]).await;
    let mut node = bench.node_by("source", NODE, stream(Duration::ZERO));
    let mut archive = Archive::of(&node).await;
    source.pgbench(&["-i", "-s", "1", "-q"]).await;
    for round in 0..4 {
        let load = source.load().await;
        let until = Instant::now() + Duration::from_millis(700);
        while Instant::now() < until {
            archive.take(&node).await;
        }
        if round % 2 == 0 {
            node = bench.node_by("source", NODE, stream(Duration::ZERO));
        }
        source.server.stop(StopMode::Kill).await.unwrap();
        drop(load);
        assert_eq!(code(node.durable_wal(archive.next, ByteCount::new(1)).await), Code::DatabaseDown);
        source.start().await;
    }
    let end = node.status().await.unwrap().end.lsn;
    archive.reach(&node, end).await;
    archive.compare(&bench, "source");
}

/// A restored server is on a timeline of its own, whose first segment begins with a copy of its parent's.
#[tokio::test]
async fn a_backup_that_ends_in_an_open_segment_is_restored_and_the_new_timeline_is_streamed() {
    let bench = Bench::new("stream-timeline");
    let source = bench.server("source", &[]).await;
    let node = bench.node_by("source", NODE, patient());
    node.join(&crate::bench::joining()).await.unwrap();
    let mut archive = Archive::of(&node).await;
    let copy = Copy::take(&node, "backup-1").await;
    source.sql("CREATE TABLE t AS SELECT 1 AS n").await;
    let cut = node.cut_alone("cut-1").await.unwrap();
    archive.reach(&node, cut.proof).await;
    let segments = Segments::read(&node, copy.begun.start, cut.proof).await;
    assert!(segments.0.values().any(|piece| piece.until.get() % SEGMENT != 0), "the last piece is of an open segment");
    source.sql("INSERT INTO t VALUES (2)").await;
    let later = archive.next;
    source.server.stop(StopMode::Kill).await.unwrap();

    let restored = bench.restored("restored", &copy, NODE).await;
    restored.recover(&recovery(&copy, &cut, "cut-1"), &segments).await.unwrap();
    restored.open(&opening()).await.unwrap();
    assert_eq!(bench.client("restored").column("SELECT n::text FROM t").await, ["1"]);
    restored.join(&crate::bench::joining()).await.unwrap();
    assert_eq!(code(restored.durable_wal(later, ByteCount::new(1)).await), Code::WalGap, "the older timeline is over");
    let mut archive = Archive::of(&restored).await;
    assert_eq!(archive.next.timeline, TimelineId::new(2));
    let cut = restored.cut_alone("cut-2").await.unwrap();
    archive.reach(&restored, cut.proof).await;
    archive.compare(&bench, "restored");
    restored.stop().await.unwrap();
}

#[tokio::test]
async fn a_restore_in_one_process_does_not_wait_for_what_was_wanted_before() {
    let bench = Bench::new("stream-again");
    let _source = bench.server("source", &[("fsync", "off")]).await;
    let node = bench.node_by("source", NODE, patient());
    node.join(&crate::bench::joining()).await.unwrap();
    let mut archive = Archive::of(&node).await;
    let copy = Copy::take(&node, "backup-1").await;
    let cut = node.cut_alone("cut-1").await.unwrap();
    archive.reach(&node, cut.proof).await;
    let segments = Segments::read(&node, copy.begun.start, cut.proof).await;
    // The second restore begins the timeline of the first one again, from an earlier place than it had come to.
    for round in 1..=2 {
        bench.client("source").sql("SELECT pg_logical_emit_message(false, 'fill', repeat('x', 20000000))").await;
        let far = node.cut_alone(&format!("far-{round}")).await.unwrap();
        node.stop().await.unwrap();
        fs::remove_dir_all(bench.path("source")).unwrap();
        bench.restored("source", &copy, NODE).await;
        node.recover(&recovery(&copy, &cut, "cut-1"), &segments).await.unwrap();
        node.open(&opening()).await.unwrap();
        node.join(&crate::bench::joining()).await.unwrap();
        let mut archive = Archive::of(&node).await;
        assert_eq!(archive.next.timeline, TimelineId::new(2));
        assert_eq!(archive.take(&node).await, None, "nobody waits for it");
        let near = node.cut_alone(&format!("near-{round}")).await.unwrap();
        assert!(near.proof < far.proof);
        archive.reach(&node, near.proof).await;
    }
    node.stop().await.unwrap();
}

#[tokio::test]
async fn wal_that_is_gone_is_a_gap_for_ever_and_a_lost_slot_is_not_used_again() {
    let bench = Bench::new("stream-lost");
    let settings =
        [("fsync", "off"), ("max_slot_wal_keep_size", "16MB"), ("min_wal_size", "32MB"), ("max_wal_size", "32MB")];
    let source = bench.server("source", &settings).await;
    let node = bench.node_by("source", NODE, stream(Duration::ZERO));
    let mut archive = Archive::of(&node).await;
    let first = archive.next;
    archive.reach(&node, Lsn::new(first.lsn.get() + 1)).await;
    drop(node);
    for _ in 0..8 {
        source.sql("SELECT pg_logical_emit_message(false, 'fill', repeat('x', 100000)); SELECT pg_switch_wal()").await;
    }
    source.sql("CHECKPOINT; CHECKPOINT").await;
    let node = bench.node_by("source", NODE, stream(Duration::ZERO));
    assert_eq!(code(node.durable_wal(archive.next, ByteCount::new(1)).await), Code::PinLost);
    // On some releases a lost slot streams from a later place, and looks sound again: that must not be tried.
    let later = Position { lsn: Lsn::new(node.status().await.unwrap().end.lsn.get() / SEGMENT * SEGMENT), ..first };
    assert_eq!(code(node.durable_wal(later, ByteCount::new(1)).await), Code::PinLost);
    // A new slot keeps what comes, and brings nothing back.
    node.unpin("archive").await.unwrap();
    node.pin("archive").await.unwrap();
    for _ in 0..2 {
        assert_eq!(code(node.durable_wal(archive.next, ByteCount::new(1)).await), Code::WalGap);
    }
    eventually(async || wal(&node, later).await).await;
}

#[tokio::test]
async fn what_is_damaged_on_its_way_is_refused_and_goes_on_once_it_is_whole() {
    let bench = Bench::new("stream-bits");
    let source = bench.server("source", &[("fsync", "off"), ("wal_keep_size", "1GB")]).await;
    let node = bench.node_by("source", NODE, patient());
    let mut archive = Archive::of(&node).await;
    source.pgbench(&["-i", "-s", "2", "-q"]).await;
    let path = bench.path(&format!("source/pg_wal/{:08X}{:08X}{:08X}", 1, 0, archive.next.lsn.get() >> 24));
    let whole = fs::read(&path).unwrap();
    for at in [8192 + 12, 5 << 20, (16 << 20) - 5] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x20;
        fs::write(&path, &bytes).unwrap();
        let refused = eventually(async || node.durable_wal(archive.next, ByteCount::new(1)).await.err()).await;
        assert_eq!(refused.refusal().unwrap().code, Code::WalDamaged, "byte {at}: {refused}");
    }
    fs::write(&path, &whole).unwrap();
    archive.reach(&node, Lsn::new(archive.next.lsn.get() + SEGMENT)).await;
    assert!(archive.bytes == whole);
}

/// Stops a server while somebody archives, or nobody does; says how long that took.
async fn stopped(source: &Running, node: &PostgresDatabase, archive: Option<&mut Archive>) -> Duration {
    let begun = Instant::now();
    let Some(archive) = archive else {
        source.server.stop(StopMode::Fast).await.unwrap();
        return begun.elapsed();
    };
    let archiving = async {
        // As an agent does it: only what is open is archived.
        loop {
            if let Err(error) = archive.take_while_open(node).await {
                let is_down = error.refusal().is_some_and(|refusal| refusal.code == Code::DatabaseDown);
                assert!(is_down || error.is(FaultKind::Unreachable), "{error}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        biased;
        stopped = source.server.stop(StopMode::Fast) => stopped.unwrap(),
        () = archiving => {}
    }
    begun.elapsed()
}

#[tokio::test]
async fn the_last_wal_of_a_server_that_is_stopped_is_archived_and_nobody_holds_its_stop_up() {
    let bench = Bench::new("stream-stop");
    // It asks every second how far the archive is.
    let source = bench.server("source", &[("wal_sender_timeout", "2s")]).await;
    let node = bench.node_by("source", NODE, patient());
    let mut archive = Archive::of(&node).await;
    source.sql("CREATE TABLE t AS SELECT 1 AS n").await;
    assert_eq!(archive.take(&node).await, None);
    // A server waits for those who stream when it is told to stop, and for nobody who comes later.
    // Whoever answers that all has come, and keeps none of it, is not waited for.
    let streaming = "SELECT state FROM pg_stat_replication WHERE reply_time > backend_start + interval '1 s'";
    eventually(async || (source.client.column(streaming).await == ["streaming"]).then_some(())).await;
    let took = stopped(&source, &node, Some(&mut archive)).await;
    assert!(took < Duration::from_secs(4), "{took:?}");
    archive.compare(&bench, "source");
    let said = crate::bench::said("pg_controldata", &["-D", &bench.path("source")]).await;
    let last = said.lines().find_map(|line| line.strip_prefix("Latest checkpoint location:")).unwrap();
    let last: Lsn = last.trim().parse().unwrap();
    assert!(archive.next.lsn > last, "the server's last record at {last} is archived: {}", archive.next.lsn);

    source.start().await;
    let cut = node.cut_alone("cut-1").await.unwrap();
    archive.reach(&node, cut.proof).await;
    let took = stopped(&source, &node, None).await;
    assert!(took < Duration::from_secs(15), "an archive that stands still held the server's stop up for {took:?}");
}

#[tokio::test]
async fn a_password_is_proven_by_scram_and_what_does_not_let_us_replicate_is_said() {
    let bench = Bench::new("stream-scram");
    let source = bench.server("source", &[]).await;
    source.sql("CREATE ROLE archivist SUPERUSER LOGIN PASSWORD 'anchor''s'").await;
    let hba = bench.path("source/pg_hba.conf");
    let config = bench.config("source", "source", NODE);
    let with = |password: &str| {
        let connection = config.connection.replace("user=postgres", "user=archivist") + " password=" + password;
        PostgresDatabase::new(PostgresConfig { connection, ..config.clone() }).unwrap()
    };
    let hba_of = async |lines: &str| {
        fs::write(&hba, format!("local all postgres trust\n{lines}\n")).unwrap();
        source.sql("SELECT pg_reload_conf()").await;
    };
    for method in ["scram-sha-256", "password", "trust"] {
        hba_of(&format!("local all archivist {method}\nlocal replication archivist {method}")).await;
        let node = with("anchor\\'s");
        eventually(async || node.join(&crate::bench::joining()).await.ok()).await;
        let mut archive = Archive::of(&node).await;
        let cut = node.cut_alone(&format!("cut by {method}")).await.unwrap();
        archive.reach(&node, cut.proof).await;
    }
    // The method `md5` takes a password of either kind: here one that is kept as MD5.
    source.sql("SET password_encryption = 'md5'; ALTER ROLE archivist PASSWORD 'anchor''s'").await;
    let kept = "SELECT left(rolpassword, 3) FROM pg_authid WHERE rolname = 'archivist'";
    assert_eq!(source.client.column(kept).await, ["md5"]);
    hba_of("local all archivist md5\nlocal replication archivist md5").await;
    let node = with("anchor\\'s");
    eventually(async || node.join(&crate::bench::joining()).await.ok()).await;
    let mut archive = Archive::of(&node).await;
    let cut = node.cut_alone("cut by md5").await.unwrap();
    archive.reach(&node, cut.proof).await;
    source.sql("ALTER ROLE archivist PASSWORD 'anchor''s'").await;
    hba_of("local all archivist trust\nlocal replication archivist scram-sha-256").await;
    let wrong = with("else");
    eventually(async || wrong.join(&crate::bench::joining()).await.is_err().then_some(())).await;
    assert_eq!(code(wrong.join(&crate::bench::joining()).await), Code::ConfigInvalid, "another password");
    hba_of("local all archivist trust").await;
    let error = eventually(async || {
        let error = with("x").join(&crate::bench::joining()).await.unwrap_err();
        error.to_string().contains("pg_hba.conf needs a line for `replication`").then_some(error)
    });
    assert_eq!(error.await.refusal().unwrap().code, Code::ConfigInvalid);
    let folder = PostgresConfig { wal: WalRoad::Folder, ..config.clone() };
    PostgresDatabase::new(folder).unwrap().join(&crate::bench::joining()).await.expect("that road needs none");
}
