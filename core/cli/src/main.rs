//! Sheetanchor's command line: the coordinator of one operation, the agent of one node, and a demonstration of both.
//!
//! Reading order: [`args`] (what may be typed), [`config`] (the cluster file), [`connect`] (what a command works with),
//! [`command`] (one module a group), [`report`] and [`screen`] (what the operator sees), [`demo`].
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::as_conversions, clippy::wildcard_enum_match_arm, reason = "tests may be blunt"))]

mod args;

mod config;

mod connect;

mod command;

mod report;

mod screen;

mod progress;

mod interrupt;

mod demo;

use std::process::ExitCode;

use clap::Parser;
use sheetanchor_core::error::{Error, Fault, FaultKind};
use sheetanchor_engine::coordinator::Every;
use tracing::level_filters::LevelFilter;

use crate::args::{Arguments, Command, LogLevel, PinsCommand, PointCommand, WalCommand};
use crate::command::views::View;
use crate::command::{agent, backup, doctor, pins, point, restore, status, upkeep, views, wal};
use crate::report::Result;
use crate::screen::Screen;

fn main() -> ExitCode {
    sheetanchor_native::sys::give_freed_memory_back();
    let arguments = Arguments::parse();
    let screen = Screen::new(arguments.json);
    start_logging(arguments.log, &screen);
    if let Command::Wal(WalCommand::Fetch { name, path }) = &arguments.command {
        return wal::take(name, path, &screen);
    }
    match run(&arguments, &screen) {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            trouble.report(arguments.json);
            trouble.exit_code()
        }
    }
}

fn run(arguments: &Arguments, screen: &Screen) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Fault::new(FaultKind::Other, "start the runtime", error.to_string()))?;
    runtime.block_on(dispatch(arguments, screen))
}

async fn dispatch(arguments: &Arguments, screen: &Screen) -> Result<()> {
    let file = arguments.cluster.as_path();
    match &arguments.command {
        Command::Init => upkeep::init(file, screen).await,
        Command::Agent(agent) => agent::serve(file, screen, agent).await,
        Command::Backup(backup) => backup::run(file, screen, backup).await,
        Command::RestorePoint(PointCommand::Create { name, method }) => {
            point::create(file, screen, name, *method).await
        }
        Command::RestorePoint(PointCommand::Every { interval, method, prefix, points }) => {
            let every =
                Every { interval: *interval, method: method.method(), prefix: prefix.parse()?, points: *points };
            point::every(file, screen, &every).await
        }
        Command::Restore(restore) => restore::run(file, screen, restore).await,
        Command::Status => status::show(file, screen).await,
        Command::Doctor => doctor::run(file, screen).await,
        Command::History => views::show(file, screen, View::History).await,
        Command::RestorePoints | Command::RestorePoint(PointCommand::List) => {
            views::show(file, screen, View::RestorePoints).await
        }
        Command::PitrStatus => views::show(file, screen, View::PitrStatus).await,
        Command::Incarnations => views::show(file, screen, View::Incarnations).await,
        Command::Pins(PinsCommand::List) => pins::list(file, screen).await,
        Command::Pins(PinsCommand::Drop { name }) => pins::drop(file, screen, name).await,
        Command::Wal(WalCommand::Fetch { .. }) => Err(Error::Bug("`wal fetch` needs no runtime".to_owned()).into()),
        Command::Abort { id } => upkeep::abort(file, screen, id).await,
        Command::Expire(expire) => upkeep::expire(file, screen, expire).await,
        Command::Verify { id } => upkeep::verify(file, screen, id).await,
        Command::Demo(demo) => demo::run(screen, demo).await,
    }
}

fn start_logging(level: LogLevel, screen: &Screen) {
    let level = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let screen = screen.clone();
    tracing_subscriber::fmt().with_max_level(level).with_writer(move || AboveBars(screen.clone())).init();
}

/// Log lines go to standard error, above the bars.
struct AboveBars(Screen);

impl std::io::Write for AboveBars {
    fn write(&mut self, lines: &[u8]) -> std::io::Result<usize> {
        self.0.log(lines);
        Ok(lines.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
