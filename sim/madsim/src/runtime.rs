//! Hosts as madsim nodes; steps, time and tasks.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use madsim::net::NetSim;
use madsim::runtime::{Handle, Runtime};
use madsim::task::{JoinHandle, NodeId};
use madsim::time::TimeHandle;
use sheetanchor_core::time::{Moment, WallMillis};
use sheetanchor_engine::env::{Clock, Task, Tasks};
use sheetanchor_sim::backend::{Backend, Ports, Program};
use sheetanchor_sim::gate::SimTime;

use crate::net::{HostNet, Links};

const STEP: Duration = Duration::from_millis(1);

pub(crate) struct Madsim {
    runtime: Runtime,
    time: Arc<Elapsed>,
    hosts: BTreeMap<String, NodeId>,
    links: Links,
}

impl Madsim {
    pub(crate) fn new(seed: u64) -> Self {
        let runtime = Runtime::with_seed_and_config(seed, madsim::Config::default());
        Self { runtime, time: Arc::new(Elapsed::default()), hosts: BTreeMap::new(), links: Links::default() }
    }

    fn inside(&self, act: impl FnOnce(&Handle)) {
        self.runtime.block_on(async { act(&Handle::current()) });
    }
}

impl Backend for Madsim {
    fn name(&self) -> &'static str {
        "madsim"
    }

    fn time(&self) -> Arc<dyn SimTime> {
        self.time.clone()
    }

    fn add_host(&mut self, host: &str, program: Program) {
        let number = u8::try_from(self.hosts.len() + 1).unwrap_or(u8::MAX);
        assert!(number < u8::MAX, "a madsim world holds fewer than 255 hosts");
        let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, number));
        let name = host.to_string();
        let links = self.links.clone();
        links.add(host, address);
        let mut id = None;
        self.inside(|handle| {
            NetSim::current().add_dns_record(&name, address);
            let start = move || {
                let ports = Ports {
                    clock: Arc::new(HostClock),
                    tasks: Arc::new(HostTasks),
                    net: Arc::new(HostNet::new(name.clone(), links.clone())),
                };
                program(ports)
            };
            id = Some(handle.create_node().name(host).ip(address).init(start).build().id());
        });
        if let Some(id) = id {
            self.hosts.insert(host.into(), id);
        }
    }

    fn kill(&mut self, host: &str, _silent: bool) {
        if let Some(id) = self.hosts.get(host) {
            self.inside(|handle| handle.kill(*id));
        }
    }

    fn restart(&mut self, host: &str) {
        if let Some(id) = self.hosts.get(host) {
            self.inside(|handle| handle.restart(*id));
        }
    }

    fn hold(&mut self, one: &str, other: &str) {
        self.links.hold(one, other);
    }

    fn release(&mut self, one: &str, other: &str) {
        self.inside(|_| self.links.release(one, other));
    }

    fn step(&mut self, _until: Duration, _interrupted: &dyn Fn() -> bool) -> Result<(), String> {
        let time = &self.time;
        self.runtime.block_on(async {
            madsim::time::sleep(STEP).await;
            time.set(TimeHandle::current().elapsed());
        });
        Ok(())
    }
}

/// Simulated time: madsim's own while a host runs, that of the last step otherwise.
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
        let current = sheetanchor_sim::host::running().and_then(|_| TimeHandle::try_current());
        current.map_or_else(|| Duration::from_nanos(self.nanos.load(Ordering::Relaxed)), |time| time.elapsed())
    }
}

struct HostClock;

#[async_trait]
impl Clock for HostClock {
    fn now(&self) -> Moment {
        Moment::from_nanos(0).after(TimeHandle::current().elapsed())
    }

    fn wall(&self) -> WallMillis {
        WallMillis::new(self.now().nanos() / 1_000_000)
    }

    async fn sleep_until(&self, moment: Moment) {
        loop {
            let left = moment.since(self.now());
            if left.is_zero() {
                return;
            }
            madsim::time::sleep(left).await;
        }
    }
}

struct HostTasks;

impl Tasks for HostTasks {
    fn spawn(&self, _name: &'static str, future: BoxFuture<'static, ()>) -> Box<dyn Task> {
        Box::new(HostTask { handle: Mutex::new(Some(madsim::task::spawn(future))) })
    }
}

/// Madsim's handle is no `Sync` type on its own.
struct HostTask {
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl HostTask {
    fn with<T>(&self, act: impl FnOnce(&mut Option<JoinHandle<()>>) -> T) -> T {
        act(&mut self.handle.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl Task for HostTask {
    fn cancel(&self) {
        self.with(|handle| handle.as_ref().map(JoinHandle::abort));
    }

    fn has_ended(&self) -> bool {
        self.with(|handle| handle.as_ref().is_none_or(JoinHandle::is_finished))
    }

    async fn join(&mut self) {
        if let Some(handle) = self.with(Option::take) {
            // A task whose join is cancelled is cancelled too.
            let mut owner = AbortOnDrop(handle);
            // An error says that it was cancelled; a panic has unwound the whole step.
            drop((&mut owner.0).await);
        }
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Drop for HostTask {
    fn drop(&mut self) {
        self.cancel();
    }
}
