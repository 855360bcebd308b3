//! The commit fence on real servers: what waits, what passes, what ends it, and what is said where it is missing.

use std::time::{Duration, Instant};

use sheetanchor_core::identity::{HoldId, NodeId};
use sheetanchor_core::refusal::Code;
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::database::{Database, State, Status};
use sheetanchor_native::postgres::PostgresDatabase;
use sheetanchor_native::postgres::postmaster::StopMode;
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;

use crate::bench::{Bench, Running, code, eventually};

const HOLD: HoldId = HoldId::new(0x1001);
const OTHER: HoldId = HoldId::new(0x1002);
const LEASE: Duration = Duration::from_secs(2);
/// Far longer than a server needs to be told that it is free again.
const SLACK: Duration = Duration::from_secs(1);

/// How long a statement may take at all.
const PATIENCE: Duration = Duration::from_secs(20);

/// One connection to a server.
struct Session {
    client: tokio_postgres::Client,
    driver: JoinHandle<()>,
}

impl Session {
    async fn new(bench: &Bench, server: &str) -> Self {
        Self::of(&bench.client(server).connection).await
    }

    async fn of(connection: &str) -> Self {
        let (client, connection) = tokio_postgres::connect(connection, NoTls).await.unwrap();
        let driver = tokio::spawn(async move { drop(connection.await) });
        Self { client, driver }
    }

