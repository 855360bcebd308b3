//! Checks on any text.

use super::tree::File;
use super::{Finding, Tree};

/// Style: aim for 150 to 400 lines, explain 600, split at 800.
const LINES_MAX: usize = 800;

/// A file that nobody can hold in mind is split.
pub fn files_are_short(tree: &Tree) -> Vec<Finding> {
    let long = written_by_hand(tree).filter_map(|file| {
        let lines = file.text.lines().count();
        (lines > LINES_MAX)
            .then(|| Finding::new(&file.path, LINES_MAX + 1, format!("{lines} lines, {LINES_MAX} at most")))
    });
    long.collect()
}

/// What is not done stands in an issue, not in the source.
pub fn nothing_is_left_to_do(tree: &Tree) -> Vec<Finding> {
    const MARKS: [&str; 3] = [concat!("FIX", "ME"), concat!("XX", "X"), concat!("TO", "DO")];
    let mark = |line: &str| {
        MARKS
            .into_iter()
            .find(|mark| !super::code::words(line, mark).is_empty())
            .map(|mark| format!("`{mark}` left behind"))
    };
    lines_where(tree, mark)
}

/// A path of somebody's machine says nothing to anybody else.
pub fn no_path_of_one_machine(tree: &Tree) -> Vec<Finding> {
    const STARTS: [&str; 5] = [
        concat!("/wo", "rk/"),
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("/Us", "ers/"),
        concat!("../sha", "red"),
    ];
    let path = |line: &str| {
        let at_start = |start: &str| {
            // One of these at the start is a path of a machine; in the middle of an address or a path it is not.
            line.match_indices(start).any(|(at, _)| {
                let before = line.split_at(at).0.chars().next_back();
                start.starts_with('.') || before.is_none_or(|before| !before.is_alphanumeric() && before != '}')
            })
        };
        STARTS.into_iter().find(|start| at_start(start)).map(|start| format!("`{start}`: a path of one machine"))
    };
    lines_where(tree, path)
}

fn lines_where(tree: &Tree, breach: impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in written_by_hand(tree) {
        let found =
            file.lines().filter_map(|(line, text)| breach(text).map(|what| Finding::new(&file.path, line, what)));
        findings.extend(found);
    }
    findings
}

/// Not the lock file, the licence and the snapshots.
fn written_by_hand(tree: &Tree) -> impl Iterator<Item = &File> {
    let extensions = ["rs", "toml", "md", "sh", "yml"];
    tree.files()
        .iter()
        .filter(move |file| extensions.into_iter().any(|extension| file.is(extension)) || file.path == ".ci/run")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::expect;

    #[test]
    fn a_long_file_is_found() {
        let (most, more) = ("\n".repeat(800), "\n".repeat(801));
        expect(files_are_short, &[("a.rs", &most), ("b.rs", &more), ("Cargo.lock", &more)], &["b.rs:801"]);
    }

    #[test]
    fn what_is_left_to_do_is_found() {
        let mark = concat!("FIX", "ME");
        let text = format!("fine\n// {mark}: later\n// {mark}D\n");
        expect(nothing_is_left_to_do, &[("a.rs", &text), ("a.snap", &text)], &["a.rs:2"]);
    }

    #[test]
    fn a_path_of_one_machine_is_found() {
        let text =
            ["a/b", concat!("\"/wo", "rk/x\""), concat!("see ../sha", "red"), concat!("net", "/wo", "rk/x")].join("\n");
        expect(no_path_of_one_machine, &[("a.md", &text)], &["a.md:2", "a.md:3"]);
    }
}
