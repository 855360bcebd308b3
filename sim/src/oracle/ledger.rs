//! A ledger of transfers between accounts: what clients asked for and what they were told, against what a database holds
//! after a restore or a recovery.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use sheetanchor_core::scn::Scn;

use super::Violation;
use crate::host::locked;

/// Everything acknowledged at or below the cut is there.
pub const NOTHING_LOST: &str = "every transfer acknowledged at or below the cut is restored";
/// Nothing above the cut is there.
pub const NOTHING_AFTER: &str = "nothing above the cut is restored";
/// Nothing is there that did not commit.
pub const NOTHING_INVENTED: &str = "only committed transfers are restored, unchanged";
/// The balances are what the transfers that are there make of them.
pub const WHOLE: &str = "each transfer is restored whole";
/// The sum of all balances stays.
pub const CONSERVED: &str = "money is conserved";
/// A transfer between two databases is on both or on none.
pub const ATOMIC: &str = "a transfer between two databases is restored on both of them or on none";
/// No effect without its cause.
pub const CAUSAL: &str = "a transfer is restored only with all that were acknowledged before it began";

/// Every invariant that is judged here.
pub const ALL: [&str; 7] = [NOTHING_LOST, NOTHING_AFTER, NOTHING_INVENTED, WHOLE, CONSERVED, ATOMIC, CAUSAL];

/// One transfer, by the id that its client gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Unique in the run.
    pub id: u64,
    /// The account that pays.
    pub from: u64,
    /// The account that receives.
    pub to: u64,
    /// How much.
    pub amount: i64,
}

/// What its client knows of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// It may have committed or not: no answer, or none yet.
    Unknown,
    /// The database said that it did not commit.
    Failed,
    /// The database said that it committed.
    Acknowledged { scn: Scn, order: u64 },
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    transfer: Transfer,
    began: u64,
    known: Known,
}

/// What clients did, in the order in which it really happened: a simulation runs on one thread, so the order of calls is
/// the order of events, whatever the hosts' clocks say.
#[derive(Clone, Debug, Default)]
pub struct History {
    opening: BTreeMap<u64, i64>,
    asked: BTreeMap<u64, Asked>,
    order: u64,
}

impl History {
    /// A ledger that starts with these balances.
    pub fn new(opening: BTreeMap<u64, i64>) -> Self {
        Self { opening, ..Self::default() }
    }

    /// The balances at the start.
    pub const fn opening(&self) -> &BTreeMap<u64, i64> {
        &self.opening
    }

    /// A client sends a transfer. An id stands for one transfer: a retry of an unknown one begins it again.
    pub fn began(&mut self, transfer: Transfer) {
        self.order += 1;
        let asked = Asked { transfer, began: self.order, known: Known::Unknown };
        let before = self.asked.insert(transfer.id, asked);
        let is_retry = before.is_none_or(|before| before.transfer == transfer && before.known != Known::Failed);
        assert!(is_retry, "transfer {} began twice, with other contents or after it had failed", transfer.id);
        // The first try may be what took effect: nothing acknowledged since then is a cause of it.
        if let (Some(before), Some(asked)) = (before, self.asked.get_mut(&transfer.id)) {
            asked.began = before.began;
            asked.known = before.known;
        }
    }

    /// The client is told that the transfer committed, at `scn`.
    pub fn acknowledged(&mut self, id: u64, scn: Scn) {
        self.order += 1;
        let order = self.order;
        let asked = self.asked.get_mut(&id);
        assert!(asked.is_some(), "transfer {id} was acknowledged before it began");
        if let Some(asked) = asked {
            asked.known = Known::Acknowledged { scn, order };
        }
    }

    /// The client is told that the transfer did not commit, and never will.
    pub fn failed(&mut self, id: u64) {
        if let Some(asked) = self.asked.get_mut(&id) {
            asked.known = Known::Failed;
        }
    }

