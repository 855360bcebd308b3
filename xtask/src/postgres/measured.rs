//! The bench on real servers, and the tools that it measures beside ours.

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use super::{apt_get, ensure, has_apt, is_root};
use crate::{fence, programs};

/// The tools that a run compares, each in Debian's package of its name. A run goes on without them, and says so.
const TOOLS: [&str; 3] = ["pgbackrest", "barman", "zstd"];

/// Prepares servers and tools, and runs the bench; its exit status is ours.
pub fn run(root: &Path, arguments: &[String]) -> Result<ExitCode> {
    let helps = arguments.iter().any(|word| ["-h", "--help"].contains(&word.as_str()));
    if !helps {
        let servers = ensure()?;
        println!("{servers}");
        println!("{}", fence::ensure(root, &servers, None)?);
        fetch_tools()?;
    }
    let mut command = programs::cargo(root);
    command.args(["bench", "--package", "sheetanchor", "--bench", "pg", "--"]).args(arguments);
    command.env("SHEETANCHOR_BENCH_COMMIT", commit(root));
    command.env("SHEETANCHOR_BENCH_FROM", env::current_dir().context("the current folder is gone")?);
    let status = command.status().context("cannot start cargo")?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Installs the tools that are missing, where that is ours to do. What cannot be had, the bench leaves out.
fn fetch_tools() -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = |tool: &str| env::split_paths(&path).any(|folder| folder.join(tool).is_file());
    let missing: Vec<&str> = TOOLS.into_iter().filter(|tool| !is_there(tool)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if has_apt() && is_root()? {
        let mut install = apt_get();
        install.args(["install", "--yes", "--no-install-recommends"]).args(&missing);
        if programs::run(&mut install).is_ok() {
            return Ok(());
        }
    }
    println!("missing, and left out of the comparison: {}; apt-get install {}", missing.join(", "), missing.join(" "));
    Ok(())
}

fn commit(root: &Path) -> String {
    let said = programs::output(Command::new("git").current_dir(root).args(["rev-parse", "--short", "HEAD"]));
    said.map_or_else(|_| "unknown".to_owned(), |said| said.trim().to_owned())
}
