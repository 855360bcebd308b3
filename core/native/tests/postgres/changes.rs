//! Change maps against the files themselves: what a map does not name is byte for byte what it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use sheetanchor_core::changes::{ChangeMap, Changed};
use sheetanchor_core::identity::NodeId;
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_engine::database::{Database, SourceKind};
use sheetanchor_native::postgres::install::Install;
use sheetanchor_native::postgres::postmaster::StopMode;
use sheetanchor_native::postgres::{PostgresDatabase, WalRoad};

use crate::bench::{Bench, Client, Running, Segments, eventually, program};

const BLOCK: usize = 8192;

/// A server's files when a backup had begun and nobody else was about.
struct Seen {
    pinned: Position,
    start: Position,
    files: BTreeMap<String, Vec<u8>>,
}

impl Seen {
    /// Begins a backup, asks what changed since `before`, and reads the files.
    async fn after(node: &PostgresDatabase, label: &str, before: Option<&Self>) -> (Self, Option<ChangeMap>) {
        let pinned = node.pin(label).await.unwrap();
        let start = node.begin_backup(label).await.unwrap().start;
        let map = match before {
            Some(before) => {
                let wal = Segments::read(node, before.pinned, start.lsn).await;
                node.changes(before.start, start, &wal).await.unwrap()
            }
            None => None,
        };
        let mut files = BTreeMap::new();
        for file in node.files().await.unwrap() {
            if let SourceKind::File { .. } = file.kind {
                let bytes = fs::read(format!("{}/{}", node.data_folder(), file.name)).unwrap();
                files.insert(file.name, bytes);
            }
        }
        node.end_backup(label).await.unwrap();
        (Self { pinned, start, files }, map)
    }
}

/// How well a map tells what changed between two looks at the files, in blocks of files that are there at both.
#[derive(Debug, Default)]
struct Score {
    /// Blocks that differ and are told.
    found: usize,
    /// Blocks that are told one by one and do not differ.
    idle: usize,
    /// Blocks that do not differ, of files that are told as a whole.
    idle_in_whole: usize,
    /// Blocks that are told to be the same.
    same: usize,
}

/// Fails where a block differs that the map does not tell. The first page of an SP-GiST index remembers pages that had room,
/// which is not logged, and which nobody relies on: in that of the file `sp_gist` that much may differ.
fn compare(before: &Seen, now: &Seen, map: &ChangeMap, sp_gist: &str) -> Score {
    let (mut score, mut missed) = (Score::default(), Vec::new());
    for (name, bytes) in &now.files {
        let Some(old) = before.files.get(name) else { continue };
        if bytes.len() < old.len() && map.of(name) != Changed::Whole {
            missed.push(format!("{name} is shorter"));
        }
        for (number, (one, other)) in (0_u64..).zip(old.chunks(BLOCK).zip(bytes.chunks(BLOCK))) {
            // A last block that has grown is past the old end.
            let differs = match (name == sp_gist, number) {
                (true, 0) => one[..8] != other[..8] || one[10..28] != other[10..28] || one[92..] != other[92..],
                _ => one != &other[..one.len().min(other.len())],
            };
            match map.of_until(name, (number + 1) * 8192) {
                Changed::Whole if differs => score.found += 1,
                Changed::Whole => score.idle_in_whole += 1,
                Changed::Blocks { numbers, .. } if numbers.contains(&number) && differs => score.found += 1,
                Changed::Blocks { numbers, .. } if numbers.contains(&number) => score.idle += 1,
                Changed::Same | Changed::Blocks { .. } if differs => missed.push(format!("{name} block {number}")),
                Changed::Same | Changed::Blocks { .. } => score.same += 1,
            }
        }
    }
    assert_eq!(missed, [""; 0], "these differ, and nothing was said");
    score
}

async fn settle(bench: &Bench, server: &Running) {
    let folder = bench.own_folder("elsewhere").await;
    server.sql(&format!("CREATE TABLESPACE apart LOCATION '{folder}'")).await;
    server.pgbench(&["-i", "-s", "2", "-q"]).await;
    server
        .sql(
            "CREATE TABLE still AS SELECT n FROM generate_series(1, 50000) n; \
             CREATE TABLE one AS SELECT n, repeat('x', 100) AS t FROM generate_series(1, 20000) n; \
             CREATE TABLE hinted AS SELECT n FROM generate_series(1, 20000) n; \
             CREATE TABLE tail AS SELECT n, repeat('y', 100) AS t FROM generate_series(1, 20000) n; \
             CREATE TABLE emptied AS SELECT n FROM generate_series(1, 20000) n; \
             CREATE TABLE dropped AS SELECT n FROM generate_series(1, 20000) n; \
             CREATE TABLE full_of_it AS SELECT n, md5(n::text) AS t FROM generate_series(1, 20000) n; \
             CREATE TABLE moved AS SELECT n FROM generate_series(1, 20000) n; \
             CREATE TABLE settled TABLESPACE apart AS SELECT n FROM generate_series(1, 20000) n; \
             CREATE TABLE indexed AS SELECT n, point(n, -n) AS p, array[n, n % 7] AS a, md5(n::text) AS t \
               FROM generate_series(1, 20000) n; \
             CREATE INDEX ON indexed (n); CREATE INDEX ON indexed USING hash (n); CREATE INDEX ON indexed USING gin (a); \
             CREATE INDEX ON indexed USING gist (p); CREATE INDEX by_room ON indexed USING spgist (p); \
             CREATE INDEX ON indexed USING brin (n); CREATE TABLE two (n int); \
             CREATE UNLOGGED TABLE fleeting AS SELECT n FROM generate_series(1, 20000) n; \
             CREATE SEQUENCE counted; SELECT nextval('counted'); SELECT lo_create(4711); \
             CREATE DATABASE gone; CREATE DATABASE kept; SELECT count(*) FROM one; SELECT count(*) FROM still; \
             VACUUM one; VACUUM still; VACUUM tail; VACUUM indexed",
        )
        .await;
}

