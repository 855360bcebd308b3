//! An echo on turmoil with nothing of ours between: what a test costs that was written for turmoil alone.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use turmoil::net::{TcpListener, TcpStream};

use crate::builder;

const PORT: u16 = 7;

#[allow(clippy::disallowed_methods, reason = "plain turmoil is what is measured here: no port of ours")]
async fn pause() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

/// Sends `messages` of eight bytes, each after the one before has come back. Answers how many did.
///
/// # Errors
/// What turmoil says.
pub fn echo(seed: u64, messages: u64) -> Result<u64, String> {
    let returned = Arc::new(AtomicU64::new(0));
    let mut sim = builder(seed).build();
    sim.host("server", || async {
        let (mut stream, _) = TcpListener::bind(("0.0.0.0", PORT)).await?.accept().await?;
        let mut word = [0; 8];
        while stream.read_exact(&mut word).await.is_ok() {
            stream.write_all(&word).await?;
        }
        Ok(())
    });
    let counter = returned.clone();
    sim.client("client", async move {
        let mut stream = loop {
            match TcpStream::connect(("server", PORT)).await {
                Ok(stream) => break stream,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    pause().await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        let mut word = [0; 8];
        for number in 0..messages {
            stream.write_all(&number.to_le_bytes()).await?;
            stream.read_exact(&mut word).await?;
            if u64::from_le_bytes(word) == number {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    });
    sim.run().map_err(|error| error.to_string())?;
    Ok(returned.load(Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_comes_back() {
        assert_eq!(echo(1, 50), Ok(50));
    }
}
