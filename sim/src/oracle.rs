//! What must be true, judged from outside: oracles know what the workload did and what the world saw, and nothing of
//! how the engine or the database work.

use thiserror::Error;

pub mod ledger;

pub mod wal;

pub mod fence;

pub mod replay;

/// An invariant that did not hold.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{invariant}: {detail}")]
pub struct Violation {
    /// The invariant, as a sentence of its own.
    pub invariant: &'static str,
    /// What was seen instead.
    pub detail: String,
}

impl Violation {
    /// A violation of `invariant`.
    pub fn new(invariant: &'static str, detail: impl Into<String>) -> Self {
        Self { invariant, detail: detail.into() }
    }
}