    /// Runs `sql`: nothing, or the SQLSTATE that the server refused with. Statements are sent one by one.
    async fn run(&self, sql: &str) -> Result<(), String> {
        let separator = if sql.starts_with("DO ") { "\n" } else { ";" };
        for statement in sql.split(separator) {
            let outcome = tokio::time::timeout(PATIENCE, self.client.batch_execute(statement)).await;
            let outcome = outcome.map_err(|_| format!("`{statement}` still waits after {PATIENCE:?}"))?;
            outcome.map_err(|error| error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned()))?;
        }
        Ok(())
    }

    async fn text(&self, sql: &str) -> Result<String, String> {
        match self.client.query_one(sql, &[]).await {
            Ok(row) => Ok(row.get::<_, Option<String>>(0).unwrap_or_default()),
            Err(error) => Err(error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned())),
        }
    }

    async fn close_fence(&self, lease_ms: u32) -> Result<String, String> {
        self.text(&format!("SELECT sheetanchor_close('t', {lease_ms})::text")).await
    }

    /// Runs `sql` in a task of its own, which answers how long it took.
    fn later(self, sql: &'static str) -> JoinHandle<Result<Duration, String>> {
        tokio::spawn(async move {
            let begun = Instant::now();
            self.run(sql).await.map(|()| begun.elapsed())
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn proven(bench: &Bench, name: &str) -> PostgresDatabase {
    let node = bench.node(name, NodeId::new(1));
    assert!(!node.capabilities().fence, "nothing is proven yet");
    node.status().await.unwrap();
    assert!(node.capabilities().fence, "{:?}", node.fence_missing());
    assert_eq!(node.fence_missing(), None);
    node
}

/// Returns once `count` sessions wait at the fence.
async fn wait_for(bench: &Bench, server: &str, count: usize) {
    let sql =
        "SELECT pid::text FROM pg_locks WHERE NOT granted AND locktype = 'relation' AND mode = 'RowExclusiveLock'";
    let client = bench.client(server);
    eventually(async || (client.column(sql).await.len() == count).then_some(())).await;
}

const CHEAP: &[(&str, &str)] = &[("fsync", "off"), ("autovacuum", "off")];

#[tokio::test]
async fn commits_wait_under_the_fence_and_go_on_after_it() {
    let bench = Bench::new("fence");
    let server = bench.fenced("n", CHEAP).await;
    server.sql("CREATE TABLE t (i int)").await;
    let node = proven(&bench, "n").await;
    let prepared = Session::new(&bench, "n").await;
    for name in ["a", "b"] {
        prepared.run(&format!("BEGIN;INSERT INTO t VALUES (1);PREPARE TRANSACTION '{name}'")).await.unwrap();
    }

    node.close(HOLD, LEASE).await.unwrap();
    node.close(HOLD, LEASE).await.expect("a repeated call does nothing more");
    assert_eq!(code(node.close(OTHER, LEASE).await), Code::Busy);
    let implicit = Session::new(&bench, "n").await.later("INSERT INTO t VALUES (2)");
    let explicit = Session::new(&bench, "n").await.later("BEGIN;INSERT INTO t VALUES (3);COMMIT");
    let procedure = Session::new(&bench, "n").await.later("DO 'BEGIN INSERT INTO t VALUES (4); COMMIT; END'");
    let commit = Session::new(&bench, "n").await.later("COMMIT PREPARED 'a'");
    let rollback = Session::new(&bench, "n").await.later("ROLLBACK PREPARED 'b'");
    wait_for(&bench, "n", 5).await;
    // What writes nothing passes, and so does what is only promised, or taken back.
    let session = Session::new(&bench, "n").await;
    assert_eq!(session.text("SELECT count(*)::text FROM t").await.unwrap(), "0");
    session.run("BEGIN;INSERT INTO t VALUES (5);PREPARE TRANSACTION 'c'").await.unwrap();
    session.run("BEGIN;INSERT INTO t VALUES (6);ROLLBACK").await.unwrap();

    let (scn, end) = node.drain(HOLD).await.unwrap();
    assert!(scn > Scn::ZERO);
    assert_eq!(code(node.drain(OTHER).await), Code::HoldLost);
    assert_eq!(code(node.cut(OTHER, scn, "other").await), Code::HoldLost);
    let cut = node.cut(HOLD, scn, "one").await.unwrap();
    assert_eq!(node.cut(HOLD, scn, "one").await.unwrap(), cut, "a repeated call says the same");
    assert_eq!(code(node.cut(HOLD, scn, "two").await), Code::OutOfOrder);
    assert!(cut.until.lsn > end.lsn);
    wait_for(&bench, "n", 5).await;
    node.release(OTHER).await.expect("one that does not stand is no error");
    wait_for(&bench, "n", 5).await;

    node.release(HOLD).await.unwrap();
    node.release(HOLD).await.expect("a repeated call does nothing more");
    for waiting in [implicit, explicit, procedure, commit, rollback] {
        waiting.await.unwrap().unwrap();
    }
    node.flush(cut.proof).await.unwrap();
    assert_eq!(session.text("SELECT string_agg(i::text, ' ' ORDER BY i) FROM t").await.unwrap(), "1 2 3 4");

    node.close(OTHER, LEASE).await.unwrap();
    let (later, _) = node.drain(OTHER).await.unwrap();
    assert!(later > scn, "a later point has a higher SCN");
    assert!(node.cut(OTHER, later, "two").await.unwrap().until.lsn > cut.until.lsn);
    node.release(OTHER).await.unwrap();
}

#[tokio::test]
async fn waiting_commits_can_be_cancelled() {
    let bench = Bench::new("cancel");
    let server = bench.fenced("n", CHEAP).await;
    server.sql("CREATE TABLE t (i int)").await;
    let closer = Session::new(&bench, "n").await;
    closer.close_fence(10_000).await.unwrap();
    let insert = "INSERT INTO t VALUES (1)";
    let session = Session::new(&bench, "n").await;
    assert_eq!(session.run(&format!("SET lock_timeout = 5;{insert}")).await.unwrap_err(), "55P03");
    assert_eq!(
        session.run(&format!("SET lock_timeout = 0;SET statement_timeout = 20;{insert}")).await.unwrap_err(),
        "57014"
    );
    assert_eq!(
        session.run(&format!("BEGIN;{insert};COMMIT")).await.unwrap_err(),
        "57014",
        "at an explicit commit, too"
    );
    let waiting = Session::new(&bench, "n").await.later(insert);
    wait_for(&bench, "n", 1).await;
    server.sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'").await;
    assert_eq!(waiting.await.unwrap().unwrap_err(), "57014");
    assert_eq!(closer.text("SELECT sheetanchor_release('t')::text").await.unwrap(), "true");
    session.run(&format!("RESET statement_timeout;{insert}")).await.unwrap();
    assert_eq!(session.text("SELECT count(*)::text FROM t").await.unwrap(), "1", "what was cancelled is not there");
}

#[tokio::test]
async fn nothing_that_its_session_says_opens_the_fence_in_silence() {
    let bench = Bench::new("session");
    let server = bench.fenced("n", CHEAP).await;
    server.sql("CREATE TABLE t (i int)").await;
    let closer = Session::new(&bench, "n").await;
    closer.close_fence(5_000).await.unwrap();
    let canary = Session::new(&bench, "n").await;
    canary.run("SET lock_timeout = 2").await.unwrap();
    for said in [
        "DISCARD ALL",
        "SELECT pg_advisory_unlock_all()",
        "RESET ALL",
        "BEGIN;SAVEPOINT s;ROLLBACK TO s;COMMIT",
        "INSERT INTO t VALUES (0)",
        "SELECT sheetanchor_release('other')",
    ] {
        closer.run(said).await.unwrap();
        assert_eq!(canary.run("INSERT INTO t VALUES (1)").await.unwrap_err(), "55P03", "{said}");
    }
    assert!(closer.text("SELECT sheetanchor_cut('one', 5, 't')::text").await.is_ok());
    assert_eq!(canary.close_fence(100).await.unwrap_err(), "55006", "another closes meanwhile");
    assert_eq!(
        canary.text("SELECT sheetanchor_cut('x', 5, 't')::text").await.unwrap_err(),
        "55000",
        "another session's"
    );

    // A transaction that aborts does open it, and nobody can cut under that hold any more.
    assert_eq!(closer.run("SELECT 1 / 0").await.unwrap_err(), "22012");
    canary.run("INSERT INTO t VALUES (1)").await.unwrap();
    assert_eq!(closer.text("SELECT sheetanchor_cut('two', 6, 't')::text").await.unwrap_err(), "55000");
    assert_eq!(closer.text("SELECT sheetanchor_release('t')::text").await.unwrap(), "false");

    // The same fence again; a cut never goes back.
    closer.close_fence(5_000).await.unwrap();
    assert_eq!(closer.text("SELECT sheetanchor_cut('two', 4, 't')::text").await.unwrap_err(), "22023");
}

#[tokio::test]
async fn a_fence_never_outlives_its_lease_or_its_session() {
    let bench = Bench::new("lease");
    let server = bench.fenced("n", CHEAP).await;
    server.sql("CREATE TABLE t (i int)").await;
    let insert = "INSERT INTO t VALUES (1)";
    let lease = Duration::from_millis(600);

    // Its client is silent: paused, cut off, or waiting for somebody who is.
    let silent = Session::new(&bench, "n").await;
    silent.close_fence(600).await.unwrap();
    let waited = Session::new(&bench, "n").await.later(insert).await.unwrap().unwrap();
    assert!(waited > lease / 2 && waited < lease + SLACK, "{waited:?}");
    silent.run("SELECT 1").await.expect_err("its session was ended");

    // It is at work for longer.
    let busy = Session::new(&bench, "n").await;
    busy.close_fence(600).await.unwrap();
    let working = busy.later("SELECT pg_sleep(60)");
    let waited = Session::new(&bench, "n").await.later(insert).await.unwrap().unwrap();
    assert!(waited < lease + SLACK, "{waited:?}");
    assert_eq!(working.await.unwrap().unwrap_err(), "57P01");

    // It is ended, or its client dies: at once, not at the lease's end.
    for kills in [true, false] {
        let closer = Session::new(&bench, "n").await;
        closer.close_fence(30_000).await.unwrap();
        let waiting = Session::new(&bench, "n").await.later(insert);
        wait_for(&bench, "n", 1).await;
        if kills {
            server.sql("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE mode = 'ExclusiveLock' AND locktype = 'relation'").await;
        } else {
            drop(closer);
        }
        assert!(waiting.await.unwrap().unwrap() < SLACK, "{kills}");
    }

    // Its process is killed: the server starts anew, without a fence.
    let closer = Session::new(&bench, "n").await;
    let pid = closer.text("SELECT pg_backend_pid()::text").await.unwrap();
    closer.close_fence(30_000).await.unwrap();
    assert!(std::process::Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
    eventually(async || {
        let (client, connection) = tokio_postgres::connect(&bench.client("n").connection, NoTls).await.ok()?;
        let driver = tokio::spawn(async move { drop(connection.await) });
        let done = client.batch_execute(insert).await.ok();
        driver.abort();
        done
    })
    .await;
}

#[tokio::test]
async fn every_database_is_fenced_and_none_is_made_meanwhile() {
    let bench = Bench::new("databases");
    let server = bench.fenced("n", CHEAP).await;
    server.sql("CREATE DATABASE other").await;
    let connection = bench.client("n").connection.replace("dbname=postgres", "dbname=other");
    let other = Session::of(&connection).await;
    other.run("CREATE TABLE t (i int)").await.unwrap();
    let closer = Session::new(&bench, "n").await;
    closer.close_fence(10_000).await.unwrap();
    other.run("SET lock_timeout = 2").await.unwrap();
    assert_eq!(other.run("INSERT INTO t VALUES (1)").await.unwrap_err(), "55P03");
    let made = Session::new(&bench, "n").await.later("CREATE DATABASE third");
    wait_for(&bench, "n", 1).await;
    assert_eq!(closer.text("SELECT sheetanchor_release('t')::text").await.unwrap(), "true");
    made.await.unwrap().unwrap();
    closer.close_fence(10_000).await.unwrap();
    let third = Session::of(&connection.replace("dbname=other", "dbname=third")).await;
    assert_eq!(third.run("SET lock_timeout = 2;CREATE TABLE t (i int)").await.unwrap_err(), "55P03");
}

#[tokio::test]
async fn commits_in_flight_finish_first_or_the_fence_opens_again() {
    let bench = Bench::new("flight");
    let server = bench.fenced("n", CHEAP).await;
    server.sql("CREATE TABLE t (i int)").await;
    let node = proven(&bench, "n").await;
    // A commit that waits for a standby which is not there is in flight.
    server.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'; SELECT pg_reload_conf()").await;
    let in_flight = in_flight(&bench).await;
    let begun = Instant::now();
    assert_eq!(code(node.close(HOLD, Duration::from_millis(400)).await), Code::DrainTimedOut);
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(200), "half of the lease is waited for, not {waited:?}");
    node.release(HOLD).await.unwrap();
    let other = Session::new(&bench, "n").await;
    other
        .run("SET synchronous_commit = local;SET lock_timeout = 1000;INSERT INTO t VALUES (2)")
        .await
        .expect("it is open");

    // Somebody gives up while it closes: it never comes to stand.
    let (closed, released) = tokio::join!(node.close(OTHER, Duration::from_secs(8)), async {
        wait_for_closer(&bench).await;
        node.release(OTHER).await
    });
    released.unwrap();
    assert_eq!(code(closed), Code::HoldLost);
    other.run("INSERT INTO t VALUES (3)").await.expect("it is open");

    server.sql("ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf()").await;
    in_flight.await.unwrap().unwrap();
    node.close(HoldId::new(3), LEASE).await.unwrap();
    node.release(HoldId::new(3)).await.unwrap();
}

/// A commit that waits for a standby. One that comes before the server has taken its setting up does not.
async fn in_flight(bench: &Bench) -> JoinHandle<Result<Duration, String>> {
    let waits = "SELECT pid::text FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    loop {
        let commit = Session::new(bench, "n").await.later("INSERT INTO t VALUES (1)");
        let is_waiting = eventually(async || match bench.client("n").column(waits).await.pop() {
            Some(_) => Some(true),
            None => commit.is_finished().then_some(false),
        });
        if is_waiting.await {
            return commit;
        }
    }
}

async fn wait_for_closer(bench: &Bench) {
    let sql = "SELECT pid::text FROM pg_locks WHERE NOT granted AND locktype = 'relation' AND mode = 'ExclusiveLock'";
    eventually(async || bench.client("n").column(sql).await.pop()).await;
}

#[tokio::test]
async fn a_cut_whose_hold_has_ended_is_none() {
    let bench = Bench::new("ended");
    let server = bench.fenced("n", CHEAP).await;
    let node = proven(&bench, "n").await;
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sheetanchor fence'";
    node.close(HOLD, LEASE).await.unwrap();
    server.sql(kill).await;
    assert_eq!(code(node.cut(HOLD, Scn::new(1), "one").await), Code::HoldLost);
    node.release(HOLD).await.expect("there is nothing to let go of");

    node.close(OTHER, LEASE).await.unwrap();
    let (scn, _) = node.drain(OTHER).await.unwrap();
    node.cut(OTHER, scn, "two").await.unwrap();
    server.sql(kill).await;
    assert_eq!(code(node.release(OTHER).await), Code::HoldLost, "it had ended before it was released");

    // A lease that ran out.
    let third = HoldId::new(3);
    node.close(third, Duration::from_millis(200)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(code(node.drain(third).await), Code::HoldLost);
    node.close(HoldId::new(4), LEASE).await.expect("the next one is not in its way");
    node.release(HoldId::new(4)).await.unwrap();

    // Another life of the server is proven anew.
    let life = node.status().await.unwrap().life;
    server.kill_a_backend().await;
    let is_proven = |status: &Status| status.state == State::Open && status.life != life && node.capabilities().fence;
    eventually(async || node.status().await.ok().filter(is_proven)).await;
    node.close(HoldId::new(5), LEASE).await.unwrap();
    node.release(HoldId::new(5)).await.unwrap();
}

/// D4 on a real server: it crashes before the record of its cut is durable, and new commits pass the place of it.
#[tokio::test]
async fn a_cut_whose_record_a_crash_lost_is_never_called_durable() {
    let bench = Bench::new("lost");
    let settings = [("wal_writer_delay", "10s"), ("autovacuum", "off"), ("checkpoint_timeout", "1h")];
    let server = bench.fenced("n", &settings).await;
    server.sql("CREATE TABLE t (i int)").await;
    let node = proven(&bench, "n").await;
    let mut lost = None;
    for (round, stamp) in (0_u64..20).map(|round| (round, HoldId::new(100 + round))) {
        node.close(stamp, LEASE).await.unwrap();
        let (scn, _) = node.drain(stamp).await.unwrap();
        let cut = node.cut(stamp, scn, &format!("cut-{round}")).await.unwrap();
        node.release(stamp).await.unwrap();
        server.server.stop(StopMode::Kill).await.unwrap();
        server.start().await;
        let is_proven = |status: &Status| status.state == State::Open && node.capabilities().fence;
        eventually(async || node.status().await.ok().filter(is_proven)).await;
        // What is written now goes where the record was, and beyond.
        server.sql("INSERT INTO t SELECT generate_series(1, 10000)").await;
        assert!(node.status().await.unwrap().end.lsn > cut.proof, "WAL is durable beyond the cut");
        match node.flush(cut.proof).await {
            // The record had been written out before the crash.
            Ok(()) => {}
            Err(error) => {
                lost = Some(error);
                break;
            }
        }
    }
    let error = lost.expect("no crash lost the record of a cut");
    assert_eq!(error.refusal().unwrap().code, Code::LifeChanged, "{error}");
}

#[tokio::test]
async fn a_remote_half_does_not_overtake_its_local_one() {
    let bench = Bench::new("remote");
    let here = bench.fenced("here", CHEAP).await;
    let there = bench.fenced("there", CHEAP).await;
    there.sql("CREATE TABLE t (i int)").await;
    let socket = bench.path("there.s");
    here.sql(&format!(
        "CREATE TABLE t (i int); CREATE EXTENSION postgres_fdw; \
         CREATE SERVER there FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{socket}', port '5432', dbname 'postgres'); \
         CREATE USER MAPPING FOR postgres SERVER there OPTIONS (user 'postgres'); \
         CREATE FOREIGN TABLE far (i int) SERVER there OPTIONS (table_name 't')"
    ))
    .await;
    let seen = async || bench.client("there").column("SELECT i::text FROM t ORDER BY i").await;
    // A new session, so that the wrapper registers after us; then the same one again; then the remote half first.
    for (number, halves) in ["near far", "far near", "copy near"].into_iter().enumerate() {
        let sql: &'static str = match halves {
            "near far" => "BEGIN;INSERT INTO t VALUES (0);INSERT INTO far VALUES (0);COMMIT",
            "far near" => "BEGIN;INSERT INTO far VALUES (1);INSERT INTO t VALUES (1);COMMIT",
            _ => "BEGIN;INSERT INTO t VALUES (2);INSERT INTO far SELECT 2;COMMIT",
        };
        let closer = Session::new(&bench, "here").await;
        closer.close_fence(10_000).await.unwrap();
        let waiting = Session::new(&bench, "here").await.later(sql);
        wait_for(&bench, "here", 1).await;
        assert_eq!(seen().await.len(), number, "{halves}: the remote half is committed, and its local one waits");
        assert_eq!(closer.text("SELECT sheetanchor_release('t')::text").await.unwrap(), "true");
        waiting.await.unwrap().unwrap();
        assert_eq!(seen().await.len(), number + 1);
    }
}

#[tokio::test]
async fn without_the_fence_it_is_said_what_is_missing() {
    let bench = Bench::new("missing");
    let bare = bench.server("bare", &[("fsync", "off")]).await;
    let node = bench.node("bare", NodeId::new(1));
    let missing = async |node: &PostgresDatabase, server: &Running| {
        // A proof that failed is not tried again at once.
        server.server.stop(sheetanchor_native::postgres::postmaster::StopMode::Fast).await.unwrap();
        server.start().await;
        node.status().await.unwrap();
        assert!(!node.capabilities().fence);
        assert_eq!(code(node.close(HOLD, LEASE).await), Code::NotSupported);
        node.fence_missing().unwrap()
    };
    let seen = missing(&node, &bare).await;
    assert_eq!(
        seen,
        "add sheetanchor_fence to shared_preload_libraries and restart the server; \
         then run `CREATE EXTENSION sheetanchor_fence` in database `postgres`"
    );
    bare.sql("CREATE EXTENSION sheetanchor_fence; ALTER SYSTEM SET session_preload_libraries = 'sheetanchor_fence'")
        .await;
    let seen = missing_by_session(&bench).await;
    assert_eq!(seen, "55000", "loaded for single sessions");
    bare.sql("ALTER SYSTEM RESET session_preload_libraries").await;
    bare.sql("ALTER SYSTEM SET shared_preload_libraries = 'sheetanchor_fence'; DROP EXTENSION sheetanchor_fence").await;
    let seen = missing(&node, &bare).await;
    assert_eq!(seen, "run `CREATE EXTENSION sheetanchor_fence` in database `postgres`");

    // No room for the watchdog: nothing would end a fence.
    bare.sql("CREATE EXTENSION sheetanchor_fence; ALTER SYSTEM SET max_worker_processes = 0").await;
    bare.server.stop(sheetanchor_native::postgres::postmaster::StopMode::Fast).await.unwrap();
    bare.start().await;
    node.status().await.unwrap();
    assert!(!node.capabilities().fence);
    assert!(node.fence_missing().unwrap().contains("watchdog"), "{:?}", node.fence_missing());
}

async fn missing_by_session(bench: &Bench) -> String {
    Session::new(bench, "bare").await.close_fence(100).await.unwrap_err()
}
