//! What of a data folder belongs to a backup: the manual's section on low-level backups says what to leave out.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::identity::ByteCount;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::database::{SourceFile, SourceKind};

use super::wal_reader::Fork;
use crate::faults::fault;

/// Folders that are captured empty: what lies in them is of one run of the server only. Slots are pins, and a restored
/// node owns none.
const EMPTIED: [&str; 7] =
    ["pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans"];

/// Files at the top that are of one run, of one backup or of one restore.
const LEFT_OUT: [&str; 11] = [
    "postmaster.pid",
    "postmaster.opts",
    "backup_label",
    "backup_label.old",
    "tablespace_map",
    "tablespace_map.old",
    "backup_manifest",
    "recovery.signal",
    "standby.signal",
    "current_logfiles",
    "postgresql.auto.conf.tmp",
];

/// What this crate leaves at the top of a data folder while it restores starts so.
pub(super) const OWN_PREFIX: &str = "sheetanchor.";

/// Where each tablespace has its link.
pub(super) const TABLESPACES: &str = "pg_tblspc";

/// Everything to capture, sorted by name. Tablespaces are links, and what a server of version `major` has in them follows
/// under their names.
///
/// # Errors
/// `SA407` for a symbolic link other than `pg_wal` and the tablespaces', and for a tablespace in the data folder; faults.
pub(super) fn list(data: &str, major: u32) -> Result<Vec<SourceFile>> {
    let mut found = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let mut entries = entries(data, &folder)?;
        if is_tablespace(&folder) {
            // Servers of several versions may share a tablespace's folder.
            entries.retain(|entry| entry.starts_with(&format!("PG_{major}_")));
        }
        let unlogged: BTreeSet<u32> = if is_database(&folder) {
            let relations = entries.iter().filter_map(|entry| Relation::parse(entry));
            relations.filter(|relation| relation.fork == Fork::Init).map(|relation| relation.number).collect()
        } else {
            BTreeSet::new()
        };
        for entry in entries {
            let name = if folder.is_empty() { entry.clone() } else { format!("{folder}/{entry}") };
            if is_left_out(&folder, &entry) || (is_database(&folder) && is_lost_in_a_crash(&entry, &unlogged)) {
                continue;
            }
            if let Some(file) = look(data, &name)? {
                let leads_on = match file.kind {
                    SourceKind::Folder => !EMPTIED.contains(&name.as_str()),
                    SourceKind::Link { .. } => true,
                    SourceKind::File { .. } => false,
                };
                if leads_on {
                    folders.push(name);
                }
                found.push(file);
            }
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// One file of a relation: `<number>`, `_fsm`, `_vm` or `_init` for another fork, `.<segment>` after the first gigabyte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Relation {
    /// The relation's file number.
    pub number: u32,
    /// Which of its forks.
    pub fork: Fork,
    /// Which gigabyte of it.
    pub segment: u32,
}

impl Relation {
    /// The relation whose file `path` is, relative to the data folder; `None` for what is no relation's.
    pub(super) fn of_path(path: &str) -> Option<Self> {
        let (folder, name) = path.rsplit_once('/')?;
        if folder == "global" || is_database(folder) { Self::parse(name) } else { None }
    }

    fn parse(name: &str) -> Option<Self> {
        let (stem, segment) = match name.split_once('.') {
            Some((stem, segment)) => (stem, digits(segment)?),
            None => (name, 0),
        };
        let (number, fork) = match stem.split_once('_') {
            None => (stem, Fork::Main),
            Some((number, "fsm")) => (number, Fork::FreeSpace),
            Some((number, "vm")) => (number, Fork::Visibility),
            Some((number, "init")) => (number, Fork::Init),
            Some(_) => return None,
        };
        Some(Self { number: digits(number)?, fork, segment })
    }
}

fn digits(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

/// Whether a folder holds a database's relations: `base/<oid>`, or `pg_tblspc/<oid>/PG_<version>/<oid>`.
fn is_database(folder: &str) -> bool {
    folder.rsplit_once('/').is_some_and(|(above, oid)| {
        let holds_databases = above == "base"
            || above.rsplit_once('/').is_some_and(|(link, version)| is_tablespace(link) && version.starts_with("PG_"));
        holds_databases && digits(oid).is_some()
    })
}

/// Whether this is the link of a tablespace: `pg_tblspc/<oid>`.
fn is_tablespace(name: &str) -> bool {
    name.split_once('/').is_some_and(|(folder, oid)| folder == TABLESPACES && digits(oid).is_some())
}

/// Unlogged relations start from their init fork after a crash; temporary ones (`t<backend>_<number>`) are gone.
fn is_lost_in_a_crash(entry: &str, unlogged: &BTreeSet<u32>) -> bool {
    if let Some(relation) = Relation::parse(entry) {
        return relation.fork != Fork::Init && unlogged.contains(&relation.number);
    }
    let temporary = entry.strip_prefix('t').and_then(|rest| rest.split_once('_'));
    temporary.is_some_and(|(backend, number)| digits(backend).is_some() && Relation::parse(number).is_some())
}

/// Whether `name`, relative to the data folder, or a folder above it is left out.
pub(super) fn is_left_out_with_its_folders(name: &str) -> bool {
    let ends = name.match_indices('/').map(|(at, _)| at).chain([name.len()]);
    ends.filter_map(|end| name.get(..end)).any(|name| {
        let (folder, entry) = name.rsplit_once('/').unwrap_or(("", name));
        is_left_out(folder, entry)
    })
}

fn is_left_out(folder: &str, entry: &str) -> bool {
    if entry.starts_with("pgsql_tmp") || entry.starts_with("pg_internal.init") {
        return true;
    }
    match folder {
        "" => LEFT_OUT.contains(&entry) || entry.starts_with(OWN_PREFIX) || entry.starts_with(".s.PGSQL."),
        // The WAL goes another way. Histories of timelines are no WAL: without its own, no point on a later timeline can
        // be recovered to.
        "pg_wal" => !(entry.ends_with(".history") || entry == "archive_status" || entry == "summaries"),
        "pg_wal/archive_status" | "pg_wal/summaries" => true,
        _ => false,
    }
}

/// The names in a folder. One that is gone by now, and `pg_wal` behind a link, have none.
fn entries(data: &str, folder: &str) -> Result<Vec<String>> {
    let path = format!("{data}/{folder}");
    let read = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&path)? {
            let unreadable = |name: std::ffi::OsString| {
                io::Error::new(io::ErrorKind::InvalidData, format!("the name {} is not UTF-8", name.display()))
            };
            names.push(entry?.file_name().into_string().map_err(unreadable)?);
        }
        Ok(names)
    };
    match read() {
        Ok(names) => Ok(names),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.is_empty() => Ok(Vec::new()),
        Err(error) => Err(fault(format!("list {path}"), &error).into()),
    }
}

