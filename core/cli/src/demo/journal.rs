//! What was sent, and what became of it, as the clients saw it: kept outside of every database.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sheetanchor_core::identity::NodeId;
use sheetanchor_refdb::Transfer;

/// What became of a transfer; `A` is the evidence that came with its acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<A> {
    /// It is durable.
    Acknowledged(A),
    /// It did not take place, and will not.
    Failed,
    /// It may or may not have taken place.
    Unknown,
}

/// A transfer that was sent.
#[derive(Clone, Debug)]
pub struct Sent<A> {
    /// To which node.
    pub node: NodeId,
    /// What was asked for.
    pub transfer: Transfer,
    /// What became of it.
    pub outcome: Outcome<A>,
    /// When that was known.
    pub settled: Option<Instant>,
}

/// Everything that was sent. What is being sent has an unknown outcome.
#[derive(Debug)]
pub struct Journal<A> {
    next: AtomicU64,
    sent: Mutex<BTreeMap<u64, Sent<A>>>,
}

impl<A: Clone> Journal<A> {
    /// An empty journal.
    pub fn new() -> Self {
        Self { next: AtomicU64::new(1), sent: Mutex::default() }
    }

    fn sent(&self) -> MutexGuard<'_, BTreeMap<u64, Sent<A>>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a transfer is about to be sent to `node`, before it is.
    pub fn send(&self, node: NodeId, from: u64, to: u64, amount: u64) -> Transfer {
        let transfer = Transfer { id: self.next.fetch_add(1, Ordering::SeqCst), from, to, amount };
        self.sent().insert(transfer.id, Sent { node, transfer, outcome: Outcome::Unknown, settled: None });
        transfer
    }

    /// Notes what became of it.
    pub fn settle(&self, transfer: Transfer, outcome: Outcome<A>) {
        if let Some(sent) = self.sent().get_mut(&transfer.id) {
            sent.outcome = outcome;
            sent.settled = Some(Instant::now());
        }
    }

    /// All that was sent.
    pub fn all(&self) -> Vec<Sent<A>> {
        self.sent().values().cloned().collect()
    }

    /// How many transfers were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.sent().values().filter(|sent| matches!(sent.outcome, Outcome::Acknowledged(_))).count()
    }

    /// How long after `moment` a commit on `node` was first acknowledged.
    pub fn silence_after(&self, moment: Instant, node: NodeId) -> Option<Duration> {
        let sent = self.sent();
        let acknowledged =
            sent.values().filter(|sent| sent.node == node && matches!(sent.outcome, Outcome::Acknowledged(_)));
        acknowledged.filter_map(|sent| sent.settled?.checked_duration_since(moment)).min()
    }
}
