//! The pages on formats say what the code says: every kind of object, every name in the repository, every golden, and
//! every message in its place; and every promise names something that shows it. A page that lacks one is red here.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests that read sources and pages of the documentation"
)]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sheetanchor_core::format::{keys, wal};
use sheetanchor_core::identity::{
    ContentHash, Epoch, Incarnation, Membership, NodeId, OperationId, OperationKind, ThreadId, TimelineId,
};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::request::{Failure, Request};
use sheetanchor_core::{format, planted, wire};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
}

/// The text of every source file in a folder, and in those below it.
fn sources(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(fs::read_to_string(path).unwrap());
            }
        }
    }
    found
}

/// What stands between quotes right after each `before`.
fn quoted<'a>(source: &'a str, before: &str) -> Vec<&'a str> {
    source.split(before).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

/// The variants of a public enum, in order: lines of one level of indentation that begin with a capital letter.
fn variants(source: &str, name: &str) -> Vec<String> {
    let (_, rest) = source.split_once(&format!("pub enum {name} {{\n")).expect("the enum is in this file");
    let (body, _) = rest.split_once("\n}\n").expect("the enum ends");
    let lines = body.lines().filter_map(|line| line.strip_prefix("    "));
    let starts = lines.filter(|line| line.starts_with(|first: char| first.is_ascii_uppercase()));
    starts.map(|line| line.chars().take_while(char::is_ascii_alphanumeric).collect()).collect()
}

#[test]
fn every_kind_of_object_is_explained() {
    let page = text("docs/format/repository.md");
    let sources = [sources("core/src/format"), sources("core/engine/src")].concat();
    let kinds: Vec<&str> = sources.iter().flat_map(|source| quoted(source, "const KIND: &'static str = \"")).collect();
    assert!(kinds.len() >= 13, "only {kinds:?} found in the sources");
    for kind in kinds {
        let told = page.contains(&format!("\n### {kind}\n")) || page.contains(&format!("of kind `{kind}`"));
        assert!(told, "repository.md does not explain objects of kind `{kind}`");
    }
}

#[test]
fn every_name_in_the_repository_is_shown() {
    let page = text("docs/format/repository.md");
    let id = |kind| OperationId::new(kind, 0x0190_f3a2_c4d5, 0x9f31_a2b7);
    let (backup, point, restore) = (id(OperationKind::Backup), id(OperationKind::Point), id(OperationKind::Restore));
    let (hash, node) = (ContentHash::of(b""), NodeId::new(1));
    let names = [
        keys::CLUSTER.to_owned(),
        keys::members(Membership::new(1)),
        keys::registration(backup),
        keys::epoch(backup, Epoch::new(2)),
        keys::plan(restore, hash),
        keys::in_doubt(restore),
        keys::opened(restore, NodeId::new(2)),
        keys::outcome(point),
        keys::incarnation(Incarnation::new(2)),
        keys::name(&"before-migration".parse().unwrap(), 0),
        keys::condemned(0),
        keys::digest(OperationKind::Point, 64, hash),
        keys::manifest(backup, hash),
        keys::files(backup, node, hash),
        keys::pack(backup, node, 0, 0xabcd),
        keys::wal(Incarnation::new(1), ThreadId::new(2), TimelineId::new(1), Lsn::new(0x1_0000_1000)),
        keys::hole(Incarnation::new(1), ThreadId::new(2), TimelineId::new(1), Lsn::new(0x1_0000_2000)),
    ];
    for name in &names {
        let shown = name.replace(&hash.to_string(), "HASH");
        assert!(page.contains(&format!("| `{shown}` |")), "repository.md does not show `{shown}`");
    }
    // A folder that this test does not know is found in the source.
    let source = text("core/src/format/keys.rs");
    let folders = source.split('"').skip(1).step_by(2).filter_map(|literal| literal.split_once('/'));
    let folders: Vec<&str> = folders.map(|(folder, _)| folder).filter(|folder| !folder.contains('{')).collect();
    assert!(folders.len() >= 12, "only {folders:?} found in the source");
    for folder in folders {
        assert!(names.iter().any(|name| name.starts_with(&format!("{folder}/"))), "`{folder}/` is not tried here");
    }
}

