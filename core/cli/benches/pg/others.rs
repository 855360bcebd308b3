//! The tools that stand beside ours, each as its manual sets it up for two workers on one machine.

use std::fs;
use std::path::Path;

use tokio::process::Command;

use crate::house::{self, House, Result, program, remove, run, shell};
use crate::servers::Source;

/// Programs that a run can do without, and leaves the rows out of.
const WANTED: [&str; 3] = ["pgbackrest", "barman", "zstd"];

/// Those that are not on PATH.
pub fn missing() -> Vec<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |name: &&str| std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    WANTED.iter().filter(|name| !there(name)).map(|name| (*name).to_owned()).collect()
}

/// pgBackRest, with a repository in a folder.
pub struct PgBackRest {
    config: String,
    /// The folder of its backups.
    pub backups: String,
    /// The folder of its archive of WAL.
    pub archive: String,
}

impl PgBackRest {
    pub async fn new(house: &House, name: &str, source: &Source) -> Result<Self> {
        let folder = house.fresh(&format!("{name}-pgbackrest"))?;
        let repository = format!("{folder}/repository");
        let config = format!("{folder}/pgbackrest.conf");
        for below in ["repository", "log", "lock", "spool"] {
            fs::create_dir(format!("{folder}/{below}"))?;
        }
        fs::write(
            &config,
            format!(
                "[global]\nrepo1-path={repository}\nrepo1-retention-full=9999\nlog-path={folder}/log\nlock-path={folder}/lock\n\
                 spool-path={folder}/spool\nprocess-max=2\ncompress-type=zst\nstart-fast=y\narchive-async=y\n\
                 archive-get-queue-max=1GiB\n\
                 log-level-console=warn\nlog-level-file=off\n[main]\npg1-path={}\npg1-socket-path={}\npg1-port=5432\n\
                 pg1-user=postgres\n",
                source.data(),
                source.socket_folder()
            ),
        )?;
        let archive = format!("{repository}/archive/main");
        let tool = Self { config, backups: format!("{repository}/backup"), archive };
        run(&mut tool.command(&["stanza-create"])).await?;
        Ok(tool)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program("pgbackrest", &["--stanza=main"]);
        command.arg(format!("--config={}", self.config)).args(arguments);
        command
    }

    /// The same, packing by LZ4.
    pub fn by_lz4(self) -> Result<Self> {
        let config = fs::read_to_string(&self.config)?;
        fs::write(&self.config, config.replace("compress-type=zst", "compress-type=lz4"))?;
        Ok(self)
    }

    /// Waits until nothing archives in the background any more: a restore removes the folder that it writes to, and fails
    /// if it has written since.
    pub async fn rests(&self) -> Result<()> {
        let locks = self.config.replace("pgbackrest.conf", "lock");
        house::until("pgBackRest rests", async || Ok(fs::read_dir(&locks)?.next().is_none())).await
    }

    pub fn archive_command(&self) -> String {
        format!("pgbackrest --stanza=main --config={} archive-push %p", self.config)
    }

    pub fn backup(&self) -> Command {
        self.command(&["--type=full", "backup"])
    }

    /// A backup of the files that have changed since the newest one.
    pub fn incremental(&self) -> Command {
        self.command(&["--type=incr", "backup"])
    }

    /// Restores the newest backup over what is in `data`, by hash.
    pub fn restore_over(&self, data: &str) -> Command {
        let mut command = self.command(&["restore", "--delta", "--type=immediate", "--target-action=promote"]);
        command.arg(format!("--pg1-path={data}"));
        command
    }

    /// Restores the newest backup into `data`, which is new, to be recovered to the end of the archive.
    pub fn restore_to_end(&self, data: &str) -> Result<Command> {
        remove(data)?;
        fs::create_dir(data)?;
        let mut command = self.command(&["restore"]);
        command.arg(format!("--pg1-path={data}"));
        Ok(command)
    }

