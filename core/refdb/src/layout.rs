//! Which page holds what, and who answers for it.

use core::fmt;

use serde::{Deserialize, Serialize};
use sheetanchor_core::identity::NodeId;

use crate::transaction::{SLOTS_PER_PAGE, Xid};

/// A page's place in the `pages` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct PageNo(u64);

impl PageNo {
    pub(crate) const fn new(number: u64) -> Self {
        Self(number)
    }

    pub(crate) const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for PageNo {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "page {}", self.0)
    }
}

/// Data pages come first and move between nodes. Behind them the nodes' regions of the transaction table are
/// interleaved, so that each can grow for ever; a node writes its own region only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// All nodes, ascending.
    pub(crate) nodes: Vec<NodeId>,
    /// How many pages hold rows.
    pub(crate) data_pages: u64,
}

impl Layout {
    /// The page that `key` lives on.
    pub(crate) fn page_of(&self, key: u64) -> PageNo {
        PageNo(key.checked_rem(self.data_pages).unwrap_or(0))
    }

    /// Whether a page holds rows; the others hold the transaction table.
    pub(crate) fn is_data(&self, page: PageNo) -> bool {
        page.0 < self.data_pages
    }

    /// The node that knows who owns a data page.
    pub(crate) fn master(&self, page: PageNo) -> NodeId {
        let place = page.0.checked_rem(self.node_count()).unwrap_or(0);
        let node = usize::try_from(place).ok().and_then(|place| self.nodes.get(place));
        assert!(node.is_some(), "a layout has nodes");
        node.copied().unwrap_or_default()
    }

    /// Page `k` of the region of `node`; `None` for a node that is not in the layout.
    pub(crate) fn region_page(&self, node: NodeId, k: u64) -> Option<PageNo> {
        let index = u64::try_from(self.nodes.iter().position(|known| *known == node)?).ok()?;
        let start = k.checked_mul(self.node_count())?.checked_add(index)?;
        self.data_pages.checked_add(start).map(PageNo)
    }

    /// Where the status of `xid` is kept: page, and slot in it.
    pub(crate) fn status_place(&self, xid: Xid) -> Option<(PageNo, usize)> {
        let slots = u64::try_from(SLOTS_PER_PAGE).ok()?;
        let page = self.region_page(xid.node(), xid.counter().checked_div(slots)?)?;
        Some((page, usize::try_from(xid.counter().checked_rem(slots)?).ok()?))
    }

    fn node_count(&self) -> u64 {
        u64::try_from(self.nodes.len()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn regions_do_not_overlap_and_start_behind_the_data() {
        let layout = Layout { nodes: [2, 5, 9].map(NodeId::new).to_vec(), data_pages: 7 };
        let mut seen = BTreeSet::new();
        for node in &layout.nodes {
            for k in 0..4 {
                let page = layout.region_page(*node, k).unwrap();
                assert!(!layout.is_data(page));
                assert!(seen.insert(page), "{page} belongs to two regions");
            }
        }
        assert_eq!(seen.first().map(|page| page.get()), Some(7));
        assert_eq!(seen.last().map(|page| page.get()), Some(18));
        assert_eq!(layout.region_page(NodeId::new(1), 0), None);
    }

    #[test]
    fn each_status_has_a_place_of_its_own() {
        let layout = Layout { nodes: [1, 2].map(NodeId::new).to_vec(), data_pages: 3 };
        let places: BTreeSet<_> = layout
            .nodes
            .iter()
            .flat_map(|node| (0..1_000).map(|counter| layout.status_place(Xid::new(*node, counter)).unwrap()))
            .collect();
        assert_eq!(places.len(), 2_000);
    }
}
