//! The server process of a data folder: found by its `postmaster.pid`, started, and stopped. Never another's: a process
//! counts as a folder's server only if that folder is the directory that it works in.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use tokio::process::{Child, Command};

use super::install::{Account, Install};
use crate::faults::fault;

/// How often a process that starts or ends is looked at.
pub(super) const POLL: Duration = Duration::from_millis(25);

/// How long a server may take to shut down before its sessions are cut off.
const STOP_WAIT: Duration = Duration::from_mins(1);

/// How long it may take to die after that.
const DEATH_WAIT: Duration = Duration::from_secs(20);

/// How much of the end of a server's log is read for what it said last.
const LOG_TAIL_BYTES: u64 = 65_536;

/// How to end a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Sessions are ended, and a checkpoint is made. What PostgreSQL calls fast.
    Fast,
    /// As after a loss of power, but that its other processes are told. What PostgreSQL calls immediate.
    Immediate,
    /// SIGKILL to the server, and to nobody else: its children notice and end.
    Kill,
}

/// A running server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Postmaster {
    pid: Pid,
    data: String,
    port: Option<u16>,
    socket_folder: Option<String>,
    stopping: bool,
}

impl Postmaster {
    /// The server that runs in `data`, if one does.
    ///
    /// # Errors
    /// Faults, if the folder cannot be read.
    pub fn of(data: &str) -> Result<Option<Self>> {
        let path = format!("{data}/postmaster.pid");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fault(format!("read {path}"), &error).into()),
        };
        // Lines: process, data folder, start time, port, socket folder, address, shared memory, status. The later ones
        // come while the server starts.
        let mut lines = text.lines().map(str::trim);
        let Some(pid) = lines.next().and_then(|line| line.parse().ok()).filter(|pid| *pid > 0).and_then(Pid::from_raw)
        else {
            return Ok(None);
        };
        let mut lines = lines.skip(2);
        let port = lines.next().and_then(|line| line.parse().ok());
        let socket_folder = lines.next().filter(|line| !line.is_empty()).map(str::to_owned);
        let stopping = lines.nth(2) == Some("stopping");
        let found = Self { pid, data: data.to_owned(), port, socket_folder, stopping };
        Ok(found.is_running().then_some(found))
    }

    /// Who uses the server's folder, in words, if anybody does: its server, whether or not we may look at it, or what a
    /// server that died has left running.
    ///
    /// # Errors
    /// Faults, if the folder cannot be read.
    pub(super) fn user_of(data: &str) -> Result<Option<String>> {
        if let Some(postmaster) = Self::of(data)? {
            return Ok(Some(format!("the server of process {}", postmaster.pid())));
        }
        let said = fs::read_to_string(format!("{data}/postmaster.pid")).unwrap_or_default();
        let pid = said.lines().next().and_then(|line| line.trim().parse::<i32>().ok());
        if let Some(pid) = pid.filter(|pid| is_hidden(*pid)) {
            return Ok(Some(format!("process {pid}, which nobody else may look at,")));
        }
        Ok(works_in(data).then(|| "a process that its server has left".to_owned()))
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// The folder of its first Unix socket, once it listens.
    pub fn socket_folder(&self) -> Option<&str> {
        self.socket_folder.as_deref()
    }

    /// The port that it was told to use, once it listens.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Whether it was told to stop, by its own word.
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Whether the process is there and works in the data folder. A number that the kernel gave to another process since
    /// does not count.
    pub fn is_running(&self) -> bool {
        let works_in = fs::read_link(format!("/proc/{}/cwd", self.pid()));
        match (works_in, fs::canonicalize(&self.data)) {
            (Ok(works_in), Ok(data)) => works_in == data,
            _ => false,
        }
    }

    /// Ends the server and waits until it is gone. With [`StopMode::Fast`], one that does not end in time is ended as
    /// with [`StopMode::Immediate`].
    ///
    /// # Errors
    /// [`FaultKind::TimedOut`] if it is still there, other faults if it may not be signalled.
    pub async fn stop(&self, mode: StopMode) -> Result<()> {
        let signal = match mode {
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
            StopMode::Kill => Signal::KILL,
        };
        self.signal(signal)?;
        if self.is_gone_within(STOP_WAIT).await {
            return Ok(());
        }
        self.signal(Signal::QUIT)?;
        if self.is_gone_within(DEATH_WAIT).await {
            return Ok(());
        }
        let operation = format!("stop the server of {}", self.data);
        Err(Fault::new(FaultKind::TimedOut, operation, format!("process {} does not end", self.pid())).into())
    }

    /// Sends a signal, if the process is still the one it was.
    ///
    /// # Errors
    /// Faults, if it may not be signalled.
    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        match kill_process(self.pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(fault(format!("signal the server of {}", self.data), &error.into()).into()),
        }
    }

    /// Its children too: one that lives a moment longer would keep the next server from starting.
    async fn is_gone_within(&self, wait: Duration) -> bool {
        let gone = async {
            while self.is_running() || works_in(&self.data) {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(wait, gone).await.is_ok()
    }
}

/// Whether any process of a server works in the folder. An operator's shell there does not count.
fn works_in(data: &str) -> bool {
    let Ok(data) = fs::canonicalize(data) else { return false };
    let is_server = |process: &Path| {
        fs::read_link(process.join("cwd")).is_ok_and(|folder| folder == data)
            && fs::read_link(process.join("exe")).is_ok_and(|program| program.ends_with("postgres"))
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().any(|process| is_server(&process.path()))
}

/// Removes lock files in a folder that nobody uses and whose server ended between making and writing them: the next one would
/// take them for those of a server that begins, and not start.
fn remove_empty_locks(data: &str) -> Result<()> {
    if Postmaster::user_of(data)?.is_some() {
        return Ok(());
    }
    let failed = |error: &std::io::Error| fault(format!("look for lock files in {data}"), error);
    for entry in fs::read_dir(data).map_err(|error| failed(&error))? {
        let entry = entry.map_err(|error| failed(&error))?;
        let name = entry.file_name();
        let is_lock = name == "postmaster.pid"
            || name
                .to_str()
                .and_then(|name| name.strip_suffix(".lock"))
                .is_some_and(|name| name.starts_with(".s.PGSQL."));
        if is_lock && entry.metadata().map_err(|error| failed(&error))?.len() == 0 {
            fs::remove_file(entry.path()).map_err(|error| failed(&error))?;
        }
    }
    Ok(())
}

/// What to start.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// The programs.
    pub install: &'a Install,
    /// Who runs it.
    pub account: Option<Account>,
    /// The data folder.
    pub data: &'a str,
    /// What it prints goes to the end of this file. It is opened by us, so the account need not reach it.
    pub log: &'a str,
    /// Settings that override those of its configuration files.
    pub settings: &'a [(&'a str, String)],
}

