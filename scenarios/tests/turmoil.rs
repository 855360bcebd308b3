//! Every story on turmoil: its timeline is a snapshot, and the same seed gives the same run.

#![allow(clippy::expect_used, reason = "a test may stop at what it did not expect")]

use sheetanchor_scenarios::{ALL, Report, Scenario, run};
use sheetanchor_snapshots::assert_snapshot;

fn tell(scenario: &Scenario, seed: u64) -> Report {
    run(scenario, seed, sheetanchor_sim_turmoil::backend(seed))
}

fn check(name: &str) {
    let scenario = ALL.iter().find(|scenario| scenario.name == name).expect("a registered story");
    let first = tell(scenario, scenario.seed());
    if let Err(failure) = &first.verdict {
        panic!("{failure}\n{}\n{}", first.timeline, first.last_events);
    }
    let second = tell(scenario, scenario.seed());
    assert_eq!(first.trace_hash, second.trace_hash, "the same seed gives the same run");
    assert_snapshot!("timelines", format!("{name}@turmoil"), first.timeline);
}

#[test]
fn a_backup_is_restored_and_read() {
    check("a-backup-is-restored-and-read");
}

#[test]
fn a_node_crashes_during_capture() {
    check("a-node-crashes-during-capture");
}

#[test]
fn the_coordinator_crashes_between_drain_and_cut() {
    check("the-coordinator-crashes-between-drain-and-cut");
}

#[test]
fn two_nodes_write_the_same_page_across_the_cut() {
    check("two-nodes-write-the-same-page-across-the-cut");
}

#[test]
fn a_crash_during_restore_is_resumed() {
    check("a-crash-during-restore-is-resumed");
}

#[test]
fn a_cut_is_causal_for_sessions_that_carry_nothing() {
    check("a-cut-is-causal-for-sessions-that-carry-nothing");
}

#[test]
fn anything_crashes_while_operations_run() {
    check("anything-crashes-while-operations-run");
}

#[test]
fn refusals_change_nothing() {
    check("refusals-change-nothing");
}

#[test]
fn the_network_stalls_while_operations_run() {
    check("the-network-stalls-while-operations-run");
}
