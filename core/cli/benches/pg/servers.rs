//! Servers, and what is in them.

use std::fs;
use std::time::Duration;

use sheetanchor_native::postgres::postmaster::{Postmaster, StopMode};
use sheetanchor_native::postgres::server::{Server, ServerPlan};
use tokio::process::Command;

use crate::Filler;
use crate::house::{self, House, Result, run};

/// The number in the name of every socket, each of which has a folder of its own.
const PORT: u16 = 5432;

/// A server of the run, ended when it is dropped.
pub struct Source {
    pub server: Server,
}

impl Source {
    /// A new one that runs, with page checksums, and the fence if `fenced`.
    pub async fn start(house: &House, name: &str, fenced: bool, settings: &[(&str, &str)]) -> Result<Self> {
        let mut all: Vec<(String, String)> = [
            ("shared_buffers", "256MB"),
            ("max_wal_size", "8GB"),
            ("checkpoint_timeout", "1h"),
            ("autovacuum", "off"),
            ("archive_mode", "on"),
            ("archive_command", "true"),
        ]
        .iter()
        .chain(settings)
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
        if fenced {
            all.push(("shared_preload_libraries".into(), "sheetanchor_fence".into()));
        }
        let server = Server::init(ServerPlan {
            data: house.path(&format!("{name}-data")),
            socket_folder: house.path(&format!("{name}-s")),
            port: PORT,
            log: house.path(&format!("{name}.log")),
            bin: None,
            run_as: None,
            settings: all,
        })
        .await?;
        server.start().await?;
        let source = Self { server };
        if fenced {
            source
                .sql("CREATE EXTENSION sheetanchor_fence")
                .await
                .map_err(|error| format!("{error}: `cargo xtask pg` installs the commit fence"))?;
        }
        Ok(source)
    }

    pub fn data(&self) -> &str {
        &self.server.plan().data
    }

    pub fn socket_folder(&self) -> &str {
        &self.server.plan().socket_folder
    }

    /// One of PostgreSQL's programs, led to this server.
    pub fn program(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.server.install().program(name));
        command.args(arguments).env("PGHOST", self.socket_folder()).env("PGPORT", PORT.to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres");
        command
    }

    /// What a statement answers, as one text.
    pub async fn sql(&self, statement: &str) -> Result<String> {
        let mut psql = self.program("psql", &["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement]);
        Ok(run(&mut psql).await?.trim().to_owned())
    }

    /// Fills it with pgbench's tables.
    pub async fn fill(&self, scale: u32, filler: Filler) -> Result<()> {
        let scale_text = scale.to_string();
        let step = async |steps: &str| {
            run(&mut self.program("pgbench", &["-i", "-q", "-I", steps, "-s", &scale_text])).await.map(drop)
        };
        step("dt").await?;
        match filler {
            Filler::Blank => step("g").await?,
            Filler::Hex => {
                let accounts = u64::from(scale) * 100_000;
                self.sql(&format!(
                    "INSERT INTO pgbench_branches SELECT g, 0, md5('b' || g) FROM generate_series(1, {scale}) g; \
                     INSERT INTO pgbench_tellers SELECT g, (g - 1) / 10 + 1, 0, md5('t' || g) \
                     FROM generate_series(1, {scale} * 10) g; \
                     INSERT INTO pgbench_accounts SELECT g, (g - 1) / 100000 + 1, 0, \
                     md5('x' || g) || md5('y' || g) || left(md5('z' || g), 20) FROM generate_series(1, {accounts}) g"
                ))
                .await?;
            }
        }
        step("vp").await
    }

    /// Says what is done with each full segment, or with none while `command` is empty.
    pub async fn archive_by(&self, command: &str) -> Result<()> {
        let set = format!("ALTER SYSTEM SET archive_command = '{}'", command.replace('\'', "''"));
        self.sql(&set).await?;
        self.sql("SELECT pg_reload_conf()").await?;
        Ok(())
    }

    /// Waits until the command has taken every full segment.
    pub async fn nothing_waits(&self) -> Result<()> {
        let folder = format!("{}/pg_wal/archive_status", self.data());
        house::until("the server's WAL is archived", async || {
            let names = fs::read_dir(&folder)?.collect::<std::io::Result<Vec<_>>>()?;
            Ok(!names.iter().any(|entry| entry.path().extension().is_some_and(|end| end == "ready")))
        })
        .await
    }

    /// As before each round: checkpointed, on the disk, and in the page cache.
    pub async fn ready(&self) -> Result<()> {
        self.sql("CHECKPOINT").await?;
        house::settle().await?;
        house::read_all(self.data()).await
    }

    pub async fn stop(&self) -> Result<()> {
        Ok(self.server.stop(StopMode::Fast).await?)
    }
}

/// Starts what a tool has restored into `data`, at a socket of its own, waits until it takes commits, and ends it.
pub async fn open_restored(source: &Source, house: &House, data: &str) -> Result<()> {
    let sockets = house.fresh("opened-s")?;
    let options = format!("-c unix_socket_directories={sockets} -c shared_preload_libraries= -c archive_mode=off");
    let log = house.path("opened.log");
    let mut command =
        source.program("pg_ctl", &["-D", data, "-w", "-s", "-t", "600", "-l", &log, "-o", &options, "start"]);
    run(&mut command).await.map_err(|error| format!("{error}{}", fs::read_to_string(&log).unwrap_or_default()))?;
    let opened = house::until("a restored server opens", async || {
        let mut psql = source.program("psql", &["-X", "-A", "-t", "-c", "SELECT pg_is_in_recovery()"]);
        Ok(run(psql.env("PGHOST", &sockets)).await?.trim() == "f")
    })
    .await;
    end_server(data).await?;
    opened
}

/// Ends whatever server runs in a folder.
pub async fn end_server(data: &str) -> Result<()> {
    if let Some(postmaster) = Postmaster::of(data)? {
        postmaster.stop(StopMode::Immediate).await?;
        // Its helpers write their last.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}
