//! Servers and agents, in folders of the run, each node on a host of its own. Where we are root, the hosts have addresses of
//! their own, and the repository and the third server's data lie on file systems of their own, which can be full or read-only.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sheetanchor_core::error::Result as Outcome;
use sheetanchor_native::postgres::postmaster::Postmaster;
use sheetanchor_native::postgres::server::{Server, ServerPlan};

use super::hosts::{Hosts, OPERATORS};
use super::network::Network;
use super::site::{NodeText, Said, Site, free_addresses, said};
use super::{ledger, leftovers};

/// A file system of its own in a folder of the run.
pub struct Mount {
    folder: String,
    /// Held by whoever has broken it: one at a time.
    pub broken: tokio::sync::Mutex<()>,
}

impl Mount {
    pub fn make(folder: &str, megabytes: u32) -> Option<Self> {
        fs::create_dir_all(folder).unwrap();
        let options = format!("size={megabytes}m,mode=755");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "sheetanchor-nemesis", folder]).output();
        mounted
            .is_ok_and(|said| said.status.success())
            .then(|| Self { folder: folder.to_owned(), broken: tokio::sync::Mutex::default() })
    }

    /// Whether that could be done: not while somebody writes a file.
    pub fn read_only(&self, yes: bool) -> bool {
        let options = if yes { "remount,ro" } else { "remount,rw" };
        Command::new("mount").args(["-o", options, &self.folder]).output().unwrap().status.success()
    }

    fn filler(&self) -> String {
        format!("{}/filler", self.folder)
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut file = fs::File::create(self.filler()).unwrap();
        for piece in [1 << 20, 4096] {
            while std::io::Write::write_all(&mut file, &vec![0; piece]).is_ok() {}
        }
    }

    pub fn make_room(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        Command::new("umount").args(["--lazy", &self.folder]).output().ok();
    }
}

pub struct Town {
    pub nodes: Vec<u16>,
    pub hosts: Hosts,
    pub servers: BTreeMap<u16, Server>,
    /// What lies between the hosts, or why there is nothing.
    pub network: Result<Network, String>,
    agents: BTreeMap<u16, Mutex<Option<Child>>>,
    pub repository: Option<Mount>,
    pub third_disk: Option<Mount>,
    pub site: Site,
}

impl Town {
    /// A town of so many nodes, three at least.
    pub async fn new(nodes: u16) -> Self {
        leftovers::sweep();
        let mut site = Site::empty("nemesis");
        let nodes: Vec<u16> = (1..=nodes).collect();
        let third_disk = Mount::make(&site.path("disk3"), 400);
        let repository = Mount::make(&site.path("store"), 1500);
        site.repository = Some("store/repository".to_owned());
        let hosts = Hosts::new(&site, *nodes.last().unwrap());
        site.two_phase = true;
        let network = Network::new(&nodes);
        let made = nodes.iter().map(async |id| {
            let data = if *id == 3 { "disk3/pg".to_owned() } else { format!("pg-{id}") };
            (*id, server(&site, *id, &data, hosts.programs(*id).await, network.as_ref().ok()).await)
        });
        let servers: BTreeMap<u16, Server> = join_all(made).await.into_iter().collect();
        let mut agents = BTreeMap::new();
        for (id, free) in nodes.iter().copied().zip(free_addresses(nodes.len())) {
            site.environment.insert(id, hosts.variables(id));
            if let Ok(network) = &network {
                site.entering.insert(id, network.entering(id));
            }
            agents.insert(id, Mutex::new(None));
            site.nodes.push(NodeText {
                id,
                agent: if network.is_ok() { Network::agent(id) } else { free },
                state: site.path(&format!("state-{id}")),
                engine: "postgres",
                data: servers[&id].plan().data.clone(),
                connection: servers[&id].connection(),
            });
        }
        site.write_cluster_file();
        let town = Self { nodes, hosts, servers, network, agents, repository, third_disk, site };
        town.start_agents();
        town
    }

    pub fn connections(&self) -> BTreeMap<u16, String> {
        self.servers.iter().map(|(node, server)| (*node, server.connection())).collect()
    }

    /// Starts an agent if it does not run, and waits until it serves.
    pub fn start_agent(&self, node: u16) {
        let mut agent = self.agents[&node].lock().unwrap();
        if agent.as_mut().is_none_or(|agent| agent.try_wait().unwrap().is_some()) {
            *agent = Some(self.site.spawn_agent(node));
        }
    }

    /// Kills an agent; whether there was one.
    pub fn kill_agent(&self, node: u16) -> bool {
        let Some(mut agent) = self.agents[&node].lock().unwrap().take() else { return false };
        let ran = agent.try_wait().unwrap().is_none();
        agent.kill().ok();
        agent.wait().ok();
        ran
    }

    /// Sends a signal to an agent; whether there was one.
    pub fn signal_agent(&self, node: u16, name: &str) -> bool {
        let agent = self.agents[&node].lock().unwrap();
        if let Some(agent) = agent.as_ref() {
            signal(name, agent.id());
        }
        agent.is_some()
    }

