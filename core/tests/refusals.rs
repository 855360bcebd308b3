//! `docs/refusals.md` says what the catalogue says. `UPDATE_DOCS=1 cargo test -p sheetanchor-core --test refusals`
//! writes it anew.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test that reads and writes a page of the documentation"
)]

use std::fmt::Write as _;
use std::{env, fs};

use sheetanchor_core::refusal::Code;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

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

/// What provokes each code in earnest: the file that tells it, and the test there, or the story. The first test of many.
const PROVOKED: &[(&str, &str, &str)] = &[
    ("0A000", "core/cli/tests/postgres.rs", "three_primaries_under_pgbench_restore_to_their_own_cuts"),
    ("SA001", "core/cli/tests/damage.rs", "what_is_no_message_is_refused_and_the_next_one_is_answered"),
    ("SA002", "core/cli/tests/refdb.rs", "a_damaged_or_truncated_manifest_is_refused"),
    ("SA003", "core/cli/tests/refdb.rs", "a_damaged_or_truncated_manifest_is_refused"),
    ("SA004", "core/cli/tests/damage.rs", "what_is_no_message_is_refused_and_the_next_one_is_answered"),
    ("SA005", "core/cli/tests/damage.rs", "what_is_no_message_is_refused_and_the_next_one_is_answered"),
    ("SA006", "core/cli/tests/damage.rs", "a_pack_with_a_flipped_byte_is_refused"),
    ("SA007", "core/cli/tests/damage.rs", "a_page_that_fails_its_checksum_is_not_backed_up"),
    ("SA008", "scenarios/src/stories/capture.rs", "refuses_a_file_that_shrank"),
    ("SA009", "scenarios/src/stories/damage.rs", "is_read_again"),
    ("SA101", "core/cli/tests/usage.rs", "a_cluster_file_that_is_not_valid_is_refused_before_anything_is_done"),
    ("SA102", "core/cli/tests/damage.rs", "a_repository_without_a_cluster_is_refused"),
    ("SA103", "core/cli/tests/refdb.rs", "a_second_init_changes_nothing_and_another_cluster_is_refused"),
    ("SA104", "core/cli/tests/refdb.rs", "a_node_of_another_cluster_is_refused"),
    ("SA105", "core/cli/tests/refdb.rs", "a_node_that_the_cluster_file_lacks_is_refused"),
    ("SA106", "core/cli/tests/refdb.rs", "a_name_is_used_once"),
    ("SA107", "core/cli/tests/refdb.rs", "two_nodes_with_one_identity_are_refused"),
    ("SA108", "scenarios/src/stories/catalog.rs", "answers_every_request"),
    ("SA109", "core/refdb/src/state.rs", "a_wall_clock_that_jumps_stops_stamping_and_one_that_drifts_does_not"),
    (
        "SA110",
        "core/refdb/src/state.rs",
        "nothing_is_stamped_before_a_ceiling_is_durable_and_half_the_reserve_renews_it",
    ),
    ("SA111", "core/cli/tests/usage.rs", "a_cluster_file_that_is_not_valid_is_refused_before_anything_is_done"),
    ("SA112", "scenarios/src/stories/catalog.rs", "answers_every_request"),
    ("SA113", "core/cli/tests/refdb.rs", "two_nodes_with_one_identity_are_refused"),
    ("SA114", "core/native/tests/postgres/tls.rs", "a_server_that_is_not_as_safe_as_it_must_be_is_refused"),
    ("SA115", "core/native/tests/postgres/privileges.rs", "what_a_role_lacks_is_said_as_sql_and_then_it_suffices"),
    ("SA201", "core/cli/tests/refdb.rs", "an_agent_ends_in_order_and_a_silent_node_is_shown"),
    ("SA202", "scenarios/src/stories/operations.rs", "obey_the_newer_term"),
    ("SA203", "core/refdb/tests/restore.rs", "a_restart_ends_backups_and_holds"),
    ("SA204", "core/refdb/tests/restore.rs", "a_restart_ends_backups_and_holds"),
    ("SA205", "core/refdb/tests/cluster.rs", "commits_wait_for_the_fence_and_reads_do_not"),
    ("SA206", "scenarios/src/stories/operations.rs", "open_a_fence_whose_session_is_gone"),
    ("SA207", "scenarios/src/stories/refusals.rs", "change_nothing"),
    ("SA208", "core/cli/tests/refdb.rs", "what_is_not_there_is_refused"),
    ("SA209", "scenarios/src/stories/catalog.rs", "answers_every_request"),
    ("SA210", "scenarios/src/stories/backup.rs", "survives_a_node_that_crashes_during_capture"),
    ("SA211", "core/tests/machines/point.rs", "a_cut_never_lies_below_what_the_backup_has_seen"),
    ("SA212", "core/cli/tests/refdb.rs", "an_interrupted_backup_leaves_no_pin"),
    ("SA213", "core/cli/tests/refdb.rs", "a_name_is_used_once"),
    ("SA214", "scenarios/src/stories/expiry.rs", "is_refused_while_something_has_no_outcome"),
    ("SA301", "core/cli/tests/refdb.rs", "what_is_not_there_is_refused"),
    ("SA302", "core/cli/tests/refdb.rs", "what_is_not_there_is_refused"),
    ("SA303", "core/cli/tests/damage.rs", "a_point_beyond_the_archive_is_refused"),
    ("SA304", "core/cli/tests/refdb.rs", "what_is_not_there_is_refused"),
    ("SA305", "scenarios/src/stories/lineage.rs", "is_opened_again_from_its_past"),
    ("SA306", "scenarios/src/stories/lineage.rs", "is_opened_again_from_its_past"),
    ("SA307", "core/src/plan/choose/tests.rs", "without_stamps_only_cuts_are_targets"),
    ("SA401", "core/cli/tests/refdb.rs", "a_folder_that_is_not_empty_is_refused"),
    ("SA402", "core/tests/machines/restore.rs", "a_restore_that_lost_the_incarnation_opens_nothing"),
    ("SA403", "core/refdb/tests/restore.rs", "what_is_missing_or_damaged_is_refused"),
    ("SA404", "core/refdb/tests/restore.rs", "what_is_missing_or_damaged_is_refused"),
    ("SA405", "core/refdb/tests/restore.rs", "what_is_missing_or_damaged_is_refused"),
    ("SA406", "scenarios/src/stories/restore.rs", "leaves_the_folder_of_another_alone"),
    ("SA407", "core/native/tests/postgres/bridge.rs", "what_cannot_be_done_is_refused"),
    ("SA408", "core/native/tests/postgres/bridge.rs", "recovery_ends_at_the_cut_or_refuses"),
    ("SA409", "scenarios/src/stories/forward.rs", "refuses_to_put_back_what_had_opened"),
    ("SA410", "scenarios/src/stories/forward.rs", "stages_again_what_was_lost_before_it_opened"),
    ("SA411", "core/cli/tests/clone.rs", "a_source_that_cannot_be_written_to_is_cloned_only_unheld"),
    ("SA412", "core/cli/tests/clone.rs", "a_cluster_is_cloned_while_it_works"),
    ("SA413", "scenarios/src/stories/delta.rs", "keeps_what_is_right"),
    ("SA414", "scenarios/src/stories/delta.rs", "keeps_what_is_right"),
    ("SA415", "core/native/tests/postgres/afar.rs", "what_a_server_sends_is_what_an_agent_beside_it_finds"),
    ("SA501", "core/cli/tests/refdb.rs", "a_missing_piece_of_wal_is_refused"),
    ("SA502", "core/cli/tests/damage.rs", "wal_of_a_second_writer_in_the_archive_is_refused"),
    ("SA503", "core/tests/machines/backup.rs", "whatever_fails_nobody_unpins_before_failure_is_the_outcome"),
    ("SA504", "core/refdb/tests/crash.rs", "damage_before_the_durable_end_is_refused"),
    ("SA505", "core/cli/tests/refdb.rs", "a_full_disk_is_refused"),
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

/// No code without something that provokes it. A new code needs a row in [`PROVOKED`], and the test or story that it names.
#[test]
fn every_code_is_provoked() {
    for code in Code::ALL {
        let rows = PROVOKED.iter().filter(|(provoked, _, _)| *provoked == code.as_str()).count();
        assert_eq!(rows, 1, "{code} needs one row that says what provokes it");
    }
    for (code, path, test) in PROVOKED {
        let source = fs::read_to_string(format!("{ROOT}/{path}")).expect("the file that the row names");
        let start = source.find(&format!("fn {test}(")).unwrap_or_else(|| panic!("there is no `{test}` in {path}"));
        let body = source[start..].split("\n}\n").next().unwrap_or_default();
        let code = Code::parse(code).unwrap_or_else(|| panic!("there is no code {code}"));
        // The name of the variant, or the code itself, stands in what the test asserts.
        let named = [format!("\"{code}\""), format!("Code::{code:?}")];
        let tells = |text: &str| named.iter().any(|name| text.contains(name));
        assert!(tells(body), "`{test}` in {path} does not assert {code}");
    }
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
    page.push_str("\n## What provokes each\n\n");
    page.push_str(
        "Each code is raised in earnest by a test or a story, and asserted there by its name. A test counts.\n\n",
    );
    page.push_str("| Code | Provoked by | In |\n|---|---|---|\n");
    for code in Code::ALL {
        for (_, path, test) in PROVOKED.iter().filter(|(provoked, _, _)| *provoked == code.as_str()) {
            writeln!(page, "| `{code}` | `{test}` | [`{path}`](../{path}) |").unwrap();
        }
    }
    page
}

/// A bar would end the cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
