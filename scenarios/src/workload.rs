//! What clients do: transfers between accounts, on all nodes, by sessions that move from node to node. Some sessions
//! carry the SCN that they have seen; the others are why a cut needs a fence.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::{join, join_all};
use sheetanchor_core::error::Error;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::env::Env;
use sheetanchor_refdb::{Across, Client, ClientError, Ledger, Outcome, Session, Transfer};
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

/// Spare accounts that fill the first sector of every page: four of their rows do.
pub const SPARE: u64 = 132;

/// Where refdb's ledger keeps the rows of transfers.
const TRANSFER_KEYS: u64 = 1 << 32;

/// How the clients behave.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How many accounts there are. Few make nodes fight for the same pages.
    pub accounts: u64,
    /// How many accounts there are besides that nobody touches. They come first on every page: what is changed then lies in
    /// another sector than the page's checksum, and a loss of power can tear the page.
    pub spare: u64,
    /// How many sessions there are that move from node to node. Every second one carries the SCN that it has seen; the
    /// others are why a cut needs a fence.
    pub roaming: u64,
    /// Whether each node also has a session of its own, on rows that no other node ever touches.
    pub at_home: bool,
    /// How many sessions there are that go from node to node in turn, on rows that only that node touches, and carry
    /// nothing: what they do on two nodes is tied together by nothing but time.
    pub hopping: u64,
    /// Whether those sessions carry the SCN that they have seen after all.
    pub hopping_carries: bool,
    /// How many sessions there are that move money between accounts of two databases, by two-phase commit.
    pub across: u64,
    /// The longest pause of a session between two transfers.
    pub pause_ms_max: u64,
}

impl Load {
    /// Accounts spread over the pages.
    pub const SPREAD: Self = Self {
        accounts: 24,
        spare: 0,
        roaming: 4,
        at_home: true,
        hopping: 0,
        hopping_carries: false,
        across: 0,
        pause_ms_max: 40,
    };

    /// As little as shows anything, for stories that are told a thousand times.
    pub const BRIEF: Self =
        Self { accounts: 12, spare: SPARE, roaming: 2, at_home: false, pause_ms_max: 30, ..Self::SPREAD };

    /// The same at leisure, for long stories: a page of rows holds 26 of them, and then it is full.
    pub const CALM: Self = Self { roaming: 3, pause_ms_max: 500, ..Self::SPREAD };

    /// Three accounts that every node writes all the time.
    pub const CROWDED: Self = Self { accounts: 3, at_home: false, pause_ms_max: 10, ..Self::SPREAD };

    /// Sessions whose commits on different nodes no message connects.
    pub const HOPPING: Self = Self { roaming: 0, at_home: false, hopping: 4, pause_ms_max: 3, ..Self::SPREAD };

    /// A few of those, for stories that are told a thousand times.
    pub const BRIEF_HOPPING: Self = Self { hopping: 2, pause_ms_max: 30, ..Self::HOPPING };

    /// One session that goes from node to node and tells each what it has seen: every commit follows from the one before.
    pub const CARRYING: Self = Self { hopping: 1, hopping_carries: true, ..Self::HOPPING };

    /// Sessions that move money between databases that share nothing, all the time.
    pub const ACROSS: Self = Self { roaming: 0, at_home: false, across: 4, pause_ms_max: 20, ..Self::SPREAD };

    /// A session now and then, for a story of a day.
    pub const DAILY: Self = Self { roaming: 3, at_home: false, pause_ms_max: 120_000, ..Self::SPREAD };

    /// The same with so many sessions at most, and one at least.
    #[must_use]
    pub fn with_sessions(self, most: u64) -> Self {
        let room = most.max(1);
        let roaming = self.roaming.min(room);
        let hopping = self.hopping.min(room - roaming);
        let across = self.across.min(room - roaming - hopping);
        let homes = u64::try_from(NODES.len()).unwrap_or(0);
        Self { roaming, hopping, across, at_home: self.at_home && roaming + hopping + across + homes <= most, ..self }
    }

    /// The balances at the start.
    pub fn opening(self) -> BTreeMap<u64, i64> {
        (0..self.created()).map(|account| (account, OPENING)).collect()
    }

