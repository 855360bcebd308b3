//! The main story on madsim, whose scheduler is not ours either: the ports must not lean on turmoil. Every story on
//! every backend comes with the simulator's own issue. Without `--cfg madsim` there is no such backend, and this tells
//! nothing; `cargo xtask ci` builds with it.

#![allow(clippy::expect_used, reason = "a test may stop at what it did not expect")]

use sheetanchor_scenarios::{ALL, run};

#[test]
fn the_main_story_holds_on_madsim() {
    let scenario = ALL.first().expect("a registered story");
    let seed = scenario.seed();
    let tell = move || {
        // Madsim seeds the standard library's hash maps on a fresh thread only.
        #[allow(clippy::disallowed_methods, reason = "the simulator itself needs it")]
        let told = std::thread::spawn(move || Some(run(scenario, seed, sheetanchor_sim_madsim::backend(seed)?)));
        told.join().expect("a story that does not panic")
    };
    let Some(first) = tell() else { return };
    if let Err(failure) = &first.verdict {
        panic!("{failure}\n{}", first.timeline);
    }
    assert_eq!(Some(first.trace_hash), tell().map(|second| second.trace_hash), "the same seed gives the same run");
}
