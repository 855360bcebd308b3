//! Connections to the server, and what its answers and errors mean.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use tokio::task::AbortHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls, Row, Statement};

use super::target::Target;
use super::tls::{Broken, NO_TLS, Safety, untrusted};

/// How long a connection may take to be made.
const CONNECT_WAIT: Duration = Duration::from_secs(10);

/// How long an ordinary query may take.
pub(super) const QUERY_WAIT: Duration = Duration::from_mins(1);

/// How many statements a session keeps prepared. All that do not name something of their moment fit.
const PREPARED_MAX: usize = 64;

/// What about a server stays the same while a connection to it lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// `150018` for 15.18.
    pub version_number: u32,
    /// `15.18`.
    pub version: String,
    /// The system identifier.
    pub system: u64,
    /// Its data folder, as it says; empty for a role that may not see it, as `socket_folders` then is.
    pub data: String,
    /// Bytes of a WAL segment.
    pub segment_bytes: u64,
    /// Whether its pages carry checksums.
    pub checksums: bool,
    /// Whether its pages, relation segments and WAL pages have the sizes that nearly every build has.
    pub usual_sizes: bool,
    /// The port that it listens on, also where that is a part of a socket's name.
    pub port: u16,
    /// The port at which this very connection reached it; none through a Unix socket.
    pub reached_at: Option<u16>,
    /// The folders of its Unix sockets, as configured.
    pub socket_folders: String,
    /// Whether the role of this very connection is a superuser.
    pub superuser: bool,
}

impl Facts {
    /// The major version: 15 for 15.18.
    pub(super) fn major(&self) -> u32 {
        self.version_number / 10_000
    }
}