#[test]
fn every_golden_is_an_example() {
    let page = text("docs/format/repository.md");
    let mut seen = 0;
    for entry in fs::read_dir(root().join("snapshots/formats")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap().to_owned();
        let snapshot = fs::read_to_string(&path).unwrap();
        let (_, golden) = snapshot.trim_start_matches("---\n").split_once("---\n").expect("a snapshot has a head");
        seen += 1;
        if page.contains(&format!("```json\n{golden}")) {
            continue;
        }
        let (_, rest) = page.split_once(&format!("```json {name}\n")).unwrap_or_else(|| panic!("{name} is not shown"));
        let (example, _) = rest.split_once("\n```\n").expect("the example ends");
        let example: Value = serde_json::from_str(example).unwrap_or_else(|error| panic!("{name}: {error}"));
        let golden: Value = serde_json::from_str(golden).unwrap();
        assert_eq!(golden.get("body"), Some(&example), "{name} is shown with another body");
        // The recipe of the page, step by step.
        let told = |key: &str| golden.get(key).cloned().unwrap();
        let spelled = format!("{} {} {example}", told("format_version"), told("kind").as_str().unwrap());
        assert_eq!(told("checksum"), ContentHash::of(spelled.as_bytes()).to_string(), "{name}");
    }
    assert!(seen >= 14, "{seen} goldens");
}

#[test]
fn every_message_is_in_its_place() {
    let (page, source) = (text("docs/format/wire.md"), text("core/src/request.rs"));
    let (_, words) = source.split_once("pub const fn word(&self)").expect("requests have words");
    let (words, _) = words.split_once("\n    }\n").expect("the function ends");
    let words: Vec<String> = quoted(words, "=> \"").into_iter().map(str::to_owned).collect();
    let requests = variants(&source, "Request");
    assert_eq!(words.len(), requests.len(), "each request has a word, in the order of the enum");
    for (word, request) in words.iter().zip(&requests) {
        assert_eq!(word.replace('-', ""), request.to_lowercase(), "the order of the words is that of the requests");
    }
    let tables =
        [("Requests", words), ("Answers", variants(&source, "Answer")), ("Failures", variants(&source, "Failure"))];
    for (heading, expected) in tables {
        let (_, rest) = page.split_once(&format!("\n## {heading}\n")).expect("the page has this section");
        let section = rest.split("\n## ").next().unwrap_or_default();
        let row = |line: &str| {
            let mut cells = line.strip_prefix("| ")?.split(" | ");
            let number: usize = cells.next()?.parse().ok()?;
            Some((number, cells.next()?.trim_matches('`').to_owned()))
        };
        let rows: Vec<(usize, String)> = section.lines().filter_map(row).collect();
        let expected: Vec<(usize, String)> = expected.into_iter().enumerate().collect();
        assert_eq!(rows, expected, "{heading} of wire.md");
    }
}

/// The numbers in the tables are those on the wire.
#[test]
fn a_variant_starts_with_its_number() {
    let failed: Result<(), Failure> = Err(Failure::Broken("x".into()));
    for (message, body) in [
        (wire::encode(&Request::Describe).unwrap(), &[0, 0][..]),
        (wire::encode(&Request::DropPin { name: "x".into() }).unwrap(), &[0, 22, 1, b'x'][..]),
        (wire::encode(&failed).unwrap(), &[0, 1, 2, 1, b'x'][..]),
    ] {
        let length = u8::try_from(body.len()).unwrap();
        let expected = [&[length, 0, 0, 0][..], &crc32c::crc32c(body).to_le_bytes(), body].concat();
        assert_eq!(message, expected);
    }
}

#[test]
fn the_pages_name_the_versions_and_the_bounds() {
    let (repository, wire_page) = (text("docs/format/repository.md"), text("docs/format/wire.md"));
    assert!(repository.contains(&format!("Version **{}**", format::VERSION)));
    assert!(repository.contains(&format!("at most {} |", wal::HEADER_BYTES_MAX)));
    assert!(wire_page.contains(&format!("Version **{}**", wire::VERSION)));
    assert!(wire_page.contains(&format!("at most {} MiB", wire::FRAME_BYTES_MAX >> 20)));
}

