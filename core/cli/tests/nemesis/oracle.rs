//! What a cut must hold, by what the clients saw: every entry that was acknowledged before its creation began, none that
//! was sent after it ended, and no effect without what had been acknowledged before it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::catalog::Listed;
use super::ledger::{ACCOUNTS, BALANCE, Contents, Found, Outcome, Sent, body};

/// When a cut was made: after the one, before the other.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub begun: Instant,
    pub ended: Instant,
}

/// What is held against what.
pub struct Case<'a> {
    pub sent: &'a [Sent],
    pub listed: &'a Listed,
    /// The entries that its incarnation began with, on all nodes.
    pub base: &'a BTreeSet<i64>,
    pub contents: &'a BTreeMap<u16, Contents>,
}

impl Case<'_> {
    /// The entries that are there.
    ///
    /// # Errors
    /// What is wrong.
    pub fn judge(&self) -> Result<BTreeSet<i64>, String> {
        for (node, contents) in self.contents {
            for (id, found) in &contents.entries {
                self.was_sent(*node, *id, found)?;
            }
            balances_follow(contents).map_err(|wrong| format!("node {node}: {wrong}"))?;
            if let Some(gid) = contents.prepared.first() {
                return Err(format!("{gid} is prepared still on node {node}"));
            }
        }
        let Listed { incarnation, window, .. } = *self.listed;
        let found: BTreeSet<i64> =
            self.contents.values().flat_map(|contents| contents.entries.keys().copied()).collect();
        if let Some(lost) = self.base.difference(&found).next() {
            return Err(format!("entry {lost}, which incarnation {incarnation} began with, is lost"));
        }
        self.is_whole(&found)?;
        let ours = || (1..).zip(self.sent).filter(|(_, sent)| sent.incarnation == incarnation);
        // The latest beginning among what is there: all that was acknowledged before it is its cause, perhaps.
        let latest = ours().filter(|(id, _)| found.contains(id)).max_by_key(|(_, sent)| sent.begun);
        for (id, sent) in ours() {
            let (node, here) = (sent.node, found.contains(&id));
            if here && sent.begun > window.ended {
                return Err(format!("entry {id} on node {node} was sent after the cut was made, and is there"));
            }
            match sent.outcome {
                Outcome::Failed if here => return Err(format!("entry {id} on node {node} failed, and is there")),
                Outcome::Acknowledged(at) if !here && at < window.begun => {
                    return Err(format!(
                        "entry {id} on node {node} was acknowledged before the cut was begun, and is lost"
                    ));
                }
                Outcome::Acknowledged(at) if !here => {
                    if let Some((effect, on)) =
                        latest.filter(|(_, latest)| at < latest.begun).map(|(effect, latest)| (effect, latest.node))
                    {
                        return Err(format!(
                            "entry {effect} on node {on} is there, entry {id} on node {node} is not, and was acknowledged before the other was sent"
                        ));
                    }
                }
                Outcome::Unknown | Outcome::Failed | Outcome::Acknowledged(_) => {}
            }
        }
        Ok(found)
    }

    /// Where the cut says that it is atomic: a transfer that was sent in two phases is there with both halves or with none.
    fn is_whole(&self, found: &BTreeSet<i64>) -> Result<(), String> {
        let mut halves: BTreeMap<usize, i64> = BTreeMap::new();
        for (id, sent) in (1..).zip(self.sent).filter(|_| self.listed.guarantee == "atomic") {
            let Some(first) = sent.pair.and_then(|pair| halves.insert(pair, id)) else { continue };
            if found.contains(&first) != found.contains(&id) {
                let there = if found.contains(&id) { id } else { first };
                return Err(format!("of entries {first} and {id}, one transaction, only {there} is there"));
            }
        }
        Ok(())
    }

    fn was_sent(&self, node: u16, id: i64, found: &Found) -> Result<(), String> {
        let sent = usize::try_from(id - 1).ok().and_then(|place| self.sent.get(place));
        let Some(sent) = sent else { return Err(format!("node {node} holds entry {id}, which nobody sent")) };
        if sent.incarnation != self.listed.incarnation && !self.base.contains(&id) {
            return Err(format!("node {node} holds entry {id} of incarnation {}", sent.incarnation));
        }
        let meant = Found { account: sent.account, amount: sent.amount, body: body(id) };
        if sent.node == node && *found == meant {
            return Ok(());
        }
        Err(format!("node {node} holds entry {id} as {found:?}, and {sent:?} was sent"))
    }
}

/// An account is what it began with and all entries in it.
fn balances_follow(contents: &Contents) -> Result<(), String> {
    let mut due: BTreeMap<i64, i64> = (0..ACCOUNTS).map(|account| (account, BALANCE)).collect();
    for found in contents.entries.values() {
        *due.entry(found.account).or_default() += found.amount;
    }
    if due == contents.balances {
        return Ok(());
    }
    Err(format!("the balances are {:?}, by the entries they would be {due:?}", contents.balances))
}

