//! Seeds that failed once. Each names the fault that it found and the commit that mended it; it is run again with every
//! `cargo xtask sim` and every night.

use sheetanchor_scenarios::Scenario;

/// The story, the seed, what it found, and the commit that mended it.
const SEEDS: &[(&str, u64, &str, &str)] = &[
    (
        "every-history-is-kept-whatever-strikes",
        14_190_580,
        "the own executor let whoever had sent bytes to a machine without power wait for good, though it came back",
        "969147f",
    ),
    (
        "every-history-is-kept-whatever-strikes",
        14_190_682,
        "a node that was down when it was to prove its cut was told of as a copy that had missed it",
        "969147f",
    ),
    (
        "every-history-is-kept-whatever-strikes",
        77_398,
        "a pin that its agent failed to let go of, for a disk that failed, stayed for good",
        "abf7af3",
    ),
    (
        "a-node-crashes-during-capture",
        13_962_563,
        "an agent's state folder was not durable: after a power loss the node belonged to no cluster",
        "89dd37a",
    ),
    (
        "a-crash-during-restore-is-resumed",
        9_344_328,
        "an agent's state folder was not durable: after a power loss the restore's marker was gone, and it could not go on",
        "89dd37a",
    ),
    (
        "a-backup-is-restored-and-read",
        4_106_637,
        "two runs differed: turmoil's runtime dropped the tasks of a crashed host in an order of the process's own",
        "71a8170",
    ),
    (
        "two-nodes-write-the-same-page-across-the-cut",
        4_853_027,
        "two runs differed: tokio's watch channel woke its waiters in an order that no seed reaches",
        "d4abd5d",
    ),
    (
        "a-backup-ends-in-a-restore-whatever-strikes",
        20_929,
        "a folder of the repository that a killed process had made was taken for durable: a loss of power took a sealed \
         backup's WAL with it",
        "6c98802",
    ),
    (
        "a-backup-ends-in-a-restore-whatever-strikes",
        20_953,
        "a failed sync, a restart and a loss of power lost a committed change of the embedded database",
        "8392a9b",
    ),
    (
        "disks-that-fail-lose-nothing-acknowledged",
        15_210_433,
        "a sync of pages behind one that had failed beside it was believed: an acknowledged change was lost",
        "d8701aa",
    ),
    (
        "disks-that-fail-lose-nothing-acknowledged",
        15_210_814,
        "the name of a segment that a failed sync had given up was taken for durable after a restart: its WAL was lost",
        "6eff0f4",
    ),
    (
        "a-backup-ends-in-a-restore-whatever-strikes",
        21_427,
        "the story started no node again that a failing disk had ended at its very start",
        "6eff0f4",
    ),
    (
        "every-history-is-kept-whatever-strikes",
        14_190_550,
        "the story waited for the archive of a database that a failing disk had stopped, and nobody started it anew",
        "0156c75",
    ),
];

/// The runs of the corpus that belong to these stories.
pub fn of(scenarios: &[Scenario]) -> Vec<(Scenario, u64)> {
    let known = |name: &str| scenarios.iter().find(|scenario| scenario.name == name).copied();
    SEEDS.iter().filter_map(|(name, seed, ..)| Some((known(name)?, *seed))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheetanchor_scenarios::ALL;

    #[test]
    fn every_seed_belongs_to_a_story_and_says_what_it_found() {
        assert_eq!(of(ALL).len(), SEEDS.len());
        assert!(SEEDS.iter().all(|(_, _, found, mended)| !found.is_empty() && mended.len() >= 7));
    }
}
