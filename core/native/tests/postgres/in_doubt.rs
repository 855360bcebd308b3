//! What is prepared at the cut of one server: listed once recovery is there, ended where it was prepared, whoever dies.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use sheetanchor_core::error::Result;
use sheetanchor_core::identity::NodeId;
use sheetanchor_core::in_doubt::{Fate, Held, Trace};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::Code;
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::database::{Database, Search, Span, State, WalPiece, WalSource};
use sheetanchor_native::postgres::PostgresDatabase;
use sheetanchor_native::postgres::postmaster::{Postmaster, StopMode};

use crate::bench::{Bench, Client, Copy, Running, Segments, code, joining, opening, recovery};

const PREPARED: &str = "SELECT gid FROM pg_prepared_xacts ORDER BY gid";

fn gids(held: &[Held]) -> Vec<&str> {
    held.iter().map(|held| held.gid.as_str()).collect()
}

/// WAL from any byte on, as an archive gives it.
struct Sliced<'a>(&'a Segments);

#[async_trait::async_trait]
impl WalSource for Sliced<'_> {
    async fn piece(&self, from: Position) -> Result<Option<WalPiece>> {
        let Some((_, piece)) = self.0.0.range(..=from.lsn).next_back() else { return Ok(None) };
        let skip = usize::try_from(from.lsn.get() - piece.from.lsn.get()).unwrap();
        let is_in = skip <= piece.bytes.len();
        Ok(is_in.then(|| WalPiece { from, bytes: piece.bytes.slice(skip..), ..piece.clone() }))
    }
}

async fn source(bench: &Bench) -> Running {
    let source = bench.server("source", &[("max_prepared_transactions", "8")]).await;
    source.sql("CREATE DATABASE other; CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0").await;
    for database in ["postgres", "other", "latin"] {
        in_database(&source.client, database).sql("CREATE TABLE kept (what text)").await;
    }
    source
}

fn in_database(client: &Client, database: &str) -> Client {
    Client { connection: client.connection.replace("dbname=postgres", &format!("dbname={database}")) }
}

async fn prepare(client: &Client, database: &str, gid: &str) {
    let sql = format!("BEGIN; INSERT INTO kept VALUES ('{gid}'); PREPARE TRANSACTION '{gid}'");
    in_database(client, database).sql(&sql).await;
}

