//! One run as data: what `plan.json` in the folder of a failure holds, and what `cargo xtask replay` reads.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use sheetanchor_core::planted;
use sheetanchor_scenarios::{Report, Scenario, Telling};
use sheetanchor_sim::place::portable;
use sheetanchor_sim::plan::{Plan, Trigger};
use sheetanchor_sim::recording::Recording;

use crate::backends::Simulator;
use crate::{chosen, known_bug, nearest};

/// The version of plan files that this program writes, and the only one that it reads.
pub const PLAN_VERSION: u64 = 0;

/// A run that can be done again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Always [`PLAN_VERSION`].
    pub plan_version: u64,
    /// The name of the story.
    pub story: String,
    /// Where all chance of the run comes from.
    pub seed: u64,
    /// The name of the simulator.
    pub backend: String,
    /// The planted bug, by name.
    #[serde(default)]
    pub planted: Option<String>,
    /// Faults on top of those that the story itself draws from the seed.
    #[serde(default)]
    pub plan: Plan,
    /// Whether there are no faults but those of `plan`: else, if that has none, they are drawn from the seed.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub only_plan: bool,
    /// The most sessions that clients work with; as many as the story says if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions_max: Option<u64>,
    /// The hash over every event of the run, if it was run.
    #[serde(default)]
    pub trace_hash: Option<String>,
    /// The commit that it was run at.
    #[serde(default)]
    pub commit: Option<String>,
}

/// The story and the simulator of a case, found by their names.
#[derive(Clone, Copy, Debug)]
pub struct Cast {
    /// The story.
    pub scenario: Scenario,
    /// The simulator.
    pub simulator: Simulator,
}

impl Case {
    /// A run of a story without faults of its own.
    pub fn of(story: &str, seed: u64, simulator: Simulator, planted: Option<&str>) -> Self {
        Self {
            plan_version: PLAN_VERSION,
            story: story.into(),
            seed,
            backend: simulator.name().into(),
            planted: planted.map(str::to_string),
            plan: Plan::peaceful(),
            only_plan: false,
            sessions_max: None,
            trace_hash: None,
            commit: None,
        }
    }

    /// The same on another simulator, where it is another run.
    #[must_use]
    pub fn on(&self, simulator: Simulator) -> Self {
        Self { backend: simulator.name().into(), trace_hash: None, commit: None, ..self.clone() }
    }

    /// The same on another simulator, with its faults told by places: the number of a pass says nothing there. It is run once
    /// where it was found for that. Faults that are drawn are drawn there anew.
    pub fn carried_to(&self, simulator: Simulator) -> Result<Self> {
        let other = self.on(simulator);
        let counted = self.plan.faults.iter().any(|fault| matches!(fault.at().event, Trigger::Pass(_)));
        if simulator.name() == self.backend || !counted {
            return Ok(other);
        }
        let (_, recording) = self.run()?;
        Ok(Self { plan: portable(&self.plan, &recording), only_plan: true, ..other })
    }

    /// Whether its faults are drawn from the seed.
    pub const fn draws(&self) -> bool {
        self.plan.faults.is_empty() && !self.only_plan
    }

    /// Reads a plan file. Nothing is run.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is no plan that can be run", path.display()))
    }

    /// Reads a plan and looks up every name in it.
    pub fn parse(text: &str) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_str(text).context("it is not JSON")?;
        match value.get("plan_version").and_then(serde_json::Value::as_u64) {
            Some(PLAN_VERSION) => {}
            Some(other) => bail!("its version is {other}; this program reads version {PLAN_VERSION}"),
            None => bail!("it has no `plan_version`; this program reads version {PLAN_VERSION}"),
        }
        let case: Self = serde_json::from_value(value).map_err(|error| explained(&error.to_string()))?;
        case.cast()?;
        Ok(case)
    }

    /// Looks up the names of the case.
    pub fn cast(&self) -> Result<Cast> {
        let Some(scenario) = chosen(Some(&self.story))?.first().copied() else { bail!("there is no story") };
        if let Some(name) = &self.planted {
            known_bug(name)?;
        }
        Ok(Cast { scenario, simulator: Simulator::named(&self.backend)? })
    }

    /// Runs it, recorded in full, with its bug planted or none. Not beside other runs: a bug is planted in the whole process.
    pub fn run(&self) -> Result<(Report, Recording)> {
        self.with_bug(|cast, telling| cast.simulator.told_recorded(&cast.scenario, self.seed, telling))
    }

    /// The same run, not recorded.
    pub fn judge(&self) -> Result<Report> {
        self.with_bug(|cast, telling| cast.simulator.told(&cast.scenario, self.seed, telling))
    }

    fn with_bug<T>(&self, tell: impl FnOnce(&Cast, &Telling) -> T) -> Result<T> {
        let cast = self.cast()?;
        let telling = Telling { plan: self.plan.clone(), draws: self.draws(), sessions_max: self.sessions_max };
        planted::plant(self.planted.as_deref().unwrap_or_default());
        let told = tell(&cast, &telling);
        planted::plant("");
        Ok(told)
    }
}

