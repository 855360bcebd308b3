//! The `Net` port.

use std::time::Duration;

use sheetanchor_core::error::FaultKind;
use sheetanchor_engine::env::{Env, Listener};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Breach, fails, promise, same};

/// Checks streams between two ends of this process. `address` is one of its own; port 0 where there is such a thing.
///
/// # Errors
/// The first promise that is not kept.
pub async fn net(env: &Env, address: &str) -> Result<(), Breach> {
    let mut listener = env.net.listen(address).await?;
    let bound = listener.address();
    fails(env.net.listen(&bound).await, FaultKind::Exists, "listening on a taken address")?;
    echo(env, listener.as_mut(), &bound).await?;
    large(env, listener.as_mut(), &bound).await?;
    hung_up(env, listener.as_mut(), &bound).await?;
    drop(listener);
    fails(env.net.connect(&bound).await, FaultKind::Unreachable, "dialling where nobody listens")
}

async fn echo(env: &Env, listener: &mut dyn Listener, address: &str) -> Result<(), Breach> {
    let (dialled, accepted) = futures_util::join!(env.net.connect(address), listener.accept());
    let (mut dialled, mut accepted) = (dialled?, accepted?);
    dialled.write_all(b"ping").await?;
    dialled.flush().await?;
    let mut message = [0; 4];
    accepted.read_exact(&mut message).await?;
    same(&message, b"ping", "what the other end reads")?;
    accepted.write_all(b"pong").await?;
    accepted.flush().await?;
    dialled.read_exact(&mut message).await?;
    same(&message, b"pong", "what comes back")
}

/// More than any buffer holds: the bytes arrive in order, and the writer waits for the reader.
async fn large(env: &Env, listener: &mut dyn Listener, address: &str) -> Result<(), Breach> {
    let (dialled, accepted) = futures_util::join!(env.net.connect(address), listener.accept());
    let (mut dialled, mut accepted) = (dialled?, accepted?);
    let sent: Vec<u8> = (0..=250).cycle().take(1_000_000).collect();
    let write = async {
        for part in sent.chunks(70_000) {
            dialled.write_all(part).await?;
            dialled.flush().await?;
        }
        Ok::<_, Breach>(())
    };
    let mut received = vec![0; sent.len()];
    let (written, read) = futures_util::join!(write, accepted.read_exact(&mut received));
    written?;
    read?;
    promise(received == sent, "a million bytes arrive in order")
}

async fn hung_up(env: &Env, listener: &mut dyn Listener, address: &str) -> Result<(), Breach> {
    let (dialled, accepted) = futures_util::join!(env.net.connect(address), listener.accept());
    let (dialled, mut accepted) = (dialled?, accepted?);
    drop(dialled);
    let mut byte = [0];
    let limit = env.clock.now().after(Duration::from_secs(30));
    tokio::select! {
        biased;
        read = accepted.read(&mut byte) => promise(matches!(read, Ok(0) | Err(_)), "a dropped stream ends at its peer"),
        () = env.clock.sleep_until(limit) => promise(false, "a dropped stream ends at its peer in time"),
    }
}
