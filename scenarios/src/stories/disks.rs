//! Disks that fail in the middle of something.

use sheetanchor_core::plan::Target;
use sheetanchor_sim::plan::{Fault, IoTrouble, Plan, When};
use sheetanchor_sim::world::Failure;

use crate::cluster::host;
use crate::stage::Stage;
use crate::workload::Load;

/// How often a disk fails.
const ROUNDS: u64 = 5;

/// How far ahead of a node, in passes of the gate, trouble waits for it.
const SOON: u64 = 40;

/// Reads, writes and syncs of nodes fail, do less than they were asked to, or stand still; then the node loses its power,
/// and with it what was not synced. What had been acknowledged is there, in the database and in a backup of it.
pub fn lose_nothing_acknowledged(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    for _ in 0..ROUNDS {
        stage.meanwhile(50, 200)?;
        let node = stage.any_node();
        let fault = match stage.chance().below(4) {
            0 => Fault::SyncFailed { at: soon(stage, node) },
            _ => Fault::Io { at: soon(stage, node), trouble: stage.any_io_trouble() },
        };
        stage.world().arm(Plan::peaceful().and(fault));
        let sync = stage.any_failed_sync_of_pages(node);
        stage.world().arm(sync);
        stage.meanwhile(50, 400)?;
        stage.crash_node(node);
        stage.meanwhile(0, 100)?;
        // What it reads now decides what is left of its log.
        let (at, trouble) = (soon(stage, node), IoTrouble::ShortRead);
        stage.world().arm(Plan::peaceful().and(Fault::Io { at, trouble }));
        stage.restart_node(node);
    }
    stage.meanwhile(100, 300)?;
    let backup = stage.begin_backup();
    let ended = stage.ends_amid_faults(&backup)?;
    let sealed = stage.is_backed_up_in_the_end(ended)?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.is_restored_in_the_end(&Target::Backup(sealed.operation)).map(|_| ())
}

fn soon(stage: &mut Stage, node: u16) -> When {
    let passed = stage.world().passes(&host(node));
    When::pass(&host(node), passed + 1 + stage.chance().below(SOON))
}
