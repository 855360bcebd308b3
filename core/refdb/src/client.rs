//! A client of one node.

use std::sync::Arc;
use std::time::Duration;

use sheetanchor_core::error::Error;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::env::{Clock, Env};

use crate::frame::{ANY_CLUSTER, Envelope, Link};
use crate::protocol::{Reply, Request, Statement};

/// Whether a session tells each node what it has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    /// Each request carries the highest SCN that the session has seen: what it does next, on whichever node, is stamped
    /// above what it did before.
    Causal,
    /// Requests carry nothing; only a fenced cut is causal for such a session.
    Plain,
}

/// Why a statement was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientError {
    /// The transaction is aborted, and the same may succeed later.
    Retry(String),
    /// The transaction is aborted, and it would fail again.
    Failed {
        /// The refusal's code, if it is one.
        code: Option<Code>,
        /// What was seen.
        message: String,
    },
    /// The connection is lost or too slow: dial again. A transaction that was not being committed is aborted.
    Lost(String),
    /// The commit may or may not have become durable.
    Unknown(String),
}

impl std::fmt::Display for ClientError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Retry(why) => write!(out, "try again: {why}"),
            Self::Failed { code: Some(code), message } => write!(out, "{message} ({code})"),
            Self::Failed { code: None, message } => out.write_str(message),
            Self::Lost(why) => write!(out, "the connection is lost: {why}"),
            Self::Unknown(why) => write!(out, "the outcome is unknown: {why}"),
        }
    }
}

impl std::error::Error for ClientError {}

/// A session on one node: one transaction at a time. A client whose call was cancelled must be dropped.
pub struct Client {
    clock: Arc<dyn Clock>,
    link: Link,
    session: Session,
    seen: Scn,
    timeout: Duration,
}

impl Client {
    /// How long one statement may take: longer than a node lets a commit wait.
    const TIMEOUT: Duration = Duration::from_secs(40);

    /// Dials the node at `address`, `host:port`. `seen` is what the session has seen before, on any node.
    ///
    /// # Errors
    /// [`ClientError::Lost`].
    pub async fn connect(env: &Env, address: &str, session: Session, seen: Scn) -> Result<Self, ClientError> {
        let dialled = tokio::select! {
            biased;
            dialled = env.net.connect(address) => dialled,
            () = env.clock.sleep(Duration::from_secs(2)) => return Err(ClientError::Lost(format!("{address} does not answer"))),
        };
        let stream = dialled.map_err(|fault| ClientError::Lost(fault.to_string()))?;
        let link = Link::new(stream);
        Ok(Self { clock: Arc::clone(&env.clock), link, session, seen, timeout: Self::TIMEOUT })
    }

    /// Waits at most so long for each answer.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// The highest SCN that any answer carried.
    pub fn seen(&self) -> Scn {
        self.seen
    }

    /// The session has seen `scn` elsewhere.
    pub(crate) fn saw(&mut self, scn: Scn) {
        self.seen = self.seen.max(scn);
    }

