//! What was run, as a table.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::runs::Run;

struct Row {
    runs: usize,
    failed: Vec<u64>,
    simulated: Duration,
    took: Duration,
    trace: Option<String>,
}

/// One line a story: runs, verdict, simulated and real time, and the trace hash where there was one run.
pub fn render(runs: &[Run]) -> String {
    let mut rows: BTreeMap<usize, (&str, Row)> = BTreeMap::new();
    let order: Vec<&str> = runs.iter().map(|run| run.scenario.name).collect();
    for run in runs {
        let place = order.iter().position(|name| *name == run.scenario.name).unwrap_or_default();
        let empty = Row { runs: 0, failed: Vec::new(), simulated: Duration::ZERO, took: Duration::ZERO, trace: None };
        let (_, row) = rows.entry(place).or_insert((run.scenario.name, empty));
        row.trace = (row.runs == 0).then(|| run.report.trace_hash.clone());
        row.runs += 1;
        row.simulated += run.report.elapsed;
        row.took += run.took;
        if !run.passed() {
            row.failed.push(run.seed);
        }
    }
    let width = rows.values().map(|(name, _)| name.len()).max().unwrap_or(0).max("scenario".len());
    let mut lines = vec![format!(
        "{:width$}  {:>5}  {:>9}  {:>10}  {:>8}  trace",
        "scenario", "runs", "verdict", "simulated", "took"
    )];
    for (name, row) in rows.values() {
        let verdict = if row.failed.is_empty() { "passed".to_string() } else { format!("{} failed", row.failed.len()) };
        let trace = row.trace.clone().unwrap_or_else(|| "-".into());
        let (simulated, took) = (row.simulated.as_secs_f64(), row.took.as_secs_f64());
        lines.push(format!("{name:width$}  {:>5}  {verdict:>9}  {simulated:>9.1}s  {took:>7.1}s  {trace}", row.runs));
        lines.extend(row.failed.iter().take(5).map(|seed| format!("{:width$}  failed with seed {seed}", "")));
    }
    let failed = runs.iter().filter(|run| !run.passed()).count();
    lines.push(format!("{} runs, each twice; {failed} failed", runs.len()));
    lines.join("\n")
}
