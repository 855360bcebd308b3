//! A test for each story on one backend: its timeline is a snapshot, and the same seed gives the same run.

use sheetanchor_scenarios::{ALL, run, run_recorded};
use sheetanchor_sim::backend::Backend;
use sheetanchor_sim::plan::Plan;
use sheetanchor_snapshots::assert_snapshot;

/// Tells a story twice and compares.
pub fn check(name: &str, backend: fn(u64) -> Box<dyn Backend>) {
    let scenario = ALL.iter().find(|scenario| scenario.name == name).expect("a registered story");
    let seed = scenario.seed();
    let on = backend(seed).name();
    let first = run(scenario, seed, backend(seed));
    if let Err(failure) = &first.verdict {
        let (again, _) = run_recorded(scenario, seed, Plan::peaceful(), backend(seed));
        panic!("{failure}\n{}\n{}", first.timeline, again.last_events);
    }
    let second = run(scenario, seed, backend(seed));
    assert_eq!(first.trace_hash, second.trace_hash, "the same seed gives the same run");
    assert_snapshot!("timelines", format!("{name}@{on}"), first.timeline);
}

/// One test for each story of the registry; `BACKEND` of the including file says where it is told.
macro_rules! tests {
    ($($name:literal $function:ident: $module:ident :: $story:ident, sees $bugs:tt;)+) => {
        $(
            #[test]
            fn $function() {
                told::check($name, BACKEND);
            }
        )+
    };
}
pub(crate) use tests;
