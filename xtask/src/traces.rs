//! `cargo xtask traces`: the same seeds in a debug and in a release build of the simulator must give the same traces.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::programs;

/// Runs that differ which are shown: the first ones.
const SHOWN_MAX: usize = 5;

/// Tells the stories in both builds, so many runs on each of the simulators, and compares.
pub fn compare(root: &Path, seeds: u64, backends: &str) -> Result<()> {
    let out = |build: &str| root.join("target/traces").join(format!("{build}.txt"));
    let seeds = seeds.to_string();
    let mut debug = programs::cargo(root);
    debug.args(["run", "--package", "sheetanchor-nightly", "--", "traces"]);
    for (build, mut command) in [("debug", debug), ("release", programs::simulator_command(root, "traces"))] {
        programs::run(command.args(["--seeds", &seeds, "--backends", backends, "--out"]).arg(out(build)))?;
    }
    let read = |build: &str| {
        let path = out(build);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let (debug, release) = (read("debug")?, read("release")?);
    let differ = differences(&debug, &release);
    let runs = release.lines().count();
    if runs == 0 || !differ.is_empty() {
        let shown: Vec<&str> = differ.iter().take(SHOWN_MAX).map(String::as_str).collect();
        bail!(
            "{} of {runs} runs are other runs in a debug build than in a release build\n{}\n\
             `replay SEED STORY --backend NAME --out FOLDER` of both builds writes two trace.jsonl: compare them",
            differ.len(),
            shown.join("\n")
        );
    }
    println!("{runs} runs are the same in a debug and in a release build");
    Ok(())
}

/// The lines in which the two differ, the first beside the second.
fn differences(debug: &str, release: &str) -> Vec<String> {
    let (mut ours, mut theirs) = (debug.lines(), release.lines());
    let mut differ = Vec::new();
    loop {
        match (ours.next(), theirs.next()) {
            (None, None) => return differ,
            (one, other) if one == other => {}
            (one, other) => {
                let word = |line: Option<&str>| line.unwrap_or("not run").to_owned();
                differ.push(format!("  debug   {}\n  release {}", word(one), word(other)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_hash_that_differs_is_a_difference_and_so_is_a_run_that_is_missing() {
        assert_eq!(differences("a 1\nb 2\n", "a 1\nb 2\n"), [""; 0]);
        assert_eq!(differences("a 1\nb 2\n", "a 1\nb 3\n"), ["  debug   b 2\n  release b 3"]);
        assert_eq!(differences("a 1\n", "a 1\nb 3\n"), ["  debug   not run\n  release b 3"]);
        assert_eq!(differences("", ""), [""; 0]);
    }
}
