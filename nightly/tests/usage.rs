//! Bad input: each is answered with what is wrong and the nearest known name, exit status 2, and nothing is run.

#![allow(clippy::expect_used, reason = "a test may stop at what it did not expect")]

use std::process::Command;

/// Runs the runner. Answers its exit status, what it wrote to standard output, and what to standard error.
fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sheetanchor-nightly")).args(arguments).output().expect("it starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn refused(arguments: &[&str], expected: &str) {
    let (status, out, err) = run(arguments);
    assert_eq!((status, out.as_str()), (Some(2), ""), "{arguments:?}: {err}");
    assert!(err.contains(expected), "{arguments:?}: {err}");
}

#[test]
fn what_is_not_known_is_answered_with_the_nearest_name() {
    refused(&["sim", "a-backup-is-restord"], "did you mean `a-backup-is-restored-and-read`");
    refused(&["swarm", "a-backup-is-restord"], "did you mean `a-backup-is-restored-and-read`");
    refused(&["sweep", "a-backup-is-restord"], "did you mean `a-backup-is-restored-and-read`");
    refused(&["replay", "7", "a-backup-is-restord"], "did you mean `a-backup-is-restored-and-read`");
    refused(&["sim", "--backend", "tormoil"], "did you mean `turmoil`");
    refused(&["swarm", "--backend", "madsimm"], "did you mean `madsim`");
    refused(&["replay", "7", "--backend", "ovn"], "did you mean `own`");
    refused(&["mutants", "no-fense"], "did you mean `no-fence`");
    refused(&["sim", "--planted", "no-pins"], "did you mean `no-pin`");
    refused(&["hunt", "no-pins", "a-backup-is-restored-and-read"], "did you mean `no-pin`");
}

#[test]
fn seeds_and_times_of_no_known_form_are_refused() {
    refused(&["sim", "--seed", "0x7"], "invalid value '0x7'");
    refused(&["sim", "--seeds", "many"], "invalid value 'many'");
    refused(&["swarm", "--for", "10"], "no time");
    refused(&["nightly", "--for", "soon"], "a time");
    // What is no number is taken for a plan file.
    refused(&["replay", "0x7"], "cannot read 0x7");
    refused(&["sweep", "--depth", "3"], "invalid value '3'");
    refused(&["swimm"], "unrecognized subcommand 'swimm'");
}

#[test]
fn to_run_nothing_is_no_success() {
    for nothing in [["--seeds", "0"], ["--for", "0s"], ["--seed", "18446744073709551615"]] {
        let (status, _, err) = run(&["swarm", nothing[0], nothing[1]]);
        assert!(status == Some(2) && err.contains("no seed was run"), "{nothing:?}: {status:?}: {err}");
    }
}

#[test]
fn plans_that_cannot_be_run_are_refused() {
    let folder = std::env::temp_dir().join(format!("sheetanchor-plans-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("plan.json");
    let plan = |version: u64, word: &str| {
        format!(
            r#"{{"plan_version":{version},"story":"a-backup-is-restored-and-read","seed":7,"backend":"own","plan":{{"faults":[{{"fault":"{word}","at":{{"host":"n1","event":{{"pass":3}}}}}}]}}}}"#
        )
    };
    for (text, expected) in [
        (plan(9, "sync-failed"), "its version is 9; this program reads version 0"),
        (plan(0, "sink-failed"), "did you mean `sync-failed`"),
        ("{}".to_string(), "no `plan_version`"),
        ("plan".to_string(), "not JSON"),
    ] {
        std::fs::write(&path, text).expect("a file");
        refused(&["replay", path.to_str().expect("a name")], expected);
    }
    std::fs::remove_dir_all(&folder).expect("the folder goes");
}

#[test]
fn all_backends_need_a_build_that_has_them() {
    let (status, out, err) = run(&["swarm", "--backend", "all", "--seeds", "1"]);
    // In a build with `--cfg madsim` it runs.
    let ran = status == Some(0) && out.contains("madsim");
    assert!(ran || (status == Some(2) && err.contains("this build has no madsim")), "{status:?}: {out}{err}");
}
