//! New servers, for demonstrations and tests: each with a folder, a Unix socket and a port of its own.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::Duration;

use rustix::process::Signal;
use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use sheetanchor_core::refusal::{Code, Refusal};
use tokio::process::Command;

use super::install::{Account, Install, run};
use super::postmaster::{Launch, POLL, Postmaster, StopMode};
use crate::faults::fault;

/// How long a new server may take to answer.
const START_WAIT: Duration = Duration::from_mins(1);

/// What a new server is to be.
#[derive(Clone, Debug)]
pub struct ServerPlan {
    /// Its data folder. The folders above it must be open to the account that it runs under.
    pub data: String,
    /// The folder of its Unix socket. It listens nowhere else.
    pub socket_folder: String,
    /// Its port, which is part of the socket's name.
    pub port: u16,
    /// The file that takes what it prints.
    pub log: String,
    /// The folder with PostgreSQL's programs; sought if it is not given.
    pub bin: Option<String>,
    /// The user to run it as when we are root; `postgres` if not given.
    pub run_as: Option<String>,
    /// Lines for its `postgresql.conf`.
    pub settings: Vec<(String, String)>,
}

/// A server of ours. Dropping it ends the process, roughly, if it runs.
#[derive(Debug)]
pub struct Server {
    plan: ServerPlan,
    install: Install,
    account: Option<Account>,
}

impl Server {
    /// Makes the data folder of a new server, with page checksums and a superuser `postgres` that needs no password.
    ///
    /// # Errors
    /// `SA401` if the data folder is not empty, `SA101` if there is no PostgreSQL or no such user, and faults.
    pub async fn init(plan: ServerPlan) -> Result<Self> {
        let install = Install::find(plan.bin.as_deref(), None).await?;
        let account = Account::to_run_as(plan.run_as.as_deref()).await?;
        if fs::read_dir(&plan.data).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(Refusal::new(Code::FolderNotEmpty, format!("{} is not empty", plan.data)).into());
        }
        for folder in [&plan.data, &plan.socket_folder] {
            own_folder(folder, account)?;
        }
        let mut command = Command::new(install.program("initdb"));
        command.args(["--username=postgres", "--auth=trust", "--data-checksums", "--encoding=UTF8", "--locale=C"]);
        command.args(["--no-sync", "--no-instructions", "-D"]).arg(&plan.data);
        Account::apply(account, &mut command);
        run(command, &format!("make a database in {}", plan.data)).await?;
        let server = Self { plan, install, account };
        server.configure()?;
        Ok(server)
    }

    /// Starts it and waits until it answers. Nothing happens if it runs.
    ///
    /// # Errors
    /// [`FaultKind::Unreachable`] with its last words if it ends, [`FaultKind::TimedOut`] if it does not answer.
    pub async fn start(&self) -> Result<()> {
        if Postmaster::of(&self.plan.data)?.is_some() {
            return Ok(());
        }
        let launch = Launch {
            install: &self.install,
            account: self.account,
            data: &self.plan.data,
            log: &self.plan.log,
            settings: &[],
        };
        let mut started = launch.start()?;
        let operation = || format!("start the server of {}", self.plan.data);
        let answers = async {
            loop {
                if started.has_ended() {
                    let cause = started.last_words();
                    return Err(Error::from(Fault::new(FaultKind::Unreachable, operation(), cause)));
                }
                if let Ok((client, connection)) =
                    tokio_postgres::connect(&self.connection(), tokio_postgres::NoTls).await
                {
                    drop((client, connection));
                    return Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
        };
        let late = |_| Fault::new(FaultKind::TimedOut, operation(), "it does not answer");
        tokio::time::timeout(START_WAIT, answers).await.map_err(late)?
    }

    /// Ends it. Nothing happens if it does not run.
    ///
    /// # Errors
    /// Those of [`Postmaster::stop`].
    pub async fn stop(&self, mode: StopMode) -> Result<()> {
        match Postmaster::of(&self.plan.data)? {
            Some(postmaster) => postmaster.stop(mode).await,
            None => Ok(()),
        }
    }

    /// How to connect as its superuser.
    pub fn connection(&self) -> String {
        format!("host={} port={} user=postgres dbname=postgres", self.plan.socket_folder, self.plan.port)
    }

    /// What it was made from.
    pub fn plan(&self) -> &ServerPlan {
        &self.plan
    }

    /// The programs that it runs.
    pub fn install(&self) -> &Install {
        &self.install
    }

    fn configure(&self) -> Result<()> {
        let mut lines = format!(
            "\nlisten_addresses = ''\nport = {}\nunix_socket_directories = '{}'\n",
            self.plan.port,
            self.plan.socket_folder.replace('\'', "''")
        );
        for (name, value) in &self.plan.settings {
            lines.extend([name.as_str(), " = '", &value.replace('\'', "''"), "'\n"]);
        }
        let path = format!("{}/postgresql.conf", self.plan.data);
        let append = || {
            let text = fs::read_to_string(&path)?;
            // The file keeps its owner: it is written in place.
            fs::write(&path, text + &lines)
        };
        append().map_err(|error| fault(format!("write {path}"), &error).into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(Some(postmaster)) = Postmaster::of(&self.plan.data)
            && let Err(error) = postmaster.signal(Signal::QUIT)
        {
            tracing::warn!(data = self.plan.data, %error, "a server could not be ended");
        }
    }
}

/// Makes a folder that only `account` (or we) may use.
pub(super) fn own_folder(folder: &str, account: Option<Account>) -> Result<()> {
    let make = || {
        fs::create_dir_all(folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
        match account {
            Some(Account { uid, gid }) => chown(folder, Some(uid), Some(gid)),
            None => Ok(()),
        }
    };
    make().map_err(|error| fault(format!("make folder {folder}"), &error).into())
}
