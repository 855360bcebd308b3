//! Counting tests from what the test runners write.

use std::fmt;

/// Who ran the tests. nextest shows what a failed test wrote, and a line of cargo's kind is in there, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runner {
    /// cargo-nextest.
    Nextest,
    /// `cargo test`.
    Cargo,
}

/// Tests of all kinds, over all steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    passed: u64,
    failed: u64,
    left_out: u64,
}

impl Counts {
    /// Takes a line that `runner` wrote into account, if it is one that counts.
    pub fn read(&mut self, runner: Runner, line: &str) {
        let line = plain(line);
        let line = line.trim();
        let counts = match runner {
            // `Summary [   1.234s] 20/25 tests run: 19 passed, 1 failed, 3 skipped`
            Runner::Nextest => line.strip_prefix("Summary [").and_then(|tail| tail.split_once("run: ")),
            // `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`
            Runner::Cargo => line.strip_prefix("test result: ").and_then(|tail| tail.split_once(". ")),
        };
        let Some((_, counts)) = counts else { return };
        for part in counts.split([',', ';']) {
            let mut words = part.split_whitespace();
            let Some(number) = words.next().and_then(|number| number.parse::<u64>().ok()) else { continue };
            match words.next() {
                // nextest adds `(1 slow)` after the word, which does not concern us.
                Some("passed") => self.passed += number,
                Some("failed" | "exec" | "timed") => self.failed += number,
                Some("skipped" | "ignored" | "filtered") => self.left_out += number,
                Some(_) | None => {}
            }
        }
    }

    /// How many ran.
    pub fn ran(&self) -> u64 {
        self.passed + self.failed
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, left_out } = self;
        write!(out, "tests: {} run: {passed} passed, {failed} failed, {left_out} left out", self.ran())
    }
}

/// `line` without the escape sequences that colour it.
fn plain(line: &str) -> String {
    let mut parts = line.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |plain, part| plain + part.split_once('m').map_or("", |(_, text)| text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(runner: Runner, lines: &[&str], expected: &str) {
        let mut counts = Counts::default();
        for line in lines {
            counts.read(runner, line);
        }
        assert_eq!(counts.to_string(), expected);
    }

    #[test]
    fn nextests_summary_is_read() {
        check(
            Runner::Nextest,
            &["     Summary [   0.013s] 18 tests run: 18 passed, 2 skipped"],
            "tests: 18 run: 18 passed, 0 failed, 2 left out",
        );
        let bad = "     Summary [  61.0s] 20/25 tests run: 16 passed (1 slow), 2 failed, 1 exec failed, 1 timed out, 0 skipped";
        check(
            Runner::Nextest,
            &[bad, "     Summary: none", "test result: FAILED. 0 passed; 1 failed; 0 ignored"],
            "tests: 20 run: 16 passed, 4 failed, 0 left out",
        );
        let coloured = "\u{1b}[32;1m     Summary\u{1b}[0m [   0.013s] \u{1b}[1m18\u{1b}[0m tests run: \u{1b}[1m18\u{1b}[0m \u{1b}[32;1mpassed\u{1b}[0m, 0 skipped";
        check(Runner::Nextest, &[coloured], "tests: 18 run: 18 passed, 0 failed, 0 left out");
    }

    #[test]
    fn the_results_of_cargo_test_are_added_up() {
        let good = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s";
        let bad = "test result: FAILED. 1 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        check(Runner::Cargo, &["running 3 tests", good, bad], "tests: 8 run: 4 passed, 4 failed, 3 left out");
    }
}