/// One connection, and the task that drives its socket, which ends with it.
pub(super) struct Session {
    client: Client,
    driver: AbortHandle,
    facts: Facts,
    /// A statement that is prepared costs one round trip less, and commits may be waiting for its answer.
    prepared: Mutex<BTreeMap<String, Statement>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Session {
    /// Connects and learns what the server is.
    ///
    /// # Errors
    /// `SA112` if no server answers or it is starting or stopping, `SA114` if it is not as safe as it must be; faults for
    /// what it answers otherwise.
    pub(super) async fn open(target: &Target) -> Result<Self> {
        let connecting = tokio::time::timeout(CONNECT_WAIT, connect(target)).await;
        let (client, driver) =
            connecting.map_err(|_| down(format!("no answer within {} s", CONNECT_WAIT.as_secs())))??;
        let facts = match facts(&client).await {
            Ok(facts) => facts,
            Err(error) => {
                driver.abort();
                return Err(error);
            }
        };
        Ok(Self { client, driver, facts, prepared: Mutex::default() })
    }

    /// What the server is.
    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether it is known to be over.
    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// The one row of a query whose columns are text.
    ///
    /// # Errors
    /// [`FaultKind::Unreachable`] if the session is over, [`FaultKind::TimedOut`], else what the server says.
    pub(super) async fn row(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Fields> {
        self.row_within(QUERY_WAIT, sql, values).await
    }

    /// As [`Session::row`], with a deadline of its own.
    pub(super) async fn row_within(&self, wait: Duration, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Fields> {
        within(wait, sql, self.query_one(sql, values)).await.map(Fields)
    }

    async fn query_one(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Row, tokio_postgres::Error> {
        let statement = self.prepare(sql).await?;
        self.client.query_one(&statement, values).await
    }

    async fn prepare(&self, sql: &str) -> Result<Statement, tokio_postgres::Error> {
        let prepared = || self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(statement) = prepared().get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        let mut prepared = prepared();
        if prepared.len() < PREPARED_MAX {
            prepared.insert(sql.to_owned(), statement.clone());
        }
        drop(prepared);
        Ok(statement)
    }

    /// All rows of a query whose columns are text.
    ///
    /// # Errors
    /// As for [`Session::row`].
    pub(super) async fn rows(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Fields>> {
        let rows = within(QUERY_WAIT, sql, self.client.query(sql, values)).await?;
        Ok(rows.into_iter().map(Fields).collect())
    }

    /// As [`Session::row_within`], but what the server says against it is an answer, too.
    ///
    /// # Errors
    /// [`FaultKind::Unreachable`] if the session is over, [`FaultKind::TimedOut`].
    pub(super) async fn ask(
        &self,
        wait: Duration,
        sql: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Result<Fields, Said>> {
        let asked = async { Ok(self.query_one(sql, values).await) };
        Ok(answered(sql, within(wait, sql, asked).await?)?.map(Fields))
    }

    /// Runs a command; what the server says against it is an answer, too.
    ///
    /// # Errors
    /// As for [`Session::ask`].
    pub(super) async fn run(&self, wait: Duration, sql: &str) -> Result<Result<(), Said>> {
        let asked = async { Ok(self.client.batch_execute(sql).await) };
        answered(sql, within(wait, sql, asked).await?)
    }

    /// Runs a command.
    ///
    /// # Errors
    /// As for [`Session::row`].
    pub(super) async fn command(&self, wait: Duration, sql: &str) -> Result<()> {
        within(wait, sql, self.client.batch_execute(sql)).await
    }
}

/// Connects as safely as `target` says.
async fn connect(target: &Target) -> Result<(Client, AbortHandle)> {
    let in_clear = async |config: &Config| {
        let (client, connection) = config.connect(NoTls).await.map_err(|error| connect_error(&error))?;
        Ok((client, drive(connection)))
    };
    let Some(connector) = target.tls().connector()? else { return in_clear(target.config()).await };
    let safety = target.tls().safety();
    match target.config().connect(connector.clone()).await {
        Ok((client, connection)) => Ok((client, drive(connection))),
        // Its handshake failed, or pg_hba.conf has no line for TLS.
        Err(error)
            if safety == Safety::Prefer
                && (broken(&error).is_some_and(|broken| matches!(broken, Broken::Untrusted(_)))
                    || error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)) =>
        {
            in_clear(target.config().clone().ssl_mode(SslMode::Disable)).await
        }
        Err(error) => Err(match broken(&error) {
            Some(Broken::Untrusted(seen)) => untrusted(safety, seen),
            Some(Broken::Io(seen)) => down(seen),
            None if connector.was_turned_down() && !is_io(&error) => untrusted(safety, NO_TLS),
            None => connect_error(&error),
        }),
    }
}

fn drive<T>(connection: tokio_postgres::Connection<tokio_postgres::Socket, T>) -> AbortHandle
where
    T: tokio_postgres::tls::TlsStream + Send + Unpin + 'static,
{
    let driver = tokio::spawn(async move {
        // Its errors reach the client's callers; here they have nobody to go to.
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to PostgreSQL ended");
        }
    });
    driver.abort_handle()
}

fn broken(error: &tokio_postgres::Error) -> Option<&Broken> {
    std::error::Error::source(error)?.downcast_ref()
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<std::io::Error>)
}

/// What a server says against a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// The SQLSTATE.
    pub state: String,
    /// Its words.
    pub message: String,
}

impl Said {
    /// Whether the server is starting, stopping or has lost a process.
    pub(super) fn is_going(&self) -> bool {
        is_going(&SqlState::from_code(&self.state))
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} ({})", self.message, self.state)
    }
}

/// A row whose columns are text.
#[derive(Debug)]
pub(super) struct Fields(Row);

impl Fields {
    /// The column, or `None` if it is null.
    pub(super) fn maybe(&self, column: usize) -> Result<Option<String>> {
        self.0.try_get(column).map_err(|error| answer(column, &error.to_string()))
    }

    /// The column.
    pub(super) fn text(&self, column: usize) -> Result<String> {
        self.maybe(column)?.ok_or_else(|| answer(column, "it is null"))
    }

    /// The column as what it spells.
    pub(super) fn parsed<T: std::str::FromStr>(&self, column: usize) -> Result<T> {
        let text = self.text(column)?;
        text.parse().map_err(|_| answer(column, &text))
    }

