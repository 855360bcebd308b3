//! The folder that a demonstration lives in, and the agents in it, each a process of its own.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sheetanchor_core::error::{Fault, FaultKind};
use sheetanchor_core::identity::NodeId;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::broken;
use crate::config::ClusterFile;
use crate::report::Result;
use crate::screen::lines;

/// How long an agent may take to say that it is ready.
const READY_WAIT: Duration = Duration::from_secs(20);

/// How often a folder is wiped in which something is still being written, and the pause in between.
const WIPE_ATTEMPTS: u32 = 40;
const WIPE_PAUSE: Duration = Duration::from_millis(50);

/// A folder and its agents. Agents end with it, however it ends.
pub struct House {
    folder: PathBuf,
    agents: BTreeMap<NodeId, Child>,
}

/// A node of the cluster file.
pub struct NodeText {
    /// Its id.
    pub node: NodeId,
    /// Where its agent listens.
    pub agent: String,
    /// `refdb` or `postgres`.
    pub engine: &'static str,
    /// Its data folder.
    pub data: String,
    /// How to reach its database.
    pub connection: String,
}

impl House {
    /// A new, empty folder among the temporary ones.
    ///
    /// # Errors
    /// Faults.
    pub fn new() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("sheetanchor-demo-{}", std::process::id()));
        let made = fs::create_dir(&folder).and_then(|()| {
            // Servers that run under another account must get through.
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))
        });
        made.map_err(|error| fault("make", &folder, &error))?;
        Ok(Self { folder, agents: BTreeMap::new() })
    }

    /// Where `name` lies in it.
    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Writes and reads the cluster file.
    ///
    /// # Errors
    /// Faults; what the file is refused for.
    pub fn furnish(&self, nodes: impl Iterator<Item = NodeText>) -> Result<ClusterFile> {
        let head = format!("[cluster]\nname = \"demo\"\nrepository = \"file://{}\"", self.path("repository"));
        let nodes = nodes.map(|NodeText { node, agent, engine, data, connection }| {
            let state = self.path(&format!("state-{node}"));
            format!(
                "\n[[node]]\nid = {node}\nagent = \"{agent}\"\nstate = \"{state}\"\nengine = \"{engine}\"\n\
                 data = \"{data}\"\nconnection = \"{connection}\""
            )
        });
        let text = lines(std::iter::once(head).chain(nodes));
        let path = self.cluster_file();
        fs::write(&path, text).map_err(|error| fault("write", &path, &error))?;
        ClusterFile::read(&path)
    }

    fn cluster_file(&self) -> PathBuf {
        self.folder.join("cluster.toml")
    }

    /// Starts the agent of `node`, as an operator would, and waits until it is ready.
    ///
    /// # Errors
    /// A fault with its last words if it ends instead.
    pub async fn start_agent(&mut self, node: NodeId) -> Result<()> {
        let log = self.folder.join(format!("agent-{node}.log"));
        let opened = fs::OpenOptions::new().create(true).append(true).open(&log);
        let opened = opened.map_err(|error| fault("open", &log, &error))?;
        let program = std::env::current_exe()
            .map_err(|error| Fault::new(FaultKind::Other, "find this program", error.to_string()))?;
        let mut command = Command::new(&program);
        command.args(["--log", "info", "--cluster"]).arg(self.cluster_file());
        command.args(["agent", "--node", &node.to_string()]);
        // A Ctrl-C at the terminal is ours to handle: it must not take the nodes away in the middle of a step.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(opened).process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| fault("start", &program, &error))?;
        let first_line = async {
            let mut lines = BufReader::new(child.stdout.take()?).lines();
            lines.next_line().await.ok()?
        };
        let ready = tokio::time::timeout(READY_WAIT, first_line).await;
        if !matches!(ready, Ok(Some(_))) {
            let cause = last_line(&log);
            return Err(Fault::new(FaultKind::Unreachable, format!("start the agent of node {node}"), cause).into());
        }
        self.agents.insert(node, child);
        Ok(())
    }

    /// The process of `node`'s agent.
    ///
    /// # Errors
    /// A bug if it does not run.
    pub fn process(&self, node: NodeId) -> Result<Pid> {
        let pid = self.agents.get(&node).and_then(Child::id).and_then(|id| i32::try_from(id).ok());
        Ok(pid.and_then(Pid::from_raw).ok_or_else(|| broken(format!("the agent of node {node} does not run")))?)
    }

    /// `kill -9`s the agent of `node`, if it runs, and waits until it is gone.
    ///
    /// # Errors
    /// Faults.
    pub async fn kill(&mut self, node: NodeId) -> Result<()> {
        let Some(mut child) = self.agents.remove(&node) else { return Ok(()) };
        let gone = child.kill().await;
        Ok(gone.map_err(|error| {
            Fault::new(FaultKind::Other, format!("end the agent of node {node}"), error.to_string())
        })?)
    }

    /// Ends everything that runs in it, and removes it unless it is to be kept: then its path is answered.
    pub async fn close(&mut self, keep: bool) -> Option<String> {
        for child in std::mem::take(&mut self.agents).values_mut() {
            // An agent that ended by itself needs no killing.
            drop(child.kill().await);
        }
        // One that was never used is of no interest.
        let unused = fs::remove_dir(&self.folder).is_ok();
        if unused {
            return None;
        }
        if keep {
            return Some(self.folder.display().to_string());
        }
        wipe(&self.folder.display().to_string()).await.is_err().then(|| self.folder.display().to_string())
    }
}

/// Sends SIGKILL to a process of ours.
pub fn kill_now(process: Pid) {
    if let Err(error) = kill_process(process, Signal::KILL) {
        // One that is gone already is as dead as it is meant to be.
        tracing::info!(%error, "a process could not be killed");
    }
}

/// Removes a folder and all that is in it. A process that has just been killed may write its last meanwhile.
///
/// # Errors
/// Faults.
pub async fn wipe(folder: &str) -> Result<()> {
    let mut attempts = 1;
    loop {
        match fs::remove_dir_all(folder) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(_) if attempts < WIPE_ATTEMPTS => attempts += 1,
            Err(error) => return Err(fault("wipe", Path::new(folder), &error).into()),
        }
        tokio::time::sleep(WIPE_PAUSE).await;
    }
}

/// As many loopback addresses that nobody listens on.
///
/// # Errors
/// Faults.
pub fn free_addresses(count: usize) -> Result<Vec<String>> {
    let bound: std::io::Result<Vec<TcpListener>> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
    let bound = bound.map_err(|error| Fault::new(FaultKind::Other, "find free ports", error.to_string()))?;
    // All are held until all are known, so that no two are the same.
    let addresses: std::io::Result<Vec<String>> =
        bound.iter().map(|listener| listener.local_addr().map(|address| address.to_string())).collect();
    Ok(addresses.map_err(|error| Fault::new(FaultKind::Other, "find free ports", error.to_string()))?)
}

fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let said = text.lines().rev().find(|line| !line.is_empty() && !line.starts_with("HINT"));
    said.map_or_else(|| "it said nothing".to_owned(), ToOwned::to_owned)
}

fn fault(operation: &str, path: &Path, error: &std::io::Error) -> Fault {
    Fault::new(FaultKind::Other, format!("{operation} {}", path.display()), error.to_string())
}
