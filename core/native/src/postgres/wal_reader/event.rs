//! The few kinds of record that are understood, and their layouts by version (`xlog_internal.h`, `xact.h`, `twophase.c`).

use sheetanchor_core::identity::TimelineId;
use sheetanchor_core::position::Lsn;

use super::record::{RecordHead, u16_at, u32_at, u64_at};
use super::version::Version;

/// A record that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    /// Its first byte.
    pub start: Lsn,
    /// Its end, exclusive, which is where the next record, or page header, starts.
    pub end: Lsn,
    /// What it says.
    pub event: Event,
}

/// What a record says. Times are microseconds since 2000-01-01 00:00 UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A named point to recover to.
    RestorePoint {
        /// Its name.
        name: String,
        /// When it was made.
        time_us: i64,
    },
    /// A checkpoint.
    Checkpoint {
        /// Where recovery from it starts.
        redo: Lsn,
        /// The timeline.
        timeline: TimelineId,
        /// Whether the server was shut down by it.
        shutdown: bool,
    },
    /// A server was promoted, and a timeline begins.
    EndOfRecovery {
        /// The new timeline.
        timeline: TimelineId,
        /// The one that it left.
        previous: TimelineId,
    },
    /// The rest of the segment is empty.
    Switch,
    /// The record at this place was lost in a crash before all of it was written.
    GivenUp {
        /// Its start.
        record: Lsn,
    },
    /// A transaction ended.
    Ended {
        /// Its number; that of the prepared transaction if it was one.
        transaction: u32,
        /// How.
        outcome: Outcome,
        /// When.
        time_us: i64,
        /// Whether it had been prepared.
        prepared: bool,
        /// Its global identifier, which a prepared one has; written with `wal_level` logical only.
        gid: Option<String>,
    },
    /// A transaction was prepared.
    Prepared {
        /// Its number.
        transaction: u32,
        /// Its global identifier.
        gid: String,
        /// When.
        time_us: i64,
    },
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It committed.
    Committed,
    /// It was rolled back.
    Aborted,
}

const XLOG: u8 = 0;
pub(super) const XACT: u8 = 1;

/// The half of the info byte that belongs to the resource manager; of it, a transaction's record keeps one flag.
const KIND: u8 = 0xF0;
const XACT_KIND: u8 = 0x70;
const HAS_INFO: u8 = 0x80;

const CHECKPOINT_SHUTDOWN: u8 = 0x00;
const CHECKPOINT_ONLINE: u8 = 0x10;
const SWITCH: u8 = 0x40;
const RESTORE_POINT: u8 = 0x70;
const END_OF_RECOVERY: u8 = 0x90;
const OVERWRITE_CONTRECORD: u8 = 0xD0;

const COMMIT: u8 = 0x00;
const PREPARE: u8 = 0x10;
const ABORT: u8 = 0x20;
const COMMIT_PREPARED: u8 = 0x30;
const ABORT_PREPARED: u8 = 0x40;

/// Bytes of the field that holds a restore point's name.
const NAME_BYTES: usize = 64;

/// Whether [`read`] knows such records.
pub(super) fn is_understood(head: &RecordHead) -> bool {
    match head.manager {
        XLOG => matches!(
            head.info & KIND,
            CHECKPOINT_SHUTDOWN | CHECKPOINT_ONLINE | SWITCH | RESTORE_POINT | END_OF_RECOVERY | OVERWRITE_CONTRECORD
        ),
        XACT => {
            matches!(head.info & XACT_KIND, COMMIT | PREPARE | ABORT | COMMIT_PREPARED | ABORT_PREPARED)
        }
        _ => false,
    }
}

/// Reads a record whose checksum holds; `None` if it is not laid out as its version lays it out.
pub(super) fn read(version: Version, head: &RecordHead, body: &[u8]) -> Option<Event> {
    let data = main_data(body)?;
    match (head.manager, head.info & KIND) {
        (XLOG, CHECKPOINT_SHUTDOWN | CHECKPOINT_ONLINE) => Some(Event::Checkpoint {
            redo: Lsn::new(u64_at(data, 0)?),
            timeline: TimelineId::new(u32_at(data, 8)?),
            shutdown: head.info & KIND == CHECKPOINT_SHUTDOWN,
        }),
        (XLOG, SWITCH) => Some(Event::Switch),
        (XLOG, RESTORE_POINT) => {
            let name = data.get(8..)?.first_chunk::<NAME_BYTES>()?;
            Some(Event::RestorePoint { name: text(name)?, time_us: i64_at(data, 0)? })
        }
        (XLOG, END_OF_RECOVERY) => Some(Event::EndOfRecovery {
            timeline: TimelineId::new(u32_at(data, 8)?),
            previous: TimelineId::new(u32_at(data, 12)?),
        }),
        (XLOG, OVERWRITE_CONTRECORD) => Some(Event::GivenUp { record: Lsn::new(u64_at(data, 0)?) }),
        (XACT, info) => match info & XACT_KIND {
            PREPARE => prepared(version, data),
            kind @ (COMMIT | ABORT | COMMIT_PREPARED | ABORT_PREPARED) => ended(version, head, kind, data),
            _ => None,
        },
        _ => None,
    }
}

