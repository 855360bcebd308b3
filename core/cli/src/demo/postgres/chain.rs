//! A session that does one thing after the other on every server: what is on the second is there because of what is on the
//! first. In a restored cluster no effect may be there without its cause.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sheetanchor_engine::env::Env;
use sheetanchor_native::postgres::server::Server;

use super::ledger::Session;
use crate::report::Result;

const PAUSE: Duration = Duration::from_millis(2);

/// Commits link after link, each on all servers in their order, until `over` is set.
pub async fn write(env: Env, connections: Vec<String>, over: Arc<AtomicBool>) {
    let mut link = 0_u64;
    while !over.load(Ordering::SeqCst) {
        let mut sessions = Vec::new();
        for connection in &connections {
            match Session::dial(&env, connection).await {
                Ok(session) => sessions.push(session),
                Err(_) => break,
            }
        }
        if sessions.len() == connections.len() {
            while !over.load(Ordering::SeqCst) && commit(&sessions, link).await {
                link += 1;
                env.clock.sleep(PAUSE).await;
            }
            // One that failed in the middle may be there in part: it is not begun again.
            link += 1;
        }
        env.clock.sleep(PAUSE * 10).await;
    }
}

/// One link; whether it is on all servers.
async fn commit(sessions: &[Session], link: u64) -> bool {
    for session in sessions {
        if session.run(&format!("INSERT INTO links VALUES ({link})")).await.is_err() {
            return false;
        }
    }
    true
}

/// What a restored cluster holds of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// How many the first server has.
    pub begun: usize,
    /// Those that a server has, and the one before it has not.
    pub without_cause: BTreeSet<u64>,
}

impl Links {
    /// Reads all servers, in the order in which they were written to.
    ///
    /// # Errors
    /// Faults.
    pub async fn read(env: &Env, servers: &[Server]) -> Result<Self> {
        let mut read = Vec::new();
        for server in servers {
            read.push(Session::connect(env, server).await?.links().await?);
        }
        Ok(Self::of(&read))
    }

    fn of(read: &[BTreeSet<u64>]) -> Self {
        let mut links = Self { begun: read.first().map_or(0, BTreeSet::len), without_cause: BTreeSet::new() };
        for (causes, effects) in read.iter().zip(read.iter().skip(1)) {
            links.without_cause.extend(effects.difference(causes));
        }
        links
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_effect_without_its_cause_is_found_on_any_server() {
        let of = |read: [&[u64]; 3]| Links::of(&read.map(|links| links.iter().copied().collect()));
        assert_eq!(of([&[0, 1, 2], &[0, 1], &[0]]), Links { begun: 3, without_cause: BTreeSet::new() });
        assert_eq!(of([&[0, 1], &[0, 1, 2], &[0]]).without_cause, BTreeSet::from([2]));
        assert_eq!(of([&[0, 1, 2], &[0], &[0, 1]]).without_cause, BTreeSet::from([1]));
        assert_eq!(of([&[], &[], &[]]).begun, 0);
    }
}
