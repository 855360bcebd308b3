//! What befalls connections and clocks, drawn from the seed.

use sheetanchor_sim::chance::Chance;
use sheetanchor_sim::plan::{Fault, When};

use super::draw::PASSES;
use super::{CLIENTS, Stage};
use crate::cluster::{NODES, host};

/// By how much a clock jumps at most, in milliseconds, either way: less than how far apart an engine lets clocks be.
const JUMP_MS_MAX: u64 = 2_000;

/// By how much a clock runs too fast or too slow at most, in millionths.
const DRIFT_PPM_MAX: u64 = 2_000;

impl Stage {
    /// A node's connections to somebody break, or carry nothing in one direction for a while; or a clock jumps and drifts.
    pub(super) fn any_fault_between_hosts(&self) -> Fault {
        let node = any_node(&self.links);
        let peer = match self.links.below(4) {
            0 => CLIENTS.into(),
            1 => any_node(&self.links),
            _ => self.next_operator(),
        };
        let passed = self.swept_from.get(&node).copied().unwrap_or(0);
        let at = When::pass(&node, passed + 1 + self.links.below(PASSES));
        let for_ms = self.links.between(20, 4_000);
        match self.links.below(5) {
            0 | 1 => Fault::Reset { at, one: node, other: peer },
            2 => Fault::Clog { at, from: node, to: peer, for_ms },
            3 => Fault::Clog { at, from: peer, to: node, for_ms },
            _ => {
                let (by_ms, drift_ppm) = (either_way(&self.links, JUMP_MS_MAX), either_way(&self.links, DRIFT_PPM_MAX));
                Fault::Clock { at, by_ms, drift_ppm }
            }
        }
    }
}

fn any_node(chance: &Chance) -> String {
    host(chance.one_of(&NODES).unwrap_or(1))
}

/// Up to `most`, or as far below zero.
fn either_way(chance: &Chance, most: u64) -> i64 {
    let draw = chance.below(most.saturating_mul(2).saturating_add(1));
    i64::try_from(draw).unwrap_or(0).saturating_sub_unsigned(most)
}
