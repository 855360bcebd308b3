//! What becomes of the transactions that are prepared at a cut: committed if the same global transaction committed on any
//! node at or below the cut, else rolled back, alike on every node; and left as they are where that cannot be said.
//!
//! The evidence is archived WAL. A transaction manager commits on no node before all are prepared; so, if a node's half was
//! prepared after a fenced cut, no half of it ended before that cut, on any node. WAL from there on holds every outcome
//! that counts, and the earlier ends of a gid that was used before: an outcome counts only with its own PREPARE.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::identity::NodeId;
use crate::planted::{self, Bug};
use crate::position::Lsn;

/// A transaction that one node has prepared, and neither committed nor rolled back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Held {
    /// What its client calls it.
    pub gid: String,
    /// What the node calls it, unlike any other that it ever ran.
    pub transaction: String,
}

/// How a prepared transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Fate {
    /// It commits.
    Committed,
    /// It is rolled back.
    RolledBack,
}

/// What a record of a node's WAL says about a prepared transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Trace {
    /// Where the record lies; of a PREPARE that a later record repeats, the first one.
    pub at: Lsn,
    /// None in an outcome that names no gid, and whose PREPARE was not met.
    pub gid: Option<String>,
    /// What the node calls it.
    pub transaction: String,
    /// How it ended; none where it was prepared.
    pub fate: Option<Fate>,
}

/// What one node's WAL says, as far back as it was looked through.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Searched {
    /// Records at or below the cut: those of the gids in question, and outcomes of unknown ones. In order.
    pub traces: Vec<Trace>,
    /// Whether the archive holds all WAL from where the search was to begin.
    pub whole: bool,
}

/// What is decided of one node's half of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It commits: it did so on some node, at or below the cut.
    Commit,
    /// It is rolled back: it committed on no node.
    Rollback,
    /// It stays prepared, and an operator has to end it.
    Left(Why),
}

/// Why nothing can be decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// Its gid belongs to a transaction manager whose gids are not understood.
    Family,
    /// Its gid was used more than once since the evidence begins.
    Reused,
    /// It committed on one node and was rolled back on another.
    Contradiction,
    /// The archive does not reach back far enough.
    Evidence,
}

impl Why {
    /// It, in words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Family => "its transaction manager is not known",
            Self::Reused => "its gid was used more than once",
            Self::Contradiction => "it committed on one node and was rolled back on another",
            Self::Evidence => "the archive does not reach back far enough to tell",
        }
    }
}

/// A decided half.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolved {
    /// What its client calls it.
    pub gid: String,
    /// Whose half.
    pub node: NodeId,
    /// What the node calls it.
    pub transaction: String,
    /// What becomes of it.
    pub verdict: Verdict,
}

/// Which gids stand for one global transaction. A transaction manager that gives each half a name of its own needs an
/// implementation of its own.
pub trait Family: Sync {
    /// The global transaction that `gid` names, if it is one of this family's.
    fn transaction_of<'a>(&self, gid: &'a str) -> Option<&'a str>;
}

/// Every half of a transaction has the same gid. Gids that name one half only are none of this family: those that JDBC
/// drivers make of XA's (format, transaction and branch, the last two in base64), and those of Citus.
#[derive(Clone, Copy, Debug)]
pub struct EqualGids;

impl Family for EqualGids {
    fn transaction_of<'a>(&self, gid: &'a str) -> Option<&'a str> {
        let is_base64 = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte));
        let parts: Vec<&str> = gid.split('_').collect();
        let is_xa = matches!(parts.as_slice(), [format, transaction, branch]
            if format.parse::<i64>().is_ok() && is_base64(transaction) && is_base64(branch));
        (!is_xa && !gid.starts_with("citus_")).then_some(gid)
    }
}

/// No transaction manager is known: nobody has said what a gid stands for, and no half is decided.
#[derive(Clone, Copy, Debug)]
pub struct NoManager;

impl Family for NoManager {
    fn transaction_of<'a>(&self, _gid: &'a str) -> Option<&'a str> {
        None
    }
}