/// A record's own data. Before it come small headers: of the data itself, of the top transaction, of the origin. Records
/// that change pages have others, and none of them is read here.
fn main_data(body: &[u8]) -> Option<&[u8]> {
    let mut rest = body;
    loop {
        let Some((id, after)) = rest.split_first() else {
            // A switch has no data.
            return body.is_empty().then_some(body);
        };
        let (length, after) = match id {
            255 => (usize::from(*after.first()?), after.get(1..)?),
            254 => (usize::try_from(u32_at(after, 0)?).ok()?, after.get(4..)?),
            253 => {
                rest = after.get(2..)?;
                continue;
            }
            252 => {
                rest = after.get(4..)?;
                continue;
            }
            _ => return None,
        };
        return (after.len() == length).then_some(after);
    }
}

/// `xl_xact_prepare`, and the global identifier after it.
fn prepared(version: Version, data: &[u8]) -> Option<Event> {
    // From 15 on, two counts of dropped statistics stand before the others.
    let (gid_bytes, gid) = match version {
        Version::V14 => (46, 64),
        Version::V15 | Version::V16 | Version::V17 | Version::V18 => (54, 72),
    };
    let gid_bytes = usize::from(u16_at(data, gid_bytes)?);
    let gid = data.get(gid..)?.get(..gid_bytes)?;
    Some(Event::Prepared { transaction: u32_at(data, 8)?, gid: text(gid)?, time_us: i64_at(data, 16)? })
}

/// What may follow in a transaction's last record, in the order of their places; the flags say which do.
const HAS_DATABASE: u32 = 1 << 0;
const HAS_SUBTRANSACTIONS: u32 = 1 << 1;
const HAS_FILES: u32 = 1 << 2;
const HAS_DROPPED_STATISTICS: u32 = 1 << 8;
const HAS_INVALIDATIONS: u32 = 1 << 3;
const HAS_TWO_PHASE: u32 = 1 << 4;
const HAS_GID: u32 = 1 << 7;

/// Whether this is a transaction's last record.
pub(super) fn ends_transaction(head: &RecordHead) -> bool {
    head.manager == XACT && matches!(head.info & XACT_KIND, COMMIT | ABORT | COMMIT_PREPARED | ABORT_PREPARED)
}

/// The relations whose files went with a transaction's end, by its last record's own data: twelve bytes each.
pub(super) fn removed_files<'a>(version: Version, head: &RecordHead, data: &'a [u8]) -> Option<&'a [u8]> {
    lists(version, head, data).map(|lists| lists.files)
}

/// What stands in a transaction's last record after its time.
struct Lists<'a> {
    flags: u32,
    files: &'a [u8],
    rest: &'a [u8],
}

fn lists<'a>(version: Version, head: &RecordHead, data: &'a [u8]) -> Option<Lists<'a>> {
    let mut rest = data.get(8..)?;
    let mut flags = 0;
    if head.info & HAS_INFO != 0 {
        flags = u32_at(rest, 0)?;
        rest = rest.get(4..)?;
    }
    if flags & HAS_DATABASE != 0 {
        rest = rest.get(8..)?;
    }
    let lists = [
        (HAS_SUBTRANSACTIONS, Some(4)),
        (HAS_FILES, Some(12)),
        (HAS_DROPPED_STATISTICS, version.dropped_statistics_bytes()),
        (HAS_INVALIDATIONS, Some(16)),
    ];
    let mut files: &[u8] = &[];
    for (flag, item_bytes) in lists {
        if flags & flag != 0 {
            let items = usize::try_from(u32_at(rest, 0)?).ok()?;
            let (list, after) = rest.get(4..)?.split_at_checked(items.checked_mul(item_bytes?)?)?;
            rest = after;
            if flag == HAS_FILES {
                files = list;
            }
        }
    }
    Some(Lists { flags, files, rest })
}

/// `xl_xact_commit` and `xl_xact_abort`, with `xl_xact_xinfo` and what it announces.
fn ended(version: Version, head: &RecordHead, kind: u8, data: &[u8]) -> Option<Event> {
    let time_us = i64_at(data, 0)?;
    let Lists { flags, mut rest, .. } = lists(version, head, data)?;
    let (mut transaction, mut gid) = (head.transaction, None);
    let two_phase = flags & HAS_TWO_PHASE != 0;
    if two_phase {
        transaction = u32_at(rest, 0)?;
        rest = rest.get(4..)?;
        if flags & HAS_GID != 0 {
            gid = Some(text(rest)?);
        }
    }
    let prepared = matches!(kind, COMMIT_PREPARED | ABORT_PREPARED);
    let outcome = if matches!(kind, COMMIT | COMMIT_PREPARED) { Outcome::Committed } else { Outcome::Aborted };
    (prepared == two_phase).then_some(Event::Ended { transaction, outcome, time_us, prepared, gid })
}

/// A text up to its zero byte. Names may be in any encoding: what is no UTF-8 is shown as such.
fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some(String::from_utf8_lossy(bytes.get(..end)?).into_owned())
}

fn i64_at(bytes: &[u8], offset: usize) -> Option<i64> {
    bytes.get(offset..)?.first_chunk().map(|word| i64::from_ne_bytes(*word))
}
