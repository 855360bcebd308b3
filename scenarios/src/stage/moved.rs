//! Verbs for a node that is restored onto a new host, while its old one lives on unseen.

use std::future::Future;
use std::time::Duration;

use sheetanchor_core::error::Result as Outcome;
use sheetanchor_core::format::keys;
use sheetanchor_core::identity::{Incarnation, NodeId, ThreadId};
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::coordinator::Coordinator;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::oracle::ledger::{LedgerState, check_restored};
use sheetanchor_sim::plan::CrashPolicy;
use sheetanchor_sim::world::Failure;

use super::{BOUND, Begun, CLIENTS, Stage};
use crate::cluster::{database_address, host, moved_database_address, new_host, operator_of_the_moved, run_moved_node};
use crate::workload::read_separate_at;

impl Stage {
    /// When: nodes 1 and 2 lose all that they had, and node 3 is given up for a new host, though its old one lives.
    pub fn node_3_moves_and_the_others_are_lost(&mut self) -> Result<(), Failure> {
        self.a_node_loses_its_disks(1)?;
        self.a_node_loses_its_disks(2)?;
        self.world.start(&new_host(3), |env| run_moved_node(env, 3));
        self.world.run_for(Duration::from_secs(1))
    }

    /// When: all nodes of the new incarnation lose all that they had; the old host of node 3 lives on still.
    pub fn node_3_moves_and_the_others_are_lost_again(&mut self) -> Result<(), Failure> {
        self.world.crash(&new_host(3), CrashPolicy::DropAll);
        self.is_wiped(&new_host(3))?;
        self.node_3_moves_and_the_others_are_lost()
    }

    /// An operator who knows the new host begins something.
    pub fn operate_the_moved<T, F>(&mut self, act: impl Fn(Coordinator) -> F + Send + Sync + 'static) -> Begun<T>
    where
        T: Send + 'static,
        F: Future<Output = Outcome<T>> + Send + 'static,
    {
        self.operate_as(operator_of_the_moved, act)
    }

    /// Then: the nodes of the new incarnation hold exactly the history up to the cut.
    pub fn the_moved_hold_the_history_up_to(&mut self, cut: Scn) -> Result<(), Failure> {
        let address = |node| if node == 3 { moved_database_address(node) } else { database_address(node) };
        let state = self.world.launch(CLIENTS, move |env| read_separate_at(env, address));
        let state = self.world.finish(&state, BOUND)?;
        let whole: LedgerState = self.expect("the restored databases are read", state)?;
        let verdict = check_restored(&self.history(), cut, &whole);
        self.world.note(format!("the new nodes hold {} transfers at cut {cut}", whole.transfers.len()));
        self.world.judge(verdict)
    }

    /// How many pieces of node 3's WAL are archived in an incarnation, and on how many timelines.
    pub fn pieces_of_node_3(&mut self, incarnation: Incarnation) -> Result<(usize, usize), Failure> {
        let prefix = keys::wal_thread(incarnation, ThreadId::of(NodeId::new(3)));
        let list = self.operate_the_moved(move |operator| {
            let prefix = prefix.clone();
            async move { Ok(operator.repository().bucket().list(&prefix).await?) }
        });
        let found = self.succeeds("pieces are listed", &list)?;
        let timelines = found.iter().filter_map(|key| keys::parse_wal(key)).map(|(timeline, _)| timeline);
        Ok((found.len(), timelines.collect::<std::collections::BTreeSet<_>>().len()))
    }

    /// Then: the old host of node 3 says, by itself, that it missed the incarnation.
    pub fn the_old_node_says_that_it_missed_it(&mut self) -> Result<(), Failure> {
        let said = |world: &sheetanchor_sim::world::World| world.has_reached(&host(3), "missed an incarnation");
        match self.world.run_until(said, Duration::from_secs(90)) {
            Err(Failure::Stuck { .. }) => {
                let violation = Violation::new("a node that missed an incarnation says so", host(3));
                self.world.judge(Err(violation))
            }
            ended => ended,
        }
    }
}
