//! `cargo xtask replay`: a run again, from its plan file or from its seed, with the folder that shows it.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::artefact::{self, Recorded};
use crate::backends::Simulator;
use crate::case::Case;
use crate::{EVERY, agree, chosen};

/// What to run again.
#[derive(Debug, clap::Args)]
pub struct Replay {
    /// A plan file, as in the folder of a failure, or a seed.
    pub what: String,
    /// With a seed: the story; all of them if none is named.
    pub story: Option<String>,
    /// The simulator; with a plan file: another than the recorded one. `all`: the run is taken to all of them, and the
    /// verdicts are compared.
    #[arg(long)]
    pub backend: Option<String>,
    /// With a seed: the bug to plant, by name.
    #[arg(long)]
    pub planted: Option<String>,
    /// The folder to write into; `target/sim/STORY-SEED` if none is named.
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// Runs it again. Answers whether it passed, and was the recorded run to the last event.
pub fn replay(asked: &Replay) -> Result<bool> {
    let everywhere = asked.backend.as_deref() == Some(EVERY);
    if everywhere {
        agree::all_are_here()?;
    }
    let cases = cases(asked)?;
    if asked.out.is_some() && cases.len() > 1 {
        bail!("--out names one folder, and there are {} stories: name one", cases.len());
    }
    let mut good = true;
    for case in &cases {
        let folder = asked.out.clone().unwrap_or_else(|| artefact::folder(case));
        let run = Recorded::of(case)?;
        run.write(&folder)?;
        let (invariant, ..) = artefact::judged(&run.report.verdict);
        let verdict = if run.report.verdict.is_ok() { "passed" } else { "FAILED" };
        let hash = &run.report.trace_hash;
        println!("{verdict}  {} seed {} on {}: {invariant}", case.story, case.seed, case.backend);
        println!("        trace {hash}, {} events; {}", run.report.events, folder.display());
        // A fault on a host that is not there, or at a pass that is never reached, strikes nobody.
        let planned = case.plan.faults.len();
        if planned > 0 {
            println!("        {} of {planned} planned faults struck", planned.saturating_sub(run.report.unstruck));
        }
        good &= run.report.verdict.is_ok();
        if let Some(recorded) = case.trace_hash.as_ref().filter(|recorded| *recorded != hash) {
            let (then, now) = (case.commit.as_deref().unwrap_or("unknown"), artefact::commit());
            eprintln!("not the same run: the recorded trace is {recorded}, made at {then}; this is {now}");
            good = false;
        } else if case.trace_hash.is_some() {
            println!("        the same run as recorded, event by event");
        }
        if everywhere {
            good &= agree::replay(&run)?;
        }
    }
    Ok(good)
}

pub fn cases(asked: &Replay) -> Result<Vec<Case>> {
    let simulator = asked.backend.as_deref().filter(|name| *name != EVERY).map(Simulator::named).transpose()?;
    let Ok(seed) = asked.what.parse::<u64>() else {
        if asked.story.is_some() || asked.planted.is_some() {
            bail!("a plan file says itself which story and planted bug it is");
        }
        let recorded = Case::read(Path::new(&asked.what))?;
        let elsewhere = simulator.filter(|simulator| simulator.name() != recorded.backend);
        return Ok(vec![elsewhere.map_or_else(|| Ok(recorded.clone()), |simulator| recorded.carried_to(simulator))?]);
    };
    let simulator = simulator.unwrap_or(Simulator::DEFAULT);
    let of =
        |scenario: &sheetanchor_scenarios::Scenario| Case::of(scenario.name, seed, simulator, asked.planted.as_deref());
    let cases: Vec<Case> = chosen(asked.story.as_deref())?.iter().map(of).collect();
    for case in &cases {
        case.cast()?;
    }
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(what: &str, story: Option<&str>) -> Replay {
        Replay { what: what.into(), story: story.map(Into::into), backend: None, planted: None, out: None }
    }

    #[test]
    fn the_folder_of_a_planted_failure_replays_to_the_same_hash() {
        let folder = std::env::temp_dir().join(format!("sheetanchor-artefact-{}", std::process::id()));
        let by_seed = Replay {
            planted: Some("no-fence".into()),
            out: Some(folder.clone()),
            ..asked("1", Some("a-cut-is-causal-for-sessions-that-carry-nothing"))
        };
        let case = cases(&by_seed).unwrap().remove(0);
        // The first seed that sees the bug.
        let failed = (1..40).find_map(|seed| {
            let run = Recorded::of(&Case { seed, ..case.clone() }).unwrap();
            run.report.verdict.is_err().then_some(run)
        });
        let failed = failed.expect("a planted bug is seen");
        failed.write(&folder).unwrap();
        let plan = folder.join("plan.json");
        let read = cases(&asked(plan.to_str().unwrap(), None)).unwrap().remove(0);
        assert_eq!(read, failed.case);
        let again = Recorded::of(&read).unwrap();
        assert_eq!(again.report.trace_hash, failed.report.trace_hash);
        assert_eq!(again.recording.events, failed.recording.events);
        assert!(again.report.verdict.is_err());
        // Without the bug it is another run.
        let mended = Recorded::of(&Case { planted: None, ..read.clone() }).unwrap();
        assert_ne!(mended.report.trace_hash, failed.report.trace_hash);
        assert!(mended.report.verdict.is_ok());
        // A record of another run is noticed.
        let other = Case { trace_hash: Some("0123456789abcdef".into()), planted: None, ..read };
        std::fs::write(&plan, serde_json::to_string(&other).unwrap()).unwrap();
        assert!(!replay(&Replay { out: Some(folder.clone()), ..asked(plan.to_str().unwrap(), None) }).unwrap());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_story_of_another_name_is_refused() {
        let answer = cases(&asked("7", Some("a-backup-is-restord"))).unwrap_err().to_string();
        assert!(answer.contains("did you mean `a-backup-is-restored-and-read`"), "{answer}");
        assert!(cases(&asked("no-such-file.json", None)).is_err());
        assert!(cases(&asked("no-such-file.json", Some("a-backup-is-restored-and-read"))).is_err());
    }
}
