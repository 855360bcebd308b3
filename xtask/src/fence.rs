//! The commit fence, an extension of PostgreSQL: built outside of the sources, and installed where the server looks for it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::postgres::{self, Servers};
use crate::programs;

const NAME: &str = "sheetanchor_fence";
const SOURCES: &str = "core/native/postgres/sheetanchor_fence";

/// Builds the extension, and installs it unless what is installed is the same. What was done, in a line. `flags` stand in
/// for those that the servers were compiled with: another compiler may not know them.
pub fn ensure(root: &Path, servers: &Servers, flags: Option<&str>) -> Result<String> {
    let sources = root.join(SOURCES);
    let built = root.join(format!("target/{NAME}-{}", servers.major()));
    fs::create_dir_all(&built).with_context(|| format!("cannot make {}", built.display()))?;
    let make = |arguments: &[&str]| {
        let mut command = Command::new("make");
        command.arg("--silent").arg("--directory").arg(&built).arg("--file").arg(sources.join("Makefile"));
        command.arg(format!("VPATH={}", sources.display())).arg(format!("PG_CONFIG={}", servers.pg_config().display()));
        // What the compiler warns of is an error here, as in Rust. Flags on the command line are all that there are: the
        // makefiles add nothing to them.
        command.arg(flags.map_or_else(|| "COPT=-Werror".to_owned(), |flags| format!("CFLAGS={flags} -Werror")));
        command.args(arguments);
        command
    };
    programs::run(&mut make(&[]))?;
    if is_installed(servers, &sources, &built)? {
        return Ok(format!("the commit fence is installed for PostgreSQL {}", servers.major()));
    }
    if !postgres::is_root()? {
        bail!("`sudo cargo xtask pg` installs the extension {NAME}; `cargo xtask ci --without pg` runs the rest");
    }
    programs::run(&mut make(&["install"]))?;
    Ok(format!("the commit fence was installed for PostgreSQL {}", servers.major()))
}

fn is_installed(servers: &Servers, sources: &Path, built: &Path) -> Result<bool> {
    let folder = |which: &str| {
        let said = programs::output(Command::new(servers.pg_config()).arg(which))?;
        anyhow::Ok(Path::new(said.trim()).to_owned())
    };
    let (library, shared) = (folder("--pkglibdir")?, folder("--sharedir")?.join("extension"));
    let script = format!("{NAME}--1.sql");
    let control = format!("{NAME}.control");
    Ok(is_same(&built.join(format!("{NAME}.so")), &library.join(format!("{NAME}.so")))
        && is_same(&sources.join(&script), &shared.join(&script))
        && is_same(&sources.join(&control), &shared.join(&control)))
}

fn is_same(one: &Path, other: &Path) -> bool {
    matches!((fs::read(one), fs::read(other)), (Ok(one), Ok(other)) if one == other)
}
