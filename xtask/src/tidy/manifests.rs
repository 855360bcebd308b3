//! Checks on `Cargo.toml` files, and on the page that explains what stands in them. The manifests are ours and formatted
//! alike, so lines are enough; a dependency in another form is a finding, not a miss.

use std::collections::BTreeMap;

use super::tree::File;
use super::{Finding, Tree};

/// The page with a row for every crate of others.
const PAGE: &str = "docs/dependencies.md";

/// A package of that name would shadow Rust's own.
pub fn no_package_is_called_core(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in manifests(tree) {
        for (line, section, text) in entries(file) {
            let named =
                text.split_once('=').is_some_and(|(key, value)| key.trim() == "name" && value.trim() == "\"core\"");
            if named && ["package", "lib"].contains(&section) {
                findings.push(Finding::new(&file.path, line, "`core` would shadow Rust's own crate"));
            }
        }
    }
    findings
}

/// Every version stands in the root, where the page of dependencies is held against it.
pub fn versions_stand_in_the_root(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in manifests(tree).filter(|file| file.path != "Cargo.toml") {
        for (line, section, text) in entries(file) {
            let of_dependencies = section.ends_with("dependencies") || section.contains("dependencies.");
            if of_dependencies && !(text.contains(".workspace = true") || text.contains("{ workspace = true")) {
                findings.push(Finding::new(&file.path, line, "a dependency says `workspace = true`"));
            }
        }
    }
    findings
}

/// Every crate of others has a row: need, choice, runner-up; and every row a crate.
pub fn every_dependency_is_explained(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let taken = tree.file("Cargo.toml").map(dependencies).unwrap_or_default();
    let mut explained = BTreeMap::new();
    for (line, text) in tree.file(PAGE).into_iter().flat_map(File::lines) {
        let cells: Vec<&str> = text.trim().trim_matches('|').split('|').map(str::trim).collect();
        let [need, choice, runner_up] = cells.as_slice() else { continue };
        let Some(name) = choice.strip_prefix('`').and_then(|tail| tail.split('`').next()) else { continue };
        if need.is_empty() || runner_up.is_empty() {
            findings.push(Finding::new(PAGE, line, format!("the row of `{name}` has an empty cell")));
        }
        if explained.insert(name, line).is_some() {
            findings.push(Finding::new(PAGE, line, format!("`{name}` has two rows")));
        }
    }
    let unexplained = taken.iter().filter(|(name, _)| !explained.contains_key(name.as_str()));
    findings.extend(
        unexplained.map(|(name, line)| Finding::new("Cargo.toml", *line, format!("`{name}` has no row in {PAGE}"))),
    );
    let unused = explained.iter().filter(|(name, _)| !taken.contains_key(**name));
    findings
        .extend(unused.map(|(name, line)| Finding::new(PAGE, *line, format!("`{name}` is not in the root manifest"))));
    findings
}

/// The crates of others in `[workspace.dependencies]`, with their lines.
fn dependencies(root: &File) -> BTreeMap<String, usize> {
    let theirs = entries(root).into_iter().filter(|(_, section, text)| {
        *section == "workspace.dependencies" && !text.contains("path = ") && text.contains('=')
    });
    theirs.filter_map(|(line, _, text)| text.split_once('=').map(|(name, _)| (name.trim().to_owned(), line))).collect()
}

fn manifests(tree: &Tree) -> impl Iterator<Item = &File> {
    tree.files().iter().filter(|file| file.path == "Cargo.toml" || file.path.ends_with("/Cargo.toml"))
}

/// The lines of a manifest that say something: number, section, text.
fn entries(file: &File) -> Vec<(usize, &str, &str)> {
    let mut section = "";
    let mut found = Vec::new();
    for (line, text) in file.lines() {
        let text = text.trim();
        if let Some(name) = text.strip_prefix('[').and_then(|tail| tail.strip_suffix(']')) {
            section = name.trim_matches(['[', ']']);
        } else if !text.is_empty() && !text.starts_with('#') {
            found.push((line, section, text));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::expect;

    #[test]
    fn a_package_called_core_is_found() {
        let red = ("core/Cargo.toml", "[package]\nname = \"core\"\n");
        let green = ("core/engine/Cargo.toml", "[package]\nname = \"sheetanchor-core\"\n[[bin]]\nname = \"core\"\n");
        expect(no_package_is_called_core, &[red, green], &["core/Cargo.toml:2"]);
    }

    #[test]
    fn a_version_outside_the_root_is_found() {
        let root = ("Cargo.toml", "[workspace.dependencies]\nclap = \"4\"\n");
        let green =
            ("a/Cargo.toml", "[dependencies]\nclap.workspace = true\ntokio = { workspace = true, features = [] }\n");
        let red = "[package]\nedition = \"2024\"\n[dev-dependencies]\nclap = \"4\"\n[target.'cfg(x)'.dependencies]\nb = \"1\"\n";
        expect(
            versions_stand_in_the_root,
            &[root, green, ("b/Cargo.toml", red)],
            &["b/Cargo.toml:4", "b/Cargo.toml:6"],
        );
    }

    #[test]
    fn a_crate_and_its_row_belong_together() {
        let root = "[workspace.dependencies]\nours = { path = \"a\" }\n# Theirs.\nclap = \"4\"\ntoml = \"1\"\n[profile.dev]\nx = 1\n";
        let heading = "| Need | Choice | Runner-up |\n|---|---|---|\n";
        let clap = "| arguments | `clap` | `pico-args`: no help |\n";
        let toml = "| cluster file | `toml` | `serde_yaml` |\n";
        let page = format!("{heading}{clap}{toml}");
        expect(every_dependency_is_explained, &[("Cargo.toml", root), (PAGE, &page)], &[]);
        let page = format!("{heading}{clap}| what | `yaml` | |\n{clap}");
        let expected = ["docs/dependencies.md:4", "docs/dependencies.md:5", "Cargo.toml:5", "docs/dependencies.md:4"];
        expect(every_dependency_is_explained, &[("Cargo.toml", root), (PAGE, &page)], &expected);
    }
}
