//! What is shown, kept and written into the documents.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::figures::{Group, Row, median, spread};
use crate::house::Result;
use crate::{Asked, Part};

/// Where the tables go, below the root of the repository.
const DOCUMENT: &str = "docs/benchmarks.md";
const FROM: &str = "<!-- written by cargo xtask bench pg -->";
const UNTIL: &str = "<!-- end of what cargo xtask bench pg writes -->";

/// What has a goal, and is not there to be measured.
const NOT_BUILT: [&str; 1] = ["WAL in, one process a segment (`archive_command`)"];

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub struct Page {
    pub date: String,
    pub commit: String,
    pub machine: String,
    /// The one-minute load of the machine before the run, of which the run is no part.
    pub load: String,
    pub command: String,
    pub left_out: Vec<String>,
    pub not_built: Vec<&'static str>,
    pub groups: Vec<Group>,
}

impl Page {
    pub fn begin(asked: &Asked, left_out: Vec<String>) -> Self {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let mut command = format!("cargo xtask bench pg --scale {} --rounds {}", asked.scale, asked.rounds);
        if asked.only.len() < 4 {
            let parts = asked.only.iter().map(|part| match part {
                Part::Copies => "copies",
                Part::WalIn => "wal-in",
                Part::WalOut => "wal-out",
                Part::Commits => "commits",
            });
            command = format!("{command} --only {}", parts.collect::<Vec<_>>().join(","));
        }
        Self {
            date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
            commit: std::env::var("SHEETANCHOR_BENCH_COMMIT").unwrap_or_else(|_| "unknown".to_owned()),
            machine: machine(),
            load: load.split(' ').next().unwrap_or_default().to_owned(),
            command,
            left_out,
            not_built: NOT_BUILT.to_vec(),
            groups: Vec::new(),
        }
    }

    /// The run as a piece of Markdown.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for group in &self.groups {
            assert!(write_group(&mut text, group).is_ok(), "writing to a string does not fail");
        }
        if !self.left_out.is_empty() {
            text.push_str(&format!("Left out, since it is not there: {}.\n\n", self.left_out.join(", ")));
        }
        text.push_str(&format!("Not built, and so not measured: {}.\n\n", self.not_built.join("; ")));
        text.push_str(&format!(
            "{} at {}, {}, load {} before the run. Time on the clock, median of the rounds (fastest to slowest); processor\n\
             time is that of the tool's own processes; ratios are medians of the rounds' own. `{}`.\n",
            self.date, self.commit, self.machine, self.load, self.command
        ));
        text
    }
}

fn write_group(text: &mut String, group: &Group) -> std::fmt::Result {
    writeln!(text, "**{}**", group.title)?;
    if let Some(goal) = &group.goal {
        let judged = match group.judged() {
            Some((reached, true)) => format!("met, with {reached:.2}"),
            Some((reached, false)) => format!("**missed**, with {reached:.2}"),
            None => "not measured".to_owned(),
        };
        writeln!(text, "(goal: {}; {judged})", goal.words)?;
    }
    let with_cpu = group.rows.iter().any(|row| !row.cpu.is_empty());
    let cpu = if with_cpu { " processor, s |" } else { "" };
    writeln!(text, "\n| | {} | to {} |{cpu} |", group.unit, group.base)?;
    writeln!(text, "|---|---|---|{}---|", if with_cpu { "---|" } else { "" })?;
    for row in group.rows.iter().filter(|row| !row.figures.is_empty()) {
        let (least, most) = spread(&row.figures);
        let middle = median(&row.figures);
        let ratio = group.ratio(row).map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        write!(text, "| {} | {} ({} to {}) | {ratio} |", row.who, short(middle), short(least), short(most))?;
        if with_cpu {
            write!(text, " {} |", cpu_of(row))?;
        }
        writeln!(text, " {} |", row.note)?;
    }
    writeln!(text)
}

fn cpu_of(row: &Row) -> String {
    if row.cpu.is_empty() { "-".to_owned() } else { short(median(&row.cpu)) }
}

/// Three digits that count, or all before the dot.
fn short(figure: f64) -> String {
    let digits = match figure.abs() {
        small if small < 10.0 => 2,
        middle if middle < 100.0 => 1,
        _ => 0,
    };
    format!("{figure:.digits$}")
}

/// Writes the tables into the document, in place of those that are there.
pub fn into_docs(tables: &str) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join(DOCUMENT);
    let text = fs::read_to_string(&path)?;
    let parts = text.split_once(FROM).and_then(|(before, rest)| Some((before, rest.split_once(UNTIL)?.1)));
    let (before, after) = parts.ok_or_else(|| format!("{DOCUMENT} has no `{FROM}` with its end"))?;
    fs::write(&path, format!("{before}{FROM}\n\n{tables}\n{UNTIL}{after}"))?;
    println!("written into {DOCUMENT}");
    Ok(())
}

/// The processor and how many cores there are, as Linux tells it.
fn machine() -> String {
    let known = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = known.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores", model.unwrap_or(std::env::consts::ARCH))
}
