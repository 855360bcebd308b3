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

/// Rows whose keys agree modulo this lie on pages of one kind: the first six kinds are for sessions that roam, the others
/// for sessions at home. The number of data pages is a multiple of it.
pub const PAGE_KINDS: u64 = 12;

/// Kinds of pages for sessions that roam.
const ROAMED: u64 = 6;

/// Where refdb's ledger keeps the rows of transfers.
const TRANSFER_KEYS: u64 = 1 << 32;

/// How the clients behave.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How many accounts there are. Few make nodes fight for the same pages.
    pub accounts: u64,
    /// How many sessions there are that move from node to node. Every second one carries the SCN that it has seen; the
    /// others are why a cut needs a fence.
    pub roaming: u64,
    /// Whether each node also has a session of its own, on rows that no other node ever touches.
    pub at_home: bool,
    /// The longest pause of a session between two transfers.
    pub pause_ms_max: u64,
}

impl Load {
    /// Accounts spread over the pages.
    pub const SPREAD: Self = Self { accounts: 24, roaming: 4, at_home: true, pause_ms_max: 40 };
    /// Three accounts that every node writes all the time.
    pub const CROWDED: Self = Self { accounts: 3, roaming: 4, at_home: false, pause_ms_max: 10 };

    /// The balances at the start.
    pub fn opening(self) -> BTreeMap<u64, i64> {
        (0..self.accounts).map(|account| (account, OPENING)).collect()
    }

    fn accounts_of(self, kinds: &[u64]) -> Vec<u64> {
        (0..self.accounts).filter(|account| kinds.contains(&(account % PAGE_KINDS))).collect()
    }
}

/// Gives every account its balance.
pub async fn create_accounts(env: Env, load: Load) -> Result<(), ClientError> {
    let mut ledger = Ledger::new(&env, &database_address(1), Session::Causal, Duration::from_secs(20));
    ledger.create(load.accounts, OPENING).await.map(|_| ())
}

/// Transfers until told to stop. `wave` tells the ids of one crowd of clients from those of another.
pub async fn transfer(env: Env, load: Load, wave: u64, recorder: Recorder, stop: Arc<AtomicBool>) {
    let roaming = (0..load.roaming).map(|number| Habits::roaming(load, number));
    let homes = NODES.iter().filter(|_| load.at_home).map(|node| Habits::at_home(load, *node));
    let sessions = (0..).zip(roaming.chain(homes)).map(|(number, habits)| {
        let (env, recorder, stop) = (env.clone(), recorder.clone(), stop.clone());
        let first_id = (wave * 100 + number) * 1_000_000;
        async move { habits.transfer(&env, first_id, &recorder, &stop).await }
    });
    join_all(sessions).await;
}

/// What one session does.
struct Habits {
    /// The nodes that it works on.
    nodes: Vec<u16>,
    /// The accounts that it moves money between.
    accounts: Vec<u64>,
    /// The kinds of pages that its transfers' own rows lie on.
    kinds: Vec<u64>,
    session: Session,
    pause_ms_max: u64,
}

impl Habits {
    fn roaming(load: Load, number: u64) -> Self {
        let kinds: Vec<u64> = (0..ROAMED).collect();
        Self {
            nodes: NODES.to_vec(),
            accounts: load.accounts_of(&kinds),
            kinds,
            session: if number.is_multiple_of(2) { Session::Plain } else { Session::Causal },
            pause_ms_max: load.pause_ms_max,
        }
    }

    /// A session on pages that its node is the master of: whatever becomes of the others, it can go on.
    fn at_home(load: Load, node: u16) -> Self {
        let place = u64::from(node) - 1;
        let nodes = u64::try_from(NODES.len()).unwrap_or(1);
        let kinds: Vec<u64> = (ROAMED..PAGE_KINDS).filter(|kind| kind % nodes == place).collect();
        let accounts = load.accounts_of(&kinds);
        Self { nodes: vec![node], accounts, kinds, session: Session::Plain, pause_ms_max: load.pause_ms_max * 3 }
    }

    async fn transfer(&self, env: &Env, first_id: u64, recorder: &Recorder, stop: &AtomicBool) {
        let below = |bound: usize| usize::try_from(env.entropy.word()).unwrap_or(0).checked_rem(bound).unwrap_or(0);
        let mut ledger = Ledger::new(env, &database_address(1), self.session, BUDGET);
        let mut ids = (first_id..).filter(|id| self.kinds.contains(&((TRANSFER_KEYS + id) % PAGE_KINDS)));
        while !stop.load(Ordering::SeqCst) {
            let node = self.nodes.get(below(self.nodes.len())).copied().unwrap_or(1);
            ledger.move_to(&database_address(node));
            let from = below(self.accounts.len());
            let to = (from + 1 + below(self.accounts.len() - 1)) % self.accounts.len();
            let (Some(from), Some(to), Some(id)) = (self.accounts.get(from), self.accounts.get(to), ids.next()) else {
                return;
            };
            let transfer = Transfer { id, from: *from, to: *to, amount: 1 + u64::try_from(below(9)).unwrap_or(0) };
            recorder.began(recorded(&transfer));
            match ledger.transfer(transfer).await {
                Outcome::Acknowledged(scn) => recorder.acknowledged(id, scn),
                Outcome::Failed(_) => recorder.failed(id),
                Outcome::Unknown(_) => {}
            }
            let pause = env.entropy.word().checked_rem(self.pause_ms_max).unwrap_or(0);
            env.clock.sleep(Duration::from_millis(pause)).await;
        }
    }
}

fn recorded(transfer: &Transfer) -> Recorded {
    let amount = i64::try_from(transfer.amount).unwrap_or(i64::MAX);
    Recorded { id: transfer.id, from: transfer.from, to: transfer.to, amount }
}

/// Everything that is visible through one node.
pub async fn read_back(env: Env, node: u16) -> Result<LedgerState, Error> {
    let mut ledger = Ledger::new(&env, &database_address(node), Session::Causal, Duration::from_secs(30));
    let contents = ledger.read_all().await.map_err(|error| Refusal::new(Code::DatabaseDown, error.to_string()))?;
    Ok(LedgerState { balances: contents.balances, transfers: contents.transfers.values().map(recorded).collect() })
}
