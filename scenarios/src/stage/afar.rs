//! Verbs for nodes that send their files to a backup themselves, since nobody can read their folders.

use sheetanchor_sim::place::place;
use sheetanchor_sim::plan::{Fault, IoTrouble, Plan, Since, Trigger, When};
use sheetanchor_sim::world::Failure;

use super::Stage;
use crate::cluster::{NODES, OWN_DATA, host};
use crate::workload::Load;

/// How many parts a node's pages are sent in, roughly.
const PARTS: u64 = 10;

impl Stage {
    /// Given: databases that share nothing, of which one or two send their files themselves: which ones is drawn.
    pub fn given_separate_databases_of_which_some_send(&mut self, load: Load) -> Result<(), Failure> {
        let count = self.chance.between(1, 3);
        self.senders.extend((0..count).filter_map(|_| self.chance.one_of(&NODES)));
        self.given_separate_databases(load)
    }

    /// When: in some of the runs that draw any faults, the files that a node sends to the backup that is begun next break off
    /// in the middle.
    pub fn sending_may_break_off(&mut self) {
        let struck = !self.amid.one_in(3);
        let senders: Vec<u16> = self.senders.iter().copied().collect();
        let node = self.amid.one_of(&senders).unwrap_or(1);
        let nth = u32::try_from(self.amid.between(1, PARTS)).unwrap_or(1);
        let since = Some(Since { host: self.next_operator(), words: "phase=capturing".into(), nth: 1 });
        let what = place(&format!("disk read {OWN_DATA}/pages"), false);
        let at = When { host: host(node), event: Trigger::Place { what, nth, since } };
        if struck {
            self.arm_if_drawn(Plan::peaceful().and(Fault::Io { at, trouble: IoTrouble::ReadFails }));
        }
    }
}
