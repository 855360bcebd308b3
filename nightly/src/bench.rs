//! `cargo xtask bench sim`: how fast the simulator is, every goal in one run, with what is compared measured side by side,
//! round by round. Times are processor times of one core.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Serialize;
use sheetanchor_scenarios::{ALL, LONG, Scenario};

use crate::artefact;
use crate::backends::Simulator;
use crate::case::Case;
use crate::sweep::{self, Sweep};
use crate::{TRIAL, chosen, mutants, runs, shrink};

mod clock;

use clock::{median, timed};

/// What is measured, and how thoroughly.
#[derive(Debug, clap::Args)]
pub struct Bench {
    /// How often the two sides of a comparison are measured, in turn.
    #[arg(long, default_value_t = 7)]
    rounds: u64,
    /// A file to write the rows to, as JSON, with date, commit and machine.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Hunt every planted bug, too: some minutes.
    #[arg(long)]
    mutants: bool,
    /// Measure madsim alone, in a build that has it: `cargo xtask bench sim` comes to this by itself.
    #[arg(long)]
    madsim: bool,
    /// Do not build and measure madsim.
    #[arg(long)]
    without_madsim: bool,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
struct Row {
    measure: String,
    /// The goal, in words.
    goal: String,
    /// What was measured, in words.
    measured: String,
    met: bool,
    /// What it is made of.
    detail: String,
}

#[derive(Serialize)]
struct Page<'a> {
    date: String,
    commit: String,
    machine: String,
    rows: &'a [Row],
}

/// Messages of an echo.
const MESSAGES: u64 = 1_000;
/// Echoes in one round: one alone is too short to be timed.
const ECHOES: u64 = 10;
/// Every so many passes one crash is measured.
const STRIDE: u64 = 60;
/// Failures that are shrunk, of each of the bugs: of such as need a fault to be seen.
const SHRUNK: usize = 3;
const SHRUNK_BUGS: [&str; 2] = ["ack-before-flush", "page-shipped-unflushed"];
/// Seeds that are tried to find those.
const SEEDS_TRIED: u64 = 1_500;
/// Seeds with which a planted bug is hunted.
const HUNT_SEEDS: u64 = 10_000;

/// Measures, prints a table, and answers true: a goal that is missed is shown, and is no failure of the program.
pub fn bench(asked: &Bench) -> Result<bool> {
    let rounds = asked.rounds.max(1);
    let mut rows = Vec::new();
    if asked.madsim {
        rows.push(against_turmoil(Simulator::named("madsim")?, 4.0, rounds)?);
    } else {
        rows.push(echo(rounds)?);
        rows.push(against_turmoil(Simulator::Own, 10.0, rounds)?);
        rows.push(day()?);
        rows.push(crashes()?);
        rows.push(shrinking()?);
        rows.push(twice());
        if asked.mutants {
            let good = mutants::hunt(&mutants::Mutants::all(HUNT_SEEDS))?;
            let measured = if good { "all" } else { "not all" }.to_string();
            rows.push(Row { measured, met: good, ..row("planted bugs seen by every story that claims to", "all") });
        }
    }
    print(&rows);
    if let Some(path) = &asked.json {
        let path = if asked.madsim { path.with_extension("madsim.json") } else { path.clone() };
        let page = Page {
            date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
            commit: artefact::commit(),
            machine: machine(),
            rows: &rows,
        };
        fs::write(&path, serde_json::to_string_pretty(&page)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(true)
}

fn row(measure: &str, goal: &str) -> Row {
    let (measure, goal) = (measure.to_string(), goal.to_string());
    Row { measure, goal, measured: String::new(), met: false, detail: String::new() }
}

fn times(measure: &str, goal: f64, slow: Duration, fast: Duration, detail: String) -> Row {
    let ratio = slow.as_secs_f64() / fast.as_secs_f64().max(f64::MIN_POSITIVE);
    Row { measured: format!("{ratio:.1}x"), met: ratio >= goal, detail, ..row(measure, &format!("{goal:.0}x")) }
}

fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1_000.0)
}

/// An echo on the bare own executor beside one on bare turmoil.
fn echo(rounds: u64) -> Result<Row> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let seeds = || (0..ECHOES).map(|echo| round * ECHOES + echo);
        let own = |seed| sheetanchor_sim::echo::run(sheetanchor_sim::own::backend(seed).as_mut(), MESSAGES).map(drop);
        let plain = |seed| match sheetanchor_sim_turmoil::plain::echo(seed, MESSAGES) {
            Ok(MESSAGES) => Ok(()),
            other => Err(format!("{other:?} of {MESSAGES} messages came back")),
        };
        let (told, took) = timed(|| seeds().try_for_each(own));
        told.map_err(|error| anyhow!(error))?;
        ours.push(took);
        let (told, took) = timed(|| seeds().try_for_each(plain));
        told.map_err(|error| anyhow!(error))?;
        theirs.push(took);
    }
    let echoes = u32::try_from(ECHOES).unwrap_or(1);
    let (own, plain) = (median(ours) / echoes, median(theirs) / echoes);
    let detail = format!("{MESSAGES} messages there and back: own {}, plain turmoil {}", ms(own), ms(plain));
    Ok(times("own executor against a plain turmoil echo", 5.0, plain, own, detail))
}

/// One story on a simulator and on turmoil.
fn against_turmoil(simulator: Simulator, goal: f64, rounds: u64) -> Result<Row> {
    let Some(scenario) = ALL.first() else { bail!("there are no stories") };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let seed = scenario.seed().wrapping_add(round);
        for (times, simulator) in [(&mut ours, simulator), (&mut theirs, Simulator::Turmoil)] {
            let (report, took) = timed(|| simulator.tell(scenario, seed));
            report.verdict.map_err(|failure| anyhow!("seed {seed} on {}: {failure}", simulator.name()))?;
            times.push(took);
        }
    }
    let (own, turmoil) = (median(ours), median(theirs));
    let detail = format!("{}: {} {}, turmoil {}", scenario.name, simulator.name(), ms(own), ms(turmoil));
    Ok(times(&format!("{} against turmoil, the same story", simulator.name()), goal, turmoil, own, detail))
}

