//! Verbs for a node that has to let go of WAL before it is archived.

use std::time::Duration;

use sheetanchor_core::views::Scene;
use sheetanchor_sim::gate::PutTrouble;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::plan::{BucketTrouble, CrashPolicy, Fault, Plan, When};
use sheetanchor_sim::world::Failure;

use super::Stage;
use crate::cluster::{Pace, host};
use crate::workload::Load;

/// Longer than any node needs to fill what little room it has.
const FILLED: Duration = Duration::from_secs(30);

impl Stage {
    /// Given: a cluster as ever, where little WAL may wait for the archive.
    pub fn given_a_cluster_with_little_room(&mut self, load: Load) -> Result<(), Failure> {
        self.pace = Pace::BriskWithLittleRoom;
        self.given_a_cluster(load)
    }

    /// When: the next piece that a node archives takes longer than anybody waits.
    pub fn the_archive_stands_still_on(&mut self, node: u16) -> Result<(), Failure> {
        self.world.trouble_next_put(&host(node), PutTrouble::Waits(FILLED * 2));
        self.meanwhile(400, 700)
    }

    /// When: a node cannot reach the repository for so long.
    pub fn the_repository_is_out_of_reach_of(&mut self, node: u16, for_ms: u64) {
        let at = When::pass(&host(node), self.world.passes(&host(node)) + 1);
        let trouble = BucketTrouble::Unavailable { for_ms };
        self.world.arm(Plan::peaceful().and(Fault::Bucket { at, trouble }));
    }

    /// Then: a node says so before long.
    pub fn a_node_has(&mut self, node: u16, words: &str) -> Result<(), Failure> {
        match self.world.run_until_milestone(&host(node), words, FILLED) {
            Err(Failure::Stuck { what, waited }) => {
                let detail = format!("{what}, for {} s", waited.as_secs());
                self.holds(false, Violation::new("WAL that has no room is declared, let go of, and recorded", detail))
            }
            reached => reached,
        }
    }

    /// When: a node lets go of WAL, and crashes as soon as it has declared the hole, or let go, or it does not crash. Whether it
    /// did.
    pub fn a_node_lets_go_of_wal(&mut self, node: u16) -> Result<bool, Failure> {
        let crashes = self.any_of(&[Some("skipped"), Some("declared"), None]).flatten();
        self.a_node_has(node, crashes.unwrap_or("skipped"))?;
        if crashes.is_some() {
            let policy = self.any_of(&CrashPolicy::POWER_LOSS).unwrap_or(CrashPolicy::DropAll);
            self.world.crash(&host(node), policy);
            self.meanwhile(50, 300)?;
            self.restart_node(node);
        }
        Ok(crashes.is_some())
    }

    /// What the views show.
    pub fn scene(&mut self) -> Result<Scene, Failure> {
        let scene = self.operate(|operator| async move { operator.scene().await });
        self.succeeds("the views are shown", &scene)
    }
}
