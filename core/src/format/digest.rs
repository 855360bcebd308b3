//! Digests: many finished outcomes in one object, so that a long catalog is listed with few reads. They only repeat what
//! lies in `outcomes/` and `operations/`, and may be missing, doubled or removed at any time.
//!
//! A digest is the format's version, then its content in postcard's encoding; the repository holds it as one zstd frame.

use alloc::format;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::VERSION;
use super::catalog::{Outcome, Registered};
use crate::refusal::{Code, Refusal};

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
    let version = u8::try_from(VERSION).unwrap_or(u8::MAX);
    let written = postcard::to_extend(digest, Vec::from([version]));
    assert!(written.is_ok(), "a digest is plain data and grows in memory");
    written.unwrap_or_default()
}

/// Reads a digest, in its one spelling. `name` is for the message.
///
/// # Errors
/// `SA002` if it is not what this version writes.
pub fn read(name: &str, bytes: &[u8]) -> Result<Digest, Refusal> {
    let damaged = || Refusal::new(Code::Damaged, format!("{name} is no digest of this version"));
    let (version, body) = bytes.split_first().ok_or_else(damaged)?;
    if u64::from(*version) != VERSION {
        return Err(damaged());
    }
    let digest = postcard::from_bytes(body).map_err(|_| damaged())?;
    if write(&digest) == bytes { Ok(digest) } else { Err(damaged()) }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;
    use crate::format::catalog::{Abort, Ending};
    use crate::identity::{Incarnation, Membership, Nonce, OperationId, OperationKind};

    #[test]
    fn a_digest_is_read_as_it_was_written_and_a_shorter_one_is_none() {
        let operation = OperationId::new(OperationKind::Backup, 7, 9);
        let (nonce, incarnation, membership) = (Nonce::new(1), Incarnation::new(1), Membership::new(1));
        let result = Ending::Aborted(Abort { code: "SA201".to_string(), message: "node 2".to_string() });
        let digest = Digest {
            outcomes: Vec::from([Outcome { nonce, operation, result }]),
            registered: Vec::from([Registered { incarnation, label: None, membership, nonce, operation }]),
        };
        let bytes = write(&digest);
        assert_eq!(read("x", &bytes), Ok(digest));
        for length in 0..bytes.len() {
            assert_eq!(read("x", bytes.get(..length).unwrap()).unwrap_err().code, Code::Damaged, "{length}");
        }
        let newer = [&[1], bytes.get(1..).unwrap()].concat();
        assert_eq!(read("x", &newer).unwrap_err().code, Code::Damaged);
    }
}
