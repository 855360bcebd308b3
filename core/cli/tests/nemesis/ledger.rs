//! Money that is moved between servers, by one commit on each, one after the other, or in two phases; and what the clients
//! saw of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

use super::chance::Chance;
use super::pairs::{self, Decision, Pair, is_done};

pub const ACCOUNTS: i64 = 20;
pub const BALANCE: i64 = 1_000;

/// How long a client waits for a server.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How long a restored server may take to answer, on a machine that does much else.
const READING: Duration = Duration::from_mins(1);

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Being sent, or the answer to its commit was lost.
    Unknown,
    /// Its commit was never sent.
    Failed,
    Acknowledged(Instant),
}

/// One side of a transfer: an entry on one server.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub node: u16,
    pub account: i64,
    pub amount: i64,
    pub incarnation: u32,
    pub begun: Instant,
    pub outcome: Outcome,
    /// The transfer that it is one half of, if that is committed in two phases.
    pub pair: Option<usize>,
}

/// Everything that was ever sent; an entry's number is its place, counted from one.
#[derive(Default)]
pub struct Journal {
    sent: Mutex<Vec<Sent>>,
    /// What was decided of each transfer in two phases.
    pairs: Mutex<Vec<Decision>>,
    /// The incarnation that the clients write in.
    pub incarnation: AtomicU32,
}

impl Journal {
    pub fn all(&self) -> Vec<Sent> {
        self.sent.lock().unwrap().clone()
    }

    fn begin(&self, node: u16, account: i64, amount: i64, pair: Option<usize>) -> i64 {
        let incarnation = self.incarnation.load(Ordering::SeqCst);
        let mut sent = self.sent.lock().unwrap();
        sent.push(Sent { node, account, amount, incarnation, begun: Instant::now(), outcome: Outcome::Unknown, pair });
        i64::try_from(sent.len()).unwrap()
    }

    fn begin_pair(&self) -> usize {
        let mut pairs = self.pairs.lock().unwrap();
        pairs.push(Decision::Open);
        pairs.len() - 1
    }

    pub fn decide(&self, pair: usize, decision: Decision) {
        self.pairs.lock().unwrap()[pair] = decision;
    }

    pub fn decision(&self, pair: usize) -> Decision {
        self.pairs.lock().unwrap()[pair]
    }

    /// How many transfers were decided to commit in two phases.
    pub fn committed_pairs(&self) -> usize {
        self.pairs.lock().unwrap().iter().filter(|decision| **decision == Decision::Commit).count()
    }

    pub fn settle(&self, id: i64, outcome: Outcome) {
        self.sent.lock().unwrap()[usize::try_from(id).unwrap() - 1].outcome = outcome;
    }

    /// How many entries on `node` were acknowledged since `moment`.
    pub fn acknowledged_since(&self, node: u16, moment: Instant) -> usize {
        let sent = self.sent.lock().unwrap();
        let recent = sent.iter().rev().take(5_000).filter(|sent| sent.node == node && sent.begun >= moment);
        recent.filter(|sent| matches!(sent.outcome, Outcome::Acknowledged(_))).count()
    }
}

/// What every entry says besides: long enough that rows move between pages.
pub fn body(id: i64) -> String {
    format!("{id:x}-").repeat(20)
}

/// Makes the tables on one server.
pub async fn create(connection: &str) {
    let (client, _driver) = dial(connection).await.unwrap();
    let sql = format!(
        "CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL); \
         CREATE TABLE entries (id bigint PRIMARY KEY, account bigint NOT NULL, amount bigint NOT NULL, body text NOT NULL); \
         CREATE INDEX ON entries (body); \
         INSERT INTO accounts SELECT id, {BALANCE} FROM generate_series(0, {}) id",
        ACCOUNTS - 1
    );
    client.batch_execute(&sql).await.unwrap();
}

/// An entry as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub account: i64,
    pub amount: i64,
    pub body: String,
}

/// What one server holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub entries: BTreeMap<i64, Found>,
    pub balances: BTreeMap<i64, i64>,
    /// The gids of what is prepared there.
    pub prepared: Vec<String>,
}