    /// The history of a database that was restored to `cut` and holds `state`: what is not there never was, and what is
    /// there is settled, also where no client was told.
    #[must_use]
    pub fn branched(&self, cut: Scn, state: &LedgerState) -> Self {
        let mut branch = Self { opening: self.opening.clone(), asked: BTreeMap::new(), order: self.order + 1 };
        for transfer in &state.transfers {
            if let Some(asked) = self.asked.get(&transfer.id) {
                let settled = Known::Acknowledged { scn: cut, order: branch.order };
                let known = if asked.known == Known::Unknown { settled } else { asked.known };
                branch.asked.insert(transfer.id, Asked { known, ..*asked });
            }
        }
        branch
    }

    /// How many transfers were acknowledged.
    pub fn acknowledged_count(&self) -> usize {
        self.asked.values().filter(|asked| matches!(asked.known, Known::Acknowledged { .. })).count()
    }

    /// How many were acknowledged at or below `cut`.
    pub fn acknowledged_up_to(&self, cut: Scn) -> usize {
        self.asked.values().filter(|asked| matches!(asked.known, Known::Acknowledged { scn, .. } if scn <= cut)).count()
    }

    /// The SCNs that were acknowledged, ascending.
    pub fn acknowledged_scns(&self) -> Vec<Scn> {
        let mut scns: Vec<Scn> = self
            .asked
            .values()
            .filter_map(|asked| match asked.known {
                Known::Acknowledged { scn, .. } => Some(scn),
                Known::Unknown | Known::Failed => None,
            })
            .collect();
        scns.sort_unstable();
        scns
    }

    /// The present place in the order of events.
    pub const fn now(&self) -> u64 {
        self.order
    }

    /// The highest SCN that was acknowledged.
    pub fn last_scn(&self) -> Option<Scn> {
        let scn = |asked: &Asked| match asked.known {
            Known::Acknowledged { scn, .. } => Some(scn),
            Known::Unknown | Known::Failed => None,
        };
        self.asked.values().filter_map(scn).max()
    }
}

/// A history that several clients write to. Clones are the same history.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Arc<Mutex<History>>);

impl Recorder {
    /// A recorder of a ledger that starts with these balances.
    pub fn new(opening: BTreeMap<u64, i64>) -> Self {
        Self(Arc::new(Mutex::new(History::new(opening))))
    }

    /// See [`History::began`].
    pub fn began(&self, transfer: Transfer) {
        locked(&self.0).began(transfer);
    }

    /// See [`History::acknowledged`].
    pub fn acknowledged(&self, id: u64, scn: Scn) {
        locked(&self.0).acknowledged(id, scn);
    }

    /// See [`History::failed`].
    pub fn failed(&self, id: u64) {
        locked(&self.0).failed(id);
    }

    /// Goes on from another history.
    pub fn go_on_from(&self, history: History) {
        *locked(&self.0) = history;
    }

    /// The history so far.
    pub fn history(&self) -> History {
        locked(&self.0).clone()
    }
}

/// What a database holds, as read from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LedgerState {
    /// By account.
    pub balances: BTreeMap<u64, i64>,
    /// The journal: every transfer that the database says it has.
    pub transfers: Vec<Transfer>,
}

/// Joins what databases that share nothing hold each by itself: a transfer is there if both databases that it touches have
/// it. `found` is what each of them has, `homes` are the two that a transfer touches.
///
/// # Errors
/// [`ATOMIC`], if only one of them has it.
pub fn join_halves(
    found: &[(u16, Transfer)],
    homes: impl Fn(&Transfer) -> [u16; 2],
) -> Result<Vec<Transfer>, Violation> {
    let mut holders: BTreeMap<u64, (Transfer, Vec<u16>)> = BTreeMap::new();
    for (database, transfer) in found {
        holders.entry(transfer.id).or_insert_with(|| (*transfer, Vec::new())).1.push(*database);
    }
    for (id, (transfer, holders)) in &mut holders {
        let mut homes = homes(transfer).to_vec();
        homes.sort_unstable();
        homes.dedup();
        holders.sort_unstable();
        if *holders != homes {
            let detail = format!("transfer {id} is on {holders:?}, and belongs to {homes:?}");
            return Err(Violation::new(ATOMIC, detail));
        }
    }
    Ok(holders.into_values().map(|(transfer, _)| transfer).collect())
}

