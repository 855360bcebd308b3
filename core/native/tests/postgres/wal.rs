//! The WAL reader on what real servers write, against PostgreSQL's own `pg_waldump`.

use std::collections::BTreeMap;
use std::fs;

use sheetanchor_core::identity::{ByteCount, NodeId, TimelineId};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::Code;
use sheetanchor_engine::database::Database;
use sheetanchor_native::postgres::WalRoad;
use sheetanchor_native::postgres::postmaster::StopMode;
use sheetanchor_native::postgres::wal_reader::{Event, Noted, Origin, Outcome, Reader, SegmentSize, Total};

use crate::bench::{Bench, Copy, Running, Segments, code, eventually, recovery};

/// What is in the folder of a server's WAL, in order, as one run of bytes.
struct Wal {
    origin: Origin,
    start: Lsn,
    bytes: Vec<u8>,
    first: String,
    last: String,
}

impl Wal {
    fn of(bench: &Bench, name: &str, system: &str) -> Self {
        let folder = bench.path(&format!("{name}/pg_wal"));
        let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.len() == 24).collect();
        names.sort();
        // Segments that are kept for later use have names beyond the end, and what was in them before.
        let address = |name: &str| {
            u64::from_str_radix(&name[8..16], 16).unwrap() << 32 | u64::from_str_radix(&name[16..], 16).unwrap() << 24
        };
        let in_use = |name: &String| {
            let bytes = fs::read(format!("{folder}/{name}")).unwrap();
            u64::from_ne_bytes(bytes[8..16].try_into().unwrap()) == address(name)
        };
        names.retain(in_use);
        let segment = SegmentSize::new(16 << 20).unwrap();
        Self {
            origin: Origin { system: system.parse().unwrap(), segment, timeline: TimelineId::new(1) },
            start: Lsn::new(address(&names[0])),
            bytes: names.iter().flat_map(|name| fs::read(format!("{folder}/{name}")).unwrap()).collect(),
            first: format!("{folder}/{}", names[0]),
            last: format!("{folder}/{}", names.last().unwrap()),
        }
    }

    /// Reads to the end, which is where a record would be and is none.
    fn read(&self, chunk: usize) -> (Reader, Vec<Noted>) {
        let (mut reader, mut noted) = (Reader::at_page_of(self.origin, self.start), Vec::new());
        let outcome = self.bytes.chunks(chunk).try_for_each(|bytes| reader.feed(bytes, &mut |event| noted.push(event)));
        let end = outcome.expect_err("the last segment is not full");
        assert_eq!((end.at, end.why.as_str()), (reader.whole_until(), "no record"), "{end}");
        assert!(end.may_be_torn_end(end.at));
        (reader, noted)
    }
}

/// Records and bytes by name of resource manager, as `pg_waldump --stats` counts them.
async fn waldump(wal: &Wal, end: Lsn) -> BTreeMap<String, Total> {
    let said = crate::bench::said("pg_waldump", &["--stats", "--end", &end.to_string(), &wal.first, &wal.last]).await;
    let mut totals = BTreeMap::new();
    for line in said.lines().filter(|line| line.contains('(') && !line.starts_with("Total")) {
        let (name, rest) = line.trim().split_once(' ').unwrap();
        // Count, its share, record bytes, share, bytes of page images, share, both, share.
        let numbers: Vec<u64> = rest.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        if let [records, _, _, bytes] = numbers[..]
            && records > 0
        {
            totals.insert(name.to_owned(), Total { records, bytes });
        }
    }
    totals
}

/// The resource managers by number, as `pg_waldump --rmgr=list` prints them.
async fn managers() -> Vec<String> {
    crate::bench::said("pg_waldump", &["--rmgr=list"]).await.lines().map(|line| line.trim().to_owned()).collect()
}

