//! The way from coordinators to an agent, which can be severed. Agents listen on the loopback interface only, so hosts with
//! addresses of their own cannot be had: what lies between is a process that stops passing bytes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Which direction says nothing any more.
#[derive(Clone, Debug, Default)]
struct Silent {
    requests: Arc<AtomicBool>,
    answers: Arc<AtomicBool>,
}

/// What does not come through a severed link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severed {
    Requests,
    Answers,
    Both,
}

/// A link to one agent.
pub struct Link {
    pub address: String,
    silent: Silent,
    _serving: JoinSet<()>,
}

impl Link {
    pub async fn to(agent: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let silent = Silent::default();
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, agent, silent.clone()));
        Self { address, silent, _serving: serving }
    }

    pub fn sever(&self, severed: Severed) {
        self.silent.requests.store(severed != Severed::Answers, Ordering::SeqCst);
        self.silent.answers.store(severed != Severed::Requests, Ordering::SeqCst);
    }

    pub fn heal(&self) {
        self.silent.requests.store(false, Ordering::SeqCst);
        self.silent.answers.store(false, Ordering::SeqCst);
    }
}

async fn serve(listener: TcpListener, agent: String, silent: Silent) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((inbound, _)) = listener.accept().await else { continue };
        // An agent that is not there is noticed as it would be without us.
        let Ok(outbound) = TcpStream::connect(&agent).await else { continue };
        let ((from, to), (answers, requests)) = (inbound.into_split(), outbound.into_split());
        let silent = silent.clone();
        connections.spawn(async move {
            tokio::select! {
                biased;
                () = pass(from, requests, silent.requests) => {}
                () = pass(answers, to, silent.answers) => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// What is said while the link is severed arrives when it is whole again, as with TCP.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, silent: Arc<AtomicBool>) {
    let mut bytes = vec![0; 1 << 16];
    loop {
        let Ok(count @ 1..) = from.read(&mut bytes).await else { return };
        while silent.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