/// Kills every process of a server in folder `name`, one that has only just begun, too.
async fn kill(bench: &Bench, name: &str) {
    let folder = fs::canonicalize(bench.path(name)).unwrap();
    let works_there = |process: &fs::DirEntry| {
        let is_there = fs::read_link(process.path().join("cwd")).is_ok_and(|works_in| works_in == folder);
        is_there && fs::read_link(process.path().join("exe")).is_ok_and(|program| program.ends_with("postgres"))
    };
    let mut quiet = 0;
    while quiet < 3 {
        let working: Vec<fs::DirEntry> = fs::read_dir("/proc").unwrap().flatten().filter(works_there).collect();
        for process in &working {
            Command::new("kill").arg("-KILL").arg(process.file_name()).stderr(Stdio::null()).status().unwrap();
        }
        quiet = if working.is_empty() { quiet + 1 } else { 0 };
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn what_is_prepared_is_listed_and_ended_in_its_own_database_whoever_dies() {
    let bench = Bench::new("in-doubt");
    let source = source(&bench).await;
    let node = bench.node("source", NodeId::new(1));
    node.join(&joining()).await.unwrap();
    prepare(&source.client, "postgres", "before the backup").await;
    let copy = Copy::take(&node, "backup-1").await;
    prepare(&source.client, "other", "to be committed").await;
    prepare(&source.client, "latin", "caf\u{e9} \\x41").await;
    prepare(&source.client, "postgres", "ends in time").await;
    source.sql("COMMIT PREPARED 'ends in time'").await;
    let cut = node.cut_alone("cut-1").await.unwrap();
    source.sql("COMMIT PREPARED 'before the backup'").await;
    let later = node.cut_alone("cut-2").await.unwrap();
    let wal = Segments::read(&node, copy.pinned, later.proof).await;
    source.server.stop(StopMode::Fast).await.unwrap();

    // Whenever the server is killed on its way, recovery comes to the same place.
    let restored = bench.restored("restored", &copy, NodeId::new(1)).await;
    let plan = recovery(&copy, &cut, "cut-1");
    let mut kills = 0;
    for patience in (0..).map(|step| Duration::from_millis(80).mul_f32(1.4_f32.powi(step))) {
        if let Ok(outcome) = tokio::time::timeout(patience, restored.recover(&plan, &wal)).await {
            outcome.unwrap();
            break;
        }
        kill(&bench, "restored").await;
        kills += 1;
    }
    assert!(kills > 1, "nothing was cut off");
    assert_eq!(Postmaster::of(&bench.path("restored")).unwrap(), None, "nobody serves a folder that is not open");
    let status = restored.status().await.unwrap();
    assert_eq!((status.state, status.end), (State::Reached, cut.until));
    // In LATIN1 the letter is one byte, which is no UTF-8.
    assert_eq!(gids(&status.in_doubt), ["before the backup", "to be committed", "caf\u{fffd} \\x41"]);

    // A list of another cut does not count, and is made anew.
    let list = bench.path("restored/sheetanchor.prepared");
    fs::write(&list, fs::read_to_string(&list).unwrap().replace("cut-1", "cut-0")).unwrap();
    assert_eq!(restored.status().await.unwrap().state, State::Down);
    assert_eq!(code(restored.resolve(&[("to be committed".to_owned(), Fate::Committed)]).await), Code::OutOfOrder);
    assert_eq!(code(restored.open(&opening()).await), Code::OutOfOrder);
    restored.recover(&plan, &wal).await.unwrap();
    assert_eq!(restored.status().await.unwrap().in_doubt, status.in_doubt);

    let decided = [("to be committed".to_owned(), Fate::Committed), ("caf\u{fffd} \\x41".to_owned(), Fate::RolledBack)];
    let noted = fs::read_to_string(&list).unwrap();
    restored.resolve(&decided[..1]).await.unwrap();
    assert_eq!(gids(&restored.status().await.unwrap().in_doubt), ["before the backup", "caf\u{fffd} \\x41"]);
    // The machine fails after an end, and before it was noted.
    fs::write(&list, noted).unwrap();
    kill(&bench, "restored").await;
    restored.resolve(&decided).await.unwrap();
    restored.resolve(&decided).await.expect("what is not there has ended");
    restored.recover(&plan, &wal).await.expect("a repeated call does nothing more");
    assert_eq!(gids(&restored.status().await.unwrap().in_doubt), ["before the backup"]);
    restored.open(&opening()).await.unwrap();

    let client = bench.client("restored");
    assert_eq!(client.column(PREPARED).await, ["before the backup"], "nobody has decided it");
    assert_eq!(in_database(&client, "other").column("SELECT what FROM kept").await, ["to be committed"]);
    assert_eq!(in_database(&client, "latin").column("SELECT what FROM kept").await, [""; 0]);
    assert_eq!(client.column("SELECT what FROM kept").await, ["ends in time"]);
    assert!(!fs::exists(list).unwrap());
    // It is a server like any other, on a timeline of its own.
    client.sql("COMMIT PREPARED 'before the backup'").await;
    restored.join(&joining()).await.unwrap();
}

#[tokio::test]
async fn archived_wal_tells_what_became_of_a_gid() {
    for wal_level in ["replica", "logical"] {
        told(wal_level).await;
    }
}

async fn told(wal_level: &str) {
    let bench = Bench::new(&format!("told-{wal_level}"));
    let settings = [("max_prepared_transactions", "8"), ("wal_level", wal_level)];
    let source = bench.server("source", &settings).await;
    source.sql("CREATE TABLE kept (what text)").await;
    let node = bench.node("source", NodeId::new(1));
    let from = node.pin("archive").await.unwrap();
    for gid in ["early", "unasked, early"] {
        prepare(&source.client, "postgres", gid).await;
    }
    let first = node.cut_alone("cut-1").await.unwrap();
    for gid in ["asked", "unasked", "open"] {
        prepare(&source.client, "postgres", gid).await;
    }
    source.sql("COMMIT PREPARED 'asked'; ROLLBACK PREPARED 'unasked'; ROLLBACK PREPARED 'early'").await;
    // A record over many pages, and another segment.
    source.sql("SELECT pg_logical_emit_message(false, 'fill', repeat('x', 50000)); SELECT pg_switch_wal()").await;
    source.sql("COMMIT PREPARED 'unasked, early'").await;
    prepare(&source.client, "postgres", "asked").await;
    let second = node.cut_alone("cut-2").await.unwrap();
    source.sql("COMMIT PREPARED 'open'").await;
    let third = node.cut_alone("cut-3").await.unwrap();
    let wal = Segments::read(&node, from, third.proof).await;
    source.server.stop(StopMode::Fast).await.unwrap();

    let search = |from: Lsn, until: Lsn| {
        let span = Span { timeline: first.until.timeline, from, until, scn: Scn::ZERO };
        let gids: BTreeSet<String> = ["asked", "early", "open", "never"].map(str::to_owned).into();
        Search { thread: first.until.thread, span, gids }
    };
    let look = async |from, until| tales(&node, &search(from, until), &wal).await;
    let (one, two, three) = (first.until.lsn, second.until.lsn, third.until.lsn);
    let committed = |gid: &str| (Some(gid.to_owned()), Some(Fate::Committed));
    let (began, rolled_back) =
        (|gid: &str| (Some(gid.to_owned()), None), |gid: &str| (Some(gid.to_owned()), Some(Fate::RolledBack)));
    // Ends name no gid unless WAL is for logical decoding: those whose PREPARE lies further back could be anybody's.
    let named = wal_level == "logical";
    let mut expected = vec![began("asked"), began("open"), committed("asked")];
    expected.push(if named { rolled_back("early") } else { (None, Some(Fate::RolledBack)) });
    if !named {
        expected.push((None, Some(Fate::Committed)));
    }
    expected.push(began("asked"));
    assert_eq!(look(one, two).await, expected, "{wal_level}");
    expected.push(committed("open"));
    assert_eq!(look(one, three).await, expected, "{wal_level}: beyond the second cut, too");
    assert_eq!(look(two, three).await, [if named { committed("open") } else { (None, Some(Fate::Committed)) }]);

    let numbers: Vec<Trace> = node.search(&search(one, two), &Sliced(&wal)).await.unwrap();
    let asked: Vec<&str> = numbers
        .iter()
        .filter(|trace| trace.gid.as_deref() == Some("asked"))
        .map(|trace| trace.transaction.as_str())
        .collect();
    assert!(asked.len() == 3 && asked[0] == asked[1] && asked[1] != asked[2], "one gid, two transactions: {asked:?}");

    let mut damaged = Segments(wal.0.clone());
    for piece in wal.0.keys() {
        damaged.damage(*piece, |bytes| bytes.iter_mut().skip(9000).step_by(4096).for_each(|byte| *byte ^= 1));
    }
    assert_eq!(code(node.search(&search(one, two), &Sliced(&damaged)).await), Code::WalDamaged);
    let empty = Segments(std::collections::BTreeMap::new());
    assert_eq!(code(node.search(&search(one, two), &Sliced(&empty)).await), Code::WalDamaged);
}

async fn tales(node: &PostgresDatabase, search: &Search, wal: &Segments) -> Vec<(Option<String>, Option<Fate>)> {
    let traces = node.search(search, &Sliced(wal)).await.unwrap();
    traces.into_iter().map(|trace| (trace.gid, trace.fate)).collect()
}

#[tokio::test]
async fn two_phases_are_not_declared_where_nothing_can_be_prepared() {
    let mut bench = Bench::new("cannot-prepare");
    bench.two_phase = true;
    let source = bench.server("source", &[("fsync", "off")]).await;
    let node = bench.node("source", NodeId::new(1));
    assert!(node.capabilities().two_phase, "the operator's word, as long as nobody was asked");
    node.status().await.unwrap();
    assert!(!node.capabilities().two_phase);
    assert_eq!(code(node.join(&joining()).await), Code::ConfigInvalid);
    source.sql("ALTER SYSTEM SET max_prepared_transactions = 4").await;
    source.server.stop(StopMode::Fast).await.unwrap();
    source.start().await;
    node.join(&joining()).await.unwrap();
    node.status().await.unwrap();
    assert!(node.capabilities().two_phase);
    bench.two_phase = false;
    assert!(!bench.node("source", NodeId::new(1)).capabilities().two_phase);
}
