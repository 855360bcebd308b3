//! Rows: fixed slots on data pages, each with the newest version and the committed one before it.

use crate::fields;
use crate::page::BODY_BYTES;
use crate::transaction::{Status, Xid};

/// Bytes in the longest value.
pub const VALUE_BYTES_MAX: usize = 64;

/// Writer (8), length of the value (1), value (64).
const VERSION_BYTES: usize = 8 + 1 + VALUE_BYTES_MAX;

/// Used (1), key (8), newest version, previous version.
const ROW_BYTES: usize = 1 + 8 + 2 * VERSION_BYTES;

/// Rows on one page.
pub(crate) const ROWS_PER_PAGE: usize = BODY_BYTES / ROW_BYTES;

/// Stands where the length of a previous version would, if there is none.
const ABSENT: u8 = u8::MAX;

/// A value and who wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) writer: Xid,
    pub(crate) value: Vec<u8>,
}

/// A row. The visible version is the newest if its writer has committed, else the previous one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) key: u64,
    pub(crate) newest: Version,
    /// Always of a committed transaction.
    pub(crate) previous: Option<Version>,
}

/// Why a row cannot be changed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conflict;

impl Row {
    /// A row's first version.
    pub(crate) fn inserted(key: u64, newest: Version) -> Self {
        Self { key, newest, previous: None }
    }

    /// What `reader` sees, given what became of the newest version's writer.
    pub(crate) fn visible(&self, writer: Status, reader: Option<Xid>) -> Option<&Version> {
        match writer {
            Status::Committed(_) => Some(&self.newest),
            Status::InProgress if reader == Some(self.newest.writer) => Some(&self.newest),
            Status::InProgress | Status::Aborted => self.previous.as_ref(),
        }
    }

    /// The row after `version` was written over it.
    pub(crate) fn over(&self, status: Status, version: Version) -> Result<Self, Conflict> {
        let previous = match status {
            Status::Committed(_) => Some(self.newest.clone()),
            Status::Aborted => self.previous.clone(),
            Status::InProgress if self.newest.writer == version.writer => self.previous.clone(),
            Status::InProgress => return Err(Conflict),
        };
        Ok(Self { key: self.key, newest: version, previous })
    }

    /// The row's bytes, and where in the body they go.
    pub(crate) fn written(&self, slot: usize) -> (usize, Vec<u8>) {
        let mut bytes = vec![1];
        bytes.extend_from_slice(&self.key.to_le_bytes());
        write_version(&mut bytes, Some(&self.newest));
        write_version(&mut bytes, self.previous.as_ref());
        assert_eq!(bytes.len(), ROW_BYTES, "a row has one size");
        (slot * ROW_BYTES, bytes)
    }
}

/// What a slot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RowSlot {
    Free,
    Row(Row),
}

/// Reads slot `slot` of a data page; `None` for bytes that no row has.
pub(crate) fn read(body: &[u8], slot: usize) -> Option<RowSlot> {
    let at = slot.checked_mul(ROW_BYTES)?;
    let bytes = body.get(at..at.checked_add(ROW_BYTES)?)?;
    match bytes.first()? {
        0 => Some(RowSlot::Free),
        1 => {
            let newest = read_version(bytes.get(9..)?)??;
            let previous = read_version(bytes.get(9 + VERSION_BYTES..)?)?;
            Some(RowSlot::Row(Row { key: fields::u64_at(bytes, 1)?, newest, previous }))
        }
        _ => None,
    }
}

fn write_version(bytes: &mut Vec<u8>, version: Option<&Version>) {
    let until = bytes.len() + VERSION_BYTES;
    match version {
        None => {
            bytes.extend_from_slice(&[0; 8]);
            bytes.push(ABSENT);
        }
        Some(version) => {
            assert!(
                version.value.len() <= VALUE_BYTES_MAX,
                "a value of {} bytes was refused before",
                version.value.len()
            );
            bytes.extend_from_slice(&version.writer.word().to_le_bytes());
            bytes.push(u8::try_from(version.value.len()).unwrap_or(ABSENT));
            bytes.extend_from_slice(&version.value);
        }
    }
    bytes.resize(until, 0);
}

/// `None` for damage, `Some(None)` for no version.
#[allow(clippy::option_option, reason = "bytes that are wrong, and a version that is not there, are two things")]
fn read_version(bytes: &[u8]) -> Option<Option<Version>> {
    let writer = Xid::from_word(fields::u64_at(bytes, 0)?);
    let length = *bytes.get(8)?;
    if length == ABSENT {
        return Some(None);
    }
    let length = usize::from(length);
    if length > VALUE_BYTES_MAX {
        return None;
    }
    Some(Some(Version { writer, value: bytes.get(9..9 + length)?.to_vec() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheetanchor_core::identity::NodeId;
    use sheetanchor_core::scn::Scn;

    const COMMITTED: Status = Status::Committed(Scn::new(1));

    fn version(counter: u64, value: &str) -> Version {
        Version { writer: Xid::new(NodeId::new(1), counter), value: value.into() }
    }

    fn row() -> Row {
        Row { key: 7, newest: version(2, "new"), previous: Some(version(1, "old")) }
    }

    #[test]
    fn a_row_reads_back() {
        let longest = Row::inserted(u64::MAX, Version { value: vec![9; VALUE_BYTES_MAX], ..version(3, "") });
        for row in [row(), longest, Row::inserted(0, version(1, ""))] {
            let mut body = vec![0; BODY_BYTES];
            let (at, bytes) = row.written(ROWS_PER_PAGE - 1);
            fields::put(&mut body, at, &bytes);
            assert_eq!(read(&body, ROWS_PER_PAGE - 1), Some(RowSlot::Row(row)));
            assert_eq!(read(&body, 0), Some(RowSlot::Free));
            assert_eq!(read(&body, ROWS_PER_PAGE), None);
        }
        assert_eq!(read(&[7; BODY_BYTES], 0), None, "no such row");
    }

    #[test]
    fn only_what_committed_is_visible_and_ones_own() {
        let row = row();
        let (own, other) = (Some(row.newest.writer), Some(Xid::new(NodeId::new(2), 2)));
        for (status, reader, expected) in [
            (COMMITTED, other, "new"),
            (Status::Aborted, other, "old"),
            (Status::Aborted, own, "old"),
            (Status::InProgress, other, "old"),
            (Status::InProgress, None, "old"),
            (Status::InProgress, own, "new"),
        ] {
            assert_eq!(row.visible(status, reader).unwrap().value, expected.as_bytes(), "{status:?}");
        }
        assert_eq!(Row::inserted(1, version(1, "x")).visible(Status::Aborted, None), None);
    }

    #[test]
    fn the_previous_version_is_always_the_last_committed_one() {
        let row = row();
        let over_committed = row.over(COMMITTED, version(3, "newer")).unwrap();
        assert_eq!(over_committed.previous, Some(version(2, "new")));
        let over_aborted = row.over(Status::Aborted, version(3, "newer")).unwrap();
        assert_eq!(over_aborted.previous, Some(version(1, "old")));
        let over_own = row.over(Status::InProgress, version(2, "again")).unwrap();
        assert_eq!((over_own.newest, over_own.previous), (version(2, "again"), Some(version(1, "old"))));
        assert_eq!(row.over(Status::InProgress, version(3, "newer")), Err(Conflict));
    }
}
