//! A workload: accounts, and transfers between them. Each transfer moves an amount and leaves a row of its own, in one
//! transaction, so that what was committed can be compared with what is there, transfer by transfer.

mod across;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::env::Env;

use crate::client::{Client, ClientError, Session};
use crate::fields;

pub use across::Across;

/// Transfers' rows have keys from here on; accounts' keys lie below.
const TRANSFER_KEYS: u64 = 1 << 32;

/// Moves an amount from one account to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Transfer {
    /// Unique for ever; below 2^63.
    pub id: u64,
    /// Whose balance falls.
    pub from: u64,
    /// Whose balance rises.
    pub to: u64,
    /// By how much.
    pub amount: u64,
}

/// One try, on one connection. Boxed: it must be `Send` for every lifetime of the client.
type Attempt<'a, T> = BoxFuture<'a, Result<T, ClientError>>;

/// What became of a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Durable, at this SCN.
    Acknowledged(Scn),
    /// It did not take place, and will not.
    Failed(String),
    /// It may or may not have taken place.
    Unknown(String),
}

/// All that is visible.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Balance by account.
    pub balances: BTreeMap<u64, i64>,
    /// Transfers by id.
    pub transfers: BTreeMap<u64, Transfer>,
}

/// A session that works on the ledger through one node at a time.
#[derive(Debug)]
pub struct Ledger {
    env: Env,
    address: String,
    session: Session,
    seen: Scn,
    client: Option<Client>,
    budget: Duration,
}

impl Ledger {
    /// A node that has said nothing for so long is given up: longer than it lets a commit wait for a fence.
    const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

    /// Pause between attempts.
    const PAUSE: Duration = Duration::from_millis(20);

    /// A session on the node at `address`. What can be tried again is, until `budget` has passed.
    pub fn new(env: &Env, address: &str, session: Session, budget: Duration) -> Self {
        Self { env: env.clone(), address: address.into(), session, seen: Scn::ZERO, client: None, budget }
    }

    /// Goes on at another node, as the same session.
    pub fn move_to(&mut self, address: &str) {
        self.address = address.into();
        self.client = None;
    }

    /// The highest SCN that the session has seen.
    pub fn seen(&self) -> Scn {
        self.seen
    }

    /// The session has seen `scn` over another connection; with [`Session::Causal`] its next request says so.
    pub fn saw(&mut self, scn: Scn) {
        self.seen = self.seen.max(scn);
        if let Some(client) = &mut self.client {
            client.saw(scn);
        }
    }

    /// Gives each of the accounts `0..accounts` the same balance. Returns the SCN of the last commit.
    ///
    /// # Errors
    /// The last attempt's, once the budget has passed.
    pub async fn create(&mut self, accounts: u64, balance: i64) -> Result<Scn, ClientError> {
        const BATCH: u64 = 64;
        let mut last = Scn::ZERO;
        let mut from = 0;
        while from < accounts {
            let until = accounts.min(from + BATCH);
            let rows: Vec<(u64, Vec<u8>)> =
                (from..until).map(|account| (account, balance.to_le_bytes().to_vec())).collect();
            let rows = Arc::new(rows);
            last = self.until_budget(|client| Box::pin(write_rows(client, Arc::clone(&rows)))).await?;
            from = until;
        }
        Ok(last)
    }

    /// Carries a transfer out, once.
    pub async fn transfer(&mut self, transfer: Transfer) -> Outcome {
        match self.until_budget(|client| Box::pin(move_amount(client, transfer))).await {
            Ok(scn) => Outcome::Acknowledged(scn),
            Err(error @ ClientError::Unknown(_)) => Outcome::Unknown(error.to_string()),
            Err(error @ (ClientError::Retry(_) | ClientError::Failed { .. } | ClientError::Lost(_))) => {
                Outcome::Failed(error.to_string())
            }
        }
    }

