//! Messages on a byte stream.
//!
//! ```text
//! length u32 | crc32c u32 | cluster u64 | scn u64 | body (postcard)
//! ```
//! A frame is verified, its cluster too, before its SCN is believed.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use sheetanchor_core::identity::ClusterId;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::env::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fields;

const HEADER_BYTES: usize = 24;

/// Bytes in the largest frame.
const FRAME_BYTES_MAX: usize = 1 << 20;

/// Stands for "whichever cluster this is": a client learns it from the first answer.
pub(crate) const ANY_CLUSTER: ClusterId = ClusterId::new(0);

/// What came before a message's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Envelope {
    pub(crate) cluster: ClusterId,
    /// The highest SCN that the sender knew; zero if it does not say.
    pub(crate) scn: Scn,
}

/// The bytes of one message.
pub(crate) fn encode<T: Serialize>(envelope: Envelope, message: &T) -> Vec<u8> {
    let body = postcard::to_allocvec(message).unwrap_or_default();
    assert!(!body.is_empty(), "a message has a body");
    let mut bytes = vec![0; HEADER_BYTES];
    bytes.extend_from_slice(&body);
    assert!(bytes.len() <= FRAME_BYTES_MAX, "a message of {} bytes", bytes.len());
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    fields::put(&mut bytes, 0, &length.to_le_bytes());
    fields::put(&mut bytes, 8, &envelope.cluster.get().to_le_bytes());
    fields::put(&mut bytes, 16, &envelope.scn.get().to_le_bytes());
    let sum = checksum(&bytes);
    fields::put(&mut bytes, 4, &sum.to_le_bytes());
    bytes
}

/// A message that was read, or how many bytes are still missing.
enum Decoded<T> {
    Message(Envelope, T, usize),
    Short,
}

fn decode<T: DeserializeOwned>(bytes: &[u8], cluster: ClusterId) -> Result<Decoded<T>, Refusal> {
    let Some(length) = fields::u32_at(bytes, 0) else { return Ok(Decoded::Short) };
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > FRAME_BYTES_MAX {
        return Err(Refusal::new(Code::FrameTooLarge, format!("a message of {length} bytes")));
    }
    if length < HEADER_BYTES {
        return Err(Refusal::new(Code::FrameDamaged, format!("a message of {length} bytes")));
    }
    let Some(frame) = bytes.get(..length) else { return Ok(Decoded::Short) };
    let damaged = || Refusal::new(Code::FrameDamaged, "a message does not match its checksum");
    if fields::u32_at(frame, 4) != Some(checksum(frame)) {
        return Err(damaged());
    }
    let from = ClusterId::new(fields::u64_at(frame, 8).ok_or_else(damaged)?);
    let scn = Scn::new(fields::u64_at(frame, 16).ok_or_else(damaged)?);
    if from != cluster && from != ANY_CLUSTER && cluster != ANY_CLUSTER {
        return Err(Refusal::new(Code::OtherCluster, format!("a message of cluster {from} reached cluster {cluster}")));
    }
    match postcard::take_from_bytes(frame.get(HEADER_BYTES..).unwrap_or_default()) {
        Ok((message, [])) => Ok(Decoded::Message(Envelope { cluster: from, scn }, message, length)),
        Ok(_) | Err(_) => Err(Refusal::new(Code::FrameDamaged, "a message is not one that this version knows")),
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    let (length, rest) = (bytes.get(..4).unwrap_or_default(), bytes.get(8..).unwrap_or_default());
    crc32c::crc32c_append(crc32c::crc32c(length), rest)
}

/// One connection. Reading can be cancelled and resumed; writing cannot, and a connection in the middle of it is lost.
pub(crate) struct Link {
    stream: Box<dyn Stream>,
    read: Vec<u8>,
}

impl Link {
    pub(crate) fn new(stream: Box<dyn Stream>) -> Self {
        Self { stream, read: Vec::new() }
    }

    /// Writes one message.
    ///
    /// # Errors
    /// If the connection is lost.
    pub(crate) async fn send<T: Serialize + Sync>(&mut self, envelope: Envelope, message: &T) -> Result<(), Fault> {
        let bytes = encode(envelope, message);
        let sent = async {
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|error| lost(&error.to_string()))
    }

    /// Reads one message of `cluster`; `None` if the peer has hung up between two.
    ///
    /// # Errors
    /// `SA004`, `SA005`, `SA104`, and a fault if the connection is lost.
    pub(crate) async fn receive<T: DeserializeOwned>(&mut self, cluster: ClusterId) -> Result<Option<(Envelope, T)>> {
        loop {
            if let Decoded::Message(envelope, message, length) = decode(&self.read, cluster)? {
                self.read.drain(..length);
                return Ok(Some((envelope, message)));
            }
            if !self.fill().await? {
                let clean = self.read.is_empty();
                return if clean { Ok(None) } else { Err(lost("the peer hung up in the middle of a message").into()) };
            }
        }
    }

    /// Returns once the peer has hung up, or has said more than may wait.
    pub(crate) async fn hung_up(&mut self) {
        while self.read.len() <= FRAME_BYTES_MAX {
            if !matches!(self.fill().await, Ok(true)) {
                return;
            }
        }
    }

    /// Reads some bytes; false at the end of the stream.
    async fn fill(&mut self) -> Result<bool, Fault> {
        let mut piece = [0; 4096];
        let count = self.stream.read(&mut piece).await.map_err(|error| lost(&error.to_string()))?;
        self.read.extend_from_slice(piece.get(..count).unwrap_or_default());
        Ok(count > 0)
    }
}

fn lost(cause: &str) -> Fault {
    Fault::new(FaultKind::Unreachable, "talk to the peer", cause)
}

/// Whether a connection is of no use any more.
pub(crate) fn is_lost(error: &Error) -> bool {
    matches!(error, Error::Fault(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId::new(7);

    #[test]
    fn any_flipped_bit_of_a_frame_is_found() {
        let envelope = Envelope { cluster: CLUSTER, scn: Scn::new(99) };
        let bytes = encode(envelope, &"hello");
        let Ok(Decoded::Message(seen, text, length)) = decode::<String>(&bytes, CLUSTER) else { panic!("no message") };
        assert_eq!((seen, text.as_str(), length), (envelope, "hello", bytes.len()));
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                let outcome = decode::<String>(&damaged, CLUSTER);
                assert!(!matches!(outcome, Ok(Decoded::Message(..))), "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn a_frame_of_another_cluster_is_refused() {
        let bytes = encode(Envelope { cluster: ClusterId::new(8), scn: Scn::ZERO }, &"hello");
        assert_eq!(decode::<String>(&bytes, CLUSTER).err().map(|refusal| refusal.code), Some(Code::OtherCluster));
        assert!(decode::<String>(&bytes, ANY_CLUSTER).is_ok());
    }
}
