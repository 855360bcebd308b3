//! The steps, cheapest first: what is wrong is said as early as possible.

use std::num::NonZero;
use std::process::Command;

use anyhow::{Result, bail};

use super::counts::Runner;
use super::{Outcome, Postgres, Run, Step, shipped};
use crate::{programs, tidy, traces};

/// Seeds of the simulator in this gate; the nightly run draws many more.
const SEEDS: &str = "140";

/// The integration tests that run on real PostgreSQL servers are the test binaries of these names.
const POSTGRES_TESTS: [&str; 2] = ["postgres", "nemesis"];

/// Every step, in order.
pub const ALL: &[Step] = &[
    step("fmt", "the sources are formatted", fmt),
    step("tidy", "the rules that only this tree has", tidy),
    step("alone", "core and engine compile and lint by themselves", alone),
    step("clippy", "no lint fires anywhere", clippy),
    step("doc", "every item is documented, every link in it leads somewhere", doc),
    Step { needs_postgres: Postgres::Partly, ..step("test", "every test", test) },
    step("doctest", "every example in the documentation", doctest),
    step("sim", "backups survive crashes in the simulator, for some seeds", sim),
    step("sweep", "a backup survives a crash at any operation, for some of them", sweep),
    step("swarm", "a backup survives random faults, for some seeds", swarm),
    step("day", "a day of hourly backups and a restore point a minute ends in restores", day),
    step("mutants", "the simulator sees every bug that we plant", mutants),
    step("madsim", "every story on a second runtime that we did not write", madsim),
    step("backends", "one plan of faults has one verdict on every backend", backends),
    step("traces", "a seed is the same run in a debug and in a release build", traces),
    step("shipped", "the binary that we ship holds no planted bug", shipped::lacks_planted_bugs),
    step("deny", "licences and sources of what we depend on", deny),
    step("demo", "the main job, on the embedded database", demo),
    Step { needs_postgres: Postgres::Wholly, ..step("demo-pg", "the main job, on PostgreSQL servers", demo_postgres) },
];

const fn step(name: &'static str, proves: &'static str, run: fn(&mut Run) -> Result<Outcome>) -> Step {
    Step { name, proves, needs_postgres: Postgres::Unused, run }
}

fn fmt(run: &mut Run) -> Result<Outcome> {
    cargo(run, &["fmt", "--all", "--", "--check"])
}

fn tidy(run: &mut Run) -> Result<Outcome> {
    if !tidy::run(&run.root)? {
        bail!("see the findings above");
    }
    Ok(Outcome::Passed)
}

/// Alone, since in the whole workspace another package may have switched on what one of these forgot to ask for.
fn alone(run: &mut Run) -> Result<Outcome> {
    for package in ["sheetanchor-core", "sheetanchor-engine"] {
        cargo(run, &["clippy", "--package", package, "--", "--deny", "warnings"])?;
    }
    Ok(Outcome::Passed)
}

