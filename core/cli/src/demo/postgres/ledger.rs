//! A ledger on one PostgreSQL server: accounts, and transfers that each leave a row of their own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sheetanchor_core::error::{Error, Fault, FaultKind};
use sheetanchor_core::identity::NodeId;
use sheetanchor_core::position::Lsn;
use sheetanchor_engine::env::{Env, Task};
use sheetanchor_native::postgres::server::Server;
use sheetanchor_refdb::{Contents, Transfer};
use tokio_postgres::{Client, NoTls};

use crate::demo::journal::{Journal, Outcome};
use crate::report::Result;

/// Accounts on each node.
pub const ACCOUNTS: u64 = 50;

/// What each begins with.
pub const BALANCE: i64 = 1_000;

/// How long one statement may take.
const STATEMENT_WAIT: Duration = Duration::from_secs(10);

/// How long before a server is dialled again, and between two transfers.
const REDIAL_PAUSE: Duration = Duration::from_millis(50);
const PAUSE: Duration = Duration::from_millis(4);

/// Where a commit record lies in its server's WAL: not before the one, and ended at the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wal {
    /// The end of WAL right before the commit.
    pub before: Lsn,
    /// The end of WAL right after it.
    pub after: Lsn,
}

/// One connection.
pub struct Session {
    env: Env,
    client: Client,
    /// Ends with the session.
    _connection: Box<dyn Task>,
}

/// How a transfer ended badly.
#[derive(Debug)]
enum Failure {
    /// It did not take place.
    Before(Fault),
    /// The commit was sent, and nobody knows.
    Commit(Fault),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Before(fault) | Failure::Commit(fault) => fault.into(),
        }
    }
}

/// Makes the ledger.
///
/// # Errors
/// Faults.
pub async fn create(env: &Env, server: &Server) -> Result<()> {
    let session = Session::connect(env, server).await?;
    let sql = format!(
        "CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL); \
         CREATE TABLE links (link bigint PRIMARY KEY); \
         CREATE TABLE transfers (id bigint PRIMARY KEY, payer bigint NOT NULL, payee bigint NOT NULL, amount bigint NOT NULL); \
         INSERT INTO accounts SELECT id, {BALANCE} FROM generate_series(0, {}) AS id",
        ACCOUNTS.saturating_sub(1)
    );
    Ok(session.run(&sql).await?)
}

/// Writes transfers until `over` is set. A session that is lost is dialled again.
pub async fn write(env: Env, connection: String, node: NodeId, journal: Arc<Journal<Wal>>, over: Arc<AtomicBool>) {
    while !over.load(Ordering::SeqCst) {
        if let Ok(mut session) = Session::dial(&env, &connection).await {
            while !over.load(Ordering::SeqCst) && write_one(&mut session, node, &journal).await {
                env.clock.sleep(PAUSE).await;
            }
        }
        env.clock.sleep(REDIAL_PAUSE).await;
    }
}

/// Sends one transfer; whether the session is still good.
async fn write_one(session: &mut Session, node: NodeId, journal: &Journal<Wal>) -> bool {
    let word = || session.env.entropy.word();
    let (from, amount) = (word() % ACCOUNTS, 1 + word() % 9);
    let to = (from + 1 + word() % (ACCOUNTS - 1)) % ACCOUNTS;
    let transfer = journal.send(node, from, to, amount);
    let outcome = match session.try_transfer(transfer).await {
        Ok(wal) => Outcome::Acknowledged(wal),
        Err(Failure::Before(_)) => Outcome::Failed,
        Err(Failure::Commit(_)) => Outcome::Unknown,
    };
    let good = matches!(outcome, Outcome::Acknowledged(_));
    journal.settle(transfer, outcome);
    good
}

impl Session {
    /// Connects to a server of ours.
    ///
    /// # Errors
    /// Faults.
    pub async fn connect(env: &Env, server: &Server) -> Result<Self> {
        Ok(Self::dial(env, &server.connection()).await?)
    }

