//! What power takes of WAL that was delivered for a recovery, and nobody has synced: it comes again. No recovery ends early and
//! passes for whole.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use sheetanchor_core::identity::NodeId;
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::Code;
use sheetanchor_engine::database::{Database, Recovery, State};
use sheetanchor_native::postgres::PostgresDatabase;
use sheetanchor_native::postgres::install::{Account, Install};
use sheetanchor_native::postgres::postmaster::{Launch, Postmaster, StopMode};

use crate::bench::{Bench, Copy, Segments, code, eventually, opening, recovery};

const SEGMENT: u64 = 16 << 20;

/// A server that recovers in a folder of the test, and is not open.
struct Private {
    data: String,
}

impl Private {
    /// Recovers until the server has begun, which goes on by itself: the agent is gone.
    async fn begins(&self, node: &PostgresDatabase, plan: &Recovery, wal: &Segments) {
        let begun = eventually(async || Postmaster::of(&self.data).unwrap().map(drop));
        tokio::select! {
            biased;
            outcome = node.recover(plan, wal) => panic!("{outcome:?}"),
            () = begun => {}
        }
    }

    /// The first column of the only row, once the server answers.
    async fn says(&self, sql: &str) -> Option<String> {
        let place = format!("host={} port=5432 user=postgres dbname=postgres", self.data);
        let (client, connection) = tokio_postgres::connect(&place, tokio_postgres::NoTls).await.ok()?;
        let driver = tokio::spawn(connection);
        let row = client.query_one(sql, &[]).await.ok();
        drop(client);
        driver.await.ok()?.ok()?;
        row.map(|row| row.get(0))
    }

    async fn stands_at(&self, cut: Lsn) {
        let stands = "SELECT pg_get_wal_replay_pause_state() || ' at ' || pg_last_wal_replay_lsn()";
        let at = format!("paused at {cut}");
        eventually(async || self.says(stands).await.filter(|said| *said == at)).await;
    }

    /// All processes end at once. `frozen` is one of them that would not notice.
    async fn loses_power(&self, node: &PostgresDatabase, frozen: Option<Frozen>) {
        send("-KILL", &Postmaster::of(&self.data).unwrap().unwrap().pid().to_string());
        drop(frozen);
        eventually(async || node.check_unused().await.ok()).await;
        self.loses_locks();
    }

    /// The server's own lock files are empty, as where it ended between making and writing them. Another one that finds such
    /// a file does not start. (Found by this test: it had killed a server just then.)
    fn loses_locks(&self) {
        for name in ["postmaster.pid", ".s.PGSQL.5432.lock"] {
            fs::write(Path::new(&self.data).join(name), "").unwrap();
        }
    }

    /// Delivered segments are zeros, half of what they were, and without a name. What was synced besides stays.
    fn loses_segments(&self) {
        let listed = fs::read_dir(Path::new(&self.data).join("pg_wal")).unwrap();
        let mut segments: Vec<_> = listed.map(Result::unwrap).collect();
        segments.retain(|entry| entry.file_name().to_str().unwrap().starts_with("00000001"));
        segments.retain(|entry| entry.metadata().unwrap().len() == SEGMENT);
        segments.sort_by_key(fs::DirEntry::file_name);
        assert!(segments.len() > 4, "{segments:?}");
        let open = |at: usize| fs::OpenOptions::new().write(true).open(segments[at].path()).unwrap();
        open(1).write_all_at(&vec![0; SEGMENT.try_into().unwrap()], 0).unwrap();
        open(2).set_len(SEGMENT / 2).unwrap();
        fs::remove_file(segments[3].path()).unwrap();
    }
}

/// A process that does nothing any more. It is gone with this.
struct Frozen(String);

impl Frozen {
    fn new(pid: String) -> Self {
        send("-STOP", &pid);
        Self(pid)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        Command::new("kill").args(["-KILL", &self.0]).status().ok();
    }
}

fn send(signal: &str, pid: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
}

