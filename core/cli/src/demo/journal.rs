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
    /// When it was sent.
    pub begun: Instant,
    /// When its outcome was known.
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
        let sent = Sent { node, transfer, outcome: Outcome::Unknown, begun: Instant::now(), settled: None };
        self.sent().insert(transfer.id, sent);
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

    /// How long after `moment` a transfer on `node` was first acknowledged that was not sent before it. What was in flight
    /// at that moment does not count: a fence lets it finish.
    pub fn silence_after(&self, moment: Instant, node: NodeId) -> Option<Duration> {
        let sent = self.sent();
        let later = sent.values().filter(|sent| sent.node == node && sent.begun >= moment);
        let acknowledged = later.filter(|sent| matches!(sent.outcome, Outcome::Acknowledged(_)));
        acknowledged.filter_map(|sent| sent.settled?.checked_duration_since(moment)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_ends_with_a_commit_that_began_later() {
        let (journal, node) = (Journal::new(), NodeId::new(1));
        let in_flight = journal.send(node, 0, 1, 5);
        let moment = Instant::now();
        journal.settle(in_flight, Outcome::Acknowledged(()));
        let failed = journal.send(node, 0, 1, 5);
        journal.settle(failed, Outcome::Failed);
        assert_eq!(journal.silence_after(moment, node), None);
        let later = journal.send(node, 0, 1, 5);
        assert_eq!(journal.silence_after(moment, node), None, "not acknowledged yet");
        journal.settle(later, Outcome::Acknowledged(()));
        assert!(journal.silence_after(moment, node).is_some());
        assert_eq!(journal.silence_after(moment, NodeId::new(2)), None);
        assert_eq!(journal.acknowledged(), 2);
    }
}
