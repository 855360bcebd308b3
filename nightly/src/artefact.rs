//! The folder of one failed run: everything that a person needs who did not see it happen.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use sheetanchor_scenarios::Report;
use sheetanchor_sim::oracle::{fence, ledger, replay, wal};
use sheetanchor_sim::recording::Recording;
use sheetanchor_sim::world::Failure;

use crate::case::Case;

pub mod lines;

mod board;

mod messages;

mod drawing;

mod nearest;

mod page;

pub use drawing::escaped;

#[cfg(test)]
mod sample;

/// A run that was recorded in full.
#[derive(Debug)]
pub struct Recorded {
    /// How to run it again, with the hash and the commit of this run.
    pub case: Case,
    /// How it ended.
    pub report: Report,
    /// All that happened.
    pub recording: Recording,
}

impl Recorded {
    /// Runs a case.
    pub fn of(case: &Case) -> Result<Self> {
        let (report, recording) = case.run()?;
        let case = Case { trace_hash: Some(report.trace_hash.clone()), commit: Some(commit()), ..case.clone() };
        Ok(Self { case, report, recording })
    }

    /// Writes the folder, and replaces what an earlier run of the same case has left there.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let put = |name: &str, text: String| {
            fs::write(folder.join(name), text).with_context(|| format!("cannot write {name} in {}", folder.display()))
        };
        put("plan.json", serde_json::to_string_pretty(&self.case)? + "\n")?;
        put("violation.txt", self.violation())?;
        put("trace.jsonl", lines::render(&self.case, &self.recording)?)?;
        let difference = if self.report.verdict.is_err() { nearest::difference(self)? } else { None };
        put("timeline.html", page::render(self, difference.as_ref()))?;
        put("repro.sh", self.script())?;
        executable(&folder.join("repro.sh"))
    }

    /// The invariant in words, who judged, and the way back.
    pub fn violation(&self) -> String {
        let (invariant, detail, judge) = judged(&self.report.verdict);
        let Case { story, seed, backend, planted, trace_hash, commit, .. } = &self.case;
        let planted = planted.as_deref().map_or_else(String::new, |bug| format!("planted bug:  {bug}\n"));
        format!(
            "{invariant}\n\n  {detail}\n\njudged by:    {judge}\nstory:        {story}\nseed:         {seed}\nbackend:      {backend}\n{planted}trace:        {trace} ({events} events)\ncommit:       {commit}\n\nlast milestones:\n{last}",
            trace = trace_hash.as_deref().unwrap_or("-"),
            events = self.report.events,
            commit = commit.as_deref().unwrap_or("-"),
            last = tail(&self.report.timeline, 25),
        )
    }

    fn script(&self) -> String {
        let commit = self.case.commit.as_deref().unwrap_or("unknown");
        format!(
            "#!/bin/sh\n# Runs this failure again, event by event: exit status 1 if it fails as it did, 0 if it passes.\n\
             # It was run at commit {commit}; from there the trace is the same to the last event.\n\
             plan=$(cd \"$(dirname \"$0\")\" && pwd)/plan.json\nexec cargo xtask replay \"$plan\" \"$@\"\n"
        )
    }
}

/// Where the folder of a case goes unless somebody says otherwise, from the root of the repository.
pub fn folder(case: &Case) -> PathBuf {
    let planted = case.planted.as_deref().map_or_else(String::new, |bug| format!("-{bug}"));
    PathBuf::from(format!("target/sim/{}-{}{planted}", case.story, case.seed))
}

/// The invariant, what was seen instead, and who judged.
pub fn judged(verdict: &std::result::Result<(), Failure>) -> (String, String, &'static str) {
    match verdict {
        Ok(()) => ("nothing was violated".into(), "the run passed".into(), "nobody"),
        Err(Failure::Violated(violation)) => {
            let invariant = violation.invariant;
            (invariant.into(), violation.detail.clone(), oracle(invariant))
        }
        Err(Failure::Stuck { what, waited }) => (
            "whatever begins ends within its bound".into(),
            format!("waited {waited:?} of simulated time for {what}"),
            "the liveness bound of the story",
        ),
        Err(Failure::Panicked(panic)) => {
            ("no code of ours panics".into(), panic.clone(), "the panic hook of the simulator")
        }
        Err(Failure::Backend(why)) => ("the simulator itself works".into(), why.clone(), "the backend"),
    }
}

fn oracle(invariant: &str) -> &'static str {
    match invariant {
        known if ledger::ALL.contains(&known) => "the ledger, an oracle (sim/src/oracle/ledger.rs)",
        fence::WITHIN_THE_LEASE => "the fence lease, an oracle (sim/src/oracle/fence.rs)",
        wal::NEVER_UNDER_A_PIN => "WAL kept, an oracle (sim/src/oracle/wal.rs)",
        replay::SAME_RUN => "the second run of the same seed (sim/src/oracle/replay.rs)",
        _ => "the story itself (scenarios/src)",
    }
}

fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n") + "\n"
}

/// The commit of the working tree, marked if it has changes; `unknown` outside of a git repository.
pub fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]).output();
    let named = output.ok().filter(|output| output.status.success());
    let text = named.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    if text.trim().is_empty() { "unknown".into() } else { text.trim().into() }
}

#[cfg(unix)]
fn executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", path.display()))
}

#[cfg(not(unix))]
fn executable(_: &Path) -> Result<()> {
    Ok(())
}
