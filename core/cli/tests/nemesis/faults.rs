//! What the nemesis does, to whom, when, and for how long.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sheetanchor_native::postgres::postmaster::StopMode;
use tokio::task::JoinSet;

use super::chance::Chance;
use super::links::Severed;
use super::town::{NODES, Town, serves, signal, signal_folder};

/// One deed. Processes are killed by SIGKILL and paused by SIGSTOP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    KillServer(u16),
    KillBackend(u16),
    PauseServer(u16),
    KillAgent(u16),
    PauseAgent(u16),
    KillCoordinator,
    PauseCoordinator,
    SeverLink(u16, Severed),
    RepositoryReadOnly,
    RepositoryFull,
    DiskFull,
}

/// A deed, when it is done, and when it is undone again.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    pub at: Duration,
    pub deed: Deed,
    pub lasts: Duration,
}

impl fmt::Display for Planned {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?} at {:.1} s for {:.1} s", self.deed, self.at.as_secs_f32(), self.lasts.as_secs_f32())
    }
}

/// All deeds there are, dealt one after the other, so that none is left out for long.
pub struct Deck {
    chance: Chance,
    waiting: Vec<Deed>,
    own_file_systems: bool,
}

impl Deck {
    pub fn new(chance: Chance, own_file_systems: bool) -> Self {
        Self { chance, waiting: Vec::new(), own_file_systems }
    }

    /// What is done in a round of `length`.
    pub fn deal(&mut self, count: usize, length: Duration) -> Vec<Planned> {
        let mut dealt = Vec::new();
        for _ in 0..count {
            if self.waiting.is_empty() {
                self.waiting = self.shuffled();
            }
            let deed = self.waiting.pop().unwrap();
            let at = self.chance.millis(500, u64::try_from(length.as_millis()).unwrap());
            // Shorter and longer than the lease of a fence.
            let lasts = self.chance.millis(200, 5_000);
            dealt.push(Planned { at, deed, lasts });
        }
        dealt.sort_by_key(|planned| planned.at);
        dealt
    }

    fn shuffled(&mut self) -> Vec<Deed> {
        let mut node = || *self.chance.one_of(&NODES);
        let mut deeds = vec![
            Deed::KillServer(node()),
            Deed::KillServer(node()),
            Deed::KillBackend(node()),
            Deed::PauseServer(node()),
            Deed::KillAgent(node()),
            Deed::KillAgent(node()),
            Deed::PauseAgent(node()),
            Deed::KillCoordinator,
            Deed::KillCoordinator,
            Deed::PauseCoordinator,
        ];
        for severed in [Severed::Requests, Severed::Answers, Severed::Both] {
            deeds.push(Deed::SeverLink(node(), severed));
        }
        if self.own_file_systems {
            deeds.extend([Deed::RepositoryReadOnly, Deed::RepositoryFull, Deed::DiskFull]);
        }
        self.chance.shuffle(&mut deeds);
        deeds
    }
}

/// Processes of coordinators that run, by what they do.
pub type Coordinators = Arc<Mutex<BTreeMap<&'static str, u32>>>;

/// Does what is planned, all beside each other; returns once everything is undone. Says what came of each deed.
pub async fn strike(town: &Arc<Town>, coordinators: &Coordinators, plan: &[Planned]) -> Vec<String> {
    let mut deeds = JoinSet::new();
    for (number, planned) in plan.iter().copied().enumerate() {
        let (town, coordinators) = (town.clone(), coordinators.clone());
        deeds.spawn(async move {
            tokio::time::sleep(planned.at).await;
            (number, do_and_undo(&town, &coordinators, planned).await)
        });
    }
    let done: BTreeMap<usize, bool> = deeds.join_all().await.into_iter().collect();
    let told = |(number, planned): (usize, &Planned)| {
        if done[&number] { planned.to_string() } else { format!("{planned}, which struck nobody") }
    };
    plan.iter().enumerate().map(told).collect()
}

/// Whether there was anybody to do it to.
async fn do_and_undo(town: &Town, coordinators: &Coordinators, Planned { deed, lasts, .. }: Planned) -> bool {
    let wait = tokio::time::sleep(lasts);
    match deed {
        Deed::KillServer(node) => {
            let server = &town.servers[&node];
            let struck = serves(&server.plan().data) && server.stop(StopMode::Kill).await.is_ok();
            wait.await;
            start_server(town, node).await;
            struck
        }
        Deed::KillBackend(node) => {
            let dialled = tokio_postgres::connect(&town.servers[&node].connection(), tokio_postgres::NoTls).await;
            let Ok((client, connection)) = dialled else { return false };
            let mut driver = JoinSet::new();
            driver.spawn(connection);
            let Ok(row) = client.query_one("SELECT pg_backend_pid()", &[]).await else { return false };
            signal("-KILL", u32::try_from(row.get::<_, i32>(0)).unwrap());
            true
        }
        Deed::PauseServer(node) => {
            let data = &town.servers[&node].plan().data;
            let struck = serves(data);
            signal_folder("-STOP", data);
            wait.await;
            signal_folder("-CONT", data);
            struck
        }
        Deed::KillAgent(node) => {
            let struck = town.kill_agent(node);
            wait.await;
            town.start_agent(node);
            struck
        }
        Deed::PauseAgent(node) => {
            let struck = town.signal_agent(node, "-STOP");
            wait.await;
            town.signal_agent(node, "-CONT");
            struck
        }
        Deed::KillCoordinator => !each_coordinator(coordinators, |process| signal("-KILL", process)).is_empty(),
        Deed::PauseCoordinator => {
            let paused = each_coordinator(coordinators, |process| signal("-STOP", process));
            wait.await;
            for process in &paused {
                signal("-CONT", *process);
            }
            !paused.is_empty()
        }
        Deed::SeverLink(node, severed) => {
            town.links[&node].sever(severed);
            wait.await;
            town.links[&node].heal();
            true
        }
        Deed::RepositoryReadOnly | Deed::RepositoryFull | Deed::DiskFull => fail_storage(town, deed, lasts).await,
    }
}

async fn fail_storage(town: &Town, deed: Deed, lasts: Duration) -> bool {
    let (Some(repository), Some(third)) = (&town.repository, &town.third_disk) else { return false };
    let _broken = if deed == Deed::DiskFull { &third.broken } else { &repository.broken }.lock().await;
    match deed {
        Deed::RepositoryReadOnly => {
            let mut struck = false;
            for _ in 0..20 {
                struck = repository.read_only(true);
                if struck {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            tokio::time::sleep(lasts).await;
            assert!(repository.read_only(false));
            struck
        }
        Deed::RepositoryFull => {
            repository.fill();
            tokio::time::sleep(lasts).await;
            repository.make_room();
            true
        }
        _ => {
            third.fill();
            tokio::time::sleep(lasts).await;
            third.make_room();
            // A server that cannot write WAL ends.
            start_server(town, 3).await;
            true
        }
    }
}

/// Starts a server, unless another deed does: what counts is how it is in the end.
async fn start_server(town: &Town, node: u16) {
    town.servers[&node].start().await.ok();
}

fn each_coordinator(coordinators: &Coordinators, mut each: impl FnMut(u32)) -> Vec<u32> {
    let running: Vec<u32> = coordinators.lock().unwrap().values().copied().collect();
    for process in &running {
        each(*process);
    }
    running
}