    fn created(self) -> u64 {
        self.accounts + self.spare
    }

    fn accounts_of(self, kinds: &[u64]) -> Vec<u64> {
        (0..self.accounts).filter(|account| kinds.contains(&(account % PAGE_KINDS))).collect()
    }
}

/// Gives every account its balance.
pub async fn create_accounts(env: Env, load: Load) -> Result<(), ClientError> {
    let mut ledger = Ledger::new(&env, &database_address(1), Session::Causal, Duration::from_secs(20));
    ledger.create(load.created(), OPENING).await?;
    accounts_are_there(load);
    Ok(())
}

/// Gives every account its balance in the database of every node, of which each uses those that are at home there.
pub async fn create_separate_accounts(env: Env, load: Load) -> Result<(), ClientError> {
    for node in NODES {
        let mut ledger = Ledger::new(&env, &database_address(node), Session::Causal, Duration::from_secs(20));
        ledger.create(load.created(), OPENING).await?;
    }
    accounts_are_there(load);
    Ok(())
}

/// Faults strike after this at the earliest. The places where they struck are told from here, so that a plan that is carried
/// to another backend meets nothing earlier.
fn accounts_are_there(load: Load) {
    tracing::info!(target: "sheetanchor::phase", accounts = load.created(), phase = "funded");
}

/// Transfers until told to stop. `wave` tells the ids of one crowd of clients from those of another.
pub async fn transfer(env: Env, load: Load, wave: u64, recorder: Recorder, stop: Arc<AtomicBool>) {
    let roaming = (0..load.roaming).map(|number| Habits::roaming(load, number));
    let homes = NODES.iter().filter(|_| load.at_home).map(|node| Habits::at_home(load, *node));
    let hopping = (0..load.hopping).map(|_| Habits::hopping(load));
    let sessions = (0..).zip(roaming.chain(homes).chain(hopping)).map(|(number, habits)| {
        let (env, recorder, stop) = (env.clone(), recorder.clone(), stop.clone());
        let first_id = (wave * 100 + number) * 1_000_000;
        async move { habits.transfer(&env, first_id, &recorder, &stop).await }
    });
    let across = (0..load.across).map(|number| {
        let (env, recorder, stop) = (env.clone(), recorder.clone(), stop.clone());
        let first_id = (wave * 100 + 50 + number) * 1_000_000;
        async move { transfer_across(&env, load, first_id, &recorder, &stop).await }
    });
    join(join_all(sessions), join_all(across)).await;
}

/// One session that moves money from one database to another until told to stop.
async fn transfer_across(env: &Env, load: Load, first_id: u64, recorder: &Recorder, stop: &AtomicBool) {
    let below = |bound: usize| {
        let bound = u64::try_from(bound).unwrap_or(1);
        usize::try_from(env.entropy.word().checked_rem(bound).unwrap_or(0)).unwrap_or(0)
    };
    let mut id = first_id;
    while !stop.load(Ordering::SeqCst) {
        let paying = below(NODES.len());
        let paid = (paying + 1 + below(NODES.len() - 1)) % NODES.len();
        let account = |node: usize| {
            let accounts = NODES.get(node).map(|node| Place::home(load, *node).accounts).unwrap_or_default();
            accounts.get(below(accounts.len())).copied().unwrap_or_default()
        };
        let transfer = Transfer { id, from: account(paying), to: account(paid), amount: 1 + env.entropy.word() % 9 };
        id += 1;
        recorder.began(recorded(&transfer));
        match across(env, &transfer).transfer(transfer, &format!("transfer-{}", transfer.id)).await {
            Outcome::Acknowledged(scn) => recorder.acknowledged(transfer.id, scn),
            Outcome::Failed(_) => recorder.failed(transfer.id),
            Outcome::Unknown(_) => {}
        }
        let pause = env.entropy.word().checked_rem(load.pause_ms_max).unwrap_or(0);
        env.clock.sleep(Duration::from_millis(pause)).await;
    }
}

/// A session on the two databases that a transfer touches. It carries nothing from one to the other.
pub fn across(env: &Env, transfer: &Transfer) -> Across {
    let ledger = |account| Ledger::new(env, &database_address(home_of(account)), Session::Plain, BUDGET);
    Across::new(ledger(transfer.from), ledger(transfer.to))
}

