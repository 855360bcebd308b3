//! Compares what was restored with what had been committed, transfer by transfer. Knows nothing of how either came about.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sheetanchor_refdb::{Contents, Transfer};

use crate::screen::Table;

/// What has to have become of a transfer, by what its client was told and by where the cut lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was acknowledged at or below the cut: it must be there.
    Inside,
    /// It was acknowledged above the cut, or did not take place: it must not be there.
    Outside,
    /// Nobody was told: it may be there, as a whole or not at all.
    Open,
}

/// What the comparison came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Transfers that have to be there.
    pub committed: usize,
    /// Transfers that are there.
    pub restored: usize,
    /// Transfers that have to be there and are, as they were sent.
    pub equal: usize,
    /// Transfers that must not be there, and are not.
    pub absent: usize,
    /// Transfers of unknown outcome, and how many of them are there.
    pub open: usize,
    /// Those of them that are there.
    pub open_restored: usize,
    /// Accounts whose balance follows from the transfers that are there.
    pub balanced: usize,
    /// Accounts.
    pub accounts: usize,
    /// Sum of all balances.
    pub sum: i64,
    /// The last transfer that has to be there.
    pub last: Option<Transfer>,
    /// What is not as it has to be, in words.
    pub differences: Vec<String>,
}

/// Compares `restored` with `sent`, where each of `accounts` accounts began with `balance`.
pub fn compare(sent: &[(Transfer, Fate)], restored: &Contents, accounts: u64, balance: i64) -> Verdict {
    let mut verdict = Verdict { restored: restored.transfers.len(), ..Verdict::default() };
    let known: BTreeMap<u64, Fate> = sent.iter().map(|(transfer, fate)| (transfer.id, *fate)).collect();
    for (transfer, fate) in sent {
        judge(&mut verdict, *transfer, *fate, restored.transfers.get(&transfer.id));
    }
    for transfer in restored.transfers.values().filter(|transfer| !known.contains_key(&transfer.id)) {
        verdict.differences.push(format!("transfer {} was restored and never sent", transfer.id));
    }
    let mut balances: BTreeMap<u64, i64> = (0..accounts).map(|account| (account, balance)).collect();
    for transfer in restored.transfers.values() {
        let amount = i64::try_from(transfer.amount).unwrap_or(i64::MAX);
        for (account, change) in [(transfer.from, amount.saturating_neg()), (transfer.to, amount)] {
            let entry = balances.entry(account).or_default();
            *entry = entry.saturating_add(change);
        }
    }
    verdict.accounts = balances.len();
    for (account, expected) in &balances {
        match restored.balances.get(account) {
            Some(found) if found == expected => verdict.balanced += 1,
            found => {
                verdict.differences.push(format!("account {account} holds {found:?}, its transfers make {expected}"));
            }
        }
    }
    if restored.balances.len() != balances.len() {
        verdict.differences.push(format!("{} accounts were restored of {}", restored.balances.len(), balances.len()));
    }
    verdict.sum = restored.balances.values().sum();
    let expected_sum = balance.saturating_mul(i64::try_from(accounts).unwrap_or(i64::MAX));
    if verdict.sum != expected_sum {
        verdict.differences.push(format!("all balances make {}, they began with {expected_sum}", verdict.sum));
    }
    verdict
}

fn judge(verdict: &mut Verdict, sent: Transfer, fate: Fate, found: Option<&Transfer>) {
    let id = sent.id;
    match (fate, found) {
        (Fate::Inside, Some(found)) if *found == sent => verdict.equal += 1,
        (Fate::Outside, None) => verdict.absent += 1,
        (Fate::Open, None) => verdict.open += 1,
        (Fate::Open, Some(found)) if *found == sent => {
            verdict.open += 1;
            verdict.open_restored += 1;
        }
        (Fate::Inside, None) => verdict.differences.push(format!("transfer {id} was acknowledged and is lost")),
        (Fate::Outside, Some(_)) => {
            verdict.differences.push(format!("transfer {id} lies beyond the cut and was restored"));
        }
        (Fate::Inside | Fate::Open, Some(found)) => {
            verdict.differences.push(format!("transfer {id} was sent as {sent:?} and restored as {found:?}"));
        }
    }
    if fate == Fate::Inside {
        verdict.committed += 1;
        verdict.last = Some(sent);
    }
}

