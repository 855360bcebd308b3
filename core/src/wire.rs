//! Frames between coordinator and agent. A frame is verified (length, checksum, version) before anything in it is
//! believed; its cluster is compared, and its SCN observed, only after that.
//!
//! Layout, all integers little-endian: length of the rest `u32`, CRC-32C of the rest `u32`, version `u8`, then the
//! message in postcard's encoding. `docs/format/wire.md` shows it.

use alloc::format;
use alloc::vec::Vec;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::refusal::{Code, Refusal};
use crate::request::{Answer, Failure, Header, Request};
use crate::scn::Scn;

/// The version of the set of messages.
pub const VERSION: u8 = 0;

/// Bytes before the checksummed part.
pub const PREFIX_BYTES: usize = 8;

/// Bytes in the longest checksummed part. Far above what any message needs.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

/// A request on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Numbers the requests of one connection; the answer repeats it.
    pub number: u64,
    /// The sender's SCN.
    pub scn: Scn,
    /// On whose behalf, and to whom.
    pub header: Header,
    /// What is asked.
    pub request: Request,
}

/// An answer on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// The number of the request.
    pub number: u64,
    /// The sender's SCN.
    pub scn: Scn,
    /// What is told.
    pub answer: Result<Answer, Failure>,
}

/// Frames a message.
///
/// # Errors
/// `SA005` if it is longer than any valid one.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Refusal> {
    let too_large = |bytes: usize| Refusal::new(Code::FrameTooLarge, format!("a message of {bytes} bytes"));
    let body = postcard::to_extend(message, Vec::from([VERSION])).map_err(|_| too_large(0))?;
    if body.len() > FRAME_BYTES_MAX {
        return Err(too_large(body.len()));
    }
    let length = u32::try_from(body.len()).map_err(|_| too_large(body.len()))?;
    let mut frame = Vec::with_capacity(PREFIX_BYTES + body.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Reads the prefix of a frame: how many bytes follow, and what they must sum to.
///
/// # Errors
/// `SA005` if more follow than any valid message has.
pub fn decode_prefix(prefix: [u8; PREFIX_BYTES]) -> Result<(usize, u32), Refusal> {
    let [l0, l1, l2, l3, c0, c1, c2, c3] = prefix;
    let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    if length > FRAME_BYTES_MAX {
        return Err(Refusal::new(
            Code::FrameTooLarge,
            format!("a frame of {length} bytes, at most {FRAME_BYTES_MAX} are valid"),
        ));
    }
    Ok((length, u32::from_le_bytes([c0, c1, c2, c3])))
}

/// Reads the rest of a frame.
///
/// # Errors
/// `SA004` if it is not what was sent, `SA001` if its version is not ours.
pub fn decode<T: DeserializeOwned>(body: &[u8], checksum: u32) -> Result<T, Refusal> {
    let damaged = |what: &str| Refusal::new(Code::FrameDamaged, format!("a frame of {} bytes {what}", body.len()));
    if crc32c::crc32c(body) != checksum {
        return Err(damaged("fails its checksum"));
    }
    let (version, message) = body.split_first().ok_or_else(|| damaged("has no version"))?;
    if *version != VERSION {
        return Err(Refusal::new(Code::FormatNewer, format!("a message of version {version}, ours is {VERSION}")));
    }
    match postcard::take_from_bytes(message) {
        Ok((message, [])) => Ok(message),
        Ok((_, _)) => Err(damaged("has bytes after its message")),
        Err(_) => Err(damaged("holds no message")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{ClusterId, Epoch, Incarnation, Membership, NodeId};
    use proptest::prelude::*;

    fn message() -> Asked {
        Asked {
            number: 7,
            scn: Scn::new(1 << 40),
            header: Header {
                cluster: ClusterId::new(1),
                membership: Membership::new(1),
                incarnation: Incarnation::new(1),
                node: NodeId::new(2),
                operation: Some("point-0190f3a2c4d5-9f31a2b7".parse().unwrap()),
                epoch: Epoch::new(3),
            },
            request: Request::Close { hold: crate::identity::HoldId::new(9), lease_ms: 2_000 },
        }
    }

    fn read(frame: &[u8]) -> Result<Asked, Refusal> {
        let truncated = || Refusal::new(Code::FrameDamaged, "truncated");
        let (prefix, body) = frame.split_first_chunk().ok_or_else(truncated)?;
        let (length, checksum) = decode_prefix(*prefix)?;
        decode(body.get(..length).ok_or_else(truncated)?, checksum)
    }

    #[test]
    fn a_message_reads_back() {
        assert_eq!(read(&encode(&message()).unwrap()), Ok(message()));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let frame = encode(&message()).unwrap();
        for at in 0..frame.len() * 8 {
            let mut frame = frame.clone();
            frame[at / 8] ^= 1 << (at % 8);
            assert!(read(&frame).is_err(), "bit {at}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode::<Asked>(&bytes, 0).is_err() || crc32c::crc32c(&bytes) == 0);
            let checked = decode::<Asked>(&bytes, crc32c::crc32c(&bytes));
            prop_assert!(checked.is_ok() || checked.is_err());
        }
    }
}
