//! The same seed gives the same run.

use super::Violation;

/// The invariant.
pub const SAME_RUN: &str = "the same seed gives the same run";

/// Runs twice and compares the trace hashes. Answers the hash.
///
/// # Errors
/// The violation, if they differ.
pub fn check_twice(mut run: impl FnMut() -> String) -> Result<String, Violation> {
    let (first, second) = (run(), run());
    if first == second {
        return Ok(first);
    }
    Err(Violation::new(SAME_RUN, format!("trace hash {first}, then {second}")))
}
