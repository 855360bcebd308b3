//! How a statement ends badly.

use sheetanchor_core::error::{Error, Fault};
use sheetanchor_core::refusal::{Code, Refusal};

/// Why a statement was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nothing is wrong with it: a conflict, a page in use, a node that is down. The same may succeed later.
    Retry(String),
    /// It will fail again.
    Final(Error),
}

impl Failure {
    /// A failure that a later attempt may not meet.
    pub(crate) fn retry(why: impl Into<String>) -> Self {
        Self::Retry(why.into())
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Final(fault.into())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Refusal(refusal) => refusal.into(),
            other @ (Error::Fault(_) | Error::Bug(_)) => Self::Final(other),
        }
    }
}

impl From<Refusal> for Failure {
    /// A clock that is off comes back; every other refusal stands until the evidence changes.
    fn from(refusal: Refusal) -> Self {
        if matches!(refusal.code, Code::ClockUnreserved | Code::ClockDrift) {
            Self::Retry(refusal.to_string())
        } else {
            Self::Final(refusal.into())
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Retry(why) => Refusal::new(Code::Busy, why).into(),
            Failure::Final(error) => error,
        }
    }
}