/// No promise without something that shows it: every story and every test that the page names is there, and every story
/// is named.
#[test]
fn every_promise_is_shown_by_something_that_exists() {
    let (page, registry) = (text("docs/guarantees.md"), text("scenarios/src/registry.rs"));
    let mut stories = quoted(&registry, "            \"");
    // Long ones are told by name only.
    stories.extend(quoted(&registry, "Scenario { name: \""));
    assert!(stories.len() >= 7, "only {stories:?} found in the registry");
    for story in &stories {
        assert!(page.contains(&format!("`{story}`")), "guarantees.md does not name the story `{story}`");
    }
    let tests = sources("core");
    let named = |mark: char| page.split('`').skip(1).step_by(2).filter(move |name| name.matches(mark).count() >= 3);
    for name in named('_') {
        let start = name.strip_suffix('…').map_or_else(|| format!("fn {name}("), |start| format!("fn {start}"));
        assert!(tests.iter().any(|source| source.contains(&start)), "there is no test `{name}`");
    }
    for name in named('-').filter(|name| !name.contains(' ')) {
        let known = stories.contains(&name) || planted::Bug::ALL.iter().any(|(bug, _)| *bug == name);
        assert!(known, "there is no story `{name}`");
    }
    for (bug, _) in planted::Bug::ALL {
        assert!(page.contains(&format!("`{bug}`")), "guarantees.md does not say who sees the planted bug `{bug}`");
    }
}

/// Every fault that others shipped (`L`) and every schedule that broke a draft (`D`) has a row that says what answers it:
/// a row with a tag and, in its last cell, a story or a test.
#[test]
fn every_known_fault_and_schedule_has_a_row() {
    let page = text("docs/guarantees.md");
    let shows = |row: &str| row.rsplit('|').nth(1).is_some_and(|cell| cell.contains('`'));
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| ") && shows(line)).collect();
    let words = |row: &str| -> Vec<String> {
        row.split(|letter: char| !letter.is_ascii_alphanumeric()).map(str::to_owned).collect()
    };
    let told: Vec<String> = rows.iter().flat_map(|row| words(row)).collect();
    let faults = (1..=18).map(|number| format!("L{number}"));
    let schedules = (1..=18).filter(|number| ![10, 11].contains(number)).map(|number| format!("D{number}"));
    for tag in faults.chain(schedules) {
        assert!(told.contains(&tag), "guarantees.md has no row with `{tag}` and what shows it");
    }
}

/// The tests that `models.md` names are there, and it names all of them.
#[test]
fn every_model_is_explained() {
    let page = text("docs/models.md");
    let models: Vec<String> = sources("core/tests/model");
    let mut seen = 0;
    for name in
        models.iter().flat_map(|source| source.split("#[test]\nfn ").skip(1)).filter_map(|rest| rest.split('(').next())
    {
        assert!(page.contains(&format!("`{name}`")), "models.md does not name the test `{name}`");
        seen += 1;
    }
    let named = page.split('`').skip(1).step_by(2).filter(|name| name.matches('_').count() >= 3);
    assert_eq!(named.count(), seen, "models.md names a test that is not there");
}

#[test]
fn the_layouts_of_refdb_are_those_of_its_sources() {
    let page = text("docs/format/refdb.md");
    for file in ["record", "frame"] {
        let source = text(&format!("core/refdb/src/{file}.rs"));
        let layout = source.lines().find_map(|line| line.strip_prefix("//! length u32 | ")).expect("a layout");
        assert!(page.contains(&format!("\nlength u32 | {layout}\n")), "{file}.rs has another layout: {layout}");
    }
    let source = text("core/refdb/src/page.rs");
    let bytes = source.split("PAGE_BYTES: usize = ").nth(1).and_then(|rest| rest.split(';').next()).unwrap();
    assert!(page.contains(&format!("\n{bytes} bytes each, at ")), "a page has {bytes} bytes");
}
