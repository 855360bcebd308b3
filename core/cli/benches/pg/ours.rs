//! Sheetanchor, as an operator runs it: a cluster file, an agent beside each server, and commands.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::PROGRAM;
use crate::house::{
    self, House, Result, Took, cpu_of, cpu_of_children, free_address, peak_mib, remove, run, sync_tree,
};
use crate::servers::{Source, end_server};

/// What the cluster file says of one node.
struct Place {
    state: String,
    data: String,
}

/// A cluster and its agents, which end with it.
pub struct Cluster {
    program: String,
    file: String,
    repository: String,
    places: Vec<Place>,
    agents: Vec<Child>,
}

/// What a restore took.
pub struct Restored {
    /// Until every file was in its place and durable.
    pub staged: Took,
    /// Until the server took commits.
    pub open: Took,
    /// The most memory of the agent, in MiB.
    pub peak_mib: f64,
}

impl Cluster {
    /// The cluster of some servers, with its repository.
    pub async fn of(house: &House, name: &str, sources: &[&Source]) -> Result<Self> {
        let nodes = sources.iter().map(|source| (source.data().to_owned(), source.server.connection()));
        let mut cluster = Self::described(house, name, nodes.collect(), None)?;
        cluster.start_agents().await?;
        cluster.run(&["init"]).await?;
        Ok(cluster)
    }

    /// A cluster of one node that is to be a clone, with nothing in its folder.
    async fn clone_of(house: &House, name: &str, source: &Self, settings: &str) -> Result<Self> {
        let (data, sockets) = (house.path(&format!("{name}-data")), house.fresh(&format!("{name}-s"))?);
        remove(&data)?;
        let connection = format!("host={sockets} port=5432 user=postgres dbname=postgres");
        let mut clone = Self::described(house, name, vec![(data, connection)], Some((&source.repository, settings)))?;
        clone.start_agents().await?;
        Ok(clone)
    }

    /// The cluster of some data folders and connections. A clone has a source and settings for its nodes.
    fn described(
        house: &House,
        name: &str,
        nodes: Vec<(String, String)>,
        source: Option<(&str, &str)>,
    ) -> Result<Self> {
        let repository = house.path(&format!("{name}-repository"));
        remove(&repository)?;
        let mut text = format!("[cluster]\nname = \"{name}\"\nrepository = \"file://{repository}\"\n");
        if let Some((source, _)) = source {
            text.push_str(&format!("source = \"file://{source}\"\n"));
        }
        let mut places = Vec::new();
        for (id, (data, connection)) in (1..).zip(nodes) {
            let (agent, state) = (free_address()?, house.path(&format!("{name}-state-{id}")));
            remove(&state)?;
            text.push_str(&format!(
                "\n[[node]]\nid = {id}\nagent = \"{agent}\"\nstate = \"{state}\"\nengine = \"postgres\"\ndata = \
                 \"{data}\"\nconnection = \"{connection}\"\n{}\n",
                source.map_or("", |(_, settings)| settings)
            ));
            places.push(Place { state, data });
        }
        let file = house.path(&format!("{name}.toml"));
        fs::write(&file, text)?;
        let program = house.path(PROGRAM);
        Ok(Self { program, file, repository, places, agents: Vec::new() })
    }

