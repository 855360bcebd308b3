//! The least that a backend can do: two hosts, one connection, messages that go there and come back. No gate, no trace: what
//! it costs is the backend's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use sheetanchor_engine::env::Stream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::backend::{Backend, Ports};

const SERVER: &str = "server:7";
const PATIENCE: Duration = Duration::from_mins(10);

/// Sends `messages` of eight bytes, each after the one before has come back. Answers the simulated time that it took.
///
/// # Errors
/// What went wrong in the backend, or that a message did not come back.
pub fn run(backend: &mut dyn Backend, messages: u64) -> Result<Duration, String> {
    let returned = Arc::new(AtomicU64::new(0));
    backend.add_host("server", Arc::new(|ports| serve(ports).boxed()));
    let counter = returned.clone();
    let client = move |ports| ask(ports, messages, counter.clone()).boxed();
    backend.add_host("client", Arc::new(client));
    let time = backend.time();
    while returned.load(Ordering::Relaxed) < messages {
        if time.elapsed() >= PATIENCE {
            return Err(format!("{} of {messages} messages came back", returned.load(Ordering::Relaxed)));
        }
        backend.step(PATIENCE, &|| false)?;
    }
    Ok(time.elapsed())
}

async fn serve(ports: Ports) {
    let Ok(mut listener) = ports.net.listen(SERVER).await else { return };
    let Ok(mut stream) = listener.accept().await else { return };
    let mut word = [0; 8];
    while stream.read_exact(&mut word).await.is_ok() {
        if say(&mut stream, word).await.is_none() {
            return;
        }
    }
}

async fn ask(ports: Ports, messages: u64, returned: Arc<AtomicU64>) {
    let mut stream = loop {
        match ports.net.connect(SERVER).await {
            Ok(stream) => break stream,
            // The server may not listen yet.
            Err(_) => ports.clock.sleep(Duration::from_millis(10)).await,
        }
    };
    let mut word = [0; 8];
    for number in 0..messages {
        if say(&mut stream, number.to_le_bytes()).await.is_none() || stream.read_exact(&mut word).await.is_err() {
            return;
        }
        if u64::from_le_bytes(word) == number {
            returned.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn say(stream: &mut Box<dyn Stream>, word: [u8; 8]) -> Option<()> {
    stream.write_all(&word).await.ok()?;
    stream.flush().await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_comes_back_in_the_same_time_for_the_same_seed() {
        let told = |seed| run(crate::own::backend(seed).as_mut(), 200).unwrap();
        assert_eq!(told(1), told(1));
        assert_ne!(told(1), told(2));
    }
}
