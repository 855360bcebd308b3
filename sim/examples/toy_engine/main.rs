//! An engine of one's own, put under test: `cargo run --release -p sheetanchor-sim --example toy_engine`.
//!
//! [`engine`] is a toy that keeps numbers in a log, and implements [`Database`](sheetanchor_engine::database::Database).
//! [`story`] backs two of them up while they write, loses both, restores them elsewhere and reads; somewhere on the way a
//! node crashes. With `--bug` the toy acknowledges numbers before it has synced them, and some seed finds that.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a program that talks to whoever runs it")]
#![cfg_attr(test, allow(clippy::as_conversions, clippy::wildcard_enum_match_arm, reason = "tests may be blunt"))]

mod engine;
mod story;

use std::process::ExitCode;

/// Seeds that are tried unless a failure comes first.
const SEEDS: u64 = 60;

fn main() -> ExitCode {
    let forgetful = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == "--bug" => true,
        _ => {
            println!("usage: toy_engine [--bug]");
            return ExitCode::from(2);
        }
    };
    for seed in 1..=SEEDS {
        if let Err(failure) = story::tell(seed, forgetful, sheetanchor_sim::own::backend(seed)) {
            println!("seed {seed}: {failure}");
            return ExitCode::FAILURE;
        }
    }
    println!("{SEEDS} seeds, nothing found");
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheetanchor_sim::own::backend;
    use sheetanchor_sim::world::Failure;

    #[test]
    fn the_toy_passes_and_a_seed_gives_one_run() {
        for seed in 1..=20 {
            let hash = story::tell(seed, false, backend(seed)).unwrap();
            assert_eq!(story::tell(seed, false, backend(seed)), Ok(hash), "seed {seed}");
        }
    }

    #[test]
    fn the_planted_bug_is_found() {
        let found = (1..=SEEDS).find_map(|seed| story::tell(seed, true, backend(seed)).err());
        let invariants = ["what was acknowledged is durable", "nothing that was acknowledged is lost"];
        assert!(
            matches!(&found, Some(Failure::Violated(violation)) if invariants.contains(&violation.invariant)),
            "{found:?}"
        );
    }
}
