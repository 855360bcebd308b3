//! Who makes restore points and backups while the nemesis is about, each by a process of its own that may be struck.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::faults::Coordinators;
use super::oracle::Window;
use super::town::Town;

/// What one command came to.
pub struct Attempt {
    pub name: String,
    pub window: Window,
    pub done: bool,
    pub said: String,
}

/// What is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    Point,
    Backup,
    Incremental,
}

impl Made {
    /// What the names of what is made begin with.
    pub fn word(self) -> &'static str {
        match self {
            Self::Point => "point",
            Self::Backup => "backup",
            Self::Incremental => "backup-incremental",
        }
    }
}

/// Makes points or backups.
pub struct Maker {
    pub town: Arc<Town>,
    pub what: Made,
    pub prefix: String,
    pub over: Arc<AtomicBool>,
    pub coordinators: Coordinators,
}

impl Maker {
    /// One point a second.
    pub fn points(&self) -> Vec<Attempt> {
        let mut made = Vec::new();
        while !self.over.load(Ordering::SeqCst) {
            let begun = Instant::now();
            made.push(self.attempt(&format!("{}-{}", self.prefix, made.len())));
            std::thread::sleep(Duration::from_secs(1).saturating_sub(begun.elapsed()));
        }
        made
    }

    pub fn backup(&self, delay: Duration) -> Vec<Attempt> {
        std::thread::sleep(delay);
        vec![self.attempt(&self.prefix)]
    }

    pub fn attempt(&self, name: &str) -> Attempt {
        let arguments: &[&str] = match self.what {
            Made::Point => &["restore-point", "create", name],
            Made::Backup => &["backup", "--label", name],
            Made::Incremental => &["backup", "--incremental", "--label", name],
        };
        let begun = Instant::now();
        let mut command = self.town.command(arguments);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        self.coordinators.lock().unwrap().insert(self.what.word(), child.id());
        let ended = child.wait_with_output().unwrap();
        self.coordinators.lock().unwrap().remove(self.what.word());
        let window = Window { begun, ended: Instant::now() };
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        Attempt { name: name.to_owned(), window, done: ended.status.success(), said }
    }
}

/// Why a command failed, from its error output.
pub fn words(said: &str) -> &str {
    said.lines().find(|line| line.starts_with("error: ")).unwrap_or("killed")
}

/// Whoever works until this is set ends with it, however the round ends.
pub struct Ends(pub Arc<AtomicBool>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
