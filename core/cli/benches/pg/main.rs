//! Backup, restore, archiving and fencing of real PostgreSQL servers, beside `pg_basebackup`, pgBackRest, Barman, `cp` and
//! `tar | zstd` in the same run: `cargo xtask bench pg`, or `cargo bench -p sheetanchor --bench pg -- --scale 15`.
//!
//! Tools are driven from outside, as an operator would: a process is started, and what is timed ends when that process has
//! ended and everything that it left is synced. The tools take turns, round by round, and a first round counts for nothing.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::wildcard_enum_match_arm,
    clippy::cast_precision_loss,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::format_push_string,
    reason = "a program that talks to whoever runs it, and divides what it measured"
)]

mod commits;
mod copies;
mod figures;
mod house;
mod lz4;
mod others;
mod ours;
mod page;
mod servers;
mod wal_in;
mod wal_out;

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, io};

use clap::{Parser, ValueEnum};
use rustix::process::geteuid;
use tokio::process::Command;

use crate::figures::Group;
use crate::house::{House, Result};
use crate::page::Page;

/// Measures backup and restore of PostgreSQL beside other tools.
#[derive(Clone, Debug, Parser)]
#[command(name = "cargo xtask bench pg", bin_name = "cargo xtask bench pg")]
pub struct Asked {
    /// pgbench's scale: 150 is about 2.2 GB, 15 about 220 MB.
    #[arg(long, default_value_t = 150)]
    scale: u32,
    /// Rounds that count, of everything that is compared.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// What is measured, and nothing else.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Copies, Part::WalIn, Part::WalOut, Part::Commits])]
    only: Vec<Part>,
    /// The data sets of the copies.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Filler::Hex, Filler::Blank])]
    data: Vec<Filler>,
    /// Segments of WAL in a round, 16 MiB each.
    #[arg(long, default_value_t = 32)]
    segments: u32,
    /// Restore points whose stall is measured.
    #[arg(long, default_value_t = 100)]
    points: u32,
    /// A file to write the rows to, as JSON, with date, commit and machine.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the tables into `docs/benchmarks.md`, in place of those of the last run.
    #[arg(long)]
    docs: bool,
    /// The folder to make the run's own folder in: its file system is what is measured.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// The run's own folder, made by the process that started this one.
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
    /// `cargo bench` says so.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Full backups and restores.
    Copies,
    /// WAL on its way into the archive.
    WalIn,
    /// WAL on its way out of the archive.
    WalOut,
    /// What commits pay: for the hook, and for a restore point.
    Commits,
}

/// What pgbench's accounts are filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Filler {
    /// Text of hexadecimal digits: compresses about 2:1.
    Hex,
    /// pgbench's blanks: compress about 20:1, and flatter whoever compresses.
    Blank,
}

/// The page and the rows, as the process that measures leaves them in the folder of the run.
const TEXT: &str = "result.md";
const ROWS: &str = "result.json";
/// The variable that says where the command was given.
const FROM: &str = "SHEETANCHOR_BENCH_FROM";
/// The program that is measured, copied into the folder of the run.
const PROGRAM: &str = "sheetanchor";

fn main() -> ExitCode {
    let asked = Asked::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = runtime.map_err(Into::into).and_then(|runtime| match &asked.inside {
        Some(folder) => runtime.block_on(inside(&asked, folder)),
        None => runtime.block_on(outside(&asked)),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Makes the folder, has a process measure in it under an account that servers run under, keeps what it found, and removes
/// the folder, however that ended.
async fn outside(asked: &Asked) -> Result<()> {
    let above = asked.folder.clone().unwrap_or_else(std::env::temp_dir);
    let folder = above.join(format!("sheetanchor-bench-{}", std::process::id()));
    fs::create_dir(&folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
    let outcome = measured_in(asked, &folder).await;
    let removed = fs::remove_dir_all(&folder);
    outcome?;
    removed.map_err(|error| format!("cannot remove {}: {error}", folder.display()).into())
}

async fn measured_in(asked: &Asked, folder: &Path) -> Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    // The account need not be able to enter the folder of the build.
    let own = folder.join("bench");
    fs::copy(std::env::current_exe()?, &own)?;
    fs::copy(env!("CARGO_BIN_EXE_sheetanchor"), folder.join(PROGRAM))?;
    let mut command = Command::new(&own);
    command.args(std::env::args_os().skip(1)).arg("--inside").arg(folder).current_dir(folder).kill_on_drop(true);
    if geteuid().is_root() {
        let (uid, gid) = (house::number_of("-u").await?, house::number_of("-g").await?);
        chown(folder, Some(uid), Some(gid))?;
        command.uid(uid).gid(gid).env("HOME", folder).env("USER", house::ACCOUNT);
    }
    let mut child = command.spawn()?;
    let status = loop {
        tokio::select! {
            biased;
            status = child.wait() => break status?,
            // It got the signal, too, and ends everything that it has started.
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    if !status.success() {
        return Err("nothing was kept of this run".into());
    }
    if let Some(path) = &asked.json {
        // `cargo bench` goes to the package's folder: paths are meant from where the command was given.
        let path = &std::env::var_os(FROM).map(PathBuf::from).unwrap_or_default().join(path);
        fs::copy(folder.join(ROWS), path).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    if asked.docs {
        page::into_docs(&fs::read_to_string(folder.join(TEXT))?)?;
    }
    Ok(())
}

/// Measures, until done or told to end.
async fn inside(asked: &Asked, folder: &Path) -> Result<()> {
    let outcome = tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
        outcome = measure(asked, folder) => outcome,
    };
    // Servers that a tool or an agent has started in a restored folder have no owner here.
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.join("postmaster.pid").is_file() {
            servers::end_server(&path.display().to_string()).await?;
        }
    }
    outcome
}

async fn measure(asked: &Asked, folder: &Path) -> Result<()> {
    let house = House::in_folder(folder)?;
    let mut page = Page::begin(asked, others::missing());
    for what in &page.left_out {
        println!("{what} is not there: its rows are left out");
    }
    let mut groups: Vec<Group> = Vec::new();
    if asked.only.contains(&Part::Copies) {
        for filler in &asked.data {
            groups.extend(copies::measure(&house, asked, *filler, &page.left_out).await?);
        }
    }
    if asked.only.contains(&Part::WalIn) {
        groups.push(wal_in::measure(&house, asked, &page.left_out).await?);
    }
    if asked.only.contains(&Part::WalOut) {
        groups.push(wal_out::measure(&house, asked, &page.left_out).await?);
    }
    if asked.only.contains(&Part::Commits) {
        groups.push(commits::hook(&house, asked).await?);
        groups.push(commits::stall(&house, asked).await?);
    }
    page.groups = groups;
    let text = page.text();
    println!("\n{text}");
    let write = |name: &str, text: &str| -> io::Result<()> { fs::write(folder.join(name), text) };
    write(TEXT, &text)?;
    write(ROWS, &(serde_json::to_string_pretty(&page)? + "\n"))?;
    Ok(())
}