impl Launch<'_> {
    /// Starts a server. It outlives us, and a Ctrl-C at our terminal does not reach it.
    ///
    /// # Errors
    /// Faults, if the program or the log cannot be opened, or the folder cannot be read.
    pub fn start(self) -> Result<Started> {
        remove_empty_locks(self.data)?;
        let launched = |error: &std::io::Error| Error::from(fault(format!("start a server in {}", self.data), error));
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(self.log);
        let log = log.map_err(|error| Error::from(fault(format!("open {}", self.log), &error)))?;
        let copy = log.try_clone().map_err(|error| launched(&error))?;
        let log_from = log.metadata().map_err(|error| launched(&error))?.len();
        let mut command = Command::new(self.install.program("postgres"));
        command.arg("-D").arg(self.data).current_dir(self.data).process_group(0);
        for (name, value) in self.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        for name in ["PGDATA", "PGPORT", "PGOPTIONS", "PGHOST"] {
            command.env_remove(name);
        }
        Account::apply(self.account, &mut command);
        command.stdin(Stdio::null()).stdout(log).stderr(copy);
        let child = command.spawn().map_err(|error| launched(&error))?;
        Ok(Started { child, log: self.log.to_owned(), log_from })
    }
}

/// A server that we started, and where in its log this run of it begins. Dropping this leaves the server running.
#[derive(Debug)]
pub struct Started {
    child: Child,
    log: String,
    log_from: u64,
}

