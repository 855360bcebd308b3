//! One question put to several nodes at once.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::identity::NodeId;

/// Tells the answers of one round from late answers of an earlier one.
pub type Step = u32;

/// The answers so far. Deterministic in every respect: nodes are asked and listed in ascending order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Round<A> {
    step: Step,
    waiting: BTreeSet<NodeId>,
    answers: BTreeMap<NodeId, A>,
}

impl<A> Round<A> {
    /// A round that nobody has answered yet.
    pub fn new(step: Step, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        Self { step, waiting: nodes.into_iter().collect(), answers: BTreeMap::new() }
    }

    /// Its number.
    pub fn step(&self) -> Step {
        self.step
    }

    /// Takes an answer in. An answer that nobody waits for changes nothing.
    pub fn take(&mut self, node: NodeId, answer: A) {
        if self.waiting.remove(&node) {
            self.answers.insert(node, answer);
        }
    }

    /// Whether `node` has not answered yet.
    pub fn waits_for(&self, node: NodeId) -> bool {
        self.waiting.contains(&node)
    }

    /// Whether all have answered.
    pub fn is_complete(&self) -> bool {
        self.waiting.is_empty()
    }

    /// All answers.
    pub fn answers(&self) -> &BTreeMap<NodeId, A> {
        &self.answers
    }

    /// Who has not answered, for a message: `node 2` or `nodes 2, 3`.
    pub fn silent(&self) -> String {
        name_nodes(&self.waiting)
    }
}

/// Names nodes for a message: `node 2` or `nodes 2, 3`.
pub fn name_nodes<'a>(nodes: impl IntoIterator<Item = &'a NodeId>) -> String {
    let names: Vec<String> = nodes.into_iter().map(ToString::to_string).collect();
    if names.len() == 1 { format!("node {}", names.concat()) } else { format!("nodes {}", names.join(", ")) }
}
