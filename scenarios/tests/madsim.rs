//! Every story on madsim, whose scheduler and network are not ours either. Without `--cfg madsim` there is no such backend,
//! and these tell nothing; `cargo xtask ci` builds with it. What is compared is the verdict and the hash of two runs: timelines are
//! kept as snapshots for the two backends of every build.

#![allow(clippy::expect_used, reason = "a test may stop at what it did not expect")]

use sheetanchor_scenarios::{ALL, Report, run};

/// Tells a story twice and compares.
fn check(name: &str) {
    let scenario = ALL.iter().find(|scenario| scenario.name == name).expect("a registered story");
    let seed = scenario.seed();
    let tell = move || -> Option<Report> {
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
