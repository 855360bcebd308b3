//! `sheetanchor wal fetch`, which a recovering server runs for each file of WAL that it wants, in its data folder: it asks
//! the agent, which delivers ([`delivery`](super::delivery)), and takes over what lies ready.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::io::Errno;
use sheetanchor_core::error::{Fault, FaultKind};

use crate::faults::fault;

/// The socket of the agent, in the data folder.
pub(super) const SOCKET: &str = "sheetanchor.sock";

/// The folder of what lies ready, in the data folder.
pub(super) const SPOOL: &str = "sheetanchor.wal";

/// The agent's word for what lies ready.
pub(super) const HERE: &str = "here";

/// Its word for what it has not to deliver: the server's folder has it, or nobody.
pub(super) const NONE: &str = "none";

/// How long the agent may take to have it.
const ANSWER_WAIT: Duration = Duration::from_hours(1);

/// Bytes in the longest answer that is looked at.
const ANSWER_BYTES_MAX: u64 = 16;

/// What came of a question for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// It is where it was wanted.
    Here,
    /// It is not to be delivered: the server's folder has it, or nobody.
    NotHeld,
}

/// Has the file `name` put at `path`. To be called in the data folder of a server that recovers.
///
/// # Errors
/// Faults, and with them it is not known whether the archive has the file.
pub fn fetch(name: &str, path: &str) -> Result<Fetched, Fault> {
    let asked = |error: io::Error| fault(format!("ask the agent for {name}"), &error);
    let answer = ask(name).map_err(asked)?;
    match answer.trim_end() {
        HERE => {
            let from = format!("{SPOOL}/{name}");
            take_over(&from, path).map_err(|error| fault(format!("take {from} over as {path}"), &error))?;
            Ok(Fetched::Here)
        }
        NONE => Ok(Fetched::NotHeld),
        _ => Err(Fault::new(FaultKind::Unreachable, format!("ask the agent for {name}"), "it ended without an answer")),
    }
}

fn ask(name: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(SOCKET)?;
    stream.set_read_timeout(Some(ANSWER_WAIT))?;
    stream.write_all(format!("{name}\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

/// Moves a segment, by a copy where the server's WAL is on another file system.
///
/// # Errors
/// The system's.
pub(super) fn take_over(from: &str, to: &str) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.raw_os_error() == Some(Errno::XDEV.raw_os_error()) => {
            fs::copy(from, to)?;
            fs::File::open(to)?.sync_all()?;
            fs::remove_file(from)
        }
        outcome => outcome,
    }
}
