//! Checks on where things lie.

use std::collections::BTreeSet;

use super::{Finding, Tree};

/// What the top level holds, and nothing else: whoever opens the repository sees the house, not the tools in the garden.
const TOP_LEVEL: &[&str] = &[
    ".cargo",
    ".ci",
    ".config",
    ".github",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "clippy.toml",
    "core",
    "deny.toml",
    "docs",
    "nightly",
    "rustfmt.toml",
    "scenarios",
    "sim",
    "snapshots",
    "xtask",
];

/// Both ways: nothing more, and nothing less.
pub fn the_top_level_is_the_agreed_one(tree: &Tree) -> Vec<Finding> {
    let found: BTreeSet<&str> = tree.files().iter().filter_map(|file| file.path.split('/').next()).collect();
    let agreed: BTreeSet<&str> = TOP_LEVEL.iter().copied().collect();
    let extra = found.difference(&agreed).map(|name| Finding::new(name, 1, "not an entry of the top level"));
    let missing = agreed.difference(&found).map(|name| Finding::new(name, 1, "missing from the top level"));
    extra.chain(missing).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::expect;

    #[test]
    fn a_stray_and_a_missing_entry_are_found() {
        let mut files: Vec<(&str, &str)> = TOP_LEVEL.iter().map(|name| (*name, "")).collect();
        expect(the_top_level_is_the_agreed_one, &files, &[]);
        files.retain(|(name, _)| *name != "LICENSE");
        files.push(("scripts/run.sh", ""));
        expect(the_top_level_is_the_agreed_one, &files, &["scripts:1", "LICENSE:1"]);
    }
}
