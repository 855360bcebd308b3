//! What is said before anything is done: help, wrong usage, a cluster file that is not valid.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests may be blunt")]
#![allow(clippy::format_push_string, reason = "tests may be blunt")]

mod site;

use std::fs;

use sheetanchor_snapshots::assert_snapshot;
use site::{Site, program, said};

const GROUPS: &[&[&str]] = &[
    &[],
    &["agent"],
    &["backup"],
    &["restore-point"],
    &["restore-point", "create"],
    &["restore"],
    &["pins"],
    &["abort"],
    &["expire"],
    &["verify"],
    &["demo"],
];

#[test]
fn every_command_explains_itself() {
    let mut all = String::new();
    for group in GROUPS {
        let help = said(program().args(*group).arg("-h")).done();
        all += &format!("$ sheetanchor {}\n{help}\n", [*group, &["-h"]].concat().join(" "));
    }
    assert_snapshot!("cli", "help", all);
}

#[test]
fn the_readme_lists_every_command() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).unwrap();
    let help = said(program().arg("-h")).done();
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names: Vec<&str> = listed.map_while(|line| line.split_whitespace().next()).collect();
    assert!(names.contains(&"backup") && names.len() > 10, "{names:?}");
    for name in names.into_iter().filter(|name| *name != "help") {
        let told = [format!("| `sheetanchor {name}"), format!("`, `{name}`")];
        assert!(told.iter().any(|told| readme.contains(told.as_str())), "the table of README.md lacks `{name}`");
    }
}

#[test]
fn wrong_usage_ends_with_two() {
    for wrong in [
        &[][..],
        &["frobnicate"],
        &["backup", "--cut", "sometimes"],
        &["backup", "--rate", "0MB/s"],
        &["backup", "--rate", "fast"],
        &["backup", "--compression", "gzip"],
        &["restore", "--rate", "0MB/s"],
        &["restore", "--rate", "fast"],
        &["restore", "--rate", "1MB/s", "--dry-run"],
        &["restore", "--to", "yesterday"],
        &["restore", "--delta", "--clone"],
        &["restore", "--to", "latest", "--resume", "restore-0190f3a2c4d5-9f31a2b7"],
        &["agent"],
        &["expire"],
        &["expire", "--keep-backups", "0"],
        &["expire", "--keep-backups", "2", "--before", "2026-01-01T00:00:00Z"],
        &["agent", "--node", "x"],
        &["--log", "loudly", "status"],
    ] {
        let said = said(program().args(wrong));
        assert_eq!(said.status, 2, "{wrong:?}: {said:?}");
        assert!(said.out.is_empty() && (said.err.contains("--help") || said.err.contains("Usage")), "{said:?}");
    }
}

#[test]
fn the_version_is_that_of_the_package() {
    assert_eq!(said(program().arg("--version")).done(), format!("sheetanchor {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_cluster_file_that_is_not_valid_is_refused_before_anything_is_done() {
    let site = Site::refdb("usage");
    let sound = fs::read_to_string(site.path("cluster.toml")).unwrap();
    let commands: &[&[&str]] = &[&["init"], &["backup"], &["restore"], &["status"], &["agent", "--node", "1"]];
    for (from, to, code) in [
        ("engine = \"refdb\"", "engine = \"oracle\"", "SA101"),
        ("[[node]]", "[[node]]\ncolour = \"red\"", "SA101"),
        ("file://", "http://", "SA101"),
        ("id = 2", "id = 1", "SA107"),
        ("state-2", "state-1", "SA107"),
        ("agent = \"127.0.0.1", "agent = \"0.0.0.0", "SA111"),
    ] {
        assert!(sound.contains(from), "{from}");
        fs::write(site.path("cluster.toml"), sound.replacen(from, to, 1)).unwrap();
        for command in commands {
            site.run(command).refused(code);
        }
    }
    fs::remove_file(site.path("cluster.toml")).unwrap();
    for command in commands {
        site.run(command).refused("SA101");
    }
    assert!(!site::exists(site.repository()) && !site::exists(site.path("state-1")), "nothing was made");
}

#[test]
fn errors_are_json_where_results_are() {
    let site = Site::refdb("json");
    let said = site.run(&["--json", "--cluster", "nowhere.toml", "status"]);
    assert_eq!(said.status, 3);
    let error: serde_json::Value = serde_json::from_str(&said.err).unwrap();
    assert_eq!(error["error"]["code"], "SA101");
    assert_eq!(error["error"]["kind"], "refusal");
    assert!(said.out.is_empty() && error["error"]["hint"].is_string());
    // Nobody listens: the world's fault, said as the refusal of a silent node.
    let said = site.run(&["--json", "init"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&said.err).unwrap()["error"]["code"], "SA201");
}