/// What lies at `name`; `None` if it is gone by now, or is a socket or pipe.
fn look(data: &str, name: &str) -> Result<Option<SourceFile>> {
    let path = format!("{data}/{name}");
    let mut metadata = match fs::symlink_metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fault(format!("look at {path}"), &error).into()),
    };
    if metadata.is_symlink() {
        if is_tablespace(name) {
            return tablespace(data, &path, name).map(Some);
        }
        if name != "pg_wal" {
            return Err(leads_out(&path, name));
        }
        // A restored server keeps its WAL in the data folder: where the link leads belongs to this machine.
        metadata = fs::metadata(&path).map_err(|error| Error::from(fault(format!("look at {path}"), &error)))?;
    }
    let kind = if metadata.is_dir() {
        SourceKind::Folder
    } else if metadata.is_file() {
        SourceKind::File { length: ByteCount::new(metadata.len()) }
    } else {
        return Ok(None);
    };
    Ok(Some(SourceFile { name: name.to_owned(), kind, mode: metadata.mode() & 0o7777 }))
}

/// A tablespace: a link out of the data folder, whose target is captured under its name.
fn tablespace(data: &str, path: &str, name: &str) -> Result<SourceFile> {
    let look = |error: io::Error| Error::from(fault(format!("look at {path}"), &error));
    let target = fs::read_link(path).map_err(look)?;
    let (data, real) = (fs::canonicalize(data).map_err(look)?, fs::canonicalize(path).map_err(look)?);
    let Some(target) = target.to_str().filter(|target| target.starts_with('/') && !real.starts_with(&data)) else {
        let message = format!("{name} is a tablespace in the data folder, at {}: move it elsewhere", target.display());
        return Err(Refusal::new(Code::UnsafePath, message).into());
    };
    Ok(SourceFile { name: name.to_owned(), kind: SourceKind::Link { target: target.to_owned() }, mode: 0o777 })
}

