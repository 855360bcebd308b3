//! Who owns which page: the part of it that this node is the master of. In memory only; a master that restarts asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sheetanchor_core::identity::NodeId;
use sheetanchor_core::scn::Scn;
use tokio::sync::Mutex;

use crate::failure::Failure;
use crate::layout::PageNo;

/// One run of a node: incarnation and counter. A later run of the same node has a greater one.
pub(crate) type LifeNo = u64;

/// An owner: another life of the same node owns nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) node: NodeId,
    pub(crate) life: LifeNo,
}

/// The master's book.
#[derive(Debug)]
pub(crate) struct Directory {
    owners: BTreeMap<PageNo, Owner>,
    versions: BTreeMap<PageNo, Scn>,
    /// One mover of a page at a time, in order of arrival. At most one entry for each data page.
    turns: BTreeMap<PageNo, Arc<Mutex<()>>>,
    /// The newest life known of each node.
    lives: BTreeMap<NodeId, LifeNo>,
    /// Nodes that have not yet said what they own.
    unheard: BTreeSet<NodeId>,
}

impl Directory {
    /// The book of `own`, which owns nothing, before any of `peers` has said anything.
    pub(crate) fn new(own: Owner, peers: impl IntoIterator<Item = NodeId>) -> Self {
        Self {
            owners: BTreeMap::new(),
            versions: BTreeMap::new(),
            turns: BTreeMap::new(),
            lives: BTreeMap::from([(own.node, own.life)]),
            unheard: peers.into_iter().collect(),
        }
    }

    /// The right to move `page`, to be waited for.
    pub(crate) fn turn(&mut self, page: PageNo) -> Arc<Mutex<()>> {
        Arc::clone(self.turns.entry(page).or_default())
    }

    /// # Errors
    /// While a node has not said what it owns, and for a life that is not the one known.
    pub(crate) fn check(&self, asking: Owner) -> Result<(), Failure> {
        if let Some(silent) = self.unheard.first() {
            return Err(Failure::retry(format!("node {silent} has not said which pages it owns")));
        }
        self.check_life(asking.node, asking.life)
    }

    /// # Errors
    /// For a life that is not the one known.
    pub(crate) fn check_life(&self, node: NodeId, life: LifeNo) -> Result<(), Failure> {
        if self.lives.get(&node) == Some(&life) {
            return Ok(());
        }
        Err(Failure::retry(format!("this life of node {node} is not registered here")))
    }

    pub(crate) fn owner(&self, page: PageNo) -> Option<Owner> {
        self.owners.get(&page).copied()
    }

    /// Whether all have said what they own.
    pub(crate) fn has_heard_all(&self) -> bool {
        self.unheard.is_empty()
    }

    /// Makes `owner` the owner of `page`; answers the version that its file holds at least.
    pub(crate) fn grant(&mut self, page: PageNo, owner: Owner) -> Scn {
        self.owners.insert(page, owner);
        self.versions.get(&page).copied().unwrap_or(Scn::ZERO)
    }

    /// Notes what a page was written at by its last owner.
    pub(crate) fn written(&mut self, page: PageNo, version: Scn) {
        let known = self.versions.entry(page).or_insert(version);
        *known = version.max(*known);
    }

    /// A node says hello. A new life has recovered from the crash of the one before and owns nothing: that is cleared.
    ///
    /// # Errors
    /// For a life older than the one known.
    pub(crate) fn register(&mut self, node: NodeId, life: LifeNo) -> Result<(), Failure> {
        let known = self.lives.entry(node).or_insert(life);
        if life < *known {
            return Err(Failure::retry(format!("a later life of node {node} has registered here")));
        }
        *known = life;
        self.owners.retain(|_, owner| owner.node != node || owner.life == life);
        Ok(())
    }

    /// A node has answered what it owns of this master's pages.
    ///
    /// # Errors
    /// For a life older than the one known.
    pub(crate) fn heard(&mut self, peer: Owner, owned: Vec<PageNo>) -> Result<(), Failure> {
        self.register(peer.node, peer.life)?;
        if self.unheard.remove(&peer.node) {
            for page in owned {
                self.owners.insert(page, peer);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(node: u16, life: LifeNo) -> Owner {
        Owner { node: NodeId::new(node), life }
    }

    #[test]
    fn a_master_grants_nothing_before_all_have_said_what_they_own() {
        let page = PageNo::new(4);
        let mut directory = Directory::new(owner(1, 9), [2, 3].map(NodeId::new));
        assert!(directory.check(owner(1, 9)).is_err());
        directory.heard(owner(2, 5), vec![page]).unwrap();
        assert!(directory.check(owner(2, 5)).is_err());
        directory.heard(owner(3, 1), Vec::new()).unwrap();
        directory.check(owner(2, 5)).unwrap();
        assert_eq!(directory.owner(page), Some(owner(2, 5)));
        assert!(directory.check(owner(2, 4)).is_err(), "an older life");
    }

    #[test]
    fn a_new_life_owns_nothing_and_an_old_one_is_turned_away() {
        let page = PageNo::new(4);
        let mut directory = Directory::new(owner(1, 9), [NodeId::new(2)]);
        directory.heard(owner(2, 5), Vec::new()).unwrap();
        directory.written(page, Scn::new(7));
        assert_eq!(directory.grant(page, owner(2, 5)), Scn::new(7));
        directory.register(NodeId::new(2), 5).unwrap();
        assert_eq!(directory.owner(page), Some(owner(2, 5)), "a repeated hello changes nothing");
        directory.register(NodeId::new(2), 6).unwrap();
        assert_eq!(directory.owner(page), None);
        assert!(directory.heard(owner(2, 5), vec![page]).is_err());
        assert_eq!(directory.owner(page), None, "a late answer of the old life");
    }
}
