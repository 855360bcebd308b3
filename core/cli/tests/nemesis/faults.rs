//! What the nemesis does, to whom, when, and for how long.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sheetanchor_native::postgres::postmaster::StopMode;
use tokio::task::JoinSet;

use super::chance::Chance;
use super::hosts;
use super::network::{Network, Way};
use super::town::{Town, serves, signal, signal_folder};

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
    /// A host's cable is pulled: of operators, or of a node.
    CablePulled(u16),
    /// What a node is sent, or what it sends, is lost.
    OneWayLost(u16, Way),
    /// A node loses its power: its cable, agent and server are gone at once, and nobody is told.
    HostLost(u16),
    SlowLink(u16),
    RepositoryReadOnly,
    RepositoryFull,
    DiskFull,
    /// Of so many calls out of a hundred.
    RepositoryFails(u32),
    /// The wall clock of a host is ahead by so many seconds, and is set right again.
    ClockAhead(u16, i64),
}

impl Deed {
    /// What it is called where the deeds of a run are counted.
    pub fn kind(self) -> &'static str {
        match self {
            Self::KillServer(_) => "server killed",
            Self::KillBackend(_) => "backend killed",
            Self::PauseServer(_) => "server paused",
            Self::KillAgent(_) => "agent killed",
            Self::PauseAgent(_) => "agent paused",
            Self::KillCoordinator => "coordinators killed",
            Self::PauseCoordinator => "coordinators paused",
            Self::CablePulled(hosts::OPERATORS) => "cable of coordinators pulled",
            Self::CablePulled(_) => "cable of a node pulled",
            Self::OneWayLost(_, Way::To) => "what a node is sent lost",
            Self::OneWayLost(_, Way::From) => "what a node sends lost",
            Self::HostLost(_) => "host lost",
            Self::SlowLink(_) => "link slow",
            Self::RepositoryReadOnly => "repository read-only",
            Self::RepositoryFull => "repository full",
            Self::DiskFull => "disk of a server full",
            Self::RepositoryFails(_) => "repository answers errors",
            Self::ClockAhead(hosts::OPERATORS, _) => "clock of coordinators set ahead",
            Self::ClockAhead(..) => "clock of a node set ahead",
        }
    }

    /// Whether a clone may be refused meanwhile: it leaves a note in the repository that it reads.
    pub fn hinders_clones(self) -> bool {
        matches!(self, Self::RepositoryReadOnly | Self::RepositoryFull)
    }
}

/// How far ahead a clock is set, in seconds: more than a server waits for who streams its WAL, and more than any run takes.
const AHEAD_S: [i64; 3] = [90, 3_600, 86_400];

/// How many calls out of a hundred the repository fails.
const FAILING: [u32; 2] = [30, 100];

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
    nodes: Vec<u16>,
    means: Means,
}

/// What can be had here.
#[derive(Clone, Copy, Debug)]
pub struct Means {
    pub own_file_systems: bool,
    pub network: bool,
    pub slow_links: bool,
}

impl Deck {
    pub fn new(chance: Chance, nodes: &[u16], means: Means) -> Self {
        Self { chance, waiting: Vec::new(), nodes: nodes.to_vec(), means }
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
        let mut node = || *self.chance.one_of(&self.nodes);
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
        if self.means.network {
            deeds.extend([
                Deed::CablePulled(node()),
                Deed::CablePulled(hosts::OPERATORS),
                Deed::OneWayLost(node(), Way::To),
                Deed::OneWayLost(node(), Way::From),
                Deed::HostLost(node()),
            ]);
        }
        if self.means.slow_links {
            deeds.push(Deed::SlowLink(node()));
        }
        for host in [node(), hosts::OPERATORS] {
            deeds.push(Deed::ClockAhead(host, *self.chance.one_of(&AHEAD_S)));
        }
        deeds.push(Deed::RepositoryFails(*self.chance.one_of(&FAILING)));
        if self.means.own_file_systems {
            deeds.extend([Deed::RepositoryReadOnly, Deed::RepositoryFull, Deed::DiskFull]);
        }
        self.chance.shuffle(&mut deeds);
        deeds
    }
}

/// Processes of coordinators that run, by what they do.
pub type Coordinators = Arc<Mutex<BTreeMap<&'static str, u32>>>;

/// Does what is planned, all beside each other; returns once everything is undone. Says whether each deed struck anybody.
pub async fn strike(town: &Arc<Town>, coordinators: &Coordinators, plan: &[Planned]) -> Vec<(Planned, bool)> {
    let mut deeds = JoinSet::new();
    for (number, planned) in plan.iter().copied().enumerate() {
        let (town, coordinators) = (town.clone(), coordinators.clone());
        deeds.spawn(async move {
            tokio::time::sleep(planned.at).await;
            (number, do_and_undo(&town, &coordinators, planned).await)
        });
    }
    let done: BTreeMap<usize, bool> = deeds.join_all().await.into_iter().collect();
    plan.iter().enumerate().map(|(number, planned)| (*planned, done[&number])).collect()
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
        Deed::CablePulled(_) | Deed::OneWayLost(..) | Deed::HostLost(_) | Deed::SlowLink(_) => match &town.network {
            Ok(network) => cut_off(town, network, deed, lasts).await,
            Err(_) => false,
        },
        Deed::ClockAhead(host, seconds) => {
            town.hosts.set_clock_ahead(host, seconds);
            wait.await;
            town.hosts.set_clock_ahead(host, 0);
            true
        }
        Deed::RepositoryFails(percent) => {
            town.hosts.fail_repository(&town.nodes, percent);
            wait.await;
            town.hosts.fail_repository(&town.nodes, 0);
            true
        }
        Deed::RepositoryReadOnly | Deed::RepositoryFull | Deed::DiskFull => fail_storage(town, deed, lasts).await,
    }
}

async fn cut_off(town: &Town, network: &Network, deed: Deed, lasts: Duration) -> bool {
    match deed {
        Deed::CablePulled(host) => {
            network.pull(host);
            tokio::time::sleep(lasts).await;
            network.plug(host);
        }
        Deed::OneWayLost(node, way) => {
            let cut = network.silence(node, way);
            tokio::time::sleep(lasts).await;
            network.heal(cut);
        }
        Deed::HostLost(node) => {
            network.pull(node);
            town.kill_agent(node);
            town.servers[&node].stop(StopMode::Kill).await.ok();
            tokio::time::sleep(lasts).await;
            network.plug(node);
            start_server(town, node).await;
            town.start_agent(node);
        }
        Deed::SlowLink(node) => {
            network.slow(node);
            tokio::time::sleep(lasts).await;
            network.hasten(node);
        }
        _ => return false,
    }
    true
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
    town.start_server(node).await.ok();
}

fn each_coordinator(coordinators: &Coordinators, mut each: impl FnMut(u32)) -> Vec<u32> {
    let running: Vec<u32> = coordinators.lock().unwrap().values().copied().collect();
    for process in &running {
        each(*process);
    }
    running
}