    /// Starts a transaction.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn begin(&mut self) -> Result<(), ClientError> {
        self.done(Statement::Begin).await
    }

    /// The visible value of a row; outside of a transaction, too.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn read(&mut self, key: u64) -> Result<Option<Vec<u8>>, ClientError> {
        let Reply::Value(value) = self.ask(Statement::Read { key }).await? else { return Err(unexpected()) };
        Ok(value)
    }

    /// Writes a row in the open transaction; at most [`VALUE_BYTES_MAX`](crate::VALUE_BYTES_MAX) bytes.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn write(&mut self, key: u64, value: Vec<u8>) -> Result<(), ClientError> {
        self.done(Statement::Write { key, value }).await
    }

    /// Commits: what was written is durable and visible, at the SCN answered.
    ///
    /// # Errors
    /// See [`ClientError`]. After [`ClientError::Lost`] as after [`ClientError::Unknown`] nobody knows the outcome.
    pub async fn commit(&mut self) -> Result<Scn, ClientError> {
        let Reply::Committed(scn) = self.ask(Statement::Commit).await? else { return Err(unexpected()) };
        Ok(scn)
    }

    /// Aborts the open transaction, if there is one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn abort(&mut self) -> Result<(), ClientError> {
        self.done(Statement::Abort).await
    }

    /// Prepares the open transaction under `gid`: what was written is durable, and another session may end it, also after
    /// crashes. Answers the SCN at which it was prepared.
    ///
    /// # Errors
    /// See [`ClientError`]; `SA213` if the gid is in use on this node. After [`ClientError::Lost`] or
    /// [`ClientError::Unknown`] nobody knows whether it is prepared.
    pub async fn prepare(&mut self, gid: &str) -> Result<Scn, ClientError> {
        let Reply::Committed(scn) = self.ask(Statement::Prepare { gid: gid.into() }).await? else {
            return Err(unexpected());
        };
        Ok(scn)
    }

    /// Commits the transaction that is prepared under `gid` on this node.
    ///
    /// # Errors
    /// See [`ClientError`]; `SA209` if none is. After [`ClientError::Lost`] or [`ClientError::Unknown`] ask again.
    pub async fn commit_prepared(&mut self, gid: &str) -> Result<Scn, ClientError> {
        let Reply::Committed(scn) = self.ask(Statement::CommitPrepared { gid: gid.into() }).await? else {
            return Err(unexpected());
        };
        Ok(scn)
    }

    /// Rolls it back.
    ///
    /// # Errors
    /// As [`Client::commit_prepared`].
    pub async fn rollback_prepared(&mut self, gid: &str) -> Result<(), ClientError> {
        self.done(Statement::RollbackPrepared { gid: gid.into() }).await
    }

    /// The global identifiers of all transactions that are prepared on this node, ascending.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn prepared(&mut self) -> Result<Vec<String>, ClientError> {
        let Reply::Gids(gids) = self.ask(Statement::ListPrepared).await? else { return Err(unexpected()) };
        Ok(gids)
    }

    /// All visible rows whose keys lie in `from..until`, ascending. One state only if nobody writes meanwhile.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn scan(&mut self, from: u64, until: u64) -> Result<Vec<(u64, Vec<u8>)>, ClientError> {
        let mut all = Vec::new();
        let mut page = Some(0);
        while let Some(from_page) = page {
            let reply = self.ask(Statement::Scan { from_page, from, until }).await?;
            let Reply::Rows { rows, next_page } = reply else { return Err(unexpected()) };
            all.extend(rows);
            page = next_page.filter(|next| *next > from_page);
        }
        all.sort_unstable();
        Ok(all)
    }

    async fn done(&mut self, statement: Statement) -> Result<(), ClientError> {
        let Reply::Done = self.ask(statement).await? else { return Err(unexpected()) };
        Ok(())
    }

    async fn ask(&mut self, statement: Statement) -> Result<Reply, ClientError> {
        let scn = match self.session {
            Session::Causal => self.seen,
            Session::Plain => Scn::ZERO,
        };
        let request = Request::Statement(statement);
        let exchange = async {
            self.link.send(Envelope { cluster: ANY_CLUSTER, scn }, &request).await?;
            self.link.receive::<Reply>(ANY_CLUSTER).await
        };
        let received = tokio::select! {
            biased;
            received = exchange => received,
            () = self.clock.sleep(self.timeout) => return Err(ClientError::Lost("no answer in time".into())),
        };
        match received {
            Ok(Some((envelope, reply))) => {
                self.seen = self.seen.max(envelope.scn);
                succeeded(reply)
            }
            Ok(None) => Err(ClientError::Lost("the node hung up".into())),
            Err(error) => Err(ClientError::Lost(error.to_string())),
        }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Client").field("session", &self.session).field("seen", &self.seen).finish_non_exhaustive()
    }
}

/// A reply that says that the statement was carried out.
fn succeeded(reply: Reply) -> Result<Reply, ClientError> {
    match reply {
        Reply::Retry(why) => Err(ClientError::Retry(why)),
        Reply::Unknown(why) => Err(ClientError::Unknown(why)),
        Reply::Failed { code, message } => {
            Err(ClientError::Failed { code: code.as_deref().and_then(Code::parse), message })
        }
        Reply::Done
        | Reply::Value(_)
        | Reply::Committed(_)
        | Reply::Rows { .. }
        | Reply::Answer { .. }
        | Reply::Gids(_) => Ok(reply),
    }
}

fn unexpected() -> ClientError {
    ClientError::Lost("the node answers something else".into())
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Failed { code: Some(code), message } => Refusal::new(code, message).into(),
            ClientError::Retry(why) => Refusal::new(Code::Busy, why).into(),
            other @ (ClientError::Failed { .. } | ClientError::Lost(_) | ClientError::Unknown(_)) => {
                let kind = sheetanchor_core::error::FaultKind::Unreachable;
                sheetanchor_core::error::Fault::new(kind, "use the database", other.to_string()).into()
            }
        }
    }
}
