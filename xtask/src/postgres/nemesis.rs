//! The run of real servers under a nemesis, for as long as it is asked for.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::programs;

/// What is wanted of it.
pub struct Wanted {
    /// For how long rounds are begun.
    pub length: Duration,
    /// What everything is drawn from.
    pub seed: u64,
    /// It ends once so many cuts were restored, and fails if they were fewer.
    pub cuts: Option<usize>,
    /// How many servers.
    pub nodes: u16,
}

/// Runs it. Progress goes to the screen, the report and, if it fails, everybody's log to a folder.
pub fn run(root: &Path, wanted: &Wanted) -> Result<()> {
    let folder = root.join(format!("target/nemesis/{}", wanted.seed));
    let mut command = programs::cargo(root);
    command.args(["test", "--package", "sheetanchor", "--test", "nemesis", "--", "--nocapture"]);
    command.env("SHEETANCHOR_NEMESIS_SEED", wanted.seed.to_string());
    command.env("SHEETANCHOR_NEMESIS_SECONDS", wanted.length.as_secs().to_string());
    command.env("SHEETANCHOR_NEMESIS_REPORT", &folder);
    command.env("SHEETANCHOR_NEMESIS_NODES", wanted.nodes.to_string());
    if let Some(cuts) = wanted.cuts {
        command.env("SHEETANCHOR_NEMESIS_CUTS", cuts.to_string());
    }
    let outcome = programs::run_within(&mut command, wanted.length.saturating_add(LAST_ROUND));
    println!("the report is in {}", folder.display());
    outcome.with_context(|| format!("the nemesis of seed {}", wanted.seed))
}

/// How long the last round may take, and the building before the first.
const LAST_ROUND: Duration = Duration::from_mins(30);

/// A length as it is typed: `90s`, `20m`, `8h`.
pub fn length(text: &str) -> Result<Duration> {
    let Some((number, unit)) = text.split_at_checked(text.len().saturating_sub(1)) else { bail!("no length") };
    let number: u64 = number.parse().context("write a number and `s`, `m` or `h`, as in `20m`")?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => bail!("write a number and `s`, `m` or `h`, as in `20m`"),
    };
    number.checked_mul(seconds).map(Duration::from_secs).context("that is too long")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_a_number_and_its_unit() {
        assert_eq!(length("90s").unwrap(), Duration::from_secs(90));
        assert_eq!(length("20m").unwrap(), Duration::from_mins(20));
        for bad in ["", "m", "20", "2.5m", "-1s", "99999999999999999999h", "5ü"] {
            assert!(length(bad).is_err(), "{bad}");
        }
    }
}