/// serde names the unknown word first and then all that it knows: the nearest of those is said, too.
fn explained(error: &str) -> anyhow::Error {
    let mut words = error.split('`').skip(1).step_by(2);
    match words.next() {
        Some(unknown) if error.starts_with("unknown ") => {
            let known: Vec<&str> = words.collect();
            let kind = if error.starts_with("unknown variant") { "word" } else { "field" };
            anyhow::anyhow!("there is no {kind} `{unknown}` here: {}", nearest(unknown, &known))
        }
        _ => anyhow::anyhow!("{error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheetanchor_scenarios::ALL;
    use sheetanchor_sim::plan::{CrashPolicy, Fault, When};

    fn case() -> Case {
        let mut case = Case::of(ALL[0].name, 7, Simulator::DEFAULT, Some("no-fence"));
        let at = When::milestone("n1", "phase=drained");
        case.plan = Plan::peaceful().and(Fault::Crash {
            at,
            policy: CrashPolicy::DropAll,
            restart_after_ms: None,
            silent: false,
        });
        case
    }

    #[test]
    fn a_plan_file_reads_back_as_it_is_written() {
        let text = serde_json::to_string_pretty(&case()).unwrap();
        assert_eq!(Case::parse(&text).unwrap(), case(), "{text}");
    }

    #[test]
    fn the_pass_of_a_fault_is_told_by_its_place_elsewhere() {
        let fault = |at| Fault::Crash { at, policy: CrashPolicy::DropAll, restart_after_ms: Some(50), silent: false };
        let plan = Plan::peaceful().and(fault(When::pass("n1", 300))).and(fault(When::pass("n1", 100_000_000)));
        let found = Case { plan, ..Case::of(crate::TRIAL, 3, Simulator::Turmoil, None) };
        assert_eq!(found.carried_to(Simulator::Turmoil).unwrap(), found);
        let carried = found.carried_to(Simulator::Own).unwrap();
        // What the run never came to is nowhere.
        let [fault] = carried.plan.faults.as_slice() else { panic!("{:?}", carried.plan) };
        assert!(matches!(fault.at().event, Trigger::Place { .. }), "{fault:?}");
        assert!(!carried.draws() && carried.backend == Simulator::Own.name());
    }

    #[test]
    fn what_is_not_known_is_refused_with_the_nearest_name() {
        let text = serde_json::to_string(&case()).unwrap();
        let refused = |from: &str, to: &str, expected: &str| {
            assert!(text.contains(from), "{text}");
            let answer = format!("{:#}", Case::parse(&text.replace(from, to)).unwrap_err());
            assert!(answer.contains(expected), "{answer}");
        };
        refused("\"plan_version\":0", "\"plan_version\":9", "version is 9; this program reads version 0");
        refused("\"plan_version\":0,", "", "no `plan_version`");
        refused(ALL[0].name, "a-backup-is-restord", "did you mean `a-backup-is-restored-and-read`");
        refused("no-fence", "no-fense", "did you mean `no-fence`");
        refused("\"fault\":\"crash\"", "\"fault\":\"crush\"", "no word `crush` here: did you mean `crash`");
        refused("drop-all", "drop-al", "did you mean `drop-all`");
        refused("\"seed\"", "\"sead\"", "did you mean `seed`");
        refused(Simulator::DEFAULT.name(), "tormoil", "did you mean `turmoil`");
    }
}
