//! The simulators that stories run on, by name.

use std::thread;

use anyhow::{Result, bail};
use sheetanchor_scenarios::{Report, Scenario, Telling, run, run_recorded, run_told, run_told_recorded, run_with};
use sheetanchor_sim::backend::Backend;
use sheetanchor_sim::plan::Plan;
use sheetanchor_sim::recording::Recording;

use crate::nearest;

/// A simulator, by the name that is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Simulator {
    /// The simulator's own executor: the fastest by far.
    Own,
    /// Turmoil: a tokio runtime for each host.
    Turmoil,
    /// Madsim, in a build with `--cfg madsim`.
    Madsim,
}

const ALL: [Simulator; 3] = [Simulator::Own, Simulator::Turmoil, Simulator::Madsim];

impl Simulator {
    /// How many there are, in a build that has them all.
    pub const COUNT: usize = ALL.len();

    /// The one that runs what names none.
    pub const DEFAULT: Self = Self::Own;

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Turmoil => "turmoil",
            Self::Madsim => "madsim",
        }
    }

    /// The simulator of that name.
    pub fn named(name: &str) -> Result<Self> {
        let Some(found) = ALL.into_iter().find(|simulator| simulator.name() == name) else {
            bail!("there is no backend `{name}`: {}", nearest(name, &ALL.map(Self::name)));
        };
        if found.backend(0).is_none() {
            bail!("this build has no madsim; `cargo xtask sim --backend madsim` makes one that does");
        }
        Ok(found)
    }

    /// All that this build has, the fastest first.
    pub fn present() -> Vec<Self> {
        ALL.into_iter().filter(|simulator| simulator.backend(0).is_some()).collect()
    }

    fn backend(self, seed: u64) -> Option<Box<dyn Backend>> {
        match self {
            Self::Own => Some(sheetanchor_sim::own::backend(seed)),
            Self::Turmoil => Some(sheetanchor_sim_turmoil::backend(seed)),
            Self::Madsim => sheetanchor_sim_madsim::backend(seed),
        }
    }

    /// Tells a story, with faults as they are drawn from the seed.
    pub fn tell(self, scenario: &Scenario, seed: u64) -> Report {
        self.on(seed, |backend| run(scenario, seed, backend))
    }

    /// Tells a story with these faults.
    pub fn tell_with(self, scenario: &Scenario, seed: u64, plan: &Plan) -> Report {
        self.on(seed, |backend| run_with(scenario, seed, plan.clone(), backend))
    }

    /// Tells a story with a plan of faults, and records it in full.
    pub fn record(self, scenario: &Scenario, seed: u64, plan: &Plan) -> (Report, Recording) {
        self.on(seed, |backend| run_recorded(scenario, seed, plan.clone(), backend))
    }

    /// Tells a story as it is to be told.
    pub fn told(self, scenario: &Scenario, seed: u64, telling: &Telling) -> Report {
        self.on(seed, |backend| run_told(scenario, seed, telling, backend))
    }

    /// Tells a story as it is to be told, and records it in full.
    pub fn told_recorded(self, scenario: &Scenario, seed: u64, telling: &Telling) -> (Report, Recording) {
        self.on(seed, |backend| run_told_recorded(scenario, seed, telling, backend))
    }

    fn on<T: Send>(self, seed: u64, run: impl Fn(Box<dyn Backend>) -> T + Sync) -> T {
        let told = || self.backend(seed).map(&run);
        let told = match self {
            Self::Own | Self::Turmoil => told(),
            // Madsim seeds the standard library's hash maps on a fresh thread only.
            Self::Madsim => thread::scope(|scope| scope.spawn(told).join().ok()).flatten(),
        };
        let Some(told) = told else { unreachable!("a simulator that was chosen is there, and reports panics") };
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_backend_is_answered_with_the_nearest() {
        assert_eq!(Simulator::named("own").unwrap(), Simulator::Own);
        let answer = Simulator::named("tormoil").unwrap_err().to_string();
        assert!(answer.contains("did you mean `turmoil`"), "{answer}");
    }
}