/// What decisions rest on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// A cut, node by node, before which no transaction that was prepared after it had an end: PREPAREs count from here on.
    pub known_from: BTreeMap<NodeId, Lsn>,
    /// What the WAL of every member says, from there on or from further back.
    pub searched: BTreeMap<NodeId, Searched>,
}

/// Decides every half that is in doubt at the cut, by node.
pub fn decide(in_doubt: &BTreeMap<NodeId, Vec<Held>>, evidence: &Evidence, family: &dyn Family) -> Vec<Resolved> {
    let mut resolved = Vec::new();
    for (node, held) in in_doubt.iter().flat_map(|(node, all)| all.iter().map(move |held| (*node, held))) {
        let verdict = match family.transaction_of(&held.gid) {
            Some(global) => verdict(global, in_doubt, evidence, family, node),
            None => Verdict::Left(Why::Family),
        };
        resolved.push(Resolved { gid: held.gid.clone(), node, transaction: held.transaction.clone(), verdict });
    }
    resolved
}

fn verdict(
    global: &str,
    in_doubt: &BTreeMap<NodeId, Vec<Held>>,
    evidence: &Evidence,
    family: &dyn Family,
    asking: NodeId,
) -> Verdict {
    if !in_doubt.keys().all(|node| evidence.searched.contains_key(node)) {
        return Verdict::Left(Why::Evidence);
    }
    let is_it = |gid: &str| family.transaction_of(gid) == Some(global);
    let mut fates = BTreeSet::new();
    let mut obstacles = BTreeSet::new();
    for (node, searched) in &evidence.searched {
        if planted::is(Bug::OwnNodeDecides) && *node != asking {
            continue;
        }
        let held = in_doubt.get(node).into_iter().flatten().find(|held| is_it(&held.gid));
        match half(searched, evidence.known_from.get(node).copied(), held, is_it) {
            Ok(fate) => fates.extend(fate),
            Err(why) => drop(obstacles.insert(why)),
        }
    }
    match (obstacles.last(), fates.len()) {
        (Some(why), _) => Verdict::Left(*why),
        (None, 2..) => Verdict::Left(Why::Contradiction),
        (None, _) if fates.contains(&Fate::Committed) => Verdict::Commit,
        (None, _) => Verdict::Rollback,
    }
}

