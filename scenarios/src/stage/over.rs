//! Verbs for a restore over what is there: nodes are closed with all that they have, and that is put out of order.

use std::collections::BTreeMap;

use sheetanchor_core::plan::Target;
use sheetanchor_engine::coordinator::{Manner, Restored};
use sheetanchor_engine::database::Storage;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::world::Failure;

use super::{BOUND, Begun, Stage};
use crate::cluster::{AWAY, DATA, Disorder, NODES, OWN_DATA, disturb, host, left_behind};

impl Stage {
    /// When: all nodes stop, in one way or another, and come back closed, with their files in disorder.
    pub fn nodes_are_closed(&mut self, disorder: Disorder) -> Result<(), Failure> {
        let policy = self.any_policy();
        self.world.power_off_all(policy);
        for (node, root) in self.folders() {
            let draw = self.chance.word();
            let act = self.world.launch(&host(node), move |env| disturb(env, root, node, disorder, draw));
            let done = self.world.finish(&act, BOUND)?;
            self.expect("files are put out of order", done)?;
        }
        self.start_nodes()
    }

    /// An operator begins a restore to a target, in a manner of its own.
    pub fn begin_restore_to(&mut self, target: Target, manner: Manner) -> Begun<Restored> {
        self.operate(move |operator| {
            let target = target.clone();
            async move { operator.restore_in(target, manner).await }
        })
    }

    /// Each folder with data, and a node that sees it.
    fn folders(&self) -> Vec<(u16, &'static str)> {
        match self.storage {
            Storage::Shared => vec![(1, DATA)],
            Storage::PerNode => NODES.map(|node| (node, OWN_DATA)).to_vec(),
        }
    }

    fn found(&self, names: impl Fn(u16) -> Vec<String>) -> BTreeMap<(u16, String), Vec<u8>> {
        let mut found = BTreeMap::new();
        for (node, root) in self.folders() {
            for name in names(node) {
                if let Some(bytes) = self.world.peek(&host(node), &format!("{root}/{name}")) {
                    found.insert((node, name), bytes);
                }
            }
        }
        found
    }

    /// What is in the files that were put aside, and in the note that keeps nodes closed.
    pub fn what_lies_there(&self) -> BTreeMap<(u16, String), Vec<u8>> {
        self.found(|_| AWAY.iter().map(|(_, away)| (*away).into()).chain(["closed".into()]).collect())
    }

    /// Then: nothing that a node would take for a database is left.
    pub fn no_control_file_is_left(&mut self) -> Result<(), Failure> {
        let found = self.found(|_| vec!["control".into()]);
        let found: Vec<_> = found.keys().collect();
        let violation = Violation::new("what a restore over old copies gave up is no database", format!("{found:?}"));
        self.holds(found.is_empty(), violation)
    }

    /// Then: nothing is left that the backup does not have.
    pub fn nothing_is_left_of_the_disorder(&mut self) -> Result<(), Failure> {
        let found = self.found(left_behind);
        let found: Vec<_> = found.keys().collect();
        let violation = Violation::new("what the backup does not have is gone", format!("{found:?}"));
        self.holds(found.is_empty(), violation)
    }
}