/// Whatever changes files.
async fn wild(server: &Running, major: u32) {
    server.pgbench(&["-n", "-c", "4", "-t", "150"]).await;
    server
        .sql(
            "UPDATE one SET n = -n WHERE n = 7000; SELECT count(*) FROM hinted; DELETE FROM tail WHERE n > 3000; VACUUM tail; \
             INSERT INTO tail SELECT n, 'z' FROM generate_series(1, 3000) n; TRUNCATE emptied; \
             INSERT INTO emptied VALUES (1); DROP TABLE dropped; CREATE TABLE fresh AS SELECT n FROM generate_series(1, 9) n; \
             VACUUM FULL full_of_it; DELETE FROM full_of_it WHERE n % 3 = 0; VACUUM (FREEZE) full_of_it; \
             ALTER TABLE moved SET TABLESPACE apart; UPDATE settled SET n = 0 WHERE n = 9; \
             DELETE FROM indexed WHERE n % 11 = 0; VACUUM indexed; REINDEX TABLE pg_class; \
             INSERT INTO indexed SELECT n, point(n, n), array[n, 3], 'q' FROM generate_series(1, 5000) n; \
             UPDATE indexed SET p = point(1, n), a = array[1] WHERE n % 500 = 0; ALTER TABLE fleeting SET LOGGED; \
             ALTER TABLE two SET UNLOGGED; ALTER TABLE two SET LOGGED; SELECT nextval('counted') FROM generate_series(1, 40); \
             SELECT lowrite(lo_open(4711, 131072), repeat('l', 30000)::bytea); CREATE INDEX ON full_of_it (t); \
             CREATE TEMP TABLE passing AS SELECT 1; DROP DATABASE gone; ALTER DATABASE kept SET TABLESPACE apart; \
             CREATE MATERIALIZED VIEW seen AS SELECT * FROM one; REFRESH MATERIALIZED VIEW seen; CLUSTER pgbench_branches \
               USING pgbench_branches_pkey; ANALYZE",
        )
        .await;
    // Its files come back by one record, and what changed meanwhile was said of other names.
    let kept = Client { connection: server.client.connection.replace("dbname=postgres", "dbname=kept") };
    kept.sql("CREATE TABLE inner_one AS SELECT 1; COMMENT ON SCHEMA public IS 'changed'").await;
    server.sql("ALTER DATABASE kept SET TABLESPACE pg_default").await;
    for ways in if major < 15 { &[""][..] } else { &[" STRATEGY file_copy", " STRATEGY wal_log"] } {
        server.sql(&format!("CREATE DATABASE made{}{ways}", ways.len())).await;
    }
    let prepare =
        "SAVEPOINT a; INSERT INTO two VALUES (1); ROLLBACK TO a; DROP TABLE fresh; CREATE TABLE three (n int)";
    server.batch(&format!("BEGIN; {prepare}; PREPARE TRANSACTION 'one'")).await;
    server.batch("BEGIN; CREATE TABLE four AS SELECT 1; PREPARE TRANSACTION 'two'").await;
    server.batch("BEGIN; CREATE TABLE five AS SELECT 1; TRUNCATE two; ROLLBACK").await;
    server.sql("COMMIT PREPARED 'one'; ROLLBACK PREPARED 'two'; VACUUM (TRUNCATE off)").await;
}

/// The name of the file, and the number, of each block that a server of 17 or later has in its own summaries of that WAL.
async fn summarized(server: &Running, before: &Seen, redo: Lsn) -> BTreeSet<(String, u64)> {
    let since = before.start.lsn;
    let done = format!("SELECT '' FROM pg_get_wal_summarizer_state() WHERE summarized_lsn >= '{redo}'");
    eventually(async || server.client.column(&done).await.pop()).await;
    let sql = format!(
        "SELECT CASE reltablespace WHEN 1664 THEN 'global' WHEN 1663 THEN 'base/' || reldatabase \
           ELSE 'pg_tblspc/' || reltablespace || '/' || (SELECT pg_ls_dir('pg_tblspc/' || reltablespace) LIMIT 1) \
             || '/' || reldatabase END \
         || '/' || relfilenode || CASE relforknumber WHEN 2 THEN '_vm' WHEN 3 THEN '_init' ELSE '' END || ' ' || relblocknumber \
         FROM pg_available_wal_summaries() s, pg_wal_summary_contents(s.tli, s.start_lsn, s.end_lsn) \
         WHERE s.start_lsn >= '{since}' AND s.end_lsn <= '{redo}' AND relfilenode <> 0 AND NOT is_limit_block"
    );
    let said = server.client.column(&sql).await;
    let block = |line: &String| line.split_once(' ').map(|(name, number)| (name.to_owned(), number.parse().unwrap()));
    said.iter().filter_map(block).collect()
}

