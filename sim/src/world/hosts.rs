//! How a program of the scenario becomes a program of the backend: with every port of its host.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use sheetanchor_core::time::Moment;
use sheetanchor_engine::env::{Bucket, Clock, Disk, Entropy, Env, Task, Tasks};
use sheetanchor_engine::folder_bucket::FolderBucket;

use crate::backend::{Ports, Program, WorkInPlace};
use crate::bucket::{Objects, SimBucket, UnsureBucket};
use crate::chance::{Chance, Concern};
use crate::clock::{SimClock, WallOffset};
use crate::disk::{Disks, SimDisk};
use crate::gate::{Gate, Life};
use crate::host::{OnHost, locked};
use crate::net::GatedNet;
use crate::world::{REPOSITORY, Repository};

/// What a scenario runs on a host.
pub(super) type Run = Arc<dyn Fn(Env, Life) -> BoxFuture<'static, ()> + Send + Sync>;

/// What all hosts of a world stand on.
pub(super) struct Ground {
    pub(super) seed: u64,
    pub(super) clock_skew_max_ms: u64,
    pub(super) repository: Repository,
    pub(super) gate: Gate,
    pub(super) disks: Disks,
    pub(super) objects: Objects,
    pub(super) disk_chance: Chance,
    pub(super) bucket_chance: Chance,
    pub(super) net_chance: Chance,
}

/// A host: its program, which may be replaced, its current life, and its wall clock.
#[derive(Clone)]
pub(super) struct Slot {
    program: Arc<Mutex<Run>>,
    life: Arc<Mutex<Option<Life>>>,
    offset: WallOffset,
}

impl Slot {
    pub(super) fn new(program: Run, offset: WallOffset) -> Self {
        Self { program: Arc::new(Mutex::new(program)), life: Arc::new(Mutex::new(None)), offset }
    }

    pub(super) fn offset(&self) -> &WallOffset {
        &self.offset
    }

    pub(super) fn set(&self, program: Run) {
        *locked(&self.program) = program;
    }

    /// The next start of the host's program is `life`.
    pub(super) fn live(&self, life: Life) {
        *locked(&self.life) = Some(life);
    }

    /// The host as a backend runs it: at each start with the life and the program of that time.
    pub(super) fn on(&self, ground: Arc<Ground>, first: Life) -> Program {
        self.live(first);
        let slot = self.clone();
        Arc::new(move |ports| {
            let program = locked(&slot.program).clone();
            let life = locked(&slot.life).clone();
            let (ground, offset) = (ground.clone(), slot.offset.clone());
            let Some(life) = life else { return Box::pin(async {}) };
            let inner = {
                let life = life.clone();
                // The environment is made inside of the future: only there does the backend's clock run.
                async move {
                    let env = ground.env(ports, &life, offset);
                    program(env, life.clone()).await;
                    life.ended();
                }
            };
            Box::pin(OnHost::new(life, Box::pin(inner)))
        })
    }
}

impl Ground {
    /// The ports of one life of one host.
    fn env(&self, ports: Ports, life: &Life, offset: WallOffset) -> Env {
        let chance = |concern| Chance::of_life(self.seed, concern, life.host(), life.number());
        let elapsed_ms = u64::try_from(self.gate.elapsed().as_millis()).unwrap_or(u64::MAX);
        // Up to a day: far enough from other lives' moments that mixing them up breaks something.
        let origin = Moment::from_nanos(0).after(Duration::from_millis(chance(Concern::Clock).below(86_400_000)));
        let clock: Arc<dyn Clock> = Arc::new(SimClock::new(ports.clock, elapsed_ms, origin, offset));
        let disk: Arc<dyn Disk> =
            Arc::new(SimDisk::new(self.disks.clone(), life.clone(), clock.clone(), self.disk_chance.clone()));
        let entropy: Arc<dyn Entropy> = Arc::new(chance(Concern::Entropy));
        let sound: Arc<dyn Bucket> = match self.repository {
            Repository::Folder => Arc::new(FolderBucket::new(disk.clone(), entropy.clone(), REPOSITORY)),
            Repository::Store => {
                let (objects, chance) = (self.objects.clone(), self.bucket_chance.clone());
                Arc::new(SimBucket::new(objects, life.clone(), clock.clone(), chance))
            }
        };
        let bucket = Arc::new(UnsureBucket::new(sound, life.clone(), clock.clone()));
        Env {
            entropy,
            tasks: Arc::new(HostTasks { inner: ports.tasks, life: life.clone() }),
            net: Arc::new(GatedNet::new(ports.net, life.clone(), self.net_chance.clone())),
            disk,
            bucket,
            work: Arc::new(WorkInPlace),
            clock,
        }
    }
}

/// Spawns tasks that belong to the life which spawned them.
struct HostTasks {
    inner: Arc<dyn Tasks>,
    life: Life,
}

impl Tasks for HostTasks {
    fn spawn(&self, name: &'static str, future: BoxFuture<'static, ()>) -> Box<dyn Task> {
        self.inner.spawn(name, Box::pin(OnHost::new(self.life.clone(), future)))
    }
}
