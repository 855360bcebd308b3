//! `wal fetch`: what a recovering server runs.

use std::process::ExitCode;

use sheetanchor_native::postgres::{Fetched, fetch};

use crate::screen::Screen;

/// What a server takes for the end of WAL.
const NOT_HELD: u8 = 1;

/// What a server takes for a failure, as all above 125: its recovery stops.
const UNKNOWN: u8 = 200;

/// Takes a segment over. It runs once a segment: without a runtime.
pub fn take(name: &str, path: &str, screen: &Screen) -> ExitCode {
    match fetch(name, path) {
        Ok(Fetched::Here) => ExitCode::SUCCESS,
        Ok(Fetched::NotHeld) => ExitCode::from(NOT_HELD),
        Err(fault) => {
            // The server's log has it.
            screen.log(format!("sheetanchor wal fetch: {fault}\n").as_bytes());
            ExitCode::from(UNKNOWN)
        }
    }
}