async fn check_summaries(server: &Running, before: &Seen, now: &Seen, map: &ChangeMap) {
    let redo = server.client.column("SELECT redo_lsn::text FROM pg_control_checkpoint()").await;
    let theirs = summarized(server, before, redo[0].parse().unwrap()).await;
    assert!(theirs.len() > 500, "{} blocks", theirs.len());
    let missed = theirs.iter().filter(|(name, number)| match map.of(name) {
        Changed::Whole => false,
        Changed::Same => true,
        Changed::Blocks { numbers, .. } => !numbers.contains(number),
    });
    assert_eq!(missed.collect::<Vec<_>>(), Vec::<&(String, u64)>::new());
    let mut more = BTreeSet::new();
    for name in now.files.keys() {
        if let Changed::Blocks { numbers, .. } = map.of(name) {
            more.extend(numbers.iter().map(|number| (name.clone(), *number)));
        }
    }
    more.retain(|block| !theirs.contains(block));
    assert_eq!(more, BTreeSet::new(), "the server knows nothing of these");
}

async fn file_of(server: &Running, table: &str) -> String {
    server.client.column(&format!("SELECT pg_relation_filepath('{table}')")).await.pop().unwrap()
}

async fn numbers(server: &Running, map: &ChangeMap, table: &str) -> Option<usize> {
    match map.of(&file_of(server, table).await) {
        Changed::Same => Some(0),
        Changed::Blocks { numbers, .. } => Some(numbers.len()),
        Changed::Whole => None,
    }
}

#[tokio::test]
async fn no_block_changes_that_the_map_does_not_tell() {
    let bench = Bench::new("changes");
    let major = Install::find(None, None).await.unwrap().major().unwrap();
    let mut settings = vec![
        ("autovacuum", "off"),
        ("bgwriter_lru_maxpages", "0"),
        ("max_prepared_transactions", "8"),
        ("wal_keep_size", "4GB"),
        ("fsync", "off"),
    ];
    if major >= 17 {
        settings.push(("summarize_wal", "on"));
    }
    let server = bench.server("source", &settings).await;
    let node = bench.node_by("source", NodeId::new(1), WalRoad::Folder);
    settle(&bench, &server).await;
    let (before, _) = Seen::after(&node, "a", None).await;
    wild(&server, major).await;
    let (now, map) = Seen::after(&node, "b", Some(&before)).await;
    let map = map.expect("nothing happened that cannot be told");
    let sp_gist = file_of(&server, "by_room").await;
    let score = compare(&before, &now, &map, &sp_gist);
    eprintln!("{score:?} of {} files", now.files.len());
    assert!(score.found > 1000 && score.idle * 20 < score.found && score.same > 2000, "{score:?}");
    assert_eq!(numbers(&server, &map, "still").await, Some(0));
    assert_eq!(numbers(&server, &map, "one").await, Some(2), "the old row's block and the new one's");
    assert_eq!(numbers(&server, &map, "tail").await, None);
    assert!(numbers(&server, &map, "hinted").await > Some(50), "a first hint logs its page");
    if major >= 17 {
        check_summaries(&server, &before, &now, &map).await;
    }

    // A crash in the middle of it all.
    let load = server.load().await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    server.server.stop(StopMode::Kill).await.unwrap();
    drop(load);
    server.start().await;
    let node = bench.node_by("source", NodeId::new(1), WalRoad::Folder);
    let (crashed, map) = Seen::after(&node, "c", Some(&now)).await;
    let score = compare(&now, &crashed, &map.expect("pages carried checksums before it, too"), &sp_gist);
    assert!(score.found > 50, "{score:?}");
    checksums_that_come_and_go(&bench, &server, crashed, &sp_gist).await;
}

/// Nothing is told across a shutdown in which every page may have got its checksum.
async fn checksums_that_come_and_go(bench: &Bench, server: &Running, mut before: Seen, sp_gist: &str) {
    for (label, change, told) in [("d", "--disable", true), ("e", "--enable", false)] {
        server.server.stop(StopMode::Fast).await.unwrap();
        let mut command = Command::new(program("pg_checksums").await);
        assert!(command.args([change, "-D", &bench.path("source")]).output().unwrap().status.success());
        server.start().await;
        let node = bench.node_by("source", NodeId::new(1), WalRoad::Folder);
        let (now, map) = Seen::after(&node, label, Some(&before)).await;
        assert_eq!(map.is_some(), told, "{change}");
        if let Some(map) = map {
            compare(&before, &now, &map, sp_gist);
        }
        before = now;
    }
}
