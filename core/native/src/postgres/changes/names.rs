//! The names of relations' files, both ways.

use std::fs::File;
use std::io::Read as _;

use sheetanchor_core::error::Result;

use super::super::control::CONTROL_FILE;
use super::super::files::{Relation, TABLESPACES};
use super::super::wal_reader::{Fork, Locator};
use crate::faults::fault;

/// The tablespace of what has no other, and the one of what all databases share.
const DEFAULT_SPACE: u32 = 1663;
const GLOBAL_SPACE: u32 = 1664;

/// A file of a relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RelationFile {
    pub locator: Locator,
    pub fork: Fork,
    /// Which gigabyte of the fork.
    pub segment: u32,
}

/// How one server names its files.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// The folder in a tablespace that is this release's: `PG_15_202209061`.
    own_folder: String,
}

impl Names {
    /// Those of the server of release `major` in folder `data`.
    ///
    /// # Errors
    /// Faults.
    pub(super) fn read(data: &str, major: u32) -> Result<Self> {
        let path = format!("{data}/{CONTROL_FILE}");
        // The system identifier, the version of this file, and that of the catalogs.
        let mut words = [0; 16];
        let read = File::open(&path).and_then(|mut file| file.read_exact(&mut words));
        read.map_err(|error| fault(format!("read {path}"), &error))?;
        let [.., a, b, c, d] = words;
        Ok(Self::of(major, u32::from_ne_bytes([a, b, c, d])))
    }

    pub(super) fn of(major: u32, catalogs: u32) -> Self {
        Self { own_folder: format!("PG_{major}_{catalogs}") }
    }

    /// The name of a file, relative to the data folder.
    pub(super) fn name(&self, file: RelationFile) -> String {
        let Locator { space, database, number } = file.locator;
        let folder = match space {
            GLOBAL_SPACE => "global".to_owned(),
            DEFAULT_SPACE => format!("base/{database}"),
            _ => format!("{TABLESPACES}/{space}/{}/{database}", self.own_folder),
        };
        let fork = match file.fork {
            Fork::Main => "",
            Fork::FreeSpace => "_fsm",
            Fork::Visibility => "_vm",
            Fork::Init => "_init",
        };
        let segment = if file.segment == 0 { String::new() } else { format!(".{}", file.segment) };
        format!("{folder}/{number}{fork}{segment}")
    }

    /// The file of this name, if it is one that a server would name so.
    pub(super) fn parse(&self, name: &str) -> Option<RelationFile> {
        let Relation { number, fork, segment } = Relation::of_path(name)?;
        let (folder, _) = name.rsplit_once('/')?;
        let mut parts = folder.split('/');
        let (space, database) = match (parts.next()?, parts.next(), parts.next(), parts.next()) {
            ("global", None, None, None) => (GLOBAL_SPACE, 0),
            ("base", Some(database), None, None) => (DEFAULT_SPACE, database.parse().ok()?),
            (TABLESPACES, Some(space), Some(_), Some(database)) => (space.parse().ok()?, database.parse().ok()?),
            _ => return None,
        };
        let file = RelationFile { locator: Locator { space, database, number }, fork, segment };
        (self.name(file) == name).then_some(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written_and_no_others() {
        let names = Names::of(15, 202_209_061);
        for name in [
            "base/5/16384",
            "base/5/16384_vm.3",
            "base/5/16384.1",
            "base/5/16384_init",
            "global/1262_fsm",
            "pg_tblspc/16400/PG_15_202209061/5/16401.2",
        ] {
            let file = names.parse(name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(names.name(file), name);
        }
        for name in [
            "base/5/016384",
            "base/05/16384",
            "base/5/16384.0",
            "base/5/16384.01",
            "base/5/pg_filenode.map",
            "base/5/deep/16384",
            "global/5/1262",
            "pg_tblspc/16400/PG_14_202107181/5/16401",
            "pg_tblspc/1663/PG_15_202209061/5/16401",
            "pg_xact/0000",
            "16384",
        ] {
            assert_eq!(names.parse(name), None, "{name}");
        }
    }
}
