//! Three PostgreSQL primaries, agents and coordinators as processes, clients that move money from one server to another
//! in two ways (one commit after the other, and two phases), and a nemesis. After every round cuts of all incarnations are restored beside the running servers, and every entry is
//! held against what the clients saw. Every second round ends with the loss of everything, and a restore in its place.
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

mod beside;
mod catalog;
mod chance;
mod faults;
mod ledger;
mod links;
mod oracle;
mod pairs;
mod report;
mod rounds;
mod town;

use std::time::{Duration, Instant};

use chance::Chance;
use report::Report;
use rounds::Run;

/// How long a run is to be.
enum Length {
    Rounds(u32),
    Until(Instant),
}

fn setting(name: &str) -> Option<String> {
    std::env::var(format!("SHEETANCHOR_NEMESIS_{name}")).ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_fails_every_cut_is_restored_as_it_was() {
    let seed = setting("SEED").map_or(1, |seed| seed.parse().unwrap());
    let seconds = setting("SECONDS").map(|seconds| seconds.parse().unwrap());
    let length =
        seconds.map_or(Length::Rounds(2), |seconds| Length::Until(Instant::now() + Duration::from_secs(seconds)));
    let per_round = if seconds.is_some() { 6 } else { 2 };
    let mut run = Run::begin(Chance::new(seed), Report::new(seed, setting("REPORT"))).await;
    let mut round = 0;
    loop {
        round += 1;
        run.round(round, per_round).await;
        let over = match length {
            Length::Rounds(rounds) => round >= rounds,
            Length::Until(end) => Instant::now() >= end,
        };
        if over {
            break;
        }
    }
    run.end();
}
