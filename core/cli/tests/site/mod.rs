//! A cluster for one test: a folder, a cluster file, and agents that are processes of their own. All of it is gone when
//! the test ends, however it ends.
#![allow(dead_code, clippy::print_stderr, reason = "each test binary uses its part; a failed test shows the logs")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// It did what was asked.
    pub fn done(self) -> String {
        assert_eq!(self.status, 0, "{}", self.err);
        self.out
    }

    /// It was refused with `code`, and said what to do.
    pub fn refused(self, code: &str) -> String {
        assert_eq!(self.status, 3, "{self:?}");
        assert!(self.err.contains(&format!("({code})")), "{code} was due: {}", self.err);
        assert!(self.err.contains("HINT: "), "{}", self.err);
        self.err
    }

    pub fn json(self) -> Value {
        serde_json::from_str(&self.done()).unwrap()
    }
}

/// The program under test.
pub fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_sheetanchor"))
}

pub fn said(command: &mut Command) -> Said {
    let output = command.stdin(Stdio::null()).output().unwrap();
    Said {
        status: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// What the cluster file says of one node.
#[derive(Clone, Debug)]
pub struct NodeText {
    pub id: u16,
    pub agent: String,
    pub state: String,
    pub engine: &'static str,
    /// Empty where its server sends its files.
    pub data: String,
    pub connection: String,
}

pub struct Site {
    folder: PathBuf,
    agents: BTreeMap<u16, Child>,
    pub nodes: Vec<NodeText>,
    pub name: &'static str,
    /// The repository, relative to the folder, if it is not `repository`.
    pub repository: Option<String>,
    /// The repository that it is a clone of.
    pub source: Option<PathBuf>,
    /// Whether its clients are declared to commit in two phases.
    pub two_phase: bool,
    /// What the cluster file says of every node besides, line by line.
    pub node_lines: &'static str,
    /// What the agents of some nodes have in their environment.
    pub environment: BTreeMap<u16, Vec<(String, String)>>,
    /// The words before the commands of some nodes' agents: what starts them elsewhere.
    pub entering: BTreeMap<u16, Vec<String>>,
}

impl Site {
    /// A folder for `test`, with nothing in it.
    pub fn empty(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("sa-cli-{test}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let (agents, nodes, environment, entering) = (BTreeMap::new(), Vec::new(), BTreeMap::new(), BTreeMap::new());
        let (repository, source, two_phase, node_lines) = (None, None, false, "");
        Self { folder, agents, nodes, name: "ledger", repository, source, two_phase, node_lines, environment, entering }
    }

    /// Three nodes of the embedded database, whose agents do not run yet.
    pub fn refdb(test: &str) -> Self {
        let mut site = Self::empty(test);
        let addresses = free_addresses(6);
        for (index, id) in (1..=3).enumerate() {
            site.nodes.push(NodeText {
                id,
                agent: addresses[index].clone(),
                state: site.path(&format!("state-{id}")),
                engine: "refdb",
                data: site.path("shared"),
                connection: addresses[index + 3].clone(),
            });
        }
        site.write_cluster_file();
        site
    }

    /// A cluster whose nodes run.
    pub fn running(test: &str) -> Self {
        let mut site = Self::refdb(test);
        site.start_agents();
        site.run(&["init"]).done();
        site
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    pub fn repository(&self) -> PathBuf {
        self.folder.join(self.repository.as_deref().unwrap_or("repository"))
    }

    pub fn write_cluster_file(&self) {
        let repository = self.repository();
        let mut text =
            format!("[cluster]\nname = \"{}\"\nrepository = \"file://{}\"\n", self.name, repository.display());
        if let Some(source) = &self.source {
            text += &format!("source = \"file://{}\"\n", source.display());
        }
        if self.two_phase {
            text += "two_phase = true\n";
        }
        for NodeText { id, agent, state, engine, data, connection } in &self.nodes {
            let files =
                if data.is_empty() { "capture = \"base_backup\"".to_owned() } else { format!("data = \"{data}\"") };
            text += &format!(
                "[[node]]\nid = {id}\nagent = \"{agent}\"\nstate = \"{state}\"\nengine = \"{engine}\"\n{files}\nconnection = \"{connection}\"\n{}",
                self.node_lines
            );
        }
        fs::write(self.folder.join("cluster.toml"), text).unwrap();
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_after(&[], arguments)
    }

    /// The same after other words: a program that becomes ours, and its arguments.
    pub fn command_after(&self, words: &[String], arguments: &[&str]) -> Command {
        let mut command = match words {
            [] => program(),
            [first, others @ ..] => {
                let mut command = Command::new(first);
                command.args(others).arg(env!("CARGO_BIN_EXE_sheetanchor"));
                command
            }
        };
        command.current_dir(&self.folder).args(arguments);
        command
    }

    /// Runs a command of the program, as an operator in the site's folder.
    pub fn run(&self, arguments: &[&str]) -> Said {
        said(&mut self.command(arguments))
    }

    pub fn start_agents(&mut self) {
        for id in self.nodes.iter().map(|node| node.id).collect::<Vec<_>>() {
            self.start_agent(id);
        }
    }

    /// Starts an agent and waits until it says that it is ready.
    pub fn start_agent(&mut self, id: u16) {
        let child = self.spawn_agent(id);
        self.agents.insert(id, child);
    }

    /// Starts an agent that the caller must end.
    pub fn spawn_agent(&self, id: u16) -> Child {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path(&format!("agent-{id}.log"))).unwrap();
        let entering = self.entering.get(&id).map_or(&[][..], Vec::as_slice);
        let mut command = self.command_after(entering, &["--log", "info", "agent", "--node", &id.to_string()]);
        command.envs(self.environment.get(&id).into_iter().flatten().cloned());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            child.wait().unwrap();
            panic!("{}", fs::read_to_string(self.path(&format!("agent-{id}.log"))).unwrap());
        }
        child
    }

    pub fn pid(&self, id: u16) -> String {
        self.agents[&id].id().to_string()
    }

    /// `kill -9`.
    pub fn kill(&mut self, id: u16) {
        let mut child = self.agents.remove(&id).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Asks an agent to end, and answers the status that it ends with.
    pub fn terminate(&mut self, id: u16) -> i32 {
        send("-TERM", &self.pid(id));
        self.agents.remove(&id).unwrap().wait().unwrap().code().unwrap_or(-1)
    }

    pub fn kill_all(&mut self) {
        for id in self.agents.keys().copied().collect::<Vec<_>>() {
            self.kill(id);
        }
    }

    /// Removes every data and state folder.
    pub fn wipe(&self) {
        for node in &self.nodes {
            for folder in [&node.data, &node.state] {
                fs::remove_dir_all(folder).ok();
            }
        }
    }

    /// Every file of the repository, and what is in it.
    pub fn repository_contents(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut waiting = vec![self.repository()];
        while let Some(folder) = waiting.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    waiting.push(path);
                } else {
                    found.insert(path.clone(), fs::read(&path).unwrap());
                }
            }
        }
        found
    }

    /// The only object of the repository whose key starts with `prefix`.
    pub fn object(&self, prefix: &str) -> PathBuf {
        let all = self.repository_contents();
        let start = self.repository().join(prefix);
        let start = start.to_str().unwrap();
        let found: Vec<PathBuf> = all.into_keys().filter(|path| path.to_str().unwrap().starts_with(start)).collect();
        assert_eq!(found.len(), 1, "{prefix}: {found:?}");
        found[0].clone()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for child in self.agents.values_mut() {
            child.kill().ok();
            child.wait().ok();
        }
        if std::thread::panicking() {
            for node in &self.nodes {
                let log = fs::read_to_string(self.path(&format!("agent-{}.log", node.id))).unwrap_or_default();
                eprintln!("--- agent {}\n{log}", node.id);
            }
        }
        fs::remove_dir_all(&self.folder).ok();
    }
}

