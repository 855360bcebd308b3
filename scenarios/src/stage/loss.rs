//! Verbs for a node that loses its disks, in the middle of a restore or after it.

use std::time::Duration;

use sheetanchor_core::identity::{Incarnation, NodeId, OperationId, OperationKind};
use sheetanchor_core::plan::Target;
use sheetanchor_engine::coordinator::{Coordinator, Manner, Restored};
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::plan::CrashPolicy;
use sheetanchor_sim::world::Failure;

use super::{Begun, Stage};
use crate::cluster::{host, run_node};

impl Stage {
    /// When: a node loses power, and all that it had, and comes back with nothing.
    pub fn a_node_loses_its_disks(&mut self, node: u16) -> Result<(), Failure> {
        self.world.crash(&host(node), CrashPolicy::DropAll);
        self.is_wiped(&host(node))?;
        let (storage, pace, two_phase) = (self.storage, self.pace, self.two_phase);
        let sends = self.senders.contains(&node);
        self.world.start(&host(node), move |env| run_node(env, node, storage, pace, two_phase, sends));
        self.is_listening(node)
    }

    /// When: a restore to the latest point is decided, and a node loses its disks before it is asked to open. What is said
    /// to it is held back from the moment at which the restore is being decided.
    pub fn a_restore_loses_a_node_once_it_is_decided(&mut self, node: u16) -> Result<Begun<Restored>, Failure> {
        let begun = self.begin_restore(Target::Latest);
        self.world.run_until_milestone(&begun.operator, "phase=deciding", Duration::from_mins(1))?;
        self.world.hold(&begun.operator, &host(node));
        self.world.run_until_milestone(&begun.operator, "phase=opening", Duration::from_mins(1))?;
        self.meanwhile(0, 400)?;
        self.a_node_loses_its_disks(node)?;
        self.world.release(&begun.operator, &host(node));
        Ok(begun)
    }

    /// The one restore that was ever begun.
    pub fn the_restore(&mut self) -> Result<OperationId, Failure> {
        let found = self.operate(|operator: Coordinator| async move {
            operator.repository().operations(OperationKind::Restore).await
        });
        let found = self.succeeds("restores are listed", &found)?;
        let [operation] = found.as_slice() else {
            let violation = Violation::new("one restore was begun", format!("{found:?}"));
            return self.fails(violation);
        };
        Ok(*operation)
    }

    /// An operator begins a restore to the latest point, in a manner of its own.
    pub fn begin_restore_in(&mut self, manner: Manner) -> Begun<Restored> {
        self.begin_restore_to(Target::Latest, manner)
    }

    /// An operator takes a restore up.
    pub fn begin_resume(&mut self, operation: OperationId) -> Begun<Restored> {
        self.operate(move |operator| async move { operator.resume(operation).await })
    }

    /// What each node says that it is, and the incarnation that is in force.
    pub fn standing(&mut self) -> Result<(Vec<(NodeId, String)>, Incarnation), Failure> {
        let status = self.status()?;
        let word = |node: &sheetanchor_engine::coordinator::NodeStatus| {
            let state = node.description.as_ref().map_or_else(ToString::to_string, |seen| seen.state.clone());
            (node.node, state)
        };
        Ok((status.nodes.iter().map(word).collect(), status.incarnation))
    }
}
