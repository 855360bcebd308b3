//! Three to five PostgreSQL primaries, agents and coordinators as processes, clients that move money from one server to
//! another in two ways (one commit after the other, and two phases), and a nemesis. While it is about, and in the peace after
//! every round, cuts of all incarnations are restored beside the running servers, and every entry is held against what the
//! clients saw. Every second round ends with the loss of everything, and a restore in its place.
//!
//! `cargo xtask pg --nemesis --for 20m` runs it for a while; without that it runs a few rounds. What is drawn follows from
//! a seed, which is printed; what real servers make of it does not.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::wildcard_enum_match_arm,
    reason = "tests may be blunt"
)]
#![allow(clippy::format_push_string, reason = "tests may be blunt")]

#[path = "../site/mod.rs"]
mod site;

mod afar;
mod aims;
mod beside;
mod catalog;
mod chance;
mod checks;
mod faults;
mod hosts;
mod ledger;
mod leftovers;
mod lost;
mod makers;
mod network;
mod oracle;
mod pairs;
mod report;
mod rounds;
mod town;

use std::time::{Duration, Instant};

use chance::Chance;
use report::Report;
use rounds::{Measure, Run};

/// What a test among all others has time for.
const SHORT: Measure = Measure { strife: Duration::from_secs(7), deeds: 5, clones: 1, cuts: 1 };
const SHORT_ROUNDS: u32 = 2;

/// What is done where time was given.
const LONG: Measure = Measure { strife: Duration::from_secs(9), deeds: 6, clones: 4, cuts: 18 };

fn setting(name: &str) -> Option<String> {
    std::env::var(format!("SHEETANCHOR_NEMESIS_{name}")).ok()
}

fn number<T: std::str::FromStr<Err: std::fmt::Debug>>(name: &str) -> Option<T> {
    setting(name).map(|text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_fails_every_cut_is_restored_as_it_was() {
    let begun = Instant::now();
    let seed = number("SEED").unwrap_or(1);
    let length: Option<u64> = number("SECONDS");
    let wanted: Option<usize> = number("CUTS");
    let measure = if length.is_some() { LONG } else { SHORT };
    let rounds = number("ROUNDS").unwrap_or(SHORT_ROUNDS);
    let nodes = number("NODES").unwrap_or(3);
    let mut run = Run::begin(nodes, Chance::new(seed), Report::new(seed, setting("REPORT"))).await;
    let mut round = 0;
    loop {
        round += 1;
        run.round(round, measure).await;
        let late = length.map_or(round >= rounds, |seconds| begun.elapsed() >= Duration::from_secs(seconds));
        if late || wanted.is_some_and(|wanted| run.restored() >= wanted) {
            break;
        }
    }
    let restored = run.restored();
    assert!(wanted.is_none_or(|wanted| restored >= wanted), "{restored} cuts were restored only");
    run.end();
}
