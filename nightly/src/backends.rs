//! The simulators that stories run on, by name.

use anyhow::{Result, bail};
use sheetanchor_scenarios::{Report, Scenario, run_recorded};
use sheetanchor_sim::plan::Plan;
use sheetanchor_sim::recording::Recording;

use crate::nearest;

/// A simulator, by the name that is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Simulator {
    /// Turmoil: a tokio runtime for each host.
    Turmoil,
}

impl Simulator {
    /// The one that runs what names none.
    pub const DEFAULT: Self = Self::Turmoil;

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Turmoil => "turmoil",
        }
    }

    /// The simulator of that name.
    pub fn named(name: &str) -> Result<Self> {
        if name == Self::Turmoil.name() {
            return Ok(Self::Turmoil);
        }
        bail!("there is no backend `{name}`: {}", nearest(name, &[Self::Turmoil.name()]))
    }

    /// Tells a story with a plan of faults, recorded in full.
    pub fn record(self, scenario: &Scenario, seed: u64, plan: Plan) -> (Report, Recording) {
        match self {
            Self::Turmoil => run_recorded(scenario, seed, plan, sheetanchor_sim_turmoil::backend(seed)),
        }
    }
}
