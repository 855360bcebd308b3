//! The programs of PostgreSQL on this machine, and the account that servers run under.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::geteuid;
use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use sheetanchor_core::refusal::{Code, Refusal};
use tokio::process::Command;

/// How long a short program (`initdb`, `id`) may take.
const PROGRAM_WAIT: Duration = Duration::from_mins(2);

/// Where Debian and Ubuntu put each major version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// Where the account is not said and we are root: servers refuse to run as root.
const ACCOUNT: &str = "postgres";

/// The folder that holds `postgres`, `initdb` and `pg_controldata` of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    bin: PathBuf,
    version: String,
}

impl Install {
    /// The programs in `bin` if it is given; else on PATH, else in Debian's folders, the newest version first. With
    /// `major`, only programs of that version.
    ///
    /// # Errors
    /// `SA101` if there are none.
    pub async fn find(bin: Option<&str>, major: Option<u32>) -> Result<Self> {
        let folders = bin.map_or_else(candidates, |folder| vec![PathBuf::from(folder)]);
        for folder in &folders {
            if let Some(found) = Self::in_folder(folder).await
                && major.is_none_or(|major| found.major() == Some(major))
            {
                return Ok(found);
            }
        }
        let wanted = major.map_or_else(|| "any version".to_owned(), |major| format!("version {major}"));
        let looked = folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
        Err(Refusal::new(Code::ConfigInvalid, format!("no PostgreSQL programs of {wanted} in {looked}")).into())
    }

    /// The version as the server prints it: `15.18`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The number before the first dot of the version.
    pub fn major(&self) -> Option<u32> {
        let digits = self.version.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(self.version.len());
        self.version.get(..digits)?.parse().ok()
    }

    /// The path of one program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    async fn in_folder(folder: &Path) -> Option<Self> {
        // A name on PATH is often a link or a wrapper: the programs lie together where the link leads, or not at all.
        let initdb = fs::canonicalize(folder.join("initdb")).ok()?;
        let bin = initdb.parent()?.to_path_buf();
        let all = ["postgres", "pg_controldata"].iter().all(|name| bin.join(name).is_file());
        if !all {
            return None;
        }
        let mut command = Command::new(bin.join("postgres"));
        command.arg("--version");
        let said = run(command, "ask postgres for its version").await.ok()?;
        // `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`
        let version = said.split_whitespace().nth(2)?.to_owned();
        Some(Self { bin, version })
    }
}

/// Who owns and runs a server, where that is not us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// The user's number.
    pub uid: u32,
    /// Its first group's number.
    pub gid: u32,
}

impl Account {
    /// The account to run servers as: `None` for our own, which is so unless we are root. Root runs them as `name`, or
    /// as `postgres` if none is given.
    ///
    /// # Errors
    /// `SA101` if there is no such account, if it is root, or if we are not root and `name` is somebody else.
    pub async fn to_run_as(name: Option<&str>) -> Result<Option<Self>> {
        let own = geteuid();
        let Some(name) = name.or(own.is_root().then_some(ACCOUNT)) else { return Ok(None) };
        let found = Self { uid: number(name, "-u").await?, gid: number(name, "-g").await? };
        if found.uid == own.as_raw() && found.uid != 0 {
            return Ok(None);
        }
        if found.uid == 0 || !own.is_root() {
            let reason =
                if found.uid == 0 { "PostgreSQL refuses to run as root" } else { "only root may choose another user" };
            return Err(Refusal::new(Code::ConfigInvalid, format!("cannot run a server as `{name}`: {reason}")).into());
        }
        Ok(Some(found))
    }

    /// Makes `command` run under `account`.
    pub(super) fn apply(account: Option<Self>, command: &mut Command) {
        if let Some(Self { uid, gid }) = account {
            command.uid(uid).gid(gid);
        }
    }
}

async fn number(name: &str, which: &str) -> Result<u32> {
    let mut command = Command::new("id");
    command.args([which, "--", name]);
    let unknown =
        || Refusal::new(Code::ConfigInvalid, format!("there is no user `{}` to run servers as", name.escape_debug()));
    match run(command, "look a user up").await {
        Ok(said) => said.trim().parse().map_err(|_| unknown().into()),
        Err(_) => Err(unknown().into()),
    }
}

/// Runs a short program to its end and answers what it printed.
///
/// # Errors
/// A fault with what it printed on its error output, if it cannot be run, fails or takes too long.
pub(super) async fn run(mut command: Command, operation: &str) -> Result<String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.env("LC_ALL", "C").current_dir("/");
    let fault = |kind, cause: String| Error::from(Fault::new(kind, operation, cause));
    match tokio::time::timeout(PROGRAM_WAIT, command.output()).await {
        Err(_) => Err(fault(FaultKind::TimedOut, format!("no end within {} s", PROGRAM_WAIT.as_secs()))),
        Ok(Err(error)) => Err(fault(FaultKind::Other, error.to_string())),
        Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(fault(FaultKind::Other, format!("{}: {}", output.status, said.trim())))
        }
    }
}

fn candidates() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    let mut debian: Vec<(u32, PathBuf)> = fs::read_dir(DEBIAN)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let version = path.file_name().and_then(OsStr::to_str)?.parse().ok()?;
            Some((version, path.join("bin")))
        })
        .collect();
    debian.sort_by(|one, other| other.cmp(one));
    folders.extend(debian.into_iter().map(|(_, folder)| folder));
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_the_number_before_the_dot() {
        for (version, major) in [("15.18", Some(15)), ("18beta1", Some(18)), ("x", None)] {
            assert_eq!(Install { bin: PathBuf::new(), version: version.to_owned() }.major(), major, "{version}");
        }
    }

    #[tokio::test]
    async fn a_folder_without_programs_and_a_user_that_is_not_there_are_refused() {
        let refused = Install::find(Some("/nonexistent"), None).await.unwrap_err();
        assert_eq!(refused.refusal().unwrap().code, Code::ConfigInvalid);
        let refused = Account::to_run_as(Some("nobody-of-this-name")).await.unwrap_err();
        assert_eq!(refused.refusal().unwrap().code, Code::ConfigInvalid);
        let refused = Account::to_run_as(Some("root")).await.unwrap_err();
        assert_eq!(refused.refusal().unwrap().code, Code::ConfigInvalid);
    }
}
