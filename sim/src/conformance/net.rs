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

/// Checks streams that are closed in one direction. Not every backend has them.
///
/// # Errors
/// The first promise that is not kept.
pub async fn net_half_closed(env: &Env, address: &str) -> Result<(), Breach> {
    let mut listener = env.net.listen(address).await?;
    let bound = listener.address();
    half_closed(env, listener.as_mut(), &bound).await
}

/// Checks streams that nobody reads from: their writers wait. Not every backend makes them.
///
/// # Errors
/// The first promise that is not kept.
pub async fn net_unread(env: &Env, address: &str) -> Result<(), Breach> {
    let mut listener = env.net.listen(address).await?;
    let bound = listener.address();
    unread(env, listener.as_mut(), &bound).await
}

/// Who has said all can still listen.
async fn half_closed(env: &Env, listener: &mut dyn Listener, address: &str) -> Result<(), Breach> {
    let (dialled, accepted) = futures_util::join!(env.net.connect(address), listener.accept());
    let (mut dialled, mut accepted) = (dialled?, accepted?);
    dialled.write_all(b"that is all").await?;
    dialled.shutdown().await?;
    let mut heard = Vec::new();
    accepted.read_to_end(&mut heard).await?;
    same(heard, b"that is all".to_vec(), "what was said before the end")?;
    accepted.write_all(b"well").await?;
    accepted.flush().await?;
    let mut answer = [0; 4];
    dialled.read_exact(&mut answer).await?;
    same(&answer, b"well", "the answer after the end")
}

/// A stream holds only so much that nobody reads; once it is read, the writer goes on.
async fn unread(env: &Env, listener: &mut dyn Listener, address: &str) -> Result<(), Breach> {
    const PIECES: usize = 1_024;
    let (dialled, accepted) = futures_util::join!(env.net.connect(address), listener.accept());
    let (mut dialled, mut accepted) = (dialled?, accepted?);
    let piece = vec![7; 32 << 10];
    let mut sent = 0;
    let flood = async {
        for _ in 0..PIECES {
            dialled.write_all(&piece).await?;
            dialled.flush().await?;
            sent += 1;
        }
        Ok::<_, Breach>(())
    };
    tokio::select! {
        biased;
        flooded = flood => flooded?,
        () = env.clock.sleep(Duration::from_millis(500)) => {}
    }
    promise(sent < PIECES, "a writer whose peer does not read has to wait")?;
    let mut held = vec![0; sent * piece.len()];
    accepted.read_exact(&mut held).await?;
    promise(held.iter().all(|byte| *byte == 7), "what was written before is there")
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