pub fn free_addresses(count: usize) -> Vec<String> {
    let bound: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    bound.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

/// A command that runs beside the test, and whose error output can be waited for.
pub struct Beside {
    child: Child,
    err: BufReader<std::process::ChildStderr>,
    seen: String,
}

impl Beside {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let err = BufReader::new(child.stderr.take().unwrap());
        Self { child, err, seen: String::new() }
    }

    /// Returns once a line of the error output holds `what`.
    pub fn wait_for(&mut self, what: &str) {
        loop {
            let mut line = String::new();
            assert!(self.err.read_line(&mut line).unwrap() > 0, "no `{what}` in: {}", self.seen);
            self.seen += &line;
            if line.contains(what) {
                return;
            }
        }
    }

    pub fn signal(&self, signal: &str) {
        send(signal, &self.child.id().to_string());
    }

    pub fn end(mut self) -> Said {
        self.err.read_to_string(&mut self.seen).unwrap();
        let mut out = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        let status = self.child.wait().unwrap().code().unwrap_or(-1);
        Said { status, out, err: std::mem::take(&mut self.seen) }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub fn send(signal: &str, pid: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
}

/// What `look` answers once it answers something.
pub fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "nothing came of it");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub fn exists(path: impl AsRef<Path>) -> bool {
    path.as_ref().exists()
}
