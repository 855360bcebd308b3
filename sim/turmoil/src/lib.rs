//! The simulated world on turmoil: a paused tokio runtime per host, timers and TCP of a simulator that is not ours. Disk,
//! bucket, faults, trace and oracles are those of `sheetanchor-sim`.
//!
//! What turmoil does that one has to know: it hands a panicked task back as a success (the world's panic hook sees it);
//! its partitions lose TCP segments for good, so traffic is held and released instead; its epoch is the real time unless
//! set; a killed host's destructors run, and are harmless because its life is over at the gate.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::as_conversions, clippy::wildcard_enum_match_arm, reason = "tests may be blunt"))]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sheetanchor_sim::backend::{Backend, Ports, Program};
use sheetanchor_sim::gate::SimTime;

mod clock;
mod net;
pub mod plain;
mod tasks;

use clock::HostClock;
use net::HostNet;
use tasks::HostTasks;

/// How far one step advances the world, and how finely it tells time.
pub const TICK: Duration = Duration::from_millis(1);

/// A world on turmoil; all of turmoil's chance comes from `seed`.
pub fn backend(seed: u64) -> Box<dyn Backend> {
    Box::new(Turmoil::new(seed))
}

struct Turmoil {
    sim: turmoil::Sim<'static>,
    time: Arc<Elapsed>,
}

impl Turmoil {
    fn new(seed: u64) -> Self {
        let mut sim = builder(seed).enable_random_order().tcp_capacity(4_096).build();
        sim.set_fail_rate(0.0);
        Self { sim, time: Arc::new(Elapsed::default()) }
    }
}

/// Turmoil with latencies like those of the own executor.
fn builder(seed: u64) -> turmoil::Builder {
    // A duration after 1970 rather than a wall-clock reading: nothing asks turmoil for it, but its default is now.
    let epoch = std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let mut builder = turmoil::Builder::new();
    builder
        .rng_seed(seed)
        .epoch(epoch)
        .tick_duration(TICK)
        .min_message_latency(Duration::from_micros(200))
        .max_message_latency(Duration::from_millis(8))
        .simulation_duration(Duration::from_secs(10_000_000));
    builder
}

impl Backend for Turmoil {
    fn name(&self) -> &'static str {
        "turmoil"
    }

    fn time(&self) -> Arc<dyn SimTime> {
        self.time.clone()
    }

    fn add_host(&mut self, host: &str, program: Program) {
        let name = host.to_string();
        self.sim.host(host, move || {
            let ports = Ports {
                clock: Arc::new(HostClock),
                tasks: Arc::new(HostTasks),
                net: Arc::new(HostNet::new(name.clone())),
            };
            let future = program(ports);
            async move {
                future.await;
                Ok(())
            }
        });
    }

    fn kill(&mut self, host: &str, _silent: bool) {
        self.sim.crash(host);
    }

    fn restart(&mut self, host: &str) {
        self.sim.bounce(host);
    }

    fn hold(&mut self, one: &str, other: &str) {
        self.sim.hold(one, other);
    }

    fn release(&mut self, one: &str, other: &str) {
        self.sim.release(one, other);
    }

    fn step(&mut self, _until: Duration, _interrupted: &dyn Fn() -> bool) -> Result<(), String> {
        let result = self.sim.step();
        self.time.set(self.sim.elapsed());
        result.map(|_all_clients_are_done| ()).map_err(|error| error.to_string())
    }
}

/// Simulated time: the running host's while one runs, that of the last step otherwise.
#[derive(Debug, Default)]
struct Elapsed {
    nanos: AtomicU64,
}

impl Elapsed {
    fn set(&self, elapsed: Duration) {
        self.nanos.store(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl SimTime for Elapsed {
    fn elapsed(&self) -> Duration {
        // While a host is killed or restarted turmoil has a current host but no valid clock for it; then, and outside of
        // hosts, the last step's time stands.
        match sheetanchor_sim::host::running() {
            Some(_) => {
                turmoil::sim_elapsed().unwrap_or_else(|| Duration::from_nanos(self.nanos.load(Ordering::Relaxed)))
            }
            None => Duration::from_nanos(self.nanos.load(Ordering::Relaxed)),
        }
    }
}
