//! What a database that does not run says of itself: its control file.

use std::fs::File;
use std::io::Read;

use sheetanchor_core::error::Result;
use sheetanchor_core::identity::TimelineId;
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use tokio::process::Command;

use super::install::{Install, run};
use crate::faults::fault;

/// The control file, relative to the data folder.
pub(super) const CONTROL_FILE: &str = "global/pg_control";

/// What recovery needs to know before a server runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Control {
    /// The system identifier.
    pub system: u64,
    /// Bytes of a WAL segment.
    pub segment_bytes: u64,
    /// Where a server that starts there begins to read WAL, if no label of a backup says otherwise.
    pub redo: Lsn,
    /// The timeline of that place.
    pub timeline: TimelineId,
    /// Whether a recovery from archived WAL was begun there, and not brought to its end: no checkpoint has ended it.
    pub in_recovery: bool,
    /// Settings that a standby may not have lower than the primary had them, with the primary's values.
    pub settings: Vec<(&'static str, String)>,
}

/// The names by which `pg_controldata` prints what a standby may not have lower, and the settings that they are.
const LIMITS: [(&str, &str); 5] = [
    ("max_connections setting", "max_connections"),
    ("max_worker_processes setting", "max_worker_processes"),
    ("max_wal_senders setting", "max_wal_senders"),
    ("max_prepared_xacts setting", "max_prepared_transactions"),
    ("max_locks_per_xact setting", "max_locks_per_transaction"),
];

/// What `pg_controldata` says of a recovery that has not ended: it goes on, its server was stopped, or the checkpoint that ends
/// it was being made.
const IN_RECOVERY: [&str; 3] = ["in archive recovery", "shut down in recovery", "shutting down"];

impl Control {
    /// Reads the control file in `data` with the program that came with the server.
    ///
    /// # Errors
    /// Faults, if the program fails; `SA408` if it prints something else than it should.
    pub(super) async fn read(install: &Install, data: &str) -> Result<Self> {
        let mut command = Command::new(install.program("pg_controldata"));
        command.arg("-D").arg(data);
        let printed = run(command, &format!("read {data}/{CONTROL_FILE}")).await?;
        Self::parse(&printed).ok_or_else(|| {
            Refusal::new(Code::RecoveryFailed, format!("the control file of {data} is not understood")).into()
        })
    }

    fn parse(printed: &str) -> Option<Self> {
        // `pg_controldata` warns on its output, and goes on, if the checksum of the file does not hold.
        if printed.contains("WARNING:") {
            return None;
        }
        let value = |name: &str| {
            let line = printed.lines().find_map(|line| line.split_once(':').filter(|(key, _)| *key == name))?;
            Some(line.1.trim().to_owned())
        };
        let settings = LIMITS.iter().map(|(printed, name)| Some((*name, value(printed)?))).collect::<Option<_>>()?;
        let segment_bytes: u64 = value("Bytes per WAL segment")?.parse().ok()?;
        Some(Self {
            system: value("Database system identifier")?.parse().ok()?,
            segment_bytes: Some(segment_bytes).filter(|bytes| bytes.is_power_of_two())?,
            redo: value("Latest checkpoint's REDO location")?.parse().ok()?,
            timeline: TimelineId::new(value("Latest checkpoint's TimeLineID")?.parse().ok()?),
            in_recovery: IN_RECOVERY.contains(&value("Database cluster state")?.as_str()),
            settings,
        })
    }
}

/// The system identifier in the control file of `data`, which is its first word on every version; `None` if there is no
/// such file.
pub(super) fn system_identifier(data: &str) -> Result<Option<u64>> {
    let path = format!("{data}/{CONTROL_FILE}");
    let mut word = [0; 8];
    let read = File::open(&path).and_then(|mut file| file.read_exact(&mut word));
    match read {
        Ok(()) => Ok(Some(u64::from_ne_bytes(word))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fault(format!("read {path}"), &error).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "pg_control version number:            1300\n\
        Database system identifier:           7435209318723\n\
        Database cluster state:               in production\n\
        Latest checkpoint's REDO location:    0/2000028\n\
        Latest checkpoint's TimeLineID:       3\n\
        Bytes per WAL segment:                16777216\n\
        max_connections setting:              100\nmax_worker_processes setting:         8\n\
        max_wal_senders setting:              10\nmax_prepared_xacts setting:           0\n\
        max_locks_per_xact setting:           64\n";

    #[test]
    fn what_the_program_prints_is_read() {
        let control = Control::parse(PRINTED).unwrap();
        assert_eq!((control.system, control.segment_bytes), (7_435_209_318_723, 16_777_216));
        assert_eq!((control.redo, control.timeline), (Lsn::new(0x200_0028), TimelineId::new(3)));
        let in_recovery = |state: &str| Control::parse(&PRINTED.replace("in production", state)).unwrap().in_recovery;
        let states = ["in production", "shut down", "in crash recovery", "in archive recovery", "shutting down"];
        assert_eq!(states.map(in_recovery), [false, false, false, true, true]);
        assert_eq!(control.settings.last(), Some(&("max_locks_per_transaction", "64".to_owned())));
    }

    #[test]
    fn a_damaged_or_strange_control_file_is_not_used() {
        let warned = format!("WARNING: Calculated CRC checksum does not match value stored in file.\n{PRINTED}");
        for bad in ["", &warned, &PRINTED.replace("16777216", "16777215"), &PRINTED.replace("max_wal_senders", "x")] {
            assert_eq!(Control::parse(bad), None, "{bad}");
        }
    }
}
