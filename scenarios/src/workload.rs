//! What clients do: transfers between accounts, on all nodes, by sessions that move from node to node. Some sessions
//! carry the SCN that they have seen; the others are why a cut needs a fence.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use sheetanchor_core::error::Error;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::env::Env;
use sheetanchor_refdb::{ClientError, Ledger, Outcome, Session, Transfer};
use sheetanchor_sim::oracle::ledger::{LedgerState, Recorder, Transfer as Recorded};

use crate::cluster::{NODES, database_address};

/// What every account starts with.
const OPENING: i64 = 1_000;

/// How long a session keeps trying one transfer.
const BUDGET: Duration = Duration::from_millis(400);

/// How the clients behave.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How many accounts there are. Few make nodes fight for the same pages.
    pub accounts: u64,
    /// How many sessions there are.
    pub sessions: u64,
    /// The longest pause of a session between two transfers.
    pub pause_ms_max: u64,
}

impl Load {
    /// Accounts spread over the pages.
    pub const SPREAD: Self = Self { accounts: 24, sessions: 4, pause_ms_max: 30 };
    /// Three accounts that every node writes all the time.
    pub const CROWDED: Self = Self { accounts: 3, sessions: 4, pause_ms_max: 10 };

    /// The balances at the start.
    pub fn opening(self) -> BTreeMap<u64, i64> {
        (0..self.accounts).map(|account| (account, OPENING)).collect()
    }
}

/// Gives every account its balance.
pub async fn create_accounts(env: Env, load: Load) -> Result<(), ClientError> {
    let mut ledger = Ledger::new(&env, &database_address(1), Session::Causal, Duration::from_secs(20));
    ledger.create(load.accounts, OPENING).await.map(|_| ())
}

/// Transfers until told to stop. `wave` tells the ids of one crowd of clients from those of another.
pub async fn transfer(env: Env, load: Load, wave: u64, recorder: Recorder, stop: Arc<AtomicBool>) {
    let sessions = (0..load.sessions).map(|session| {
        let (env, recorder, stop) = (env.clone(), recorder.clone(), stop.clone());
        async move { transfer_in_session(&env, load, wave * load.sessions + session, &recorder, &stop).await }
    });
    join_all(sessions).await;
}

async fn transfer_in_session(env: &Env, load: Load, session: u64, recorder: &Recorder, stop: &AtomicBool) {
    let below = |bound: u64| env.entropy.word().checked_rem(bound).unwrap_or(0);
    let kind = if session.is_multiple_of(2) { Session::Plain } else { Session::Causal };
    let mut ledger = Ledger::new(env, &database_address(1), kind, BUDGET);
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        let place = usize::try_from(below(3)).unwrap_or(0);
        ledger.move_to(&database_address(NODES.get(place).copied().unwrap_or(1)));
        let from = below(load.accounts);
        let to = (from + 1 + below(load.accounts - 1)) % load.accounts;
        number += 1;
        let (id, amount) = (session * 1_000_000 + number, 1 + below(9));
        recorder.began(Recorded { id, from, to, amount: i64::try_from(amount).unwrap_or(0) });
        match ledger.transfer(Transfer { id, from, to, amount }).await {
            Outcome::Acknowledged(scn) => recorder.acknowledged(id, scn),
            Outcome::Failed(_) => recorder.failed(id),
            Outcome::Unknown(_) => {}
        }
        env.clock.sleep(Duration::from_millis(below(load.pause_ms_max))).await;
    }
}

/// Everything that is visible through one node.
pub async fn read_back(env: Env, node: u16) -> Result<LedgerState, Error> {
    let mut ledger = Ledger::new(&env, &database_address(node), Session::Causal, Duration::from_secs(30));
    let contents = ledger.read_all().await.map_err(|error| Refusal::new(Code::DatabaseDown, error.to_string()))?;
    let recorded = |transfer: &Transfer| Recorded {
        id: transfer.id,
        from: transfer.from,
        to: transfer.to,
        amount: i64::try_from(transfer.amount).unwrap_or(i64::MAX),
    };
    Ok(LedgerState { balances: contents.balances, transfers: contents.transfers.values().map(recorded).collect() })
}
