//! The small files: the cluster's control file, each node's own, and its pins. Each is replaced as a whole.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sheetanchor_core::error::{FaultKind, Result};
use sheetanchor_core::identity::{ClusterId, Incarnation, NodeId};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::env::Disk;

use crate::fields;
use crate::prepared::InDoubt;

/// Checksum (4), format version (1).
const HEADER_BYTES: usize = 5;
const VERSION: u8 = 0;

/// The control file: what the shared folder is. Its presence makes the folder a database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Control {
    pub(crate) cluster: ClusterId,
    /// All nodes, ascending.
    pub(crate) nodes: Vec<NodeId>,
    pub(crate) incarnation: Incarnation,
    /// How many pages hold rows.
    pub(crate) data_pages: u64,
}

/// One node's control file: where its thread stands. Never captured; recovery writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeControl {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    /// Counts this node's lives within the incarnation.
    pub(crate) life: u32,
    /// Where the thread starts in this incarnation.
    pub(crate) start: Lsn,
    /// Crash recovery starts here: every change before it is on disk.
    pub(crate) redo: Lsn,
    /// The log was known to be durable up to here, at least.
    pub(crate) durable: Lsn,
    /// No stamp above it was issued.
    pub(crate) ceiling: Scn,
    /// What stamping adds to wall time.
    pub(crate) offset_ms: u64,
    /// Whether the node was opened, or waits at a cut.
    pub(crate) phase: Phase,
    /// The transactions that were prepared at the cut, until this incarnation's log tells of them.
    pub(crate) in_doubt: Vec<InDoubt>,
}

/// How far a node's part of the database is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Opened in the incarnation named beside it.
    Open,
    /// Recovered to the cut at this SCN; waits to be opened.
    Reached(Scn),
}

/// A node's pins. Those of another incarnation count for nothing: a restored node owns none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pins {
    pub(crate) cluster: ClusterId,
    pub(crate) incarnation: Incarnation,
    /// The first WAL that each keeps, by name.
    pub(crate) kept: BTreeMap<String, Lsn>,
}

/// Names in the data folder.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    data: String,
}

impl Folder {
    pub(crate) fn new(data: &str) -> Self {
        Self { data: data.into() }
    }

    pub(crate) fn data(&self) -> &str {
        &self.data
    }

    pub(crate) fn pages(&self) -> String {
        format!("{}/pages", self.data)
    }

    pub(crate) fn control(&self) -> String {
        format!("{}/control", self.data)
    }

    /// A file that an operator puts there: what is in the folder is not served. Nothing in it is read, and a restore
    /// over the folder takes it away.
    pub(crate) fn closed(&self) -> String {
        format!("{}/closed", self.data)
    }

    pub(crate) fn nodes(&self) -> String {
        format!("{}/nodes", self.data)
    }

    pub(crate) fn node(&self, node: NodeId) -> String {
        format!("{}/nodes/{node}", self.data)
    }

    pub(crate) fn node_control(&self, node: NodeId) -> String {
        format!("{}/nodes/{node}/control", self.data)
    }

    pub(crate) fn lock(&self, node: NodeId) -> String {
        format!("{}/nodes/{node}/lock", self.data)
    }

    pub(crate) fn pins(&self, node: NodeId) -> String {
        format!("{}/nodes/{node}/pins", self.data)
    }

    /// The folder of one incarnation's segments: a restored node never appends to its ancestor's.
    pub(crate) fn wal(&self, node: NodeId, incarnation: Incarnation) -> String {
        format!("{}/nodes/{node}/wal/{:08x}", self.data, incarnation.get())
    }
}

/// The bytes of a small file.
pub(crate) fn seal<T: Serialize>(content: &T) -> Vec<u8> {
    let body = postcard::to_allocvec(content).unwrap_or_default();
    assert!(!body.is_empty(), "a control file has content");
    let mut bytes = vec![0; HEADER_BYTES];
    fields::put(&mut bytes, 4, &[VERSION]);
    bytes.extend_from_slice(&body);
    let sum = crc32c::crc32c(bytes.get(4..).unwrap_or_default());
    fields::put(&mut bytes, 0, &sum.to_le_bytes());
    bytes
}

/// Reads what [`seal`] made; `None` if it is damaged.
pub(crate) fn unseal<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let sealed = bytes.get(4..)?;
    let sound = fields::u32_at(bytes, 0)? == crc32c::crc32c(sealed) && *sealed.first()? == VERSION;
    let (content, rest) = postcard::take_from_bytes(bytes.get(HEADER_BYTES..)?).ok()?;
    (sound && rest.is_empty()).then_some(content)
}

/// Reads a small file; `None` if it is not there.
///
/// # Errors
/// `SA408` if it is damaged: it was replaced as a whole, so no crash did that.
pub(crate) async fn load<T: DeserializeOwned>(disk: &(dyn Disk + 'static), path: &str) -> Result<Option<T>> {
    let bytes = match disk.read(path).await {
        Ok(bytes) => bytes,
        Err(fault) if fault.kind == FaultKind::NotFound => return Ok(None),
        Err(fault) => return Err(fault.into()),
    };
    match unseal(&bytes) {
        Some(content) => Ok(Some(content)),
        None => Err(Refusal::new(Code::RecoveryFailed, format!("{path} is damaged")).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_file_reads_back_and_any_flipped_or_missing_byte_is_found() {
        let control = Control {
            cluster: ClusterId::new(0xC1),
            nodes: [1, 2, 3].map(NodeId::new).to_vec(),
            incarnation: Incarnation::new(4),
            data_pages: 256,
        };
        let bytes = seal(&control);
        assert_eq!(unseal(&bytes), Some(control));
        for at in 0..bytes.len() {
            assert_eq!(unseal::<Control>(&bytes[..at]), None, "{at} bytes");
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert_eq!(unseal::<Control>(&damaged), None, "byte {at}");
        }
    }
}
