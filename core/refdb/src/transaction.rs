//! Transaction ids and the pages of the transaction table.

use core::fmt;

use serde::{Deserialize, Serialize};
use sheetanchor_core::identity::NodeId;
use sheetanchor_core::scn::Scn;

use crate::fields;
use crate::page::BODY_BYTES;

/// A transaction: the node it runs on, and that node's counter. Never used twice along a lineage: a transaction is
/// marked in the table before it changes its first row, so every copy of the row has the mark as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Xid(u64);

impl Xid {
    const COUNTER_BITS: u32 = 48;

    pub(crate) fn new(node: NodeId, counter: u64) -> Self {
        assert!(counter >> Self::COUNTER_BITS == 0, "transaction counter {counter} fits in 48 bits");
        Self(u64::from(node.get()) << Self::COUNTER_BITS | counter)
    }

    pub(crate) const fn from_word(word: u64) -> Self {
        Self(word)
    }

    pub(crate) const fn word(self) -> u64 {
        self.0
    }

    pub(crate) fn node(self) -> NodeId {
        NodeId::new(u16::try_from(self.0 >> Self::COUNTER_BITS).unwrap_or(u16::MAX))
    }

    pub(crate) const fn counter(self) -> u64 {
        self.0 & ((1 << Self::COUNTER_BITS) - 1)
    }
}

impl fmt::Display for Xid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "transaction {}.{}", self.node(), self.counter())
    }
}

/// What became of a transaction, as the node that it runs on answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Status {
    /// Neither committed, durably, nor aborted.
    InProgress,
    /// Committed, durably, at this SCN.
    Committed(Scn),
    /// It left nothing behind.
    Aborted,
}

/// What a slot of the table says. Started and not among the node's running transactions means aborted: a crash and a
/// cut both leave it so, and nothing needs to be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// No transaction has used it.
    Unused,
    /// A transaction started.
    Started,
    /// It committed at this SCN.
    Committed(Scn),
}

/// Bytes of one slot: what it says, and an SCN.
const SLOT_BYTES: usize = 9;

/// Slots on one page.
pub(crate) const SLOTS_PER_PAGE: usize = BODY_BYTES / SLOT_BYTES;

impl Slot {
    /// Reads slot `slot` of a page's body; `None` for bytes that no slot has.
    pub(crate) fn read(body: &[u8], slot: usize) -> Option<Self> {
        let at = slot.checked_mul(SLOT_BYTES)?;
        let scn = Scn::new(fields::u64_at(body, at.checked_add(1)?)?);
        match body.get(at)? {
            0 => Some(Self::Unused),
            1 => Some(Self::Started),
            2 => Some(Self::Committed(scn)),
            _ => None,
        }
    }

    /// The slot's bytes, and where in the body they go.
    pub(crate) fn written(self, slot: usize) -> (usize, Vec<u8>) {
        let (word, scn) = match self {
            Self::Unused => (0, Scn::ZERO),
            Self::Started => (1, Scn::ZERO),
            Self::Committed(scn) => (2, scn),
        };
        let mut bytes = vec![word];
        bytes.extend_from_slice(&scn.get().to_le_bytes());
        (slot * SLOT_BYTES, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_reads_back_and_leaves_its_neighbours_alone() {
        let mut body = vec![0; BODY_BYTES];
        for slot in [0, 7, SLOTS_PER_PAGE - 1] {
            for value in [Slot::Started, Slot::Committed(Scn::new(u64::MAX)), Slot::Unused] {
                let (at, bytes) = value.written(slot);
                fields::put(&mut body, at, &bytes);
                assert_eq!(Slot::read(&body, slot), Some(value));
                assert!(body.iter().filter(|byte| **byte != 0).count() <= SLOT_BYTES);
            }
        }
        assert_eq!(Slot::read(&body, SLOTS_PER_PAGE), None);
        assert_eq!(Slot::read(&[9; 9], 0), None);
    }

    #[test]
    fn an_xid_names_its_node_and_counter() {
        let xid = Xid::new(NodeId::new(u16::MAX), (1 << 48) - 1);
        assert_eq!((xid.node(), xid.counter()), (NodeId::new(u16::MAX), (1 << 48) - 1));
        assert_eq!(Xid::from_word(xid.word()), xid);
    }
}
