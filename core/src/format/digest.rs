//! Digests: many finished outcomes in one object, so that a long catalog is listed with few reads. They only repeat what
//! lies in `outcomes/` and `operations/`, and may be missing, doubled or removed at any time.
//!
//! A digest is the number of its layout, then its content in postcard's encoding, which names no fields; the repository holds
//! it as one zstd frame.

use alloc::format;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::catalog::{Outcome, Registered};
use crate::refusal::{Code, Refusal};

/// Raised with every change of what an outcome or a registration holds, so that no digest of another layout is read as one
/// of this: it is made anew.
const LAYOUT: u8 = 1;

/// What some operations of one kind came to, in order of time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Their outcomes.
    pub outcomes: Vec<Outcome>,
    /// What they were registered as; of backups only.
    pub registered: Vec<Registered>,
}

/// The one spelling of a digest.
pub fn write(digest: &Digest) -> Vec<u8> {
    let written = postcard::to_extend(digest, Vec::from([LAYOUT]));
    assert!(written.is_ok(), "a digest is plain data and grows in memory");
    written.unwrap_or_default()
}

/// Reads a digest, in its one spelling. `name` is for the message.
///
/// # Errors
/// `SA002` if it is not of this layout.
pub fn read(name: &str, bytes: &[u8]) -> Result<Digest, Refusal> {
    let damaged = || Refusal::new(Code::Damaged, format!("{name} is no digest of this layout"));
    let (layout, body) = bytes.split_first().ok_or_else(damaged)?;
    if *layout != LAYOUT {
        return Err(damaged());
    }
    let digest = postcard::from_bytes(body).map_err(|_| damaged())?;
    if write(&digest) == bytes { Ok(digest) } else { Err(damaged()) }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;
    use crate::format::catalog::{Abort, Cut, Ending, Guarantee, Seal};
    use crate::identity::{ByteCount, ContentHash, Incarnation, Membership, Nonce, OperationId, OperationKind};
    use crate::scn::Scn;
    use crate::time::WallMillis;

    #[test]
    fn a_digest_is_read_as_it_was_written_and_a_shorter_one_is_none() {
        let operation = OperationId::new(OperationKind::Backup, 7, 9);
        let (nonce, incarnation, membership) = (Nonce::new(1), Incarnation::new(1), Membership::new(1));
        // What is left out of an object where there is nothing to say must not be missing here: no field has a name.
        let seal = |why_full| {
            Ending::Sealed(Seal {
                base: None,
                cut: Cut { record: "cut".to_string(), scn: Scn::new(7), threads: [].into() },
                ended_ms: WallMillis::new(8),
                guarantee: Guarantee::Node,
                incarnation,
                manifest: ContentHash::of(b""),
                point: None,
                stored: ByteCount::new(9),
                why_full,
            })
        };
        let aborted = Ending::Aborted(Abort { code: "SA201".to_string(), message: "node 2".to_string() });
        let results = [seal(None), aborted, seal(Some("a failover".to_string()))];
        let digest = Digest {
            outcomes: results.map(|result| Outcome { nonce, operation, result }).into(),
            registered: Vec::from([Registered { incarnation, label: None, membership, nonce, operation }]),
        };
        let bytes = write(&digest);
        assert_eq!(read("x", &bytes), Ok(digest));
        for length in 0..bytes.len() {
            assert_eq!(read("x", bytes.get(..length).unwrap()).unwrap_err().code, Code::Damaged, "{length}");
        }
        let other = [&[LAYOUT - 1], bytes.get(1..).unwrap()].concat();
        assert_eq!(read("x", &other).unwrap_err().code, Code::Damaged);
    }
}
