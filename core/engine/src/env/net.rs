//! Byte streams between processes.

use alloc::boxed::Box;

use async_trait::async_trait;
use sheetanchor_core::error::Fault;
use tokio::io::{AsyncRead, AsyncWrite};

/// One connection: bytes in order, or an error. What was written may or may not arrive before an error; a peer that
/// loses power may leave the stream silent for ever, so every wait on it needs a deadline. Flush after each message.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The network as one process sees it. Addresses are `host:port`.
#[async_trait]
pub trait Net: Send + Sync {
    /// Connects to a listener.
    ///
    /// # Errors
    /// [`Unreachable`](sheetanchor_core::error::FaultKind::Unreachable). May also hang: race it against a deadline.
    async fn connect(&self, address: &str) -> Result<Box<dyn Stream>, Fault>;

    /// Listens on an address of this process. Port 0 picks a free one where the implementation has such a thing.
    ///
    /// # Errors
    /// [`Exists`](sheetanchor_core::error::FaultKind::Exists) if the address is taken.
    async fn listen(&self, address: &str) -> Result<Box<dyn Listener>, Fault>;
}

/// Accepts connections until it is dropped.
#[async_trait]
pub trait Listener: Send + Sync {
    /// The address that peers dial.
    fn address(&self) -> alloc::string::String;

    /// Waits for the next connection. Cancelling loses none.
    ///
    /// # Errors
    /// Any [`Fault`]; the listener stays usable.
    async fn accept(&mut self) -> Result<Box<dyn Stream>, Fault>;
}