fn leads_out(path: &str, name: &str) -> Error {
    let target = fs::read_link(path).map_or_else(|_| "somewhere".to_owned(), |target| target.display().to_string());
    Refusal::new(Code::UnsafePath, format!("{name} is a symbolic link: it leads to {target}")).into()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn with(test: &str, files: &[&str]) -> Self {
            let folder = Self(std::env::temp_dir().join(format!("sheetanchor-files-{test}-{}", std::process::id())));
            for file in files {
                let path = folder.0.join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "x").unwrap();
            }
            folder
        }

        fn listed(&self) -> Vec<String> {
            list(self.0.to_str().unwrap(), 15).unwrap().into_iter().map(|file| file.name).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    #[test]
    fn what_is_of_one_run_only_is_left_out() {
        let folder = Folder::with(
            "runs",
            &[
                "PG_VERSION",
                "postmaster.pid",
                "postmaster.opts",
                "backup_label",
                "sheetanchor.restore",
                "global/pg_control",
                "global/pg_internal.init",
                "pg_replslot/mine/state",
                "pg_notify/0000",
                "pg_wal/000000010000000000000001",
                "pg_wal/00000002.history",
                "pg_wal/archive_status/00000002.history.done",
                "base/pgsql_tmp/x",
                "log/server.log",
            ],
        );
        assert_eq!(
            folder.listed(),
            [
                "PG_VERSION",
                "base",
                "global",
                "global/pg_control",
                "log",
                "log/server.log",
                "pg_notify",
                "pg_replslot",
                "pg_wal",
                "pg_wal/00000002.history",
                "pg_wal/archive_status",
            ]
        );
    }

    #[test]
    fn of_unlogged_relations_the_init_fork_stays_and_temporary_ones_go() {
        let folder = Folder::with(
            "unlogged",
            &[
                "base/5/16384",
                "base/5/16384.1",
                "base/5/16384_fsm",
                "base/5/16384_init",
                "base/5/16385",
                "base/5/16385_vm",
                "base/5/t3_16390",
                "base/5/t3_16390_fsm",
                "base/5/pg_filenode.map",
                "global/16384",
            ],
        );
        assert_eq!(
            folder.listed(),
            [
                "base",
                "base/5",
                "base/5/16384_init",
                "base/5/16385",
                "base/5/16385_vm",
                "base/5/pg_filenode.map",
                "global",
                "global/16384",
            ]
        );
    }

    #[test]
    fn a_link_is_refused_unless_it_is_where_wal_or_a_tablespace_lies() {
        let folder = Folder::with("links", &["PG_VERSION", "elsewhere/000000010000000000000001"]);
        let target = folder.0.join("elsewhere");
        std::os::unix::fs::symlink(&target, folder.0.join("pg_wal")).unwrap();
        assert_eq!(folder.listed(), ["PG_VERSION", "elsewhere", "elsewhere/000000010000000000000001", "pg_wal"]);
        fs::create_dir(folder.0.join("pg_tblspc")).unwrap();
        for (name, target) in
            [("elsewhere.link", "/"), ("pg_tblspc/apart", "/"), ("pg_tblspc/16400", target.to_str().unwrap())]
        {
            std::os::unix::fs::symlink(target, folder.0.join(name)).unwrap();
            let refused = list(folder.0.to_str().unwrap(), 15).unwrap_err();
            assert_eq!(refused.refusal().unwrap().code, Code::UnsafePath);
            assert!(refused.to_string().contains(target), "{refused}");
            fs::remove_file(folder.0.join(name)).unwrap();
        }
    }

    #[test]
    fn a_tablespace_is_listed_under_its_link_without_what_other_versions_have_there() {
        let apart = Folder::with(
            "apart",
            &[
                "PG_15_202209061/5/16384",
                "PG_15_202209061/5/16385",
                "PG_15_202209061/5/16385_init",
                "PG_15_202209061/5/t3_16386",
                "PG_15_202209061/pgsql_tmp/x",
                "PG_14_202107181/5/16384",
                "notes",
            ],
        );
        let folder = Folder::with("tblspc", &["PG_VERSION", "pg_tblspc/.keep"]);
        fs::remove_file(folder.0.join("pg_tblspc/.keep")).unwrap();
        std::os::unix::fs::symlink(&apart.0, folder.0.join("pg_tblspc/16400")).unwrap();
        assert_eq!(
            folder.listed(),
            [
                "PG_VERSION",
                "pg_tblspc",
                "pg_tblspc/16400",
                "pg_tblspc/16400/PG_15_202209061",
                "pg_tblspc/16400/PG_15_202209061/5",
                "pg_tblspc/16400/PG_15_202209061/5/16384",
                "pg_tblspc/16400/PG_15_202209061/5/16385_init",
            ]
        );
        let listed = list(folder.0.to_str().unwrap(), 15).unwrap();
        let link = listed.iter().find(|file| file.name == "pg_tblspc/16400").unwrap();
        assert_eq!(link.kind, SourceKind::Link { target: apart.0.to_str().unwrap().to_owned() });
        assert!(Relation::of_path("pg_tblspc/16400/PG_15_202209061/5/16384").is_some(), "its pages are checked");
    }

    #[test]
    fn what_lies_in_a_folder_that_is_left_out_is_left_out() {
        for name in ["postmaster.pid", "sheetanchor.wal/000000010000000000000001", "base/pgsql_tmp/x", "tablespace_map"]
        {
            assert!(is_left_out_with_its_folders(name), "{name}");
        }
        for name in ["base/5/postmaster.pid", "pg_wal/archive_status", "base", "PG_VERSION", "log/backup_label"] {
            assert!(!is_left_out_with_its_folders(name), "{name}");
        }
    }

    #[test]
    fn relations_are_known_by_their_names() {
        let relation = |number, fork, segment| Some(Relation { number, fork, segment });
        for (path, expected) in [
            ("base/5/16384", relation(16384, Fork::Main, 0)),
            ("base/5/16384_fsm.2", relation(16384, Fork::FreeSpace, 2)),
            ("global/1262_vm", relation(1262, Fork::Visibility, 0)),
            ("base/5/16384_init", relation(16384, Fork::Init, 0)),
            ("base/5/PG_VERSION", None),
            ("base/5/16384_old", None),
            ("base/5/+1", None),
            ("base/5/1.", None),
            ("pg_xact/0000", None),
            ("16384", None),
        ] {
            assert_eq!(Relation::of_path(path), expected, "{path}");
        }
    }
}