    /// Connects to whoever answers at `connection`.
    ///
    /// # Errors
    /// Faults.
    pub async fn dial(env: &Env, connection: &str) -> std::result::Result<Self, Fault> {
        let dialled = in_time(env, tokio_postgres::connect(connection, NoTls)).await?;
        let (client, driver) = dialled;
        let driving = Box::pin(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "a connection has ended");
            }
        });
        Ok(Self { env: env.clone(), client, _connection: env.tasks.spawn("connection", driving) })
    }

    /// Carries a transfer out.
    ///
    /// # Errors
    /// Faults.
    pub async fn transfer(&mut self, transfer: Transfer) -> Result<()> {
        Ok(self.try_transfer(transfer).await.map(drop)?)
    }

    async fn try_transfer(&mut self, transfer: Transfer) -> std::result::Result<Wal, Failure> {
        let Transfer { id, from, to, amount } = transfer;
        let sql = format!(
            "BEGIN; INSERT INTO transfers VALUES ({id}, {from}, {to}, {amount}); \
             UPDATE accounts SET balance = balance - {amount} WHERE id = {from}; \
             UPDATE accounts SET balance = balance + {amount} WHERE id = {to}"
        );
        self.run(&sql).await.map_err(Failure::Before)?;
        let before = self.wal_end().await.map_err(Failure::Before)?;
        self.run("COMMIT").await.map_err(Failure::Commit)?;
        let after = self.wal_end().await.map_err(Failure::Commit)?;
        Ok(Wal { before, after })
    }

    /// All balances and transfers.
    ///
    /// # Errors
    /// Faults.
    pub async fn read_all(&self) -> Result<Contents> {
        let mut contents = Contents::default();
        let sql = "SELECT id, balance FROM accounts";
        for row in in_time(&self.env, self.client.query(sql, &[])).await? {
            contents.balances.insert(number(&row, 0)?, row.try_get(1).map_err(|error| fault(&error))?);
        }
        let sql = "SELECT id, payer, payee, amount FROM transfers";
        for row in in_time(&self.env, self.client.query(sql, &[])).await? {
            let id = number(&row, 0)?;
            let transfer = Transfer { id, from: number(&row, 1)?, to: number(&row, 2)?, amount: number(&row, 3)? };
            contents.transfers.insert(id, transfer);
        }
        Ok(contents)
    }

    /// The links that a server has of the chain over all of them.
    ///
    /// # Errors
    /// Faults.
    pub async fn links(&self) -> Result<BTreeSet<u64>> {
        let rows = in_time(&self.env, self.client.query("SELECT link FROM links", &[])).await?;
        Ok(rows.iter().map(|row| number(row, 0)).collect::<std::result::Result<_, Fault>>()?)
    }

    /// Whether the server could load the commit fence.
    ///
    /// # Errors
    /// Faults.
    pub async fn has_fence(&self) -> Result<bool> {
        let sql = "SELECT FROM pg_available_extensions WHERE name = 'sheetanchor_fence'";
        Ok(!in_time(&self.env, self.client.query(sql, &[])).await?.is_empty())
    }

    /// Runs a command.
    ///
    /// # Errors
    /// Faults.
    pub async fn run(&self, sql: &str) -> std::result::Result<(), Fault> {
        in_time(&self.env, self.client.batch_execute(sql)).await
    }

    async fn wal_end(&self) -> std::result::Result<Lsn, Fault> {
        let sql = "SELECT pg_current_wal_insert_lsn()::text";
        let row = in_time(&self.env, self.client.query_one(sql, &[])).await?;
        let text: &str = row.try_get(0).map_err(|error| fault(&error))?;
        text.parse().map_err(|()| Fault::new(FaultKind::Other, "ask for the end of WAL", format!("`{text}` is no LSN")))
    }
}

fn number(row: &tokio_postgres::Row, column: usize) -> std::result::Result<u64, Fault> {
    let number: i64 = row.try_get(column).map_err(|error| fault(&error))?;
    u64::try_from(number).map_err(|error| Fault::new(FaultKind::Other, "read the ledger", error.to_string()))
}

async fn in_time<T>(
    env: &Env,
    work: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>,
) -> std::result::Result<T, Fault> {
    tokio::select! {
        biased;
        outcome = work => outcome.map_err(|error| fault(&error)),
        () = env.clock.sleep(STATEMENT_WAIT) => Err(Fault::new(FaultKind::TimedOut, "use a server", "it does not answer")),
    }
}

fn fault(error: &tokio_postgres::Error) -> Fault {
    let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
    Fault::new(FaultKind::Unreachable, "use a server", cause)
}