#[tokio::test]
async fn what_power_takes_of_delivered_wal_comes_again_and_never_ends_a_recovery_early() {
    let bench = Bench::new("power");
    let source = bench.server("source", &[("fsync", "off")]).await;
    let node = bench.node("source", NodeId::new(1));
    let copy = Copy::take(&node, "backup-1").await;
    source.sql("CREATE TABLE rows (n int)").await;
    for n in 1..=5 {
        source.sql(&format!("INSERT INTO rows VALUES ({n}); SELECT pg_switch_wal()")).await;
    }
    let cut = node.cut_alone("cut-1").await.unwrap();
    let wal = Segments::read(&node, copy.pinned, cut.proof).await;
    source.server.stop(StopMode::Fast).await.unwrap();
    let plan = recovery(&copy, &cut, "cut-1");
    let node = bench.restored("back", &copy, NodeId::new(1)).await;
    let private = Private { data: bench.path("back") };

    // While it recovers: all is delivered again, and it comes to its cut.
    private.begins(&node, &plan, &wal).await;
    private.loses_power(&node, None).await;
    private.loses_segments();
    private.begins(&node, &plan, &wal).await;
    private.stands_at(cut.until.lsn).await;

    // In the midst of promotion: nothing says any more that it is to recover, and what ends recovery is not done.
    let checkpointer = "SELECT pid::text FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
    let checkpointer = Frozen::new(private.says(checkpointer).await.unwrap());
    let signal = format!("{}/recovery.signal", private.data);
    let promoting = eventually(async || (!fs::exists(&signal).unwrap()).then_some(()));
    tokio::select! {
        biased;
        outcome = node.recover(&plan, &wal) => panic!("{outcome:?}"),
        () = promoting => {}
    }
    let marker = fs::read_to_string(format!("{}/sheetanchor.restore", private.data)).unwrap();
    assert!(marker.ends_with("\nreached\n"), "{marker}");
    private.loses_power(&node, Some(checkpointer)).await;
    private.loses_segments();
    let half = bench.path("half");
    assert!(Command::new("cp").args(["-a", &private.data, &half]).status().unwrap().success());
    assert_eq!(node.status().await.unwrap().state, State::Down, "it has not come to its cut");
    assert_eq!(code(node.open(&opening()).await), Code::OutOfOrder);
    node.recover(&plan, &wal).await.unwrap();
    let status = node.status().await.unwrap();
    assert_eq!((status.state, status.end), (State::Reached, cut.until));
    node.open(&opening()).await.unwrap();
    let rows = bench.client("back").column("SELECT n::text FROM rows ORDER BY n").await;
    assert_eq!(rows, ["1", "2", "3", "4", "5"]);
    node.stop().await.unwrap();

    // Somebody starts a server there by hand before the agent comes: it takes what is left for all there is, and that is seen.
    ends_early(&bench, &Private { data: half }).await;
    bench.own_folder("half.s").await;
    let node = bench.node("half", NodeId::new(1));
    assert_eq!(code(node.recover(&plan, &wal).await), Code::CutMissed);
    assert_eq!(code(node.open(&opening()).await), Code::OutOfOrder);
    node.stop().await.unwrap();
}

/// A server ends its recovery where WAL in its folder ends, and is stopped.
async fn ends_early(bench: &Bench, private: &Private) {
    let (install, account) = (Install::find(None, None).await.unwrap(), Account::to_run_as(None).await.unwrap());
    let settings = [
        ("unix_socket_directories", private.data.clone()),
        ("port", "5432".to_owned()),
        ("hba_file", format!("{}/sheetanchor.hba", private.data)),
        ("listen_addresses", String::new()),
    ];
    let log = bench.path("half.log");
    drop(Launch { install: &install, account, data: &private.data, log: &log, settings: &settings }.start().unwrap());
    let rows = "SELECT count(*)::text FROM pg_class WHERE relname = 'rows' AND NOT pg_is_in_recovery()";
    eventually(async || private.says(rows).await).await;
    let said = fs::read_to_string(&log).unwrap();
    assert!(!said.contains("PANIC") && !said.contains("FATAL:  WAL ends"), "{said}");
    Postmaster::of(&private.data).unwrap().unwrap().stop(StopMode::Fast).await.unwrap();
}
