//! Rules of this tree that neither the compiler nor clippy knows. Each check is one function from the tree to findings,
//! with a sample beside it that must be red.

use std::fmt;
use std::path::Path;

use anyhow::Result;

mod code;
mod tree;

mod documents;
mod layout;
mod manifests;
mod rust;
mod text;

pub use tree::Tree;

/// One breach of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    path: String,
    line: usize,
    what: String,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}: {}", self.path, self.line, self.what)
    }
}

type Check = fn(&Tree) -> Vec<Finding>;

/// Every check.
const CHECKS: &[Check] = &[
    text::files_are_short,
    text::nothing_is_left_to_do,
    text::no_path_of_one_machine,
    rust::every_select_is_biased,
    rust::no_test_is_switched_off,
    rust::nothing_is_unfinished,
    rust::every_allow_has_a_reason,
    rust::madsim_stays_in_its_crate,
    rust::the_inner_crates_are_pure,
    layout::the_top_level_is_the_agreed_one,
    manifests::no_package_is_called_core,
    manifests::versions_stand_in_the_root,
    manifests::every_dependency_is_explained,
    documents::every_refusal_is_explained,
    documents::links_lead_somewhere,
];

/// Runs every check and prints what they find. True if they find nothing.
pub fn run(root: &Path) -> Result<bool> {
    let tree = Tree::read(root)?;
    let findings = check(&tree);
    for finding in &findings {
        println!("{finding}");
    }
    println!("tidy: {} files, {} checks, {} findings", tree.files().len(), CHECKS.len(), findings.len());
    Ok(findings.is_empty())
}

fn check(tree: &Tree) -> Vec<Finding> {
    CHECKS.iter().flat_map(|check| check(tree)).collect()
}

/// Compares what `check` finds in a tree of these files with `expected`, one `path:line` each.
#[cfg(test)]
fn expect(check: Check, files: &[(&str, &str)], expected: &[&str]) {
    let found = check(&Tree::of(files));
    let places: Vec<String> = found.iter().map(|finding| format!("{}:{}", finding.path, finding.line)).collect();
    assert_eq!(places, expected, "{found:#?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_tree_is_tidy() {
        let tree = Tree::read(&crate::root().unwrap()).unwrap();
        assert!(tree.files().iter().any(|file| file.path == "xtask/src/tidy.rs"), "the tree was not read");
        let findings: Vec<String> = check(&tree).iter().map(ToString::to_string).collect();
        assert!(findings.is_empty(), "{}", findings.join("\n"));
    }
}