    /// The column as an LSN.
    pub(super) fn lsn(&self, column: usize) -> Result<Lsn> {
        self.parsed(column)
    }
}

/// The refusal of a call that needs an open database.
pub(super) fn down(seen: impl std::fmt::Display) -> Error {
    Refusal::new(Code::DatabaseDown, format!("the database does not answer: {seen}")).into()
}

/// Whether that is what [`down`] says.
pub(super) fn is_down(error: &Error) -> bool {
    error.refusal().is_some_and(|refusal| refusal.code == Code::DatabaseDown)
}

/// Whether that is what [`down`] says of a server that answers, and lets nobody in: it starts, or shuts down.
pub(super) fn is_closed(error: &Error) -> bool {
    let closed = format!("({})", SqlState::CANNOT_CONNECT_NOW.code());
    is_down(error) && error.refusal().is_some_and(|refusal| refusal.message.ends_with(&closed))
}

/// A session that turns out to be over means that nobody answers: until a query fails, a killed server is not noticed.
pub(super) fn over_is_down(error: Error) -> Error {
    if error.is(FaultKind::Unreachable) { down(error) } else { error }
}

async fn facts(client: &Client) -> Result<Facts> {
    let sql = "SELECT current_setting('server_version_num'), current_setting('server_version'), \
        (SELECT system_identifier::text FROM pg_control_system()), \
        CASE WHEN sees.any_setting THEN current_setting('data_directory') END, \
        (SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'), current_setting('data_checksums'), \
        current_setting('block_size') || ' ' || current_setting('wal_block_size') || ' ' || \
        (SELECT setting FROM pg_settings WHERE name = 'segment_size'), \
        current_setting('port'), inet_server_port()::text, \
        CASE WHEN sees.any_setting THEN current_setting('unix_socket_directories') END, current_setting('is_superuser') \
        FROM (SELECT pg_has_role('pg_read_all_settings', 'USAGE')) AS sees (any_setting)";
    let fields = Fields(within(QUERY_WAIT, "look at the server", client.query_one(sql, &[])).await?);
    let version = fields.text(1)?;
    Ok(Facts {
        version_number: fields.parsed(0)?,
        version: version.split_whitespace().next().unwrap_or(&version).to_owned(),
        system: fields.parsed(2)?,
        data: fields.maybe(3)?.unwrap_or_default(),
        segment_bytes: fields.parsed(4)?,
        checksums: fields.text(5)? == "on",
        usual_sizes: fields.text(6)? == "8192 8192 131072",
        port: fields.parsed(7)?,
        reached_at: fields.maybe(8)?.and_then(|port| port.parse().ok()),
        socket_folders: fields.maybe(9)?.unwrap_or_default(),
        superuser: fields.text(10)? == "on",
    })
}

async fn within<T>(
    wait: Duration,
    sql: &str,
    query: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T> {
    match tokio::time::timeout(wait, query).await {
        Ok(outcome) => outcome.map_err(|error| query_error(sql, &error)),
        Err(_) => {
            Err(Fault::new(FaultKind::TimedOut, operation(sql), format!("no answer within {} s", wait.as_secs()))
                .into())
        }
    }
}

/// Tells what a server says from not hearing it.
fn answered<T>(sql: &str, outcome: Result<T, tokio_postgres::Error>) -> Result<Result<T, Said>> {
    match outcome {
        Ok(answer) => Ok(Ok(answer)),
        Err(error) => match error.as_db_error().filter(|said| !is_going(said.code())) {
            Some(said) => Ok(Err(Said { state: said.code().code().to_owned(), message: said.message().to_owned() })),
            None => Err(query_error(sql, &error)),
        },
    }
}

fn operation(sql: &str) -> String {
    let mut shown: String = sql.chars().take(60).collect();
    if shown.len() < sql.len() {
        shown.push('…');
    }
    format!("run `{shown}`")
}

fn query_error(sql: &str, error: &tokio_postgres::Error) -> Error {
    let kind = match error.code() {
        None => FaultKind::Unreachable,
        Some(code) if is_going(code) => FaultKind::Unreachable,
        Some(code) if *code == SqlState::DISK_FULL => FaultKind::NoSpace,
        Some(code) if *code == SqlState::DUPLICATE_OBJECT => FaultKind::Exists,
        Some(code) if *code == SqlState::UNDEFINED_OBJECT => FaultKind::NotFound,
        Some(_) => FaultKind::Other,
    };
    Fault::new(kind, operation(sql), said(error)).into()
}

fn connect_error(error: &tokio_postgres::Error) -> Error {
    // What is wrong with a password or a name is no sign that nobody is there.
    match error.code() {
        None if is_io(error) || error.is_closed() => down(said(error)),
        Some(code) if is_going(code) => down(said(error)),
        None | Some(_) => Fault::new(FaultKind::Other, "connect to the database", said(error)).into(),
    }
}

/// Whether the server is starting, stopping or has lost a process.
fn is_going(code: &SqlState) -> bool {
    [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW].contains(code)
}

fn said(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{} ({})", said.message(), said.code().code()),
        None => match std::error::Error::source(error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        },
    }
}

fn answer(column: usize, seen: &str) -> Error {
    Fault::new(FaultKind::Other, format!("read column {column} of an answer"), seen.to_owned()).into()
}