/// Judges a restored or recovered database against the history. The cut is inclusive; for a crash recovery, where all
/// that was acknowledged must be there, it is the end of time.
///
/// # Errors
/// The first invariant that does not hold.
pub fn check_restored(history: &History, cut: Scn, state: &LedgerState) -> Result<(), Violation> {
    let present = check_present(history, cut, state)?;
    check_acknowledged(history, cut, &present)?;
    check_causal(history, &present)?;
    check_balances(history, state)
}

/// The same, but for what sessions that carry nothing tie together: of a cut by SCN it is not promised that a transfer is
/// there if another one is that began after its acknowledgement, on a node whose clock is behind.
///
/// # Errors
/// The first invariant that does not hold.
pub fn check_restored_by_scn(history: &History, cut: Scn, state: &LedgerState) -> Result<(), Violation> {
    let present = check_present(history, cut, state)?;
    check_acknowledged(history, cut, &present)?;
    check_balances(history, state)
}

/// Judges a cut that was published, before anything is restored: where a commit is in the cut if its SCN is at or below it,
/// what is in it follows from what clients were told. `begun` and `published` are [`History::now`] when the point was begun
/// and when its operator was told. No commit that began afterwards is in it; and if it was `fenced`, every commit that was
/// acknowledged before is, and no effect without its cause.
///
/// # Errors
/// The first invariant that does not hold.
pub fn check_cut(history: &History, cut: Scn, begun: u64, published: u64, fenced: bool) -> Result<(), Violation> {
    let told = |asked: &Asked| match asked.known {
        Known::Acknowledged { scn, order } => Some((asked.began, scn, order)),
        Known::Unknown | Known::Failed => None,
    };
    let inside =
        history.asked.iter().filter_map(|(id, asked)| Some((*id, told(asked)?))).filter(|(_, told)| told.1 <= cut);
    // The last effect, and the first cause: if any two are torn apart, these are.
    let effect = inside.max_by_key(|(_, (began, ..))| *began);
    let outside =
        history.asked.iter().filter_map(|(id, asked)| Some((*id, told(asked)?))).filter(|(_, told)| told.1 > cut);
    let cause = outside.min_by_key(|(_, (.., order))| *order);
    if let Some((id, (began, scn, _))) = effect
        && began > published
    {
        let detail = format!("transfer {id} at {scn} began after the cut {cut} was published, and is in it");
        return Err(Violation::new(NOTHING_AFTER, detail));
    }
    if let Some((id, (_, scn, order))) = cause.filter(|_| fenced) {
        if order <= begun {
            let detail =
                format!("transfer {id} at {scn} was acknowledged before the cut {cut} was begun, and is not in it");
            return Err(Violation::new(NOTHING_LOST, detail));
        }
        if let Some((effect, (began, ..))) = effect
            && order < began
        {
            let detail = format!("the cut {cut} holds {effect}, and not {id}, acknowledged before it began, at {scn}");
            return Err(Violation::new(CAUSAL, detail));
        }
    }
    Ok(())
}

/// Every transfer that is there was asked for, is unchanged, is there once, did not fail, and lies within the cut.
fn check_present(history: &History, cut: Scn, state: &LedgerState) -> Result<BTreeMap<u64, Asked>, Violation> {
    let mut present = BTreeMap::new();
    for transfer in &state.transfers {
        let id = transfer.id;
        let invented = |why: &str| Err(Violation::new(NOTHING_INVENTED, format!("transfer {id} is there, and {why}")));
        let Some(asked) = history.asked.get(&id) else { return invented("nobody asked for it") };
        if asked.transfer != *transfer {
            return invented(&format!("it says {transfer:?} instead of {:?}", asked.transfer));
        }
        match asked.known {
            Known::Failed => return invented("it had failed"),
            Known::Acknowledged { scn, .. } if scn > cut => {
                return Err(Violation::new(NOTHING_AFTER, format!("transfer {id} at {scn} is above the cut {cut}")));
            }
            Known::Acknowledged { .. } | Known::Unknown => {}
        }
        if present.insert(id, *asked).is_some() {
            return invented("it is there twice");
        }
    }
    Ok(present)
}

