//! What a person needs who meets a failure: the invariant, what happened last, and the one command that replays it.

use sheetanchor_sim::plan::Plan;

use crate::runs::Run;

/// A failed run, in words. It is run once more, since nobody keeps the events of a run that may pass.
pub fn describe(run: &Run, planted: Option<&str>) -> String {
    let verdict = match (&run.report.verdict, &run.differs) {
        (Err(failure), _) => failure.to_string(),
        (Ok(()), Some(second)) => {
            format!("the same seed gave two runs: trace {} and then {second}", run.report.trace_hash)
        }
        (Ok(()), None) => "nothing".to_string(),
    };
    let (again, _) = run.simulator.record(&run.scenario, run.seed, &Plan::peaceful());
    let plant = planted.map_or_else(String::new, |name| format!(" --planted {name}"));
    format!(
        "FAILED {name} with seed {seed}\n\n  {verdict}\n\nmilestones:\n{timeline}\n\nlast events:\n{events}\n\nreplay:\n  cargo xtask sim {name} --seed {seed} --backend {backend}{plant} --timeline\n",
        name = run.scenario.name,
        seed = run.seed,
        backend = run.simulator.name(),
        timeline = run.report.timeline,
        events = again.last_events,
    )
}
