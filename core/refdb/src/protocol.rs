//! What clients and nodes say to each other.

use serde::{Deserialize, Serialize};
use sheetanchor_core::error::Error;
use sheetanchor_core::identity::NodeId;
use sheetanchor_core::scn::Scn;

use crate::directory::LifeNo;
use crate::failure::Failure;
use crate::layout::PageNo;
use crate::transaction::{Status, Xid};

/// A request on a connection; exactly one [`Reply`] follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// From a client. The connection is its session.
    Statement(Statement),
    /// From another node.
    Ask { from: NodeId, life: LifeNo, ask: Ask },
}

/// What a client may ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Statement {
    /// Starts a transaction.
    Begin,
    /// The visible value of a row.
    Read { key: u64 },
    /// Writes a row in the open transaction.
    Write { key: u64, value: Vec<u8> },
    /// Commits the open transaction.
    Commit,
    /// Aborts it.
    Abort,
    /// The visible rows of some pages, from page `from_page` on, whose keys lie in `from..until`.
    Scan { from_page: u64, from: u64, until: u64 },
    /// Prepares the open transaction under a global identifier, and leaves it.
    Prepare { gid: String },
    /// Commits the transaction that is prepared under `gid` on this node, whichever session prepared it.
    CommitPrepared { gid: String },
    /// Rolls it back.
    RollbackPrepared { gid: String },
    /// The global identifiers of all transactions that are prepared on this node.
    ListPrepared,
}

/// What a node may ask another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// This life has begun; which pages of mine do you own?
    Register,
    /// To a page's master: make me its owner.
    Acquire { page: PageNo },
    /// From a page's master: give it up.
    Release { page: PageNo },
    /// What became of a transaction of yours?
    StatusOf { xid: Xid },
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// Begun, written, aborted, rolled back.
    Done,
    /// What `Read` asked for.
    Value(Option<Vec<u8>>),
    /// Committed or prepared, durably, at this SCN.
    Committed(Scn),
    /// The commit may or may not become durable.
    Unknown(String),
    /// Some rows, and the page to go on at, if there are more.
    Rows { rows: Vec<(u64, Vec<u8>)>, next_page: Option<u64> },
    /// The transaction is aborted; the same may succeed later.
    Retry(String),
    /// The transaction is aborted; it would fail again. A refusal's code, or nothing.
    Failed { code: Option<String>, message: String },
    /// From another node, in this life of it.
    Answer { life: LifeNo, answer: Answer },
    /// What `ListPrepared` asked for, ascending.
    Gids(Vec<String>),
}

/// The answer to an [`Ask`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The pages of the asking master that this node owns.
    Registered { owned: Vec<PageNo> },
    /// The asking node owns the page now; its file holds this version or a later one.
    Granted { version: Scn },
    /// The page is not owned here any more; the version that was written, if it was owned here before.
    Released { version: Option<Scn> },
    /// What became of the transaction.
    Status(Status),
}

impl From<Failure> for Reply {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Retry(why) => Self::Retry(why),
            Failure::Final(Error::Refusal(refusal)) => {
                Self::Failed { code: Some(refusal.code.as_str().into()), message: refusal.message }
            }
            Failure::Final(error @ (Error::Fault(_) | Error::Bug(_))) => {
                Self::Failed { code: None, message: error.to_string() }
            }
        }
    }
}