fn check_acknowledged(history: &History, cut: Scn, present: &BTreeMap<u64, Asked>) -> Result<(), Violation> {
    for (id, asked) in &history.asked {
        if let Known::Acknowledged { scn, .. } = asked.known
            && scn <= cut
            && !present.contains_key(id)
        {
            return Err(Violation::new(NOTHING_LOST, format!("transfer {id} at {scn} is missing; the cut is {cut}")));
        }
    }
    Ok(())
}

fn check_causal(history: &History, present: &BTreeMap<u64, Asked>) -> Result<(), Violation> {
    let Some((effect, latest)) = present.iter().max_by_key(|(_, asked)| asked.began) else { return Ok(()) };
    for (id, asked) in &history.asked {
        if let Known::Acknowledged { order, .. } = asked.known
            && order < latest.began
            && !present.contains_key(id)
        {
            let detail = format!("transfer {effect} is there, and {id}, acknowledged before it began, is not");
            return Err(Violation::new(CAUSAL, detail));
        }
    }
    Ok(())
}

fn check_balances(history: &History, state: &LedgerState) -> Result<(), Violation> {
    let sum = |balances: &BTreeMap<u64, i64>| balances.values().map(|balance| i128::from(*balance)).sum::<i128>();
    let (before, after) = (sum(&history.opening), sum(&state.balances));
    if before != after {
        return Err(Violation::new(CONSERVED, format!("all balances were {before} in sum and are {after}")));
    }
    let mut expected = history.opening.clone();
    for transfer in &state.transfers {
        *expected.entry(transfer.from).or_default() -= transfer.amount;
        *expected.entry(transfer.to).or_default() += transfer.amount;
    }
    let accounts = expected.keys().chain(state.balances.keys());
    for account in accounts {
        let (wanted, found) = (expected.get(account), state.balances.get(account));
        if wanted != found {
            let detail = format!("account {account} holds {found:?}, and its transfers make {wanted:?}");
            return Err(Violation::new(WHOLE, detail));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn transfer(id: u64) -> Transfer {
        Transfer { id, from: 1, to: 2, amount: 10 }
    }

    const fn scn(word: u64) -> Scn {
        Scn::new(word)
    }

    /// Transfers 1 and 2 are acknowledged at 10 and 20, 3 failed, 4 is unknown.
    fn history() -> History {
        let mut history = History::new(BTreeMap::from([(1, 100), (2, 100)]));
        history.began(transfer(1));
        history.acknowledged(1, scn(10));
        history.began(transfer(2));
        history.began(transfer(3));
        history.began(transfer(4));
        history.acknowledged(2, scn(20));
        history.failed(3);
        history
    }

    fn state(ids: &[u64]) -> LedgerState {
        let moved = 10 * i64::try_from(ids.len()).unwrap();
        let balances = BTreeMap::from([(1, 100 - moved), (2, 100 + moved)]);
        LedgerState { balances, transfers: ids.iter().map(|id| transfer(*id)).collect() }
    }

    fn broken(history: &History, cut: Scn, state: &LedgerState) -> &'static str {
        check_restored(history, cut, state).unwrap_err().invariant
    }

    #[test]
    fn exactly_the_history_up_to_the_cut_passes() {
        let history = history();
        assert_eq!(check_restored(&history, scn(5), &state(&[])), Ok(()));
        assert_eq!(check_restored(&history, scn(10), &state(&[1])), Ok(()), "inclusive");
        assert_eq!(check_restored(&history, scn(19), &state(&[1])), Ok(()));
        assert_eq!(check_restored(&history, scn(20), &state(&[1, 2])), Ok(()));
        assert_eq!(check_restored(&history, scn(20), &state(&[1, 2, 4])), Ok(()), "an unknown one may be there");
    }

    #[test]
    fn a_missing_transfer_is_seen() {
        assert_eq!(broken(&history(), scn(20), &state(&[1])), NOTHING_LOST);
        assert_eq!(broken(&history(), scn(10), &state(&[])), NOTHING_LOST, "inclusive");
    }

    #[test]
    fn a_transfer_above_the_cut_is_seen() {
        assert_eq!(broken(&history(), scn(19), &state(&[1, 2])), NOTHING_AFTER);
    }

    #[test]
    fn what_did_not_commit_is_seen() {
        assert_eq!(broken(&history(), scn(20), &state(&[1, 2, 3])), NOTHING_INVENTED);
        assert_eq!(broken(&history(), scn(20), &state(&[1, 2, 9])), NOTHING_INVENTED);
        assert_eq!(broken(&history(), scn(20), &state(&[1, 2, 2])), NOTHING_INVENTED);
        let mut changed = state(&[1, 2]);
        changed.transfers[0].amount = 11;
        assert_eq!(broken(&history(), scn(20), &changed), NOTHING_INVENTED);
    }

    #[test]
    fn half_a_transfer_is_seen() {
        let mut half = state(&[1]);
        half.balances.insert(2, 100);
        assert_eq!(broken(&history(), scn(10), &half), CONSERVED);
        let mut swapped = state(&[1]);
        swapped.balances = BTreeMap::from([(1, 100), (2, 100)]);
        assert_eq!(broken(&history(), scn(10), &swapped), WHOLE, "the journal has it, the balances do not");
        let mut extra = state(&[1]);
        extra.balances.insert(3, 0);
        assert_eq!(broken(&history(), scn(10), &extra), WHOLE);
    }

    #[test]
    fn a_transfer_on_one_of_its_two_databases_is_seen() {
        let homes = |_: &Transfer| [2, 1];
        let on = |places: &[(u16, u64)]| {
            let found: Vec<(u16, Transfer)> = places.iter().map(|(place, id)| (*place, transfer(*id))).collect();
            join_halves(&found, homes).map_err(|violation| violation.invariant)
        };
        assert_eq!(on(&[(1, 7), (2, 7), (2, 8), (1, 8)]), Ok(vec![transfer(7), transfer(8)]));
        for torn in [vec![(1, 7)], vec![(2, 7)], vec![(1, 7), (2, 7), (3, 7)], vec![(1, 7), (2, 7), (2, 8)]] {
            assert_eq!(on(&torn), Err(ATOMIC), "{torn:?}");
        }
    }

    #[test]
    fn an_effect_without_its_cause_is_seen() {
        let mut history = history();
        // Its cause, transfer 2, lies above the cut; the transfer itself is unknown, so only causality tells.
        history.began(transfer(5));
        assert_eq!(broken(&history, scn(19), &state(&[1, 5])), CAUSAL);
        assert_eq!(check_restored(&history, scn(19), &state(&[1, 4])), Ok(()), "4 began before 2 was acknowledged");
    }

    #[test]
    fn a_published_cut_is_judged_before_it_is_restored() {
        let history = history();
        let broken = |cut, begun, published, fenced| {
            check_cut(&history, scn(cut), begun, published, fenced).map_err(|violation| violation.invariant)
        };
        // 1 began and was acknowledged as the first two events, 2 began third and was acknowledged as the sixth.
        assert_eq!(history.now(), 6);
        assert_eq!(broken(10, 2, 9, true), Ok(()));
        assert_eq!(broken(20, 2, 9, true), Ok(()));
        assert_eq!(broken(20, 1, 2, true), Err(NOTHING_AFTER), "2 began after it was published");
        assert_eq!(broken(20, 1, 2, false), Err(NOTHING_AFTER));
        assert_eq!(broken(10, 7, 9, true), Err(NOTHING_LOST), "2 was acknowledged before it was begun");
        assert_eq!(broken(10, 7, 9, false), Ok(()), "a cut by SCN does not promise it");
        let mut torn = History::new(BTreeMap::new());
        torn.began(transfer(1));
        torn.acknowledged(1, scn(30));
        torn.began(transfer(2));
        torn.acknowledged(2, scn(20));
        assert_eq!(check_cut(&torn, scn(20), 1, 9, true).unwrap_err().invariant, CAUSAL);
        assert_eq!(check_cut(&torn, scn(20), 1, 9, false), Ok(()));
    }

    #[test]
    fn a_retry_counts_from_its_first_try() {
        let mut history = history();
        history.began(transfer(4));
        assert_eq!(check_restored(&history, scn(19), &state(&[1, 4])), Ok(()));
    }
}