/// A day of hourly backups and a restore point a minute.
fn day() -> Result<Row> {
    const GOAL: f64 = 100_000.0;
    let Some(scenario) = LONG.first() else { bail!("there is no long story") };
    let (report, took) = timed(|| Simulator::Own.tell(scenario, scenario.seed()));
    report.verdict.map_err(|failure| anyhow!("{}: {failure}", scenario.name))?;
    let rate = report.elapsed.as_secs_f64() / took.as_secs_f64();
    Ok(Row {
        measured: format!("{rate:.0}"),
        met: rate >= GOAL,
        detail: format!(
            "{:.0} simulated seconds in {:.1} s, {} events",
            report.elapsed.as_secs_f64(),
            took.as_secs_f64(),
            report.events
        ),
        ..row("a day of hourly backups and a restore point a minute, simulated seconds a second", "100,000")
    })
}

/// Runs of the sweep, each crashed somewhere else.
fn crashes() -> Result<Row> {
    const GOAL: f64 = 1_000.0;
    let scenario = trial()?;
    let sweep = Sweep { scenario, seed: scenario.seed(), stride: STRIDE, depth_two: false };
    let (base, plans) = sweep::plans(&sweep, Simulator::Own);
    let ((failed, events), took) = timed(|| {
        plans.iter().fold((0_u32, base.events), |(failed, events), plan| {
            let report = Simulator::Own.tell_with(&scenario, sweep.seed, plan);
            (failed + u32::from(report.verdict.is_err()), events + report.events)
        })
    });
    if failed > 0 {
        bail!("{failed} crash runs failed: `cargo xtask sweep --stride {STRIDE}` shows them");
    }
    let runs = u32::try_from(plans.len()).unwrap_or(u32::MAX);
    let rate = f64::from(runs) / took.as_secs_f64();
    let mean = events / u64::from(runs).max(1);
    Ok(Row {
        measured: format!("{rate:.0}"),
        met: rate >= GOAL,
        detail: format!("{runs} runs of {mean} events each in {:.1} s", took.as_secs_f64()),
        ..row("sweep, crash runs a second and core", "1,000")
    })
}

fn trial() -> Result<Scenario> {
    chosen(Some(TRIAL))?.first().copied().context("there is no story for faults")
}

/// Failures of planted bugs, made smaller: those that need a fault. The others are left with none after one run.
fn shrinking() -> Result<Row> {
    const GOAL: Duration = Duration::from_secs(2);
    let (mut took, mut runs, mut faults, mut minimal, mut easy) = (Vec::new(), Vec::new(), (0, 0), 0, 0);
    for bug in SHRUNK_BUGS {
        let mut found = 0;
        let first = trial()?.seed();
        for seed in first..first + SEEDS_TRIED {
            let case = Case::of(TRIAL, seed, Simulator::Own, Some(bug));
            let (shrunk, time) = timed(|| shrink::smaller(&case, shrink::RUNS_MAX));
            let Some(shrunk) = shrunk? else { continue };
            let left = shrunk.found.case.plan.faults.len();
            if left == 0 {
                easy += 1;
                continue;
            }
            took.push(time);
            runs.push(shrunk.runs);
            faults.0 += shrunk.from.plan.faults.len();
            faults.1 += left;
            minimal += usize::from(shrunk.found.minimal);
            found += 1;
            if found == SHRUNK {
                break;
            }
        }
    }
    runs.sort_unstable();
    let (middle, most) = (runs.get(runs.len() / 2).copied().unwrap_or(0), runs.last().copied().unwrap_or(0));
    let (count, worst, time) = (took.len(), took.iter().max().copied().unwrap_or_default(), median(took));
    let detail = format!(
        "{count} failures of {}: {} faults became {}; at most {most} runs; {minimal} minimal; slowest {:.1} s; \
         {easy} that need no fault not counted",
        SHRUNK_BUGS.join(", "),
        faults.0,
        faults.1,
        worst.as_secs_f64()
    );
    let met = count > 0 && time <= GOAL && most <= shrink::RUNS_MAX;
    Ok(Row {
        measured: format!("{:.2} s, {middle} runs", time.as_secs_f64()),
        met,
        detail,
        ..row("shrink, median", "2 s, 300 runs")
    })
}

/// Every story twice, and in the second run of a used process.
fn twice() -> Row {
    let plan = runs::plan(ALL, None, None);
    let told = runs::run_all(Simulator::Own, &plan, false);
    let same = told.iter().filter(|run| run.differs.is_none()).count();
    let measured = format!("{same} of {}", told.len());
    Row { measured, met: same == told.len(), ..row("stories told twice with the same trace", "all") }
}

fn print(rows: &[Row]) {
    let width = rows.iter().map(|row| row.measure.len()).max().unwrap_or(0);
    println!("{:width$}  {:>14}  {:>16}", "measure", "at least", "measured");
    for row in rows {
        let missed = if row.met { "" } else { "  MISSED" };
        println!("{:width$}  {:>14}  {:>16}{missed}", row.measure, row.goal, row.measured);
        if !row.detail.is_empty() {
            println!("    {}", row.detail);
        }
    }
}

/// The processor and how many cores there are, as Linux tells it.
fn machine() -> String {
    let known = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = known.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores", model.unwrap_or(std::env::consts::ARCH))
}