/// Reads all that a server holds.
pub async fn read(connection: &str) -> Contents {
    let (client, _driver) = dial_within(connection, READING).await.unwrap();
    let entries = client.query("SELECT id, account, amount, body FROM entries", &[]).await.unwrap();
    let entry =
        |row: &tokio_postgres::Row| (row.get(0), Found { account: row.get(1), amount: row.get(2), body: row.get(3) });
    let balances = client.query("SELECT id, balance FROM accounts", &[]).await.unwrap();
    let prepared = client.query("SELECT gid FROM pg_prepared_xacts", &[]).await.unwrap();
    Contents {
        entries: entries.iter().map(entry).collect(),
        balances: balances.iter().map(|row| (row.get(0), row.get(1))).collect(),
        prepared: prepared.iter().map(|row| row.get(0)).collect(),
    }
}

/// Clients at work, until [`Clients::stop`].
pub struct Clients {
    over: Arc<AtomicBool>,
    working: JoinSet<()>,
    journal: Arc<Journal>,
    connections: BTreeMap<u16, String>,
}

impl Clients {
    /// `connections` by node; each client draws from a stream of its own.
    pub fn start(journal: &Arc<Journal>, connections: &BTreeMap<u16, String>, chance: &mut Chance, count: u32) -> Self {
        let (over, mut working) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        for _ in 0..count {
            let client = Worker {
                journal: journal.clone(),
                connections: connections.clone(),
                sessions: BTreeMap::new(),
                chance: chance.branch(),
                over: over.clone(),
            };
            working.spawn(client.work());
        }
        for connection in connections.values() {
            working.spawn(churn(connection.clone(), over.clone()));
            working.spawn(pairs::sweep(journal.clone(), connection.clone(), over.clone()));
        }
        Self { over, working, journal: journal.clone(), connections: connections.clone() }
    }

    pub async fn stop(self) {
        self.over.store(true, Ordering::SeqCst);
        self.working.join_all().await;
        pairs::sweep_out(&self.journal, &self.connections).await;
    }
}

struct Session {
    client: Client,
    _driver: JoinSet<()>,
}

struct Worker {
    journal: Arc<Journal>,
    connections: BTreeMap<u16, String>,
    sessions: BTreeMap<u16, Session>,
    chance: Chance,
    over: Arc<AtomicBool>,
}

impl Worker {
    async fn work(mut self) {
        let nodes: Vec<u16> = self.connections.keys().copied().collect();
        while !self.over.load(Ordering::SeqCst) {
            let (place, hop) = (self.chance.below(nodes.len()), 1 + self.chance.below(nodes.len() - 1));
            let (giver, taker) = (nodes[place], nodes[(place + hop) % nodes.len()]);
            let amount = 1 + i64::try_from(self.chance.below(9)).unwrap();
            if self.chance.below(3) == 0 {
                self.enter_both([(giver.min(taker), -amount), (giver.max(taker), amount)]).await;
                let pause = self.chance.millis(1, 12);
                tokio::time::sleep(pause).await;
                continue;
            }
            // The second side is sent only once the first is acknowledged: it must never be there alone.
            if self.enter(giver, -amount).await {
                self.enter(taker, amount).await;
            }
            let pause = self.chance.millis(1, 12);
            tokio::time::sleep(pause).await;
        }
    }

    /// Writes one entry; whether it was acknowledged.
    async fn enter(&mut self, node: u16, amount: i64) -> bool {
        if !self.is_connected(node).await {
            return false;
        }
        let (id, sql) = self.entry(node, amount, None);
        let client = &self.sessions[&node].client;
        let outcome = match tokio::time::timeout(PATIENCE, client.batch_execute(&sql)).await {
            Ok(Ok(())) => match tokio::time::timeout(PATIENCE, client.batch_execute("COMMIT")).await {
                Ok(Ok(())) => Outcome::Acknowledged(Instant::now()),
                Ok(Err(_)) | Err(_) => Outcome::Unknown,
            },
            Ok(Err(_)) | Err(_) => Outcome::Failed,
        };
        self.journal.settle(id, outcome);
        if !matches!(outcome, Outcome::Acknowledged(_)) {
            self.sessions.remove(&node);
        }
        matches!(outcome, Outcome::Acknowledged(_))
    }

