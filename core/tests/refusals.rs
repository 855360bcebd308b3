//! `docs/refusals.md` says what the catalogue says. `UPDATE_DOCS=1 cargo test -p sheetanchor-core --test refusals`
//! writes it anew.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that reads and writes a page of the documentation"
)]

use std::fmt::Write as _;
use std::{env, fs};

use sheetanchor_core::refusal::Code;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/refusals.md");

/// The classes by the start of their codes, in the catalogue's order.
const CLASSES: &[(&str, &str, &str)] = &[
    ("0A", "Not supported", "The database lacks a primitive that a sound answer needs."),
    ("SA0", "Format", "What was stored or sent is not what was written, or not for this version."),
    ("SA1", "Cluster", "Who is a member, who is who, and what time it is."),
    ("SA2", "Protocol", "An operation cannot go on, or another one is in its way."),
    ("SA3", "Target", "What is to be restored does not exist, or cannot be reached."),
    ("SA4", "Restore", "Staging, recovering or opening a copy would not give what was asked for."),
    ("SA5", "Archive", "WAL is missing, damaged, late, or has nowhere to go."),
];

const INTRODUCTION: &str = "\
# Refusals

A refusal is a stop for lack of evidence: a backup that might be wrong is worse than none. Each has a code of five
characters, which is also its SQLSTATE, and leaves everything as it was. The command line prints the message, the code
and the hint, and ends with status 3. Codes are never reused, so it is safe to look for them in scripts.

This page is generated from the catalogue in [`core/src/refusal.rs`](../core/src/refusal.rs).
";

#[test]
fn the_page_says_what_the_catalogue_says() {
    let rendered = rendered();
    if env::var("UPDATE_DOCS").is_ok_and(|value| value == "1") {
        fs::write(PAGE, &rendered).expect("cannot write docs/refusals.md");
    }
    let page = fs::read_to_string(PAGE).expect("cannot read docs/refusals.md");
    assert!(
        page == rendered,
        "docs/refusals.md is out of date: UPDATE_DOCS=1 cargo test -p sheetanchor-core --test refusals"
    );
}

#[test]
fn every_code_belongs_to_one_class() {
    for code in Code::ALL {
        let classes = CLASSES.iter().filter(|(start, _, _)| code.as_str().starts_with(start));
        assert_eq!(classes.count(), 1, "{code}");
    }
}

fn rendered() -> String {
    let mut page = INTRODUCTION.to_owned();
    for (start, name, about) in CLASSES {
        write!(page, "\n## {name} (`{start}…`)\n\n{about}\n\n| Code | Meaning | Hint |\n|---|---|---|\n").unwrap();
        for code in Code::ALL.iter().filter(|code| code.as_str().starts_with(start)) {
            let (meaning, hint) = (cell(code.meaning()), cell(code.hint()));
            writeln!(page, "| `{code}` | {meaning} | {hint} |").unwrap();
        }
    }
    page
}

/// A bar would end the cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