fn clippy(run: &mut Run) -> Result<Outcome> {
    cargo(run, &["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])
}

fn doc(run: &mut Run) -> Result<Outcome> {
    let mut command = programs::cargo(&run.root);
    command.args(["doc", "--workspace", "--no-deps", "--document-private-items"]);
    command.env("RUSTDOCFLAGS", "--deny warnings");
    passed(programs::run(&mut command))
}

fn test(run: &mut Run) -> Result<Outcome> {
    let mut command = programs::cargo(&run.root);
    let (on_servers, others): (Vec<String>, Vec<String>) =
        integration_tests(&run.root)?.into_iter().partition(|name| POSTGRES_TESTS.contains(&name.as_str()));
    let runner = if programs::succeeds(programs::cargo(&run.root).args(["nextest", "--version"])) {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get).saturating_mul(2).to_string();
        command.args(["nextest", "run", "--workspace", "--no-fail-fast", "--profile", "gate"]);
        command.args(["--test-threads", &threads]);
        // nextest refuses a filter that names nothing.
        if run.without_postgres && !on_servers.is_empty() {
            let others = on_servers.iter().map(|name| format!("not binary({name})"));
            command.args(["--filterset", &others.collect::<Vec<_>>().join(" and ")]);
        }
        Runner::Nextest
    } else {
        println!("cargo-nextest is not installed: `cargo test` does the same, more slowly");
        command.args(["test", "--workspace", "--no-fail-fast"]);
        if run.without_postgres {
            command.args(["--lib", "--bins"]);
            for name in others {
                command.args(["--test", &name]);
            }
        } else {
            // Not the examples in the documentation: they are a step of their own.
            command.arg("--all-targets");
        }
        Runner::Cargo
    };
    count(run, runner, &mut command)
}

fn doctest(run: &mut Run) -> Result<Outcome> {
    let mut command = programs::cargo(&run.root);
    command.args(["test", "--workspace", "--doc", "--no-fail-fast"]);
    count(run, Runner::Cargo, &mut command)
}

fn sim(run: &mut Run) -> Result<Outcome> {
    passed(programs::run(programs::simulator_command(&run.root, "sim").args(["--seeds", SEEDS])))
}

/// Every so many operations one is crashed, and some of those runs a second time.
const STRIDE: &str = "60";

fn sweep(run: &mut Run) -> Result<Outcome> {
    passed(programs::run(programs::simulator_command(&run.root, "sweep").args(["--stride", STRIDE, "--depth", "2"])))
}

fn swarm(run: &mut Run) -> Result<Outcome> {
    passed(programs::run(&mut programs::simulator_command(&run.root, "swarm")))
}

/// Twice, as every story is.
fn day(run: &mut Run) -> Result<Outcome> {
    passed(programs::run(programs::simulator_command(&run.root, "sim").arg("a-day-of-hourly-backups-ends-in-restores")))
}

fn mutants(run: &mut Run) -> Result<Outcome> {
    passed(programs::run(&mut programs::simulator_command(&run.root, "mutants")))
}

/// The cfg covers the whole build, hence a target folder of its own.
fn madsim(run: &mut Run) -> Result<Outcome> {
    let mut command = programs::cargo(&run.root);
    command.args(["test", "--package", "sheetanchor-sim-madsim", "--package", "sheetanchor-scenarios", "--tests"]);
    programs::under_madsim(&run.root, &mut command);
    let before = run.tests.ran();
    let outcome = count(run, Runner::Cargo, &mut command)?;
    if run.tests.ran() == before {
        bail!("no test ran under --cfg madsim");
    }
    Ok(outcome)
}

/// Plans that are drawn on one backend and taken to the others; the nightly run has more.
const PLANS: &str = "48";

/// As madsim's tests are built, without another profile: the build takes longer than the runs.
fn backends(run: &mut Run) -> Result<Outcome> {
    let mut command = programs::cargo(&run.root);
    command.args(["run", "--package", "sheetanchor-nightly", "--", "swarm", "--backend", "all", "--seeds", PLANS]);
    programs::under_madsim(&run.root, &mut command);
    passed(programs::run(&mut command))
}

/// Every story once, on the fast one; the nightly run has more.
fn traces(run: &mut Run) -> Result<Outcome> {
    passed(traces::compare(&run.root, 1, "own"))
}

fn deny(run: &mut Run) -> Result<Outcome> {
    if !programs::succeeds(programs::cargo(&run.root).args(["deny", "--version"])) {
        return Ok(Outcome::LeftOut("cargo-deny is not installed"));
    }
    cargo(run, &["deny", "check", "licenses", "bans", "sources"])
}

fn demo(run: &mut Run) -> Result<Outcome> {
    cargo(run, &["run", "--release", "--package", "sheetanchor", "--", "demo"])
}

fn demo_postgres(run: &mut Run) -> Result<Outcome> {
    cargo(run, &["run", "--release", "--package", "sheetanchor", "--", "demo", "--postgres"])
}

fn cargo(run: &Run, arguments: &[&str]) -> Result<Outcome> {
    passed(programs::run(programs::cargo(&run.root).args(arguments)))
}

fn passed(result: Result<()>) -> Result<Outcome> {
    result.map(|()| Outcome::Passed)
}

/// Runs tests and adds them up. A snapshot that differs is a failure here, never rewritten.
fn count(run: &mut Run, runner: Runner, command: &mut Command) -> Result<Outcome> {
    command.env("CI", "true").env("INSTA_UPDATE", "no").env("INSTA_FORCE_PASS", "0");
    passed(programs::run_reading(command, |line| run.tests.read(runner, line)))
}

/// The names of all integration tests: those of the files in the `tests` folders of the packages.
fn integration_tests(root: &std::path::Path) -> Result<Vec<String>> {
    let tree = tidy::Tree::read(root)?;
    let name = |path: &str| {
        let (package, name) = path.rsplit_once("/tests/")?;
        let name = name.strip_suffix(".rs").or_else(|| name.strip_suffix("/main.rs"))?;
        (tree.holds(&format!("{package}/Cargo.toml")) && !name.contains('/')).then(|| name.to_owned())
    };
    let mut names: Vec<String> = tree.files().iter().filter_map(|file| name(&file.path)).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integration_tests_are_found() {
        let names = integration_tests(&crate::root().unwrap()).unwrap();
        assert!(names.iter().any(|name| name == "refusals"), "{names:?}");
        assert!(!names.iter().any(|name| name == "mod"), "{names:?}");
    }
}
