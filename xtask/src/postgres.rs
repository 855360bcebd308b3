//! Where PostgreSQL's servers and headers are, and, as root on Debian and Ubuntu, how they get there.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt, fs};

use anyhow::{Context as _, Result, bail};

use crate::programs;

pub mod measured;
pub mod nemesis;
pub mod releases;

/// All that the tests and the demo run.
const PROGRAMS: &[&str] =
    &["initdb", "postgres", "pg_ctl", "psql", "pgbench", "pg_amcheck", "pg_checksums", "pg_controldata", "pg_waldump"];
/// The oldest release whose primitives we use.
const MAJOR_MIN: u32 = 14;
const DEBIANS: &str = "/usr/lib/postgresql";
/// Debian's packages start a server of their own at once, unless this file says no.
const CREATE_CLUSTER: &str = "/etc/postgresql-common/createcluster.conf";

/// An installation that has everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Servers {
    major: u32,
    programs: PathBuf,
    headers: PathBuf,
}

impl Servers {
    /// The release.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// The program that says where things are to be installed.
    pub fn pg_config(&self) -> PathBuf {
        self.programs.join("pg_config")
    }
}

impl fmt::Display for Servers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "PostgreSQL {}: programs in {}, server headers in {}",
            self.major,
            self.programs.display(),
            self.headers.display()
        )
    }
}

/// Finds an installation, or makes one where that is ours to do. The error is the one line that does it.
pub fn ensure() -> Result<Servers> {
    ensure_network()?;
    if let Some(servers) = find() {
        return Ok(servers);
    }
    if !has_apt() {
        bail!(
            "install PostgreSQL {MAJOR_MIN} or later with its server headers and put its programs on PATH, or run `cargo \
             xtask ci --without pg`"
        );
    }
    if !is_root()? {
        bail!(
            "`sudo cargo xtask pg` installs PostgreSQL and its server headers; `cargo xtask ci --without pg` runs the rest"
        );
    }
    install()?;
    find().context("PostgreSQL was installed, but its programs or its server headers cannot be found")
}

fn find() -> Option<Servers> {
    candidates().into_iter().filter_map(|folder| complete(&folder)).max_by_key(|servers| servers.major)
}

/// Folders that may hold the programs: that of the `initdb` on PATH, then Debian's, one for each release.
fn candidates() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join("initdb")).find(|program| program.is_file());
    // Debian-like links on PATH lead to the folder that has the other programs, too.
    let on_path = on_path.and_then(|program| fs::canonicalize(program).ok());
    let releases = fs::read_dir(DEBIANS).into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    on_path.and_then(|program| program.parent().map(Path::to_owned)).into_iter().chain(releases).collect()
}

/// The installation whose programs are in `folder`, if nothing is missing from it.
fn complete(folder: &Path) -> Option<Servers> {
    if !PROGRAMS.iter().all(|program| folder.join(program).is_file()) {
        return None;
    }
    let version = programs::output(Command::new(folder.join("postgres")).arg("--version")).ok()?;
    let major = major_of(&version).filter(|major| *major >= MAJOR_MIN)?;
    let debians = PathBuf::from(format!("/usr/include/postgresql/{major}/server"));
    let configured = folder.join("pg_config");
    let stated = programs::output(Command::new(configured).arg("--includedir-server")).ok();
    let headers = stated.map(|folder| PathBuf::from(folder.trim())).into_iter().chain([debians]);
    let headers = headers.into_iter().find(|folder| folder.join("postgres.h").is_file())?;
    Some(Servers { major, programs: folder.to_owned(), headers })
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` is release 15, and so is `15beta1`.
fn major_of(version: &str) -> Option<u32> {
    let number = version.split_once("(PostgreSQL) ")?.1;
    number.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

fn has_apt() -> bool {
    Path::new("/etc/debian_version").is_file() && programs::succeeds(Command::new("apt-get").arg("--version"))
}

pub(crate) fn is_root() -> Result<bool> {
    Ok(programs::output(Command::new("id").arg("-u"))?.trim() == "0")
}

/// As root the nemesis gives its hosts addresses of their own, by `ip`. Without it the test itself says what is missing.
fn ensure_network() -> Result<()> {
    if !is_root()? || !has_apt() || programs::succeeds(Command::new("ip").arg("-Version")) {
        return Ok(());
    }
    println!("`ip` is missing; installing iproute2 with apt-get, since we are root");
    let mut install = apt_get();
    install.args(["install", "--yes", "--no-install-recommends", "iproute2"]);
    if programs::run(&mut install).is_err() {
        println!("iproute2 cannot be installed: nobody is cut off by the nemesis");
    }
    Ok(())
}

fn install() -> Result<()> {
    println!("PostgreSQL's servers or their headers are missing; installing them with apt-get, since we are root");
    if programs::run(apt_get().arg("update")).is_err() {
        println!("apt-get update failed; going on with the package lists that are there");
    }
    let major = installable_major()?;
    let config = Path::new(CREATE_CLUSTER);
    if !config.exists() {
        let folder = config.parent().context("the path of the cluster configuration has no folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        fs::write(config, "create_main_cluster = false\n").with_context(|| format!("cannot write {CREATE_CLUSTER}"))?;
    }
    let packages =
        [format!("postgresql-{major}"), format!("postgresql-client-{major}"), format!("postgresql-server-dev-{major}")];
    programs::run(apt_get().args(["install", "--yes", "--no-install-recommends"]).args(packages))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "Acquire::Retries=3"]);
    command
}

/// The release to install: the one whose server is there already (its headers may be all that is missing), else the
/// one that the distribution's package `postgresql` stands for.
fn installable_major() -> Result<u32> {
    let there = fs::read_dir(DEBIANS).into_iter().flatten().flatten();
    let there = there.filter(|entry| entry.path().join("bin/postgres").is_file());
    let there = there.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()));
    if let Some(major) = there.filter(|major| *major >= MAJOR_MIN).max() {
        return Ok(major);
    }
    let shown = programs::output(Command::new("apt-cache").args([OsStr::new("show"), OsStr::new("postgresql")]))?;
    let major = dependency_major(&shown).context("apt knows no package `postgresql` that depends on a release")?;
    if major < MAJOR_MIN {
        bail!("this distribution has PostgreSQL {major}, and {MAJOR_MIN} or later is needed");
    }
    Ok(major)
}

/// The highest release that `postgresql`, as `apt-cache show` prints it, depends on.
fn dependency_major(shown: &str) -> Option<u32> {
    let depends = shown.lines().filter_map(|line| line.strip_prefix("Depends: "));
    let packages = depends.flat_map(|list| list.split([',', '|'])).map(str::trim);
    packages.filter_map(|package| package.strip_prefix("postgresql-")?.split(' ').next()?.parse().ok()).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        assert_eq!(major_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(major_of("postgres (PostgreSQL) 19beta2\n"), Some(19));
        assert_eq!(major_of("initdb: error"), None);
    }

    #[test]
    fn the_distributions_release_is_read() {
        let shown =
            "Package: postgresql\nVersion: 15+248\nDepends: postgresql-common (>= 1), postgresql-15 (>= 15.1)\n";
        assert_eq!(dependency_major(shown), Some(15));
        assert_eq!(dependency_major("Package: postgresql\nDepends: postgresql-common\n"), None);
    }

    #[test]
    fn an_installation_that_lacks_a_program_is_not_taken() {
        assert_eq!(complete(Path::new("/usr/bin/no-such-folder")), None);
    }
}
