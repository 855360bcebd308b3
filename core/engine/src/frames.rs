//! Whole messages over byte streams.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use sheetanchor_core::wire;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::env::Stream;

/// Sends one message and flushes it.
///
/// # Errors
/// `SA005` if it is too large; [`FaultKind::Unreachable`] if the peer hung up.
pub async fn send<T: Serialize>(stream: &mut Box<dyn Stream>, message: &T) -> Result<()> {
    send_frame(stream, &wire::encode(message)?).await
}

/// Sends the bytes of one frame and flushes them.
///
/// # Errors
/// [`FaultKind::Unreachable`] if the peer hung up.
pub async fn send_frame(stream: &mut Box<dyn Stream>, frame: &[u8]) -> Result<()> {
    let sent = async {
        stream.write_all(frame).await?;
        stream.flush().await
    };
    sent.await.map_err(|error| hung_up(&format!("{error}")))
}

/// Receives one message; `None` if the peer said goodbye between two.
///
/// # Errors
/// `SA001`, `SA004`, `SA005`; [`FaultKind::Unreachable`] if the peer hung up in the middle.
pub async fn receive<T: DeserializeOwned>(stream: &mut Box<dyn Stream>) -> Result<Option<T>> {
    let mut prefix = [0; wire::PREFIX_BYTES];
    let mut have = 0;
    while let Some(rest) = prefix.get_mut(have..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest).await {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(hung_up("the stream ended in the middle of a message")),
            Ok(more) => have += more,
            Err(error) => return Err(hung_up(&format!("{error}"))),
        }
    }
    let (length, checksum) = wire::decode_prefix(prefix)?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.map_err(|error| hung_up(&format!("{error}")))?;
    Ok(Some(wire::decode(&body, checksum)?))
}

fn hung_up(cause: &str) -> Error {
    Fault::new(FaultKind::Unreachable, "talk to the peer", cause).into()
}