/// How one node's half ended; none if it has not, or if the node has no part in the transaction.
fn half(
    searched: &Searched,
    known_from: Option<Lsn>,
    held: Option<&Held>,
    is_it: impl Fn(&str) -> bool,
) -> Result<Option<Fate>, Why> {
    let known_from = known_from.filter(|_| searched.whole).ok_or(Why::Evidence)?;
    let traces = || searched.traces.iter().filter(|trace| trace.gid.as_deref().is_some_and(&is_it));
    let uses: BTreeSet<&str> =
        traces().map(|trace| trace.transaction.as_str()).chain(held.map(|held| &*held.transaction)).collect();
    if uses.len() > 1 && !planted::is(Bug::GidReuseUnnoticed) {
        return Err(Why::Reused);
    }
    // An end without a name may be that of any gid.
    if searched.traces.iter().any(|trace| trace.gid.is_none() && trace.at >= known_from) {
        return Err(Why::Evidence);
    }
    let prepared = traces().any(|trace| trace.fate.is_none() && trace.at >= known_from);
    if !uses.is_empty() && !prepared {
        return Err(Why::Evidence);
    }
    Ok(traces().filter_map(|trace| trace.fate).last())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;
    use std::vec;

    const A: NodeId = NodeId::new(1);
    const B: NodeId = NodeId::new(2);
    const KNOWN: u64 = 100;

    fn trace(at: u64, gid: Option<&str>, transaction: &str, fate: Option<Fate>) -> Trace {
        Trace { at: Lsn::new(at), gid: gid.map(ToString::to_string), transaction: transaction.into(), fate }
    }

    fn prepared(at: u64) -> Trace {
        trace(at, Some("g"), "7", None)
    }

    fn ended(at: u64, fate: Fate) -> Trace {
        trace(at, Some("g"), "7", Some(fate))
    }

    fn held(gid: &str, transaction: &str) -> Held {
        Held { gid: gid.into(), transaction: transaction.into() }
    }

    /// B holds `g`, prepared there at 150, and A's WAL says this.
    fn b_holds(a: Vec<Trace>) -> Verdict {
        decided(&BTreeMap::from([(B, vec![held("g", "7")])]), a, vec![prepared(150)])[0].verdict
    }

    fn decided(in_doubt: &BTreeMap<NodeId, Vec<Held>>, a: Vec<Trace>, b: Vec<Trace>) -> Vec<Resolved> {
        let searched = [(A, a), (B, b)].map(|(node, traces)| (node, Searched { traces, whole: true }));
        let known_from = [A, B].map(|node| (node, Lsn::new(KNOWN))).into();
        decide(in_doubt, &Evidence { known_from, searched: searched.into() }, &EqualGids)
    }

    #[test]
    fn what_committed_on_any_node_commits_and_all_else_is_rolled_back() {
        assert_eq!(b_holds(vec![prepared(120), ended(160, Fate::Committed)]), Verdict::Commit);
        assert_eq!(b_holds(vec![prepared(120), ended(160, Fate::RolledBack)]), Verdict::Rollback);
        assert_eq!(b_holds(vec![]), Verdict::Rollback, "A has no part in it, or its own half is lost");
        assert_eq!(b_holds(vec![trace(160, Some("other"), "8", Some(Fate::Committed))]), Verdict::Rollback);
        let both = BTreeMap::from([(A, vec![held("g", "3")]), (B, vec![held("g", "7")])]);
        let resolved = decided(&both, vec![trace(110, Some("g"), "3", None)], vec![prepared(150)]);
        assert_eq!(resolved.iter().map(|half| half.verdict).collect::<Vec<_>>(), [Verdict::Rollback; 2]);
    }

    #[test]
    fn what_the_evidence_does_not_show_is_left() {
        let left = Verdict::Left(Why::Evidence);
        assert_eq!(
            b_holds(vec![ended(160, Fate::Committed)]),
            left,
            "whose end it is, is not known without its PREPARE"
        );
        assert_eq!(b_holds(vec![prepared(99), ended(160, Fate::Committed)]), left, "prepared before all is known");
        assert_eq!(b_holds(vec![trace(160, None, "5", Some(Fate::Committed))]), left, "an end without a name");
        assert_eq!(b_holds(vec![trace(99, None, "5", Some(Fate::Committed))]), Verdict::Rollback, "it is none of B's");
        let in_doubt = BTreeMap::from([(B, vec![held("g", "7")])]);
        assert_eq!(decided(&in_doubt, vec![], vec![])[0].verdict, left, "its own PREPARE was not met");
        assert_eq!(decided(&in_doubt, vec![], vec![prepared(99)])[0].verdict, left);
        assert_eq!(decide(&in_doubt, &Evidence::default(), &EqualGids)[0].verdict, left);
        let searched =
            [(A, false), (B, true)].map(|(node, whole)| (node, Searched { traces: vec![prepared(150)], whole }));
        let evidence =
            Evidence { known_from: [A, B].map(|node| (node, Lsn::new(KNOWN))).into(), searched: searched.into() };
        assert_eq!(decide(&in_doubt, &evidence, &EqualGids)[0].verdict, left, "a gap in A's archive");
    }

    #[test]
    fn a_gid_that_was_used_twice_and_halves_that_disagree_are_left() {
        let again = |fate| vec![prepared(120), ended(130, fate), trace(140, Some("g"), "8", None)];
        assert_eq!(b_holds(again(Fate::Committed)), Verdict::Left(Why::Reused));
        let in_doubt = BTreeMap::from([(B, vec![held("g", "9")])]);
        let own = vec![prepared(120), ended(130, Fate::Committed), trace(150, Some("g"), "9", None)];
        assert_eq!(decided(&in_doubt, vec![], own)[0].verdict, Verdict::Left(Why::Reused));
        let in_doubt = BTreeMap::from([(B, vec![held("g", "7")])]);
        let evidence = |fates: [Fate; 2]| {
            let node = |(node, fate)| {
                (NodeId::new(node), Searched { traces: vec![prepared(120), ended(160, fate)], whole: true })
            };
            let mut searched: BTreeMap<NodeId, Searched> = [3, 4].into_iter().zip(fates).map(node).collect();
            searched.insert(B, Searched { traces: vec![prepared(150)], whole: true });
            Evidence { known_from: searched.keys().map(|node| (*node, Lsn::new(KNOWN))).collect(), searched }
        };
        let verdict = |fates| decide(&in_doubt, &evidence(fates), &EqualGids)[0].verdict;
        assert_eq!(verdict([Fate::Committed, Fate::RolledBack]), Verdict::Left(Why::Contradiction));
        assert_eq!(verdict([Fate::Committed, Fate::Committed]), Verdict::Commit);
    }

    #[test]
    fn halves_that_are_named_apart_are_not_taken_for_whole_transactions() {
        for gid in ["131077_MzE=_MQ==", "-1_YWJj_", "citus_0_4711_12_3"] {
            assert_eq!(EqualGids.transaction_of(gid), None, "{gid}");
            let in_doubt = BTreeMap::from([(B, vec![held(gid, "7")])]);
            assert_eq!(decided(&in_doubt, vec![], vec![])[0].verdict, Verdict::Left(Why::Family));
        }
        let held = BTreeMap::from([(B, vec![held("transfer-1", "7")])]);
        let undeclared = decide(&held, &Evidence::default(), &NoManager);
        assert_eq!(undeclared[0].verdict, Verdict::Left(Why::Family));
        for gid in ["transfer-1", "a_b_c", "1_2", "order_7_of_9_x"] {
            assert_eq!(EqualGids.transaction_of(gid), Some(gid));
        }
    }

    proptest! {
        /// Whatever the WAL says: all halves of a transaction get one verdict, and none that commits was rolled back
        /// anywhere, nor the other way round.
        #[test]
        fn every_half_gets_the_same_verdict(
            records in prop::collection::vec((1_u16..4, 90_u64..200, 0_u8..3, 0_u8..2, 0_u8..3), 0..20),
            holders in prop::collection::btree_set((1_u16..4, 0_u8..2), 0..5),
        ) {
            let gid = |number: u8| ["g", "h"][usize::from(number % 2)];
            let mut searched: BTreeMap<NodeId, Searched> =
                (1..4).map(|node| (NodeId::new(node), Searched { traces: vec![], whole: true })).collect();
            for (node, at, fate, name, transaction) in records {
                let fate = [None, Some(Fate::Committed), Some(Fate::RolledBack)][usize::from(fate)];
                let trace = trace(at, Some(gid(name)), &transaction.to_string(), fate);
                searched.get_mut(&NodeId::new(node)).unwrap().traces.push(trace);
            }
            let mut in_doubt: BTreeMap<NodeId, Vec<Held>> = BTreeMap::new();
            for (node, name) in holders {
                in_doubt.entry(NodeId::new(node)).or_default().push(held(gid(name), "0"));
            }
            let known_from = searched.keys().map(|node| (*node, Lsn::new(KNOWN))).collect();
            let evidence = Evidence { known_from, searched };
            let resolved = decide(&in_doubt, &evidence, &EqualGids);
            prop_assert_eq!(resolved.len(), in_doubt.values().map(Vec::len).sum::<usize>());
            for half in &resolved {
                prop_assert!(resolved.iter().all(|other| other.gid != half.gid || other.verdict == half.verdict));
                let says = |fate| evidence.searched.values().flat_map(|node| &node.traces)
                    .any(|trace| trace.gid.as_deref() == Some(&half.gid) && trace.fate == Some(fate));
                match half.verdict {
                    Verdict::Commit => prop_assert!(says(Fate::Committed)),
                    Verdict::Rollback => prop_assert!(!says(Fate::Committed)),
                    Verdict::Left(_) => {}
                }
            }
        }
    }
}
