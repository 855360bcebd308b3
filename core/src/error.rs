//! The three ways in which work ends badly. Who reports: `Refusal` to the operator with its code, `Fault` to the
//! operator as something worth a retry, `Bug` to us.

use alloc::string::String;

use thiserror::Error;

use crate::refusal::Refusal;

/// Why an operation did not do what was asked.
#[derive(Clone, Debug, Error, PartialEq, Eq, Hash)]
pub enum Error {
    /// The evidence does not allow it. Doing it again changes nothing until the evidence changes.
    #[error(transparent)]
    Refusal(#[from] Refusal),
    /// The world failed: a disk, a network, a server. A retry may help.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// An invariant of ours broke. The process that sees it should stop.
    #[error("internal error: {0}")]
    Bug(String),
}

/// A failure of the world, with the operation that met it.
#[derive(Clone, Debug, Error, PartialEq, Eq, Hash)]
#[error("cannot {operation}: {cause}")]
pub struct Fault {
    /// What was being done, as an infinitive: `read /srv/x`.
    pub operation: String,
    /// What the world answered.
    pub cause: String,
    /// The kinds that callers tell apart.
    pub kind: FaultKind,
}

/// The failures of the world that a caller may handle by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// There is nothing of that name.
    NotFound,
    /// Something of that name is there already.
    Exists,
    /// The disk is full.
    NoSpace,
    /// A sync failed: what was written since the last sync may be gone, whatever later calls say.
    SyncFailed,
    /// The peer does not answer, or hung up.
    Unreachable,
    /// No answer in time; the effect may have taken place.
    TimedOut,
    /// The server says that it cannot just now: too many requests, or trouble of its own. Nothing was done.
    Unavailable,
    /// Anything else.
    Other,
}

impl Fault {
    /// A fault met while doing `operation` (an infinitive).
    pub fn new(kind: FaultKind, operation: impl Into<String>, cause: impl Into<String>) -> Self {
        Self { operation: operation.into(), cause: cause.into(), kind }
    }
}

impl Error {
    /// The refusal inside, if it is one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refusal(refusal) => Some(refusal),
            Self::Fault(_) | Self::Bug(_) => None,
        }
    }

    /// Whether this is a fault of `kind`.
    pub fn is(&self, kind: FaultKind) -> bool {
        matches!(self, Self::Fault(fault) if fault.kind == kind)
    }
}

/// A result that ends in one of the three ways.
pub type Result<T, E = Error> = core::result::Result<T, E>;