impl Verdict {
    /// Adds another node's verdict, where each node is a ledger of its own.
    pub fn add(&mut self, other: &Self) {
        self.committed += other.committed;
        self.restored += other.restored;
        self.equal += other.equal;
        self.absent += other.absent;
        self.open += other.open;
        self.open_restored += other.open_restored;
        self.balanced += other.balanced;
        self.accounts += other.accounts;
        self.sum = self.sum.saturating_add(other.sum);
        self.last = self.last.max(other.last);
        self.differences.extend(other.differences.iter().cloned());
    }

    /// The table that everything was for.
    pub fn table(&self) -> Table {
        let mut table = Table::new(["transfers", "number", ""]);
        let mut line =
            |what: &str, number: usize, remark: String| table.row([what.to_owned(), number.to_string(), remark]);
        let last = self.last.map(|last| {
            format!("the last one is transfer {}: {} from account {} to {}", last.id, last.amount, last.from, last.to)
        });
        line("committed up to the point", self.committed, last.unwrap_or_default());
        line(
            "restored",
            self.restored,
            format!("{} of them where absent would be right too: no client knew", self.open_restored),
        );
        line("equal", self.equal, "by id, amount and both accounts".to_owned());
        line("committed after it, and gone", self.absent, "as they have to be".to_owned());
        let sum = format!("of {} whose balance follows from these transfers, {} in all", self.accounts, self.sum);
        line("accounts", self.balanced, sum);
        table
    }

    /// The same as JSON.
    pub fn json(&self) -> Value {
        json!({
            "committed": self.committed, "restored": self.restored, "equal": self.equal, "absent": self.absent,
            "outcome_unknown": self.open, "outcome_unknown_restored": self.open_restored,
            "accounts": self.accounts, "accounts_balanced": self.balanced, "sum": self.sum,
            "last": self.last.map(|last| last.id), "differences": self.differences,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer(id: u64) -> Transfer {
        Transfer { id, from: 0, to: 1, amount: id * 10 }
    }

    fn restored(ids: &[u64]) -> Contents {
        let transfers: BTreeMap<u64, Transfer> = ids.iter().map(|id| (*id, transfer(*id))).collect();
        let moved: i64 = ids.iter().map(|id| i64::try_from(*id * 10).unwrap()).sum();
        Contents { balances: BTreeMap::from([(0, 100 - moved), (1, 100 + moved)]), transfers }
    }

    fn sent() -> Vec<(Transfer, Fate)> {
        vec![
            (transfer(1), Fate::Inside),
            (transfer(2), Fate::Open),
            (transfer(3), Fate::Inside),
            (transfer(4), Fate::Outside),
        ]
    }

    #[test]
    fn what_was_committed_and_nothing_else_is_equal() {
        for (ids, open_restored) in [(vec![1, 3], 0), (vec![1, 2, 3], 1)] {
            let verdict = compare(&sent(), &restored(&ids), 2, 100);
            assert_eq!(verdict.differences, Vec::<String>::new());
            assert_eq!((verdict.committed, verdict.equal, verdict.absent, verdict.sum), (2, 2, 1, 200));
            assert_eq!((verdict.open, verdict.open_restored, verdict.balanced), (1, open_restored, 2));
            assert_eq!(verdict.last, Some(transfer(3)));
        }
    }

    #[test]
    fn every_way_to_be_wrong_is_seen() {
        let seen = |contents: &Contents| compare(&sent(), contents, 2, 100).differences.join("; ");
        assert!(seen(&restored(&[1])).contains("transfer 3 was acknowledged and is lost"));
        assert!(seen(&restored(&[1, 3, 4])).contains("transfer 4 lies beyond the cut"));
        assert!(seen(&restored(&[1, 3, 9])).contains("transfer 9 was restored and never sent"));
        let mut other_amount = restored(&[1, 3]);
        other_amount.transfers.get_mut(&3).unwrap().amount = 31;
        assert!(seen(&other_amount).contains("transfer 3 was sent as"));
        let mut torn = restored(&[1, 3]);
        *torn.balances.get_mut(&1).unwrap() -= 30;
        assert!(seen(&torn).contains("account 1 holds") && seen(&torn).contains("they began with 200"));
        let mut gone = restored(&[1, 3]);
        gone.balances.remove(&0);
        assert!(seen(&gone).contains("1 accounts were restored of 2"));
    }
}
