//! Segments of PostgreSQL's WAL: their names, their bounds, and the files that a server has of them.

use std::fs;
use std::io;

use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use sheetanchor_core::identity::TimelineId;
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};

use super::wal_reader::{Broken, Origin};
use crate::faults::fault;

/// The first timeline of a server, which has no ancestors and no history.
pub(super) const FIRST_TIMELINE: TimelineId = TimelineId::new(1);

/// The size of a WAL segment of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentSize(u64);

impl SegmentSize {
    /// A size in bytes, a power of two from a mebibyte to a gibibyte.
    ///
    /// # Errors
    /// A fault for any other number.
    pub fn new(bytes: u64) -> Result<Self> {
        if bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes) {
            return Ok(Self(bytes));
        }
        Err(Fault::new(FaultKind::Other, "take the size of a WAL segment", format!("{bytes} bytes is none")).into())
    }

    /// The bare number.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// The start of the segment that `lsn` lies in.
    pub fn start(self, lsn: Lsn) -> Lsn {
        Lsn::new(lsn.get() & !self.0.wrapping_sub(1))
    }

    /// The end of the segment that starts at `start`.
    pub fn end(self, start: Lsn) -> Lsn {
        Lsn::new(start.get().saturating_add(self.0))
    }

    /// The name of the file that holds the segment that starts at `start`.
    pub fn file_name(self, timeline: TimelineId, start: Lsn) -> String {
        let number = start.get() / self.0;
        let per_id = (1_u64 << 32) / self.0;
        format!("{:08X}{:08X}{:08X}", timeline.get(), number / per_id, number % per_id)
    }
}

/// Whose segment it is, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The server's system identifier.
    pub system: u64,
    /// Its segments' size.
    pub size: SegmentSize,
    /// The timeline in the segment's name.
    pub timeline: TimelineId,
    /// Its first byte.
    pub start: Lsn,
}

impl Place {
    /// What a reader must find there.
    pub(super) fn origin(&self) -> Origin {
        Origin { system: self.system, segment: self.size, timeline: self.timeline }
    }

    /// The segment before this one; `None` before the first.
    pub(super) fn before(&self) -> Option<Self> {
        let start = self.start.get().checked_sub(self.size.bytes())?;
        Some(Self { start: Lsn::new(start), ..*self })
    }

    /// The name of its file.
    pub(super) fn file_name(&self) -> String {
        self.size.file_name(self.timeline, self.start)
    }

    /// Refuses anything but a whole segment.
    ///
    /// # Errors
    /// `SA504`.
    pub(super) fn check_length(&self, bytes: &[u8]) -> Result<()> {
        if u64::try_from(bytes.len()) == Ok(self.size.bytes()) {
            return Ok(());
        }
        let message = format!("segment {}: {} bytes, not {}", self.file_name(), bytes.len(), self.size.bytes());
        Err(Refusal::new(Code::WalDamaged, message).into())
    }

    /// The refusal of this segment, which does not hold.
    pub(super) fn damaged(&self, broken: &Broken) -> Error {
        Refusal::new(Code::WalDamaged, format!("segment {}: {broken}", self.file_name())).into()
    }
}

/// The timelines that `timeline` descends from, and where each was left, in the order of their numbers; by the history file
/// in the server's folder. A timeline without such a file has no ancestors.
///
/// # Errors
/// `SA504` if the file is not understood, and faults.
pub(super) fn ancestors(data: &str, timeline: TimelineId) -> Result<Vec<(TimelineId, Lsn)>> {
    let path = format!("{data}/pg_wal/{:08X}.history", timeline.get());
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fault(format!("read {path}"), &error).into()),
    };
    history(&path, &text)
}

/// The timelines that the history `text`, called `name`, lists, and where each was left.
///
/// # Errors
/// `SA504` if it is not understood.
pub(super) fn history(name: &str, text: &str) -> Result<Vec<(TimelineId, Lsn)>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        Some((TimelineId::new(words.next()?.parse().ok()?), words.next()?.parse().ok()?))
    };
    let understood: Option<Vec<(TimelineId, Lsn)>> = lines.map(parse).collect();
    understood.ok_or_else(|| Refusal::new(Code::WalDamaged, format!("{name} is not understood")).into())
}

/// The segment that a server has in its folder, as it is there.
///
/// # Errors
/// `SA501` if it is not there, `SA504` if it is not whole.
pub(super) fn read_segment(data: &str, place: &Place) -> Result<Vec<u8>> {
    let name = place.file_name();
    let path = format!("{data}/pg_wal/{name}");
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let message = format!("segment {name} is not in {data}/pg_wal any more");
            return Err(Refusal::new(Code::WalGap, message).into());
        }
        Err(error) => return Err(fault(format!("read {path}"), &error).into()),
    };
    place.check_length(&bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ancestors_of_a_timeline_are_read_from_its_history() {
        let folder = std::env::temp_dir().join(format!("sa-history-{}", std::process::id()));
        fs::create_dir_all(folder.join("pg_wal")).unwrap();
        let (data, third) = (folder.to_str().unwrap(), TimelineId::new(3));
        assert_eq!(ancestors(data, third).unwrap(), [], "no file");
        let path = folder.join("pg_wal/00000003.history");
        fs::write(&path, "1\t0/3000158\tno recovery target specified\n\n# x\n2\t1/A0\tafter LSN\n").unwrap();
        let lsn = |text: &str| text.parse::<Lsn>().unwrap();
        let expected = [(TimelineId::new(1), lsn("0/3000158")), (TimelineId::new(2), lsn("1/A0"))];
        assert_eq!(ancestors(data, third).unwrap(), expected);
        for bad in ["x\t0/3000158\n", "1\n", "1\tnowhere\n"] {
            fs::write(&path, bad).unwrap();
            let error = ancestors(data, third).unwrap_err();
            assert_eq!(error.refusal().unwrap().code, Code::WalDamaged, "{bad}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_segment_is_named_as_postgresql_names_it() {
        let size = SegmentSize::new(16 << 20).unwrap();
        let name = |text: &str| size.file_name(TimelineId::new(1), size.start(text.parse().unwrap()));
        assert_eq!(name("0/16B3748"), "000000010000000000000001");
        assert_eq!(name("5/FF000000"), "0000000100000005000000FF");
        assert_eq!(name("6/0"), "000000010000000600000000");
        assert_eq!(size.end(size.start("0/16B3748".parse().unwrap())), "0/2000000".parse().unwrap());
        for bad in [0, 3, 1 << 19, 1 << 31] {
            assert!(SegmentSize::new(bad).is_err(), "{bad}");
        }
    }
}