/// What one session does.
struct Habits {
    places: Vec<Place>,
    /// Whether it goes through its places in turn, or to any of them.
    in_turn: bool,
    session: Session,
    pause_ms_max: u64,
}

/// A node that a session works on, and what it touches there.
struct Place {
    node: u16,
    /// The accounts that it moves money between.
    accounts: Vec<u64>,
    /// The kinds of pages that its transfers' own rows lie on.
    kinds: Vec<u64>,
}

impl Place {
    fn shared(load: Load, node: u16) -> Self {
        let kinds: Vec<u64> = (0..ROAMED).collect();
        Self { node, accounts: load.accounts_of(&kinds), kinds }
    }

    /// Pages that the node is the master of and no other node touches: whatever becomes of the others, it can go on.
    fn home(load: Load, node: u16) -> Self {
        let nodes = u64::try_from(NODES.len()).unwrap_or(1);
        let kinds: Vec<u64> = (ROAMED..PAGE_KINDS).filter(|kind| kind % nodes == u64::from(node) - 1).collect();
        Self { node, accounts: load.accounts_of(&kinds), kinds }
    }
}

impl Habits {
    fn roaming(load: Load, number: u64) -> Self {
        let session = if number.is_multiple_of(2) { Session::Plain } else { Session::Causal };
        let places = NODES.iter().map(|node| Place::shared(load, *node)).collect();
        Self { places, in_turn: false, session, pause_ms_max: load.pause_ms_max }
    }

    fn at_home(load: Load, node: u16) -> Self {
        let places = vec![Place::home(load, node)];
        Self { places, in_turn: true, session: Session::Plain, pause_ms_max: load.pause_ms_max * 3 }
    }

    fn hopping(load: Load) -> Self {
        let places = NODES.iter().map(|node| Place::home(load, *node)).collect();
        let session = if load.hopping_carries { Session::Causal } else { Session::Plain };
        Self { places, in_turn: true, session, pause_ms_max: load.pause_ms_max }
    }

    async fn transfer(&self, env: &Env, first_id: u64, recorder: &Recorder, stop: &AtomicBool) {
        let below = |bound: usize| {
            let bound = u64::try_from(bound).unwrap_or(1);
            usize::try_from(env.entropy.word().checked_rem(bound).unwrap_or(0)).unwrap_or(0)
        };
        // A connection to each place: going on at another node must not cost a dial.
        let mut ledgers: Vec<Ledger> = self
            .places
            .iter()
            .map(|place| Ledger::new(env, &database_address(place.node), self.session, BUDGET))
            .collect();
        let (mut next_id, mut turn, mut seen) = (first_id, 0, Scn::ZERO);
        while !stop.load(Ordering::SeqCst) {
            turn = if self.in_turn { turn + 1 } else { below(self.places.len()) } % self.places.len();
            let (Some(place), Some(ledger)) = (self.places.get(turn), ledgers.get_mut(turn)) else { return };
            let from = below(place.accounts.len());
            let to = (from + 1 + below(place.accounts.len() - 1)) % place.accounts.len();
            let id =
                (next_id..next_id + PAGE_KINDS).find(|id| place.kinds.contains(&((TRANSFER_KEYS + id) % PAGE_KINDS)));
            let (Some(from), Some(to), Some(id)) = (place.accounts.get(from), place.accounts.get(to), id) else {
                return;
            };
            next_id = id + 1;
            let transfer = Transfer { id, from: *from, to: *to, amount: 1 + env.entropy.word() % 9 };
            // A session is one, whichever of its connections it uses.
            ledger.saw(seen);
            recorder.began(recorded(&transfer));
            let outcome = ledger.transfer(transfer).await;
            seen = seen.max(ledger.seen());
            match outcome {
                Outcome::Acknowledged(scn) => recorder.acknowledged(id, scn),
                Outcome::Failed(_) => recorder.failed(id),
                Outcome::Unknown(_) => {}
            }
            let pause = env.entropy.word().checked_rem(self.pause_ms_max).unwrap_or(0);
            env.clock.sleep(Duration::from_millis(pause)).await;
        }
    }
}