async fn load(bench: &Bench, server: &Running) {
    let tablespace = bench.own_folder("elsewhere").await;
    server.pgbench(&["-i", "-s", "3", "-q"]).await;
    server.sql(&format!("CREATE TABLESPACE elsewhere LOCATION '{tablespace}'")).await;
    server
        .sql(
            "CREATE TABLE wide TABLESPACE elsewhere AS SELECT n, repeat(md5(n::text), 40) AS t FROM generate_series(1, 20000) n; \
             CREATE INDEX ON wide USING gin (string_to_array(t, 'a')); CREATE INDEX ON wide USING hash (n); \
             TRUNCATE pgbench_history; CREATE SEQUENCE seq; SELECT nextval('seq'); VACUUM FULL wide; DROP TABLE wide; \
             CREATE DATABASE second; SELECT pg_logical_emit_message(false, 'long', repeat('x', 20000000))",
        )
        .await;
    server.pgbench(&["-n", "-c", "4", "-t", "400"]).await;
    server
        .batch(
            "BEGIN; CREATE TABLE two (n int); SAVEPOINT a; INSERT INTO two VALUES (1); SAVEPOINT b; INSERT INTO two VALUES (2); \
             DROP TABLE IF EXISTS pgbench_history; PREPARE TRANSACTION 'gid one'",
        )
        .await;
    server.batch("BEGIN; CREATE TABLE three (n int); PREPARE TRANSACTION 'gid-two'").await;
    server.sql("CHECKPOINT; COMMIT PREPARED 'gid one'; ROLLBACK PREPARED 'gid-two'").await;
    server
        .sql("SELECT pg_create_restore_point('here'); SELECT pg_switch_wal(); SELECT pg_create_restore_point('there')")
        .await;
}

async fn what_a_server_writes_is_read_as_pg_waldump_reads_it(test: &str, wal_level: &str) {
    let bench = Bench::new(test);
    let settings = [
        ("wal_level", wal_level),
        ("max_prepared_transactions", "10"),
        ("wal_keep_size", "2GB"),
        ("max_wal_size", "2GB"),
        ("fsync", "off"),
    ];
    let server = bench.server("source", &settings).await;
    let node = bench.node("source", NodeId::new(1));
    let system = node.identity().await.unwrap().system;
    load(&bench, &server).await;
    server.server.stop(StopMode::Fast).await.unwrap();

    let wal = Wal::of(&bench, "source", &system);
    let (reader, noted) = wal.read(1 << 20);
    let names = managers().await;
    let own =
        reader.totals().by_manager().into_iter().map(|(number, total)| (names[usize::from(number)].clone(), total));
    assert_eq!(own.collect::<BTreeMap<_, _>>(), waldump(&wal, reader.whole_until()).await);
    assert!(reader.totals().all().records > 10_000, "{:?}", reader.totals().all());
    let (again, same) = wal.read(997);
    assert!((again.totals(), &same) == (reader.totals(), &noted), "the pieces do not matter");

    let events: Vec<&Event> = noted.iter().map(|noted| &noted.event).collect();
    let points: Vec<&str> = events
        .iter()
        .filter_map(|event| if let Event::RestorePoint { name, .. } = event { Some(name.as_str()) } else { None })
        .collect();
    assert_eq!(points, ["here", "there"]);
    let prepared: BTreeMap<u32, &str> = events
        .iter()
        .filter_map(|event| {
            if let Event::Prepared { transaction, gid, .. } = event { Some((*transaction, gid.as_str())) } else { None }
        })
        .collect();
    let mut ended = Vec::new();
    for event in &events {
        if let Event::Ended { transaction, outcome, prepared: true, gid, .. } = event {
            let known = prepared[transaction];
            // The outcome names the transaction by its gid only for logical decoding.
            assert_eq!(gid.as_deref(), (wal_level == "logical").then_some(known));
            ended.push((known, *outcome));
        }
    }
    assert_eq!(ended, [("gid one", Outcome::Committed), ("gid-two", Outcome::Aborted)]);
    assert!(events.iter().any(|event| matches!(event, Event::Checkpoint { shutdown: false, .. })));
    let last = noted.last().unwrap();
    assert!(matches!(last.event, Event::Checkpoint { shutdown: true, redo, .. } if redo == last.start), "{last:?}");
}

