//! The file that says, while it is there, that a data folder was restored and is not open yet.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, lchown};

use sheetanchor_core::error::Result;
use sheetanchor_core::identity::TimelineId;
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};

use super::install::Account;
use crate::faults::fault;

/// Its name in the data folder.
pub(super) const MARKER: &str = "sheetanchor.restore";

/// Its word for a recovery that has stood at its cut.
const REACHED: &str = "reached";

/// What the marker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Restored {
    /// The name of the record to end at.
    pub record: String,
    /// The timeline of the cut.
    pub timeline: TimelineId,
    /// The cut.
    pub until: Lsn,
    /// Whether recovery has stood exactly there once. It will again: all that it needs is in the folder, and durable.
    pub reached: bool,
}

impl Restored {
    /// The marker in `data`, if one is there.
    ///
    /// # Errors
    /// `SA408` if it is not understood, and faults.
    pub(super) fn read(data: &str) -> Result<Option<Self>> {
        let path = format!("{data}/{MARKER}");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fault(format!("read {path}"), &error).into()),
        };
        let understood = Self::parse(&text).map(Some);
        understood.ok_or_else(|| Refusal::new(Code::RecoveryFailed, format!("{path} is not understood")).into())
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let restored = Self {
            record: lines.next()?.to_owned(),
            timeline: TimelineId::new(lines.next()?.parse().ok()?),
            until: lines.next()?.parse().ok()?,
            reached: lines.next()? == REACHED,
        };
        (restored.text() == text).then_some(restored)
    }

    /// Writes the marker into `data`, for `account` if that is not us. The name is durable once the folder is synced.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn write(&self, data: &str, account: Option<Account>) -> io::Result<()> {
        let (path, new) = (format!("{data}/{MARKER}"), format!("{data}/{MARKER}.new"));
        write_synced(&new, &self.text())?;
        if let Some(account) = account {
            lchown(&new, Some(account.uid), Some(account.gid))?;
        }
        fs::rename(new, path)
    }

    fn text(&self) -> String {
        let phase = if self.reached { REACHED } else { "recovering" };
        format!("{}\n{}\n{}\n{phase}\n", self.record, self.timeline, self.until)
    }

    /// Whether both mean one cut, reached or not.
    pub(super) fn is_same_cut(&self, other: &Self) -> bool {
        (&self.record, self.timeline, self.until) == (&other.record, other.timeline, other.until)
    }
}

/// Makes a file that holds `text`, durable but for its name.
///
/// # Errors
/// The system's.
pub(super) fn write_synced(path: &str, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_reads_back_and_a_strange_one_does_not() {
        let marker = Restored {
            record: "point-0190f3a2c4d5-9f31a2b7".to_owned(),
            timeline: TimelineId::new(2),
            until: "1/16B3748".parse().unwrap(),
            reached: true,
        };
        assert_eq!(Restored::parse(&marker.text()), Some(marker.clone()));
        let text = marker.text();
        for bad in ["", "a\n", &text[..text.len() - 1], &text.replace("reached", "Reached"), &format!("{text}x")] {
            assert_eq!(Restored::parse(bad), None, "{bad}");
        }
    }
}
