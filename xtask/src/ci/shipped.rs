//! The proof that what users run holds none of the bugs that we plant to test the simulator.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{Outcome, Run};
use crate::programs;

const SHIPPED: &str = "sheetanchor";
/// The package that may be built with planted bugs.
const RUNNER: &str = "sheetanchor-nightly";
const FEATURE: &str = "planted";
/// A text that code with planted bugs carries into the binary.
const MARKER: &str = "sheetanchor-planted-bugs";

/// Proven twice, from the features that cargo resolves and from the bytes of the binary; each time the runner must have
/// what the shipped binary lacks, or the proof would prove nothing.
pub fn lacks_planted_bugs(run: &mut Run) -> Result<Outcome> {
    let root = &run.root;
    let (shipped, runner) = (features(root, SHIPPED)?, features(root, RUNNER)?);
    if asks_for_planted(&shipped) {
        bail!("`cargo tree -e features -p {SHIPPED}` shows the feature `{FEATURE}`");
    }
    if !asks_for_planted(&runner) {
        bail!("{RUNNER} does not switch `{FEATURE}` on, so that its absence elsewhere proves nothing");
    }
    let (shipped, runner) = (binary(root, SHIPPED)?, binary(root, RUNNER)?);
    if holds(&shipped, MARKER)? {
        bail!("{} holds `{MARKER}`", shipped.display());
    }
    if !holds(&runner, MARKER)? {
        bail!("{} does not hold `{MARKER}`, so that its absence elsewhere proves nothing", runner.display());
    }
    let version = programs::output(std::process::Command::new(&shipped).arg("--version"))?;
    println!("{}: no feature `{FEATURE}`, no marker; the runner has both", version.trim());
    Ok(Outcome::Passed)
}

fn features(root: &Path, package: &str) -> Result<String> {
    let arguments = ["tree", "--edges", "normal,build,features", "--package", package, "--prefix", "none"];
    programs::output(programs::cargo(root).args(arguments))
}

/// Whether a line such as `sheetanchor-core feature "planted"` is there.
fn asks_for_planted(tree: &str) -> bool {
    let feature = format!("feature \"{FEATURE}\"");
    tree.lines().any(|line| line.contains(&feature))
}

/// Builds a package for release and answers where cargo put its binary.
fn binary(root: &Path, package: &str) -> Result<PathBuf> {
    println!("    building {package} for release");
    let arguments = ["build", "--release", "--package", package, "--message-format", "json-render-diagnostics"];
    let messages = programs::output(programs::cargo(root).args(arguments))?;
    let path = executable(&messages).with_context(|| format!("cargo built no binary of {package}"))?;
    Ok(PathBuf::from(path))
}

/// The last `"executable":"…"` in cargo's messages. A whole JSON parser would be the heaviest thing in this package.
fn executable(messages: &str) -> Option<String> {
    let mut named = messages.lines().filter_map(|line| line.split_once("\"executable\":\"")?.1.split('"').next());
    named.next_back().map(|path| path.replace("\\\\", "\\"))
}

fn holds(path: &Path, text: &str) -> Result<bool> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes.windows(text.len()).any(|window| window == text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_feature_is_seen() {
        assert!(asks_for_planted("sheetanchor v0.1.0 (/a)\nsheetanchor-core feature \"planted\" (*)\n"));
        assert!(!asks_for_planted("sheetanchor v0.1.0 (/planted)\nsheetanchor-core feature \"default\"\n"));
    }

    #[test]
    fn the_binary_is_the_last_executable() {
        let messages =
            "{\"target\":{\"name\":\"a\"},\"executable\":null}\n{\"executable\":\"/t/release/b\",\"fresh\":true}\n{}";
        assert_eq!(executable(messages).as_deref(), Some("/t/release/b"));
        assert_eq!(executable("{\"executable\":null}"), None);
    }

    #[test]
    fn a_text_in_a_file_is_seen() {
        let this = crate::root().unwrap().join("xtask/src/ci/shipped.rs");
        assert!(holds(&this, MARKER).unwrap());
        assert!(!holds(&this, &["not", "in", "here"].join("~")).unwrap());
    }
}