/// A transfer as the oracle knows it.
pub fn recorded(transfer: &Transfer) -> Recorded {
    let amount = i64::try_from(transfer.amount).unwrap_or(i64::MAX);
    Recorded { id: transfer.id, from: transfer.from, to: transfer.to, amount }
}

/// Everything that is visible through one node.
pub async fn read_back(env: Env, node: u16) -> Result<LedgerState, Error> {
    read_at(env, &database_address(node)).await
}

/// Everything that is visible through the node at an address.
pub async fn read_at(env: Env, address: &str) -> Result<LedgerState, Error> {
    let mut ledger = Ledger::new(&env, address, Session::Causal, Duration::from_secs(30));
    let contents = ledger.read_all().await.map_err(|error| Refusal::new(Code::DatabaseDown, error.to_string()))?;
    Ok(LedgerState { balances: contents.balances, transfers: contents.transfers.values().map(recorded).collect() })
}

/// What databases hold each by itself: balances by account, and transfers with the node that has them.
pub type Halves = (BTreeMap<u64, i64>, Vec<(u16, Recorded)>);

/// What each database holds by itself, of which an account counts where it is at home, and every transfer that any of them
/// has, with the databases that have it.
pub async fn read_each(env: Env) -> Result<Halves, Error> {
    read_each_at(env, database_address).await
}

async fn read_each_at(env: Env, address: impl Fn(u16) -> String + Send) -> Result<Halves, Error> {
    let (mut balances, mut transfers) = (BTreeMap::new(), Vec::new());
    for node in NODES {
        let state = read_at(env.clone(), &address(node)).await?;
        balances.extend(state.balances.into_iter().filter(|(account, _)| home_of(*account) == node));
        transfers.extend(state.transfers.into_iter().map(|transfer| (node, transfer)));
    }
    Ok((balances, transfers))
}

/// The two databases that a transfer touches.
pub fn homes_of(transfer: &Recorded) -> [u16; 2] {
    [home_of(transfer.from), home_of(transfer.to)]
}

/// What is prepared on each node.
pub async fn prepared(env: Env) -> Result<BTreeMap<u16, Vec<String>>, ClientError> {
    let mut prepared = BTreeMap::new();
    for node in NODES {
        let mut client = Client::connect(&env, &database_address(node), Session::Plain, Scn::ZERO).await?;
        prepared.insert(node, client.prepared().await?);
    }
    Ok(prepared)
}

/// Everything that is visible through all nodes, where each has a database of its own: an account counts where it is at
/// home, and transfers wherever they are.
pub async fn read_separate(env: Env) -> Result<LedgerState, Error> {
    read_separate_at(env, database_address).await
}

/// The same, where each node's database is reached at `address`.
pub async fn read_separate_at(env: Env, address: impl Fn(u16) -> String + Send) -> Result<LedgerState, Error> {
    let (balances, transfers) = read_each_at(env, address).await?;
    Ok(LedgerState { balances, transfers: transfers.into_iter().map(|(_, transfer)| transfer).collect() })
}

/// The node that an account is at home on; the first, for those that sessions roam over.
pub fn home_of(account: u64) -> u16 {
    let (kind, nodes) = (account % PAGE_KINDS, u64::try_from(NODES.len()).unwrap_or(1));
    let place = if kind < ROAMED { 0 } else { usize::try_from(kind % nodes).unwrap_or(0) };
    NODES.get(place).copied().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_cut_to_the_most_sessions_and_to_one_at_least() {
        let sessions = |load: Load| (load.roaming, load.hopping, load.across, load.at_home);
        assert_eq!(sessions(Load::SPREAD.with_sessions(7)), (4, 0, 0, true));
        assert_eq!(sessions(Load::SPREAD.with_sessions(6)), (4, 0, 0, false));
        assert_eq!(sessions(Load::HOPPING.with_sessions(2)), (0, 2, 0, false));
        assert_eq!(sessions(Load::ACROSS.with_sessions(3)), (0, 0, 3, false));
        assert_eq!(sessions(Load::ACROSS.with_sessions(0)), (0, 0, 1, false));
        let both = Load { at_home: true, ..Load::ACROSS };
        assert_eq!(sessions(both.with_sessions(6)), (0, 0, 4, false));
    }
}
