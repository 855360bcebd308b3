//! Transfers between accounts of two databases that share nothing, by two-phase commit. Each of the two holds the
//! transfer's row, so that half of one can be told from all of it.

use std::sync::Arc;

use sheetanchor_core::refusal::Code;
use sheetanchor_core::scn::Scn;

use super::{Ledger, Outcome, TRANSFER_KEYS, Transfer, write_transfer};
use crate::client::{Client, ClientError};
use crate::fields;

/// A session on two databases: that of the paying account, and that of the paid one.
#[derive(Debug)]
pub struct Across {
    payer: Ledger,
    payee: Ledger,
}

impl Across {
    /// A session on two databases.
    pub fn new(from: Ledger, to: Ledger) -> Self {
        Self { payer: from, payee: to }
    }

    /// Carries a transfer out, once, under the global identifier `gid`. What could not be ended stays prepared.
    pub async fn transfer(&mut self, transfer: Transfer, gid: &str) -> Outcome {
        if let Err(error) = self.prepare(transfer, gid).await {
            for ledger in [&mut self.payer, &mut self.payee] {
                // It never commits: nobody says so any more.
                drop(end(ledger, gid, false).await);
            }
            return Outcome::Failed(error.to_string());
        }
        let paid = self.commit_payer(gid).await;
        let received = end(&mut self.payee, gid, true).await;
        match (paid, received) {
            (Ok(Some(scn)), _) => Outcome::Acknowledged(scn),
            (paid, received) => Outcome::Unknown(format!("{paid:?}, {received:?}")),
        }
    }

    /// Prepares both halves.
    ///
    /// # Errors
    /// The last attempt's, once the budget has passed. Halves may be prepared then.
    pub async fn prepare(&mut self, transfer: Transfer, gid: &str) -> Result<(), ClientError> {
        let amount = i64::try_from(transfer.amount).unwrap_or(i64::MAX);
        half(&mut self.payer, transfer, transfer.from, amount.saturating_neg(), gid).await?;
        half(&mut self.payee, transfer, transfer.to, amount, gid).await
    }

    /// Commits the paying half only; none if an attempt before the last one did, whose answer was lost.
    ///
    /// # Errors
    /// The last attempt's, once the budget has passed.
    pub async fn commit_payer(&mut self, gid: &str) -> Result<Option<Scn>, ClientError> {
        end(&mut self.payer, gid, true).await
    }

    /// Commits the other half.
    ///
    /// # Errors
    /// The last attempt's, once the budget has passed.
    pub async fn commit_payee(&mut self, gid: &str) -> Result<Option<Scn>, ClientError> {
        end(&mut self.payee, gid, true).await
    }
}

async fn half(
    ledger: &mut Ledger,
    transfer: Transfer,
    account: u64,
    change: i64,
    gid: &str,
) -> Result<(), ClientError> {
    let gid: Arc<str> = gid.into();
    let prepared = ledger.until_budget(|client| {
        let gid = Arc::clone(&gid);
        Box::pin(async move { prepare_half(client, transfer, account, change, &gid).await })
    });
    prepared.await.map(|_| ())
}

async fn prepare_half(
    client: &mut Client,
    transfer: Transfer,
    account: u64,
    change: i64,
    gid: &str,
) -> Result<Scn, ClientError> {
    client.begin().await?;
    let value = client.read(account).await?;
    let Some(balance) = value.and_then(|value| fields::array(&value, 0)).map(i64::from_le_bytes) else {
        client.abort().await?;
        return Err(ClientError::Failed { code: None, message: format!("there is no account {account}") });
    };
    client.write(account, balance.saturating_add(change).to_le_bytes().to_vec()).await?;
    client.write(TRANSFER_KEYS.saturating_add(transfer.id), write_transfer(transfer)).await?;
    // An answer that was lost is no retry: the half may be prepared.
    client.prepare(gid).await.map_err(|error| match error {
        ClientError::Lost(why) => ClientError::Unknown(why),
        other @ (ClientError::Retry(_) | ClientError::Failed { .. } | ClientError::Unknown(_)) => other,
    })
}

/// Commits or rolls back a half, and asks again where the outcome is not known.
async fn end(ledger: &mut Ledger, gid: &str, commit: bool) -> Result<Option<Scn>, ClientError> {
    let gid: Arc<str> = gid.into();
    let ended = ledger.until_budget(|client| {
        let gid = Arc::clone(&gid);
        Box::pin(async move {
            let ended = if commit {
                client.commit_prepared(&gid).await.map(Some)
            } else {
                client.rollback_prepared(&gid).await.map(|()| None)
            };
            match ended {
                Err(ClientError::Unknown(why)) => Err(ClientError::Lost(why)),
                // Nobody else ends it: an earlier attempt has.
                Err(ClientError::Failed { code: Some(Code::OutOfOrder), .. }) => Ok(None),
                ended => ended,
            }
        })
    });
    ended.await
}