    /// Restores the newest backup into `data`, which is new.
    pub fn restore(&self, data: &str) -> Result<Command> {
        remove(data)?;
        fs::create_dir(data)?;
        let target = ["--type=immediate", "--target-action=promote"];
        let mut command = self.command(&["restore"]);
        command.args(target).arg(format!("--pg1-path={data}"));
        Ok(command)
    }
}

/// Barman, which copies by rsync.
pub struct Barman {
    config: String,
    pub home: String,
    incoming: String,
}

impl Barman {
    pub async fn new(house: &House, name: &str, source: &Source) -> Result<Self> {
        let home = house.fresh(&format!("{name}-barman"))?;
        let config = format!("{home}/barman.conf");
        let user = run(&mut program("id", &["-un"])).await?;
        fs::write(
            &config,
            format!(
                "[barman]\nbarman_home = {home}\nbarman_user = {}\nlog_file = {home}/barman.log\nconfiguration_files_directory = \
                 {home}/none\n[main]\ndescription = bench\nconninfo = {}\nbackup_method = local-rsync\nparallel_jobs = 2\n\
                 reuse_backup = off\narchiver = on\nimmediate_checkpoint = true\n",
                user.trim(),
                source.server.connection()
            ),
        )?;
        let tool = Self { config, incoming: format!("{home}/main/incoming"), home };
        // It makes its folders while it looks at what else is missing, which it finds fault with. Before the first segment has
        // come in it refuses a backup.
        if let Err(said) = run(&mut tool.command(&["check", "main"])).await
            && !Path::new(&tool.incoming).is_dir()
        {
            return Err(said);
        }
        source.archive_by(&tool.archive_command()).await?;
        run(&mut tool.command(&["switch-wal", "--force", "--archive", "--archive-timeout", "60", "main"])).await?;
        Ok(tool)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program("barman", &["-q", "-c", &self.config]);
        command.args(arguments);
        command
    }

    pub fn archive_command(&self) -> String {
        format!("cp %p {}/%f", self.incoming)
    }

    pub fn backup(&self) -> Command {
        self.command(&["backup", "main"])
    }

    /// Restores the newest backup into `data`, which is new.
    pub fn restore(&self, data: &str) -> Result<Command> {
        remove(data)?;
        Ok(self.command(&["recover", "main", "latest", data]))
    }

    /// Removes the newest backup.
    pub async fn forget(&self) -> Result<()> {
        run(&mut self.command(&["delete", "main", "latest"])).await.map(drop)
    }
}

/// `pg_basebackup`, packed on the client by two threads.
pub fn base_backup(source: &Source, to: &str) -> Result<Command> {
    remove(to)?;
    let pack = "--compress=client-zstd:level=1,workers=2";
    Ok(source.program("pg_basebackup", &["-D", to, "-F", "tar", "-X", "fetch", "-c", "fast", pack]))
}

/// A plain copy; no consistent one of a server that runs, but a floor. WAL is left out: other tools do not copy all of it.
pub fn copy(from: &str, to: &str) -> Result<Command> {
    fresh(to)?;
    Ok(shell(&format!("cd {from} && cp -a $(ls -A | grep -v '^pg_wal$') {to}")))
}

/// One tar file, packed by two threads; no consistent copy of a server that runs, but a floor.
pub fn tar(from: &str, to: &str) -> Result<Command> {
    fresh(to)?;
    Ok(shell(&format!(
        "tar -C {from} -cf - --exclude='./pg_wal/*' --warning=no-file-changed . | zstd -q -1 -T2 -o {to}/all.tar.zst"
    )))
}

/// What was packed by [`tar`], in a new folder.
pub fn untar(from: &str, to: &str) -> Result<Command> {
    fresh(to)?;
    Ok(shell(&format!("zstd -q -d -c {from}/all.tar.zst | tar -C {to} -xf -")))
}

fn fresh(folder: &str) -> Result<()> {
    remove(folder)?;
    Ok(fs::create_dir_all(Path::new(folder))?)
}