#[tokio::test]
async fn wal_is_read_as_pg_waldump_reads_it() {
    what_a_server_writes_is_read_as_pg_waldump_reads_it("wal-replica", "replica").await;
}

#[tokio::test]
async fn wal_for_logical_decoding_is_read_as_pg_waldump_reads_it() {
    what_a_server_writes_is_read_as_pg_waldump_reads_it("wal-logical", "logical").await;
}

/// A bit of a real segment, here and there, in what is handed to the archive and in what comes back from it.
#[tokio::test]
async fn a_flipped_bit_in_a_real_segment_is_refused_on_its_way_in_and_out() {
    let bench = Bench::new("wal-bits");
    let source = bench.server("source", &[("fsync", "off"), ("wal_keep_size", "1GB")]).await;
    let node = bench.node_by("source", NodeId::new(1), WalRoad::Folder);
    let copy = Copy::take(&node, "backup-1").await;
    source.pgbench(&["-i", "-s", "2", "-q"]).await;
    let cut = node.cut_alone("cut-1").await.unwrap();
    let wal = Segments::read(&node, copy.pinned, cut.proof).await;
    assert!(wal.0.len() >= 2, "{} segments are too few", wal.0.len());

    let second = wal.0.values().nth(1).unwrap().clone();
    let path = bench.path(&format!("source/pg_wal/{:08X}{:08X}{:08X}", 1, 0, second.from.lsn.get() >> 24));
    for at in [16_u64, 100, 8192 + 12, 1 << 20, (16 << 20) - 5] {
        let mut bytes = second.bytes.to_vec();
        bytes[usize::try_from(at).unwrap()] ^= 0x20;
        fs::write(&path, &bytes).unwrap();
        let error = node.durable_wal(second.from, ByteCount::new(1)).await.expect_err(&format!("byte {at}"));
        assert_eq!(error.refusal().unwrap().code, Code::WalDamaged, "{error}");
        assert!(error.to_string().contains(" at 0/"), "{error}");
    }
    fs::write(&path, &second.bytes).unwrap();
    // Another process of the agent, which knows nothing of the segments before.
    let another = bench.node_by("source", NodeId::new(1), WalRoad::Folder);
    assert_eq!(another.durable_wal(second.from, ByteCount::new(1)).await.unwrap(), Some(second.clone()));

    source.server.stop(StopMode::Fast).await.unwrap();
    let mut damaged = Segments(wal.0.clone());
    damaged.damage(second.from.lsn, |bytes| bytes[3 << 20] ^= 1);
    let node = bench.restored("target", &copy, NodeId::new(1)).await;
    assert_eq!(code(node.recover(&recovery(&copy, &cut, "cut-1"), &damaged).await), Code::WalDamaged);
    node.recover(&recovery(&copy, &cut, "cut-1"), &wal).await.unwrap();
    node.stop().await.unwrap();
}

/// A record that a crash cut short at a page's end is given up by the server, and WAL goes on behind it.
#[tokio::test]
async fn the_chain_outlives_crashes_of_the_server() {
    let bench = Bench::new("wal-crash");
    let source = bench.server("source", &[("synchronous_commit", "off"), ("wal_keep_size", "1GB")]).await;
    let node = bench.node("source", NodeId::new(1));
    let system = node.identity().await.unwrap().system;
    source.pgbench(&["-i", "-s", "1", "-q"]).await;
    for _ in 0..4 {
        let load = source.load().await;
        tokio::time::sleep(std::time::Duration::from_millis(400)).await;
        source.server.stop(StopMode::Kill).await.unwrap();
        drop(load);
        source.start().await;
        eventually(async || node.status().await.ok().filter(|status| status.end.lsn > Lsn::new(0))).await;
    }
    source.server.stop(StopMode::Fast).await.unwrap();
    let (reader, noted) = Wal::of(&bench, "source", &system).read(1 << 20);
    assert!(reader.totals().all().records > 1000);
    let shutdowns =
        noted.iter().filter(|noted| matches!(noted.event, Event::Checkpoint { shutdown: true, .. })).count();
    assert!(shutdowns >= 5, "each recovery ends with one: {shutdowns}");
}