    pub fn repository(&self) -> &str {
        &self.repository
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["--cluster", &self.file, "--json"]).args(arguments).env("NO_COLOR", "1");
        command
    }

    pub async fn run(&self, arguments: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&run(&mut self.command(arguments)).await?)?)
    }

    pub async fn start_agents(&mut self) -> Result<()> {
        for id in 1..=self.places.len() {
            let log = fs::OpenOptions::new().create(true).append(true).open(self.log(id))?;
            let mut command = self.command(&["--log", "info", "agent", "--node", &id.to_string()]);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
            let mut child = command.spawn()?;
            let out = child.stdout.take().ok_or("an agent has no output")?;
            if BufReader::new(out).lines().next_line().await?.is_none() {
                return Err(format!("an agent did not start: {}", fs::read_to_string(self.log(id))?).into());
            }
            self.agents.push(child);
        }
        Ok(())
    }

    pub async fn kill_agents(&mut self) -> Result<()> {
        for mut agent in self.agents.drain(..) {
            agent.kill().await?;
        }
        Ok(())
    }

    fn log(&self, id: usize) -> String {
        self.file.replace(".toml", &format!("-agent-{id}.log"))
    }

    fn pids(&self) -> impl Iterator<Item = u32> {
        self.agents.iter().filter_map(Child::id)
    }

    fn agents_cpu(&self) -> Result<f64> {
        self.pids().map(cpu_of).sum()
    }

    /// The most memory that any of its agents has used, in MiB.
    pub fn peak_mib(&self) -> Result<f64> {
        self.pids().map(peak_mib).try_fold(0.0, |most, found| found.map(|found| f64::max(most, found)))
    }

    /// Takes a backup, and answers what it took and the bytes that it added to the repository, WAL aside.
    pub async fn backup(&self, arguments: &[&str]) -> Result<(Took, u64)> {
        let before = self.bytes()?;
        let (begun, cpu) = (Instant::now(), self.agents_cpu()? + cpu_of_children()?);
        run(self.command(&["backup"]).args(arguments)).await?;
        sync_tree(Path::new(&self.repository))?;
        let took = Took { wall: begun.elapsed().as_secs_f64(), cpu: self.agents_cpu()? + cpu_of_children()? - cpu };
        Ok((took, self.bytes()? - before))
    }

    /// Bytes in the repository, WAL aside.
    fn bytes(&self) -> Result<u64> {
        let all = house::bytes_in(Path::new(&self.repository))?;
        Ok(all - house::bytes_in(Path::new(&format!("{}/wal", self.repository)))?)
    }

    /// Restores the newest backup into a new folder, as a clone, which is gone afterwards. `settings` are the clone's
    /// node's.
    pub async fn restore(&self, house: &House, settings: &str) -> Result<Restored> {
        let mut clone = Self::clone_of(house, "clone", self, settings).await?;
        let restored = clone.restored(&["--clone", "--to", "latest"]).await;
        clone.kill_agents().await?;
        for place in &clone.places {
            end_server(&place.data).await?;
            remove(&place.data)?;
            remove(&place.state)?;
        }
        fs::remove_file(clone.log(1))?;
        restored
    }

    /// Restores the backup `id` over what is in the folders of its own nodes, whose servers are down, and ends them again.
    pub async fn restore_over(&self, id: &str) -> Result<Restored> {
        let restored = self.restored(&["--delta", "--to", &format!("backup:{id}")]).await;
        for place in &self.places {
            end_server(&place.data).await?;
        }
        restored
    }

    /// Runs a restore of a cluster of one node.
    async fn restored(&self, arguments: &[&str]) -> Result<Restored> {
        let (begun, agent, cpu) = (Instant::now(), self.agents_cpu()?, cpu_of_children()?);
        let mut command = self.command(&["restore"]);
        command.args(arguments);
        let log = self.log(1);
        let said = || fs::read_to_string(&log).map(|text| text.matches("Staged").count());
        let before = said()?;
        let staged = async {
            house::until("files are staged", async || Ok(said()? > before)).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Took {
                wall: begun.elapsed().as_secs_f64(),
                cpu: self.agents_cpu()? - agent,
            })
        };
        let (staged, _) = tokio::try_join!(staged, run(&mut command))?;
        let took = self.agents_cpu()? - agent + cpu_of_children()? - cpu;
        let open = Took { wall: begun.elapsed().as_secs_f64(), cpu: took };
        Ok(Restored { staged, open, peak_mib: self.peak_mib()? })
    }
}
