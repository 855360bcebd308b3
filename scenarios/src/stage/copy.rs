//! Verbs for a clone of the cluster, which runs beside it.

use std::future::Future;
use std::time::Duration;

use sheetanchor_core::error::Result as Outcome;
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::coordinator::Coordinator;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::oracle::ledger::{LedgerState, check_restored};
use sheetanchor_sim::plan::CrashPolicy;
use sheetanchor_sim::world::Failure;

use super::{BOUND, Begun, CLIENTS, Stage};
use crate::cluster::{NODES, clone_database_address, clone_host, clone_operator, host, run_clone_node};
use crate::workload::read_at;

impl Stage {
    /// Given: three empty nodes for a clone. `mistaken`: their cluster file names the source's repository as their own.
    pub fn clone_nodes_start(&mut self, mistaken: bool) -> Result<(), Failure> {
        for node in NODES {
            self.world.start(&clone_host(node), move |env| run_clone_node(env, node, mistaken));
        }
        self.world.run_for(Duration::from_secs(1))
    }

    /// An operator of the clone begins something, at a host of its own.
    pub fn operate_clone<T, F>(&mut self, act: impl Fn(Coordinator) -> F + Send + Sync + 'static) -> Begun<T>
    where
        T: Send + 'static,
        F: Future<Output = Outcome<T>> + Send + 'static,
    {
        self.operate_as(|env| clone_operator(&env), act)
    }

    /// Then: read through every node, the clone is the committed history up to the cut.
    pub fn the_clone_holds_the_history_up_to(&mut self, cut: Scn) -> Result<(), Failure> {
        for node in NODES {
            let reader = format!("{CLIENTS}-of-the-clone");
            let read = move |env| async move { read_at(env, &clone_database_address(node)).await };
            let state = self.world.launch(&reader, read);
            let state = self.world.finish(&state, BOUND)?;
            let state: LedgerState = self.expect("the clone is read", state)?;
            let verdict = check_restored(&self.history(), cut, &state);
            self.world.note(format!("the clone's node {node} holds {} transfers at cut {cut}", state.transfers.len()));
            self.world.judge(verdict)?;
        }
        Ok(())
    }

    /// When: the nodes of the cluster lose power, and only the clone's run.
    pub fn only_the_clone_runs(&mut self) {
        for node in NODES {
            self.world.crash(&host(node), CrashPolicy::DropAll);
        }
    }

    /// The names of all objects in the cluster's repository.
    pub fn the_sources_objects(&mut self) -> Result<Vec<String>, Failure> {
        let list = self.operate(|operator| async move { Ok(operator.repository().bucket().list("").await?) });
        self.succeeds("objects are listed", &list)
    }

    /// Then: every agent of the clone says why its archive does not move on.
    pub fn the_clones_archive_is_stuck(&mut self, code: &str) -> Result<(), Failure> {
        let look = self.operate_clone(|operator| async move { Ok(operator.describe_all().await) });
        for (node, seen) in self.succeeds("the clone's nodes are asked", &look)? {
            let trouble = seen.as_ref().ok().and_then(|seen| seen.archive_trouble.clone());
            let says = trouble.as_ref().is_some_and(|trouble| trouble.contains(code));
            let detail = format!("node {node} of the clone says {trouble:?}");
            self.holds(says, Violation::new("a node archives into its own cluster's repository only", detail))?;
        }
        Ok(())
    }
}