/// The cuts of one incarnation that were read: a later one holds all that an earlier one held.
#[derive(Default)]
pub struct Seen(Vec<(Window, BTreeSet<i64>)>);

impl Seen {
    /// # Errors
    /// The entry that vanished.
    pub fn add(&mut self, window: Window, found: BTreeSet<i64>) -> Result<(), String> {
        for (other, held) in &self.0 {
            let missing = if other.ended < window.begun {
                held.difference(&found).next()
            } else if window.ended < other.begun {
                found.difference(held).next()
            } else {
                None
            };
            if let Some(id) = missing {
                return Err(format!("entry {id} is in an earlier cut, and not in a later one"));
            }
        }
        self.0.push((window, found));
        Ok(())
    }
}

/// Two servers, four entries, and everything that can be wrong with a cut in their middle.
#[test]
fn the_oracle_sees_what_is_lost_torn_or_too_much() {
    use std::time::Duration;

    use sheetanchor_core::scn::Scn;

    let start = Instant::now();
    let at = |second: u64| start + Duration::from_secs(second);
    let sent = |node, begun: u64, outcome| Sent {
        node,
        account: 0,
        amount: 1,
        incarnation: 1,
        begun: at(begun),
        outcome,
        pair: None,
    };
    let mut all = [
        sent(1, 10, Outcome::Acknowledged(at(11))),
        sent(2, 20, Outcome::Acknowledged(at(21))),
        sent(1, 30, Outcome::Acknowledged(at(31))),
        sent(2, 40, Outcome::Unknown),
        sent(1, 50, Outcome::Failed),
        sent(2, 60, Outcome::Acknowledged(at(61))),
    ];
    let judge = |all: &[Sent], guarantee: &str, ids: &[i64], window: (u64, u64), base: &[i64]| {
        let mut contents: BTreeMap<u16, Contents> = BTreeMap::new();
        for node in [1, 2] {
            let held = contents.entry(node).or_default();
            held.balances = (0..ACCOUNTS).map(|account| (account, BALANCE)).collect();
        }
        for id in ids {
            let sent = all[usize::try_from(*id - 1).unwrap()];
            let held = contents.get_mut(&sent.node).unwrap();
            held.entries.insert(*id, Found { account: 0, amount: 1, body: body(*id) });
            *held.balances.get_mut(&0).unwrap() += 1;
        }
        let window = Window { begun: at(window.0), ended: at(window.1) };
        let base = base.iter().copied().collect();
        let (target, state, reason, guarantee) =
            ("name:x".to_owned(), "reachable".to_owned(), String::new(), guarantee.to_owned());
        let listed = Listed { target, incarnation: 1, scn: Scn::ZERO, window, state, reason, guarantee };
        Case { sent: all, listed: &listed, base: &base, contents: &contents }.judge()
    };
    for (ids, window) in [(&[1, 2][..], (22, 29)), (&[1], (12, 25)), (&[1, 2, 3, 4], (35, 45)), (&[1, 2, 3], (35, 45))]
    {
        assert!(judge(&all, "atomic", ids, window, &[]).is_ok(), "{ids:?} {window:?}");
    }
    for (ids, window, base, wrong) in [
        (&[1][..], (22, 29), &[][..], "is lost"),
        (&[1, 2, 3], (22, 29), &[], "after the cut was made"),
        (&[1, 3], (12, 35), &[], "acknowledged before the other was sent"),
        (&[2], (5, 35), &[], "acknowledged before the other was sent"),
        (&[1, 2, 3, 5], (35, 70), &[], "failed, and is there"),
        (&[1, 2], (22, 29), &[3], "began with"),
    ] {
        let said = judge(&all, "atomic", ids, window, base).unwrap_err();
        assert!(said.contains(wrong), "{ids:?} {window:?}: {said}");
    }
    (all[2].pair, all[3].pair) = (Some(7), Some(7));
    assert!(judge(&all, "atomic", &[1, 2, 3, 4], (35, 45), &[]).is_ok());
    assert!(judge(&all, "atomic", &[1, 2], (22, 29), &[]).is_ok());
    let said = judge(&all, "atomic", &[1, 2, 3], (35, 45), &[]).unwrap_err();
    assert!(said.contains("one transaction"), "{said}");
    assert!(judge(&all, "causal", &[1, 2, 3], (35, 45), &[]).is_ok(), "nobody says that it is whole");
    let mut seen = Seen::default();
    let window = |begun, ended| Window { begun: at(begun), ended: at(ended) };
    seen.add(window(1, 2), BTreeSet::from([1, 4])).unwrap();
    seen.add(window(5, 6), BTreeSet::from([1, 4, 5])).unwrap();
    assert!(seen.add(window(3, 4), BTreeSet::from([1, 5])).is_err(), "4 vanished");
    assert!(seen.add(window(3, 4), BTreeSet::from([1, 4, 6])).is_err(), "6 vanished");
}
