//! Transfers that are committed in two phases, under one gid on both servers, and the transaction manager that sees each of
//! them through: once it is decided, the decision is carried out on every server that answers, however late.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::ledger::{Journal, Outcome, PATIENCE, dial};

/// How often a manager looks for what is left on a server.
const SWEEP: Duration = Duration::from_millis(300);

/// How long the last sweep of a server may take. There is peace then.
const LAST_SWEEP: Duration = Duration::from_mins(2);

/// What becomes of a transfer. Before any server commits, it is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Its client is about to prepare it.
    Open,
    /// It is prepared on both servers.
    Commit,
    Rollback,
}

fn gid_of(pair: usize) -> String {
    format!("pair-{pair}")
}

/// Runs one command within a client's patience; whether the server has said yes.
pub async fn is_done(client: &Client, sql: &str) -> bool {
    matches!(tokio::time::timeout(PATIENCE, client.batch_execute(sql)).await, Ok(Ok(())))
}

/// Both halves of a transfer, each a session with an open transaction that has written its entry.
pub struct Pair<'a> {
    pub number: usize,
    /// The entry and the session of each half.
    pub halves: [(i64, &'a Client); 2],
}

impl Pair<'_> {
    /// Prepares both halves and commits both; whether that was acknowledged on both.
    pub async fn end(self, journal: &Journal) -> bool {
        let gid = gid_of(self.number);
        for (_, session) in self.halves {
            if !is_done(session, &format!("PREPARE TRANSACTION '{gid}'")).await {
                journal.decide(self.number, Decision::Rollback);
                return false;
            }
        }
        journal.decide(self.number, Decision::Commit);
        let mut all = true;
        for (entry, session) in self.halves {
            let done = is_done(session, &format!("COMMIT PREPARED '{gid}'")).await;
            if done {
                journal.settle(entry, Outcome::Acknowledged(Instant::now()));
            }
            all &= done;
        }
        all
    }
}

/// Carries decisions out on one server until it is over.
pub async fn sweep(journal: Arc<Journal>, connection: String, over: Arc<AtomicBool>) {
    while !over.load(Ordering::SeqCst) {
        swept(&journal, &connection).await.ok();
        tokio::time::sleep(SWEEP).await;
    }
}

/// Nobody works any more: whatever is left on a server ends.
pub async fn sweep_out(journal: &Journal, connections: &BTreeMap<u16, String>) {
    for connection in connections.values() {
        let begun = Instant::now();
        while swept(journal, connection).await != Ok(0) {
            assert!(begun.elapsed() < LAST_SWEEP, "prepared transactions are left on {connection}");
            tokio::time::sleep(SWEEP).await;
        }
    }
}

/// Ends what is decided; how many are left.
async fn swept(journal: &Journal, connection: &str) -> Result<usize, String> {
    let (client, _driver) = dial(connection).await?;
    let listing = client.query("SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'pair-%'", &[]);
    let listed = tokio::time::timeout(PATIENCE, listing).await.map_err(|late| late.to_string())?;
    let mut left = 0;
    for row in listed.map_err(|error| error.to_string())? {
        let gid: String = row.get(0);
        let command = match journal.decision(gid["pair-".len()..].parse().unwrap()) {
            Decision::Open => None,
            Decision::Commit => Some("COMMIT PREPARED"),
            Decision::Rollback => Some("ROLLBACK PREPARED"),
        };
        let ended = match command {
            Some(command) => is_done(&client, &format!("{command} '{gid}'")).await,
            None => false,
        };
        left += usize::from(!ended);
    }
    Ok(left)
}