impl Started {
    /// Whether the process is over.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// Why it ended, by its log.
    pub fn last_words(&self) -> String {
        last_words(&self.log, self.log_from)
    }
}

/// The last error in a server's log from byte `from` on that is the server's own; its last line if there is none. That it
/// turned somebody away while it started or stopped is no error of its own.
pub(super) fn last_words(log: &str, from: u64) -> String {
    let text = tail(Path::new(log), from).unwrap_or_default();
    let is_error = |line: &&str| {
        ["FATAL:", "PANIC:"].iter().any(|level| line.contains(level)) && !line.contains("the database system is ")
    };
    let found = text.lines().rev().find(is_error).or_else(|| text.lines().next_back());
    found.map_or_else(|| "it said nothing".to_owned(), |line| line.trim().to_owned())
}

fn tail(log: &Path, from: u64) -> std::io::Result<String> {
    let mut file = fs::File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES).max(from)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether there is such a process, and we may not see where it works: it may be a server of another user.
fn is_hidden(pid: i32) -> bool {
    let works_in = fs::read_link(format!("/proc/{pid}/cwd"));
    works_in.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_elsewhere_is_not_the_folders_server() {
        let folder = std::env::temp_dir().join(format!("sheetanchor-postmaster-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let data = folder.to_str().unwrap();
        assert_eq!(Postmaster::of(data).unwrap(), None, "no file");
        // This very process is alive, and is not a server of that folder.
        fs::write(folder.join("postmaster.pid"), format!("{}\n{data}\n1\n5432\n/tmp\n", std::process::id())).unwrap();
        assert_eq!(Postmaster::of(data).unwrap(), None);
        for damaged in ["", "x", "-1", "0", "99999999999999999999"] {
            fs::write(folder.join("postmaster.pid"), damaged).unwrap();
            assert_eq!(Postmaster::of(data).unwrap(), None, "{damaged}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn of_lock_files_only_empty_ones_of_servers_are_removed() {
        let folder = std::env::temp_dir().join(format!("sheetanchor-locks-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for (name, text) in [
            ("postmaster.pid", ""),
            (".s.PGSQL.5432.lock", ""),
            (".s.PGSQL.5433.lock", "1\n"),
            (".s.PGSQL.5432", ""),
            ("other.lock", ""),
        ] {
            fs::write(folder.join(name), text).unwrap();
        }
        remove_empty_locks(folder.to_str().unwrap()).unwrap();
        let mut left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".s.PGSQL.5432", ".s.PGSQL.5433.lock", "other.lock"]);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_servers_last_words_are_its_own_and_of_this_run() {
        let log = std::env::temp_dir().join(format!("sheetanchor-words-{}.log", std::process::id()));
        let earlier = "FATAL:  of an earlier run\n";
        let this = "FATAL:  recovery ended\nLOG:  x\nFATAL:  the database system is shutting down\nLOG:  bye\n";
        fs::write(&log, format!("{earlier}{this}")).unwrap();
        let path = log.to_str().unwrap();
        let (first, second) = (earlier.len() as u64, (earlier.len() + "FATAL:  recovery ended\n".len()) as u64);
        assert_eq!(last_words(path, first), "FATAL:  recovery ended");
        assert_eq!(last_words(path, second), "LOG:  bye");
        fs::remove_file(&log).unwrap();
        assert_eq!(last_words(path, 0), "it said nothing");
    }
}
