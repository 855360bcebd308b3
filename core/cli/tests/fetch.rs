//! A real server recovers through more WAL than may lie in its folder, and fetches the rest with the program itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::as_conversions,
    reason = "tests may be blunt"
)]

#[path = "../../native/tests/postgres/bench.rs"]
#[allow(dead_code, clippy::disallowed_methods, reason = "it serves many tests, of a crate that may start tasks")]
mod bench;

use std::fs;
use std::sync::{Arc, Mutex};

use bench::{Bench, Copy, Segments, code, eventually, opening, recovery};
use sheetanchor_core::error::{Fault, FaultKind, Result};
use sheetanchor_core::identity::{ByteCount, NodeId};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::Code;
use sheetanchor_engine::database::{Database, State, WalPiece, WalSource};
use sheetanchor_native::postgres::postmaster::{Postmaster, StopMode};
use sheetanchor_native::postgres::{PostgresConfig, PostgresDatabase, WalBack};
use tokio::sync::Notify;

const SEGMENT: u64 = 16 << 20;

/// An archive from which nothing can be had from `away` on.
struct Interrupted {
    wal: Arc<Segments>,
    away: Lsn,
    /// Said where it does not answer at all; else it fails.
    silent: Option<Arc<Notify>>,
}

#[async_trait::async_trait]
impl WalSource for Interrupted {
    async fn piece(&self, from: Position) -> Result<Option<WalPiece>> {
        if from.lsn < self.away {
            return self.wal.piece(from).await;
        }
        match &self.silent {
            Some(reached) => {
                reached.notify_one();
                std::future::pending().await
            }
            None => Err(Fault::new(FaultKind::Unreachable, "read the repository", "it is away").into()),
        }
    }
}

/// An archive that is told how far a recovery is.
struct Told {
    wal: Arc<Segments>,
    told: Mutex<Vec<Position>>,
}

#[async_trait::async_trait]
impl WalSource for Told {
    async fn piece(&self, from: Position) -> Result<Option<WalPiece>> {
        self.wal.piece(from).await
    }

    fn replayed(&self, at: Position) {
        self.told.lock().unwrap().push(at);
    }
}

/// The program, where the account that servers run under can start it.
fn program(bench: &Bench) -> String {
    let path = bench.path("sheetanchor");
    fs::copy(env!("CARGO_BIN_EXE_sheetanchor"), &path).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_beyond_the_bound_is_fetched_and_no_failure_passes_for_its_end() {
    let bench = Bench::new("fetch");
    let source = bench.server("source", &[("fsync", "off")]).await;
    let node = bench.node("source", NodeId::new(1));
    let copy = Copy::take(&node, "backup-1").await;
    source.sql("CREATE TABLE rows (n int)").await;
    for n in 1..=9 {
        source.sql(&format!("INSERT INTO rows VALUES ({n}); SELECT pg_switch_wal()")).await;
    }
    let cut = node.cut_alone("cut-1").await.unwrap();
    source.sql("INSERT INTO rows VALUES (10)").await;
    let wal = Arc::new(Segments::read(&node, copy.pinned, cut.proof).await);
    source.server.stop(StopMode::Fast).await.unwrap();
    let plan = recovery(&copy, &cut, "cut-1");

    drop(bench.restored("back", &copy, NodeId::new(1)).await);
    let wal_back = WalBack::Fetched { beyond: ByteCount::new(2 * SEGMENT), program: program(&bench) };
    let back = PostgresDatabase::new(PostgresConfig { wal_back, ..bench.config("back", "back", NodeId::new(1)) });
    let back = back.unwrap();
    // Two segments are put there, four lie ready, and another is begun once the server has taken one: it is under way by then.
    let away = Lsn::new(copy.begun.start.lsn.get() / SEGMENT * SEGMENT + 7 * SEGMENT);
    let log = || fs::read_to_string(bench.path("back.log")).unwrap();

    // The repository fails in the middle: that is what is said, the server is ended, and nothing can be opened.
    let failing = Interrupted { wal: wal.clone(), away, silent: None };
    let error = back.recover(&plan, &failing).await.expect_err("the repository is away");
    assert!(error.is(FaultKind::Unreachable), "{error}");
    assert!(log().contains("restored log file"), "it had begun to fetch");
    assert_eq!(Postmaster::of(&bench.path("back")).unwrap(), None);
    assert_eq!(code(back.open(&opening()).await), Code::OutOfOrder);

    // The agent dies while the server waits: recovery stops, too, and not as if WAL had ended.
    let reached = Arc::new(Notify::new());
    let silent = Interrupted { wal: wal.clone(), away, silent: Some(reached.clone()) };
    let log_from = log().len();
    {
        let mut recovering = Box::pin(back.recover(&plan, &silent));
        let waits = eventually(async || log()[log_from..].matches("restored log file").nth(3).map(|_| ()));
        tokio::select! {
            biased;
            outcome = &mut recovering => panic!("{outcome:?}"),
            () = waits => {}
        }
        reached.notified().await;
    }
    eventually(async || Postmaster::of(&bench.path("back")).unwrap().is_none().then_some(())).await;
    let said = log()[log_from..].to_owned();
    assert!(said.contains("exited with exit code 200"), "{said}");
    assert!(!said.contains("recovery ended before"), "{said}");
    assert_eq!(code(back.open(&opening()).await), Code::OutOfOrder);

    // It goes on from there, and comes to its cut.
    let wal = Told { wal, told: Mutex::default() };
    back.recover(&plan, &wal).await.unwrap();
    let told = wal.told.into_inner().unwrap();
    assert!(told.is_sorted_by_key(|at| at.lsn) && told.last() == Some(&cut.until), "{told:?}, {:?}", cut.until);
    let status = back.status().await.unwrap();
    assert_eq!((status.state, status.end), (State::Reached, cut.until));
    back.open(&opening()).await.unwrap();
    let rows = bench.client("back").column("SELECT n::text FROM rows ORDER BY n").await;
    assert_eq!(rows, ["1", "2", "3", "4", "5", "6", "7", "8", "9"]);
    for left in ["sheetanchor.wal", "sheetanchor.sock"] {
        assert!(!fs::exists(bench.path(&format!("back/{left}"))).unwrap(), "{left}");
    }
    back.stop().await.unwrap();
}
