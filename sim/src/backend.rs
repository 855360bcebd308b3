//! Who runs the hosts. A backend knows runtimes, timers and byte streams; everything else about the world is ours.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sheetanchor_engine::env::{Clock, Net, Tasks, Work};

use crate::gate::SimTime;

/// What a backend gives to a program: the ports that are its own. The world adds the others.
#[derive(Clone)]
pub struct Ports {
    /// A monotonic clock that equals the simulated time; its wall time is not used.
    pub clock: Arc<dyn Clock>,
    /// Tasks of this host, which end when it is killed.
    pub tasks: Arc<dyn Tasks>,
    /// Streams to other hosts by name: `host:port`.
    pub net: Arc<dyn Net>,
}

impl core::fmt::Debug for Ports {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.debug_struct("Ports").finish_non_exhaustive()
    }
}

/// What a host runs, again at each of its restarts. The call itself must read no clock: only the future is on the host.
pub type Program = Arc<dyn Fn(Ports) -> BoxFuture<'static, ()> + Send + Sync>;

/// A simulator, driven from outside, on one thread. The same seed and the same calls give the same run.
pub trait Backend {
    /// Its name in snapshots and reports.
    fn name(&self) -> &'static str;

    /// The simulated time, readable from everywhere.
    fn time(&self) -> Arc<dyn SimTime>;

    /// Adds a host of a new name and starts its program. Possible at any time between steps.
    fn add_host(&mut self, host: &str, program: Program);

    /// Drops everything that runs on the host. `silent`: the machine has lost its power with it, and answers nothing.
    fn kill(&mut self, host: &str, silent: bool);

    /// Runs the host's program from its start. Whatever still ran there is dropped first.
    fn restart(&mut self, host: &str);

    /// Holds all traffic between two hosts.
    fn hold(&mut self, one: &str, other: &str);

    /// Delivers what was held and ends the hold.
    fn release(&mut self, one: &str, other: &str);

    /// Advances the world by a little: at most some milliseconds beyond the first thing that happens, and not beyond
    /// `until` unless that has passed. A backend that can stops as soon as `interrupted` says so, which it asks whenever
    /// code of a host has run.
    ///
    /// # Errors
    /// What went wrong in the backend itself.
    fn step(&mut self, until: Duration, interrupted: &dyn Fn() -> bool) -> Result<(), String>;
}

/// Runs jobs in place: a simulator has one thread, and a job takes no simulated time.
#[derive(Clone, Copy, Debug, Default)]
pub struct WorkInPlace;

impl Work for WorkInPlace {
    fn start(&self, job: Box<dyn FnOnce() + Send>) {
        job();
    }
}