    /// Runs a command as an operator whose way to the agents may be cut.
    pub fn operator(&self, arguments: &[&str]) -> Said {
        said(&mut self.command(arguments))
    }

    /// A command of an operator.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let entering = self.network.as_ref().map(|network| network.entering(OPERATORS)).unwrap_or_default();
        let mut command = self.site.command_after(&entering, arguments);
        command.stdin(Stdio::null()).envs(self.hosts.variables(OPERATORS));
        command
    }

    /// Starts a node's server, on its host. Nothing happens if it runs.
    pub async fn start_server(&self, node: u16) -> Outcome<()> {
        start(&self.servers[&node], node, self.network.as_ref().ok()).await
    }

    pub fn start_agents(&self) {
        for node in &self.nodes {
            self.start_agent(*node);
        }
    }

    pub fn kill_agents(&self) {
        for node in &self.nodes {
            self.kill_agent(*node);
        }
    }

    /// The name and the text of everybody's log, for whoever has to find out.
    pub fn logs(&self) -> Vec<(String, Vec<u8>)> {
        let of =
            |node: &u16| [format!("agent-{node}.log"), format!("pg-{node}.log"), format!("state-{node}/postgres.log")];
        let read = |name: String| {
            let text = fs::read(self.site.path(&name)).unwrap_or_default();
            (name, text)
        };
        self.nodes.iter().flat_map(of).map(read).collect()
    }
}

impl Drop for Town {
    fn drop(&mut self) {
        self.kill_agents();
        let data: Vec<String> = self.servers.values().map(|server| server.plan().data.clone()).collect();
        for data in &data {
            signal_folder("-CONT", data);
        }
        self.servers.clear();
        await_gone(&data);
    }
}

/// Whether a server runs in a folder.
pub fn serves(data: &str) -> bool {
    matches!(Postmaster::of(data), Ok(Some(_)))
}

/// Waits until nobody serves any of the folders.
pub fn await_gone(data: &[String]) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(20) && data.iter().any(|data| serves(data)) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Without hosts that have addresses of their own nobody is cut off. Root can do better, but for where it was told not to.
pub fn without_network(why: &str) {
    let may_do_without = super::setting("WITHOUT_NAMESPACES").is_some();
    assert!(
        !rustix::process::geteuid().is_root() || may_do_without,
        "no network namespaces here ({why}); SHEETANCHOR_NEMESIS_WITHOUT_NAMESPACES=1 goes on"
    );
    eprintln!("hosts cannot have addresses of their own here ({why}): nobody is cut off");
}

/// Starts a server on a host. Nothing happens if it runs.
pub async fn start(server: &Server, node: u16, network: Option<&Network>) -> Outcome<()> {
    let Some(network) = network else { return server.start().await };
    let start = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(server.start())
    };
    tokio::task::block_in_place(|| network.within(node, start))
}

async fn server(site: &Site, id: u16, data: &str, programs: String, network: Option<&Network>) -> Server {
    let settings = [
        ("shared_buffers", "16MB"),
        ("autovacuum_naptime", "1s"),
        ("shared_preload_libraries", "sheetanchor_fence"),
        ("max_prepared_transactions", "8"),
        ("max_wal_size", "64MB"),
        ("min_wal_size", "32MB"),
        ("checkpoint_timeout", "30s"),
        ("restart_after_crash", "on"),
    ];
    let server = Server::init(ServerPlan {
        data: site.path(data),
        socket_folder: site.path(&format!("s{id}")),
        port: 5432,
        log: site.path(&format!("pg-{id}.log")),
        bin: Some(programs),
        run_as: None,
        settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
    });
    let server = server.await.unwrap();
    // `cargo xtask pg` installs the fence, without which it does not start.
    start(&server, id, network).await.unwrap();
    let (client, connection) = tokio_postgres::connect(&server.connection(), tokio_postgres::NoTls).await.unwrap();
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(connection);
    client.batch_execute("CREATE EXTENSION sheetanchor_fence; CREATE EXTENSION amcheck").await.unwrap();
    ledger::create(&server.connection()).await;
    server
}

/// Sends a signal; that the process is gone is no matter.
pub fn signal(name: &str, process: u32) {
    Command::new("kill").args([name, &process.to_string()]).stderr(Stdio::null()).status().ok();
}

/// Sends a signal to every process that works in a folder.
pub fn signal_folder(name: &str, folder: &str) {
    let Ok(folder) = fs::canonicalize(folder) else { return };
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let is_there = fs::read_link(process.path().join("cwd")).is_ok_and(|works_in| works_in == folder);
        let is_server =
            fs::read_link(process.path().join("exe")).is_ok_and(|program| program.ends_with(Path::new("postgres")));
        if let (true, Some(number)) =
            (is_there && is_server, process.file_name().to_str().and_then(|name| name.parse().ok()))
        {
            signal(name, number);
        }
    }
}
