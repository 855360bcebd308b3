//! Every story on the own executor: its timeline is a snapshot, and the same seed gives the same run.

#![allow(clippy::expect_used, reason = "a test may stop at what it did not expect")]

use sheetanchor_scenarios::{ALL, Report, Scenario, run};
use sheetanchor_snapshots::assert_snapshot;

fn tell(scenario: &Scenario, seed: u64) -> Report {
    run(scenario, seed, sheetanchor_sim::own::backend(seed))
}

fn check(name: &str) {
    let scenario = ALL.iter().find(|scenario| scenario.name == name).expect("a registered story");
    let first = tell(scenario, scenario.seed());
    if let Err(failure) = &first.verdict {
        panic!("{failure}\n{}\n{}", first.timeline, first.last_events);
    }
    let second = tell(scenario, scenario.seed());
    assert_eq!(first.trace_hash, second.trace_hash, "the same seed gives the same run");
    assert_snapshot!("timelines", format!("{name}@own"), first.timeline);
}

macro_rules! tests {
    ($($name:literal $function:ident: $module:ident :: $story:ident, sees $bugs:tt;)+) => {
        $(
            #[test]
            fn $function() {
                check($name);
            }
        )+
    };
}

sheetanchor_scenarios::each_story!(tests);