    /// All balances and transfers. One state only if nobody writes meanwhile.
    ///
    /// # Errors
    /// The last attempt's, once the budget has passed; `SA007` for rows that no ledger wrote.
    pub async fn read_all(&mut self) -> Result<Contents, ClientError> {
        let rows = self.until_budget(|client| Box::pin(client.scan(0, u64::MAX))).await?;
        let mut contents = Contents::default();
        for (key, value) in rows {
            let read = if key < TRANSFER_KEYS {
                let balance = fields::array(&value, 0).map(i64::from_le_bytes);
                balance.map(|balance| contents.balances.insert(key, balance).is_none())
            } else {
                let id = key - TRANSFER_KEYS;
                read_transfer(id, &value).map(|transfer| contents.transfers.insert(id, transfer).is_none())
            };
            if read != Some(true) {
                let code = Some(sheetanchor_core::refusal::Code::PageDamaged);
                return Err(ClientError::Failed { code, message: format!("row {key} is none of a ledger") });
            }
        }
        Ok(contents)
    }

    /// Tries until it works, fails for good, or the budget has passed.
    async fn until_budget<T>(
        &mut self,
        attempt: impl for<'a> Fn(&'a mut Client) -> Attempt<'a, T>,
    ) -> Result<T, ClientError> {
        let deadline = self.env.clock.now().after(self.budget);
        loop {
            let error = match self.attempt(&attempt).await {
                Err(error @ (ClientError::Retry(_) | ClientError::Lost(_))) => error,
                outcome => return outcome,
            };
            if self.env.clock.now() >= deadline {
                return Err(error);
            }
            // Two sessions that collided must not do so in step: each waits for a time of its own.
            let jitter = self.env.entropy.word() % 16;
            self.env.clock.sleep(Self::PAUSE / 16 * u32::try_from(16 + jitter).unwrap_or(16)).await;
        }
    }

    async fn attempt<T>(
        &mut self,
        attempt: &impl for<'a> Fn(&'a mut Client) -> Attempt<'a, T>,
    ) -> Result<T, ClientError> {
        // Taken out, so that a connection is not used again after an attempt that was cancelled in the middle.
        let mut client = if let Some(client) = self.client.take() {
            client
        } else {
            let mut client = Client::connect(&self.env, &self.address, self.session, self.seen).await?;
            client.set_timeout(Self::ANSWER_TIMEOUT);
            client
        };
        let outcome = attempt(&mut client).await;
        self.seen = self.seen.max(client.seen());
        if !matches!(outcome, Err(ClientError::Lost(_) | ClientError::Unknown(_))) {
            self.client = Some(client);
        }
        outcome
    }
}

/// Commits; from here on a lost connection leaves the outcome open.
async fn commit(client: &mut Client) -> Result<Scn, ClientError> {
    client.commit().await.map_err(|error| match error {
        ClientError::Lost(why) => ClientError::Unknown(why),
        other @ (ClientError::Retry(_) | ClientError::Failed { .. } | ClientError::Unknown(_)) => other,
    })
}

async fn write_rows(client: &mut Client, rows: Arc<Vec<(u64, Vec<u8>)>>) -> Result<Scn, ClientError> {
    client.begin().await?;
    for (key, value) in rows.iter() {
        client.write(*key, value.clone()).await?;
    }
    client.commit().await
}

async fn move_amount(client: &mut Client, transfer: Transfer) -> Result<Scn, ClientError> {
    let amount = i64::try_from(transfer.amount).unwrap_or(i64::MAX);
    client.begin().await?;
    // In the order of the keys, so that two transfers meet at their first row and not at their second.
    let mut changes = [(transfer.from, amount.saturating_neg()), (transfer.to, amount)];
    changes.sort_unstable();
    for (account, change) in changes {
        let value = client.read(account).await?;
        let balance = value.and_then(|value| fields::array(&value, 0)).map(i64::from_le_bytes);
        let Some(balance) = balance else {
            client.abort().await?;
            return Err(ClientError::Failed { code: None, message: format!("there is no account {account}") });
        };
        client.write(account, balance.saturating_add(change).to_le_bytes().to_vec()).await?;
    }
    client.write(TRANSFER_KEYS.saturating_add(transfer.id), write_transfer(transfer)).await?;
    commit(client).await
}

fn write_transfer(transfer: Transfer) -> Vec<u8> {
    [transfer.from, transfer.to, transfer.amount].iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn read_transfer(id: u64, value: &[u8]) -> Option<Transfer> {
    let word = |at| fields::u64_at(value, at);
    let transfer = Transfer { id, from: word(0)?, to: word(8)?, amount: word(16)? };
    (write_transfer(transfer) == value).then_some(transfer)
}
