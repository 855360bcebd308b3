//! A restore beside the running cluster: into folders of its own, by agents of its own. Either from a copy of the repository,
//! so that the incarnation that it opens is nobody else's, or as a clone, which reads the repository that others write to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use sheetanchor_native::postgres::install::{Account, Install};
use sheetanchor_native::postgres::postmaster::{Postmaster, StopMode};

use super::aims::Aim;
use super::ledger::{self, Contents, Sent};
use super::oracle::Case;
use super::site::{NodeText, Site, free_addresses};
use super::town::{Mount, Town, await_gone};

/// What a cut is held against.
#[derive(Clone)]
pub struct Known {
    pub sent: Arc<Vec<Sent>>,
    /// The entries that its incarnation began with.
    pub base: Arc<BTreeSet<i64>>,
}

/// What came of a restore.
pub enum Judged {
    /// The entries that are there, and how many halves of transfers were in doubt.
    Right(BTreeSet<i64>, usize),
    /// It was not restored, and why.
    Refused(String),
    Wrong(String),
}

/// Where a restore beside reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// A copy of the repository, taken while nobody writes to it but the archives.
    Copy,
    /// The repository itself.
    Source,
}

pub struct Beside {
    /// Where the nodes' data lies, if a file system of its own can be had. It is gone before its folder is.
    _disk: Option<Mount>,
    site: Site,
    reads: Reads,
}

/// Room for what is restored, in MiB.
const DISK_MIB: u32 = 2_000;

/// So many were made: each has a folder of its own.
static MADE: AtomicU32 = AtomicU32::new(0);

impl Beside {
    /// Folders and agents for as many nodes as the town has.
    pub async fn new(town: &Town, reads: Reads) -> Self {
        let number = MADE.fetch_add(1, Ordering::SeqCst);
        let mut site = Site::empty(&format!("nemesis-beside-{number}"));
        match reads {
            Reads::Copy => {
                let repository = town.site.path(&format!("store/beside-{number}"));
                link_tree(&town.site.repository(), Path::new(&repository));
                site.repository = Some(repository);
            }
            Reads::Source => {
                site.name = "clone";
                site.source = Some(town.site.repository());
            }
        }
        site.two_phase = true;
        // Thousands of small files are made, and gone soon: in memory that costs far less.
        let disk = Mount::make(&site.path("disk"), DISK_MIB);
        let account = Account::to_run_as(None).await.unwrap();
        for (id, agent) in town.nodes.iter().copied().zip(free_addresses(town.nodes.len())) {
            let sockets = site.path(&format!("s{id}"));
            fs::create_dir(&sockets).unwrap();
            if let Some(account) = account {
                chown(&sockets, Some(account.uid), Some(account.gid)).unwrap();
            }
            site.nodes.push(NodeText {
                id,
                agent,
                state: site.path(&format!("state-{id}")),
                engine: "postgres",
                data: site.path(&format!("disk/pg-{id}")),
                connection: format!("host={sockets} port=5432 user=postgres dbname=postgres"),
            });
        }
        site.write_cluster_file();
        site.start_agents();
        Self { _disk: disk, site, reads }
    }

    /// Restores a cut and holds it against what is known.
    pub async fn check(self, aim: Aim, known: Known) -> Judged {
        let in_doubt = match tokio::task::block_in_place(|| self.restore(&aim)) {
            Ok(in_doubt) => in_doubt,
            Err(why) => return Judged::Refused(why),
        };
        let contents = self.read().await;
        let case = Case { sent: &known.sent, listed: &aim.cut, base: &known.base, contents: &contents };
        match case.judge() {
            Ok(found) => match self.check_files().await {
                Ok(()) => Judged::Right(found, in_doubt),
                Err(wrong) => Judged::Wrong(wrong),
            },
            Err(wrong) => Judged::Wrong(wrong),
        }
    }

    /// How many halves of transfers were in doubt.
    fn restore(&self, aim: &Aim) -> Result<usize, String> {
        let mut arguments = vec!["--json", "restore"];
        arguments.extend((self.reads == Reads::Source).then_some("--clone"));
        arguments.extend(aim.arguments.iter().map(String::as_str));
        let said = self.site.run(&arguments);
        if said.status != 0 {
            return Err(format!("{}{}", said.err, self.logs()));
        }
        let said = said.json();
        assert_eq!(said["plan"]["cut"]["scn"], aim.cut.scn.to_string(), "another cut than {aim:?} was meant");
        Ok(said["in_doubt"].as_array().unwrap().len())
    }

    async fn read(&self) -> BTreeMap<u16, Contents> {
        let mut contents = BTreeMap::new();
        for node in &self.site.nodes {
            contents.insert(node.id, ledger::read(&node.connection).await);
        }
        contents
    }

    /// PostgreSQL's own programs find nothing: tables against indexes, and the checksum of every page.
    async fn check_files(&self) -> Result<(), String> {
        for node in &self.site.nodes {
            amcheck(&node.connection).await?;
            if let Some(postmaster) = Postmaster::of(&node.data).unwrap() {
                postmaster.stop(StopMode::Fast).await.unwrap();
            }
            page_checksums(&node.data).await?;
        }
        Ok(())
    }

    fn logs(&self) -> String {
        let of = |node: &NodeText| {
            [self.site.path(&format!("agent-{}.log", node.id)), format!("{}/postgres.log", node.state)]
        };
        let tail = |path: String| {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(15).collect();
            format!("--- {path}\n{}\n", lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        self.site.nodes.iter().flat_map(of).map(tail).collect()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.site.kill_all();
        let data: Vec<String> = self.site.nodes.iter().map(|node| node.data.clone()).collect();
        for data in &data {
            if let Ok(Some(postmaster)) = Postmaster::of(data) {
                super::town::signal("-QUIT", postmaster.pid().try_into().unwrap());
            }
        }
        await_gone(&data);
        fs::remove_dir_all(self.site.repository()).ok();
    }
}

/// Runs `pg_amcheck` on a server.
///
/// # Errors
/// What it says.
pub async fn amcheck(connection: &str) -> Result<(), String> {
    let place = connection.split(' ').find_map(|part| part.strip_prefix("host=")).unwrap();
    let mut command = program("pg_amcheck").await;
    command.env("PGHOST", place).env("PGPORT", "5432").env("PGUSER", "postgres");
    silent("pg_amcheck", command.args(["--heapallindexed", "postgres"]))
}

/// Runs `pg_checksums` on the folder of a server that was stopped.
///
/// # Errors
/// What it says.
pub async fn page_checksums(data: &str) -> Result<(), String> {
    silent("pg_checksums", program("pg_checksums").await.args(["--check", "-D", data]))
}

async fn program(name: &str) -> Command {
    Command::new(Install::find(None, None).await.unwrap().program(name))
}

fn silent(name: &str, command: &mut Command) -> Result<(), String> {
    let said = command.stdin(Stdio::null()).output().unwrap();
    let text = || format!("{name}: {}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    if said.status.success() { Ok(()) } else { Err(text()) }
}

/// Objects are never changed, so a link to each is a copy. What is half written is nobody's.
fn link_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (name, to) = (entry.file_name(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_file() {
            fs::hard_link(entry.path(), to).unwrap();
        } else if name != ".tmp" {
            link_tree(&entry.path(), &to);
        }
    }
}