    /// Whether there is a session with `node`, an old or a new one.
    async fn is_connected(&mut self, node: u16) -> bool {
        if !self.sessions.contains_key(&node) {
            let Ok((client, driver)) = dial(&self.connections[&node]).await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                return false;
            };
            self.sessions.insert(node, Session { client, _driver: driver });
        }
        true
    }

    /// A new entry, and what writes it in a transaction that stays open.
    fn entry(&mut self, node: u16, amount: i64, pair: Option<usize>) -> (i64, String) {
        let account = i64::try_from(self.chance.word() % 20).unwrap();
        let with_savepoint = self.chance.below(4) == 0;
        let id = self.journal.begin(node, account, amount, pair);
        let sql = format!(
            "BEGIN; {}INSERT INTO entries VALUES ({id}, {account}, {amount}, '{}'); \
             UPDATE accounts SET balance = balance + {amount} WHERE id = {account}",
            if with_savepoint { "SAVEPOINT s; DELETE FROM accounts; ROLLBACK TO s; SAVEPOINT t; " } else { "" },
            body(id)
        );
        (id, sql)
    }

    /// Writes two entries in two phases. The nodes ascend: two such transfers never wait for each other.
    async fn enter_both(&mut self, sides: [(u16, i64); 2]) {
        for (node, _) in sides {
            if !self.is_connected(node).await {
                return;
            }
        }
        let pair = self.journal.begin_pair();
        let entries = sides.map(|(node, amount)| (node, self.entry(node, amount, Some(pair))));
        let mut written = true;
        for (node, (_, sql)) in &entries {
            written = written && is_done(&self.sessions[node].client, sql).await;
        }
        let done = if written {
            let halves = [0, 1].map(|side| (entries[side].1.0, &self.sessions[&entries[side].0].client));
            Pair { number: pair, halves }.end(&self.journal).await
        } else {
            self.journal.decide(pair, Decision::Rollback);
            false
        };
        for (node, (id, _)) in entries {
            if self.journal.decision(pair) == Decision::Rollback {
                self.journal.settle(id, Outcome::Failed);
            }
            if !done {
                self.sessions.remove(&node);
            }
        }
    }
}

/// Tables, indexes and checkpoints come and go all the while.
async fn churn(connection: String, over: Arc<AtomicBool>) {
    let sql = [
        "CREATE TABLE IF NOT EXISTS churn AS SELECT n, repeat(md5(n::text), 10) AS t FROM generate_series(1, 2000) n",
        "CREATE INDEX IF NOT EXISTS churn_t ON churn (t)",
        "VACUUM accounts",
        "UPDATE churn SET t = t || 'x' WHERE n % 3 = 0",
        "CHECKPOINT",
        "CREATE UNLOGGED TABLE IF NOT EXISTS fleeting AS SELECT 1 AS one",
        "TRUNCATE churn",
        "DROP TABLE IF EXISTS churn, fleeting",
    ];
    while !over.load(Ordering::SeqCst) {
        let Ok((client, _driver)) = dial(&connection).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        for sql in sql.into_iter().cycle() {
            let done = tokio::time::timeout(PATIENCE, client.batch_execute(sql)).await;
            if over.load(Ordering::SeqCst) || !matches!(done, Ok(Ok(()))) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    }
}

pub async fn dial(connection: &str) -> Result<(Client, JoinSet<()>), String> {
    dial_within(connection, PATIENCE).await
}

async fn dial_within(connection: &str, patience: Duration) -> Result<(Client, JoinSet<()>), String> {
    let dialled = tokio::time::timeout(patience, tokio_postgres::connect(connection, NoTls)).await;
    let (client, connection) = dialled.map_err(|late| late.to_string())?.map_err(|error| error.to_string())?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        connection.await.ok();
    });
    Ok((client, driver))
}
