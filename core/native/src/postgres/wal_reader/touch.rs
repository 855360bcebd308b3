//! Which blocks and which files a record changes, by its references to blocks (`xlogrecord.h`) and by the few records that
//! change files without naming blocks (`storage_xlog.h`, `dbcommands_xlog.h`, `tablespace.h`, `xact.h`, `pg_control.h`).
//!
//! PostgreSQL marks every record that changes relations in ways that its references do not say. What has that mark and is
//! not read here is [`Touch::Untold`]: a kind of record that a later release, or an extension, brings cannot pass unseen.

use super::event::{self, XACT};
use super::record::{RecordHead, u16_at, u32_at};
use super::version::Version;

/// A relation's place, which its files' names follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Locator {
    /// The object number of its tablespace.
    pub space: u32,
    /// That of its database; zero for what all databases share.
    pub database: u32,
    /// Its file number.
    pub number: u32,
}

impl Locator {
    /// Bytes of one in a record.
    const BYTES: usize = 12;

    fn of(bytes: &[u8]) -> Option<Self> {
        Some(Self { space: u32_at(bytes, 0)?, database: u32_at(bytes, 4)?, number: u32_at(bytes, 8)? })
    }
}

/// A relation's forks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fork {
    /// Its rows, or its index entries.
    Main,
    /// Where there is room in it. Its changes are not in the WAL.
    FreeSpace,
    /// Which of its pages every transaction sees all of.
    Visibility,
    /// What an unlogged relation is after a crash.
    Init,
}

impl Fork {
    /// The fork of this number.
    fn of(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Main),
            1 => Some(Self::FreeSpace),
            2 => Some(Self::Visibility),
            3 => Some(Self::Init),
            _ => None,
        }
    }
}

/// What a record changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// A block.
    Block {
        /// The relation.
        locator: Locator,
        /// Which fork of it.
        fork: Fork,
        /// Which block of that, over all its files.
        block: u32,
    },
    /// A fork as a whole: it was made.
    Made {
        /// The relation.
        locator: Locator,
        /// Which fork of it.
        fork: Fork,
    },
    /// A relation was cut short: its main fork ends before a block, or did; its other forks were cut accordingly.
    Cut {
        /// The relation.
        locator: Locator,
        /// The first block that went.
        block: u32,
    },
    /// A relation was removed.
    Removed {
        /// The relation.
        locator: Locator,
    },
    /// A database's part in a tablespace was made, or removed.
    Database {
        /// The tablespace.
        space: u32,
        /// The database.
        database: u32,
    },
    /// A tablespace was made, or removed.
    Space {
        /// The tablespace.
        space: u32,
    },
    /// Nothing: a message of ours says whether pages carry checksums.
    Checksums {
        /// Whether they do.
        on: bool,
    },
    /// Files changed, or may change from here on, in ways that WAL does not tell.
    Untold {
        /// The resource manager of the record that says so.
        manager: u8,
        /// Which kind of its records that is.
        kind: u8,
    },
}

/// All headers of a record fit in here: 33 references of 27 bytes, three other headers of 13.
pub(super) const HEADERS_BYTES_MAX: usize = 1024;

const XLOG: u8 = 0;
const SMGR: u8 = 2;
const DBASE: u8 = 4;
const TBLSPC: u8 = 5;
const MESSAGE: u8 = 21;

/// Under this prefix a message in the WAL says whether pages carry checksums: `on` or `off`.
pub const CHECKSUMS_MESSAGE: &str = "sheetanchor.checksums";

const KIND: u8 = 0xF0;
/// The record changes relations in ways that its references do not say.
const SPECIAL: u8 = 0x01;

const PARAMETER_CHANGE: u8 = 0x60;
const SMGR_CREATE: u8 = 0x10;
const SMGR_TRUNCATE: u8 = 0x20;
const TBLSPC_CREATE: u8 = 0x00;
const TBLSPC_DROP: u8 = 0x10;

/// What [`read`] needs of a record's body, from its start.
pub(super) fn bytes_wanted(head: &RecordHead) -> usize {
    match head.manager {
        SMGR | DBASE | TBLSPC | XACT => usize::MAX,
        _ => HEADERS_BYTES_MAX,
    }
}

/// Reads a record whose checksum holds: `body` is as much of it as [`bytes_wanted`] says. `None` if it is not laid out as
/// its version lays it out.
pub(super) fn read(version: Version, head: &RecordHead, body: &[u8], sink: &mut impl FnMut(Touch)) -> Option<()> {
    let own_bytes = references(version, head, body, sink)?;
    let kind = head.info & KIND;
    let own = || body.get(body.len().checked_sub(own_bytes)?..);
    match (head.manager, kind) {
        // Of the settings, `wal_level` is the sixth. At its least, new relations are synced and not logged.
        (XLOG, PARAMETER_CHANGE) if u32_at(own()?, 20)? == 0 => sink(Touch::Untold { manager: XLOG, kind }),
        (XACT, _) if event::ends_transaction(head) => {
            let (files, _) = event::removed_files(version, head, own()?)?.as_chunks::<{ Locator::BYTES }>();
            for file in files {
                sink(Touch::Removed { locator: Locator::of(file)? });
            }
        }
        (SMGR, SMGR_CREATE) => {
            let own = own()?;
            sink(Touch::Made { locator: Locator::of(own)?, fork: Fork::of(u32_at(own, Locator::BYTES)?)? });
        }
        (SMGR, SMGR_TRUNCATE) => {
            let own = own()?;
            sink(Touch::Cut { locator: Locator::of(own.get(4..)?)?, block: u32_at(own, 0)? });
        }
        (DBASE, _) => return databases(version, kind, own()?, sink),
        (TBLSPC, TBLSPC_CREATE | TBLSPC_DROP) => sink(Touch::Space { space: u32_at(own()?, 0)? }),
        // Another's message may be longer than what is kept of it.
        (MESSAGE, _) if body.len() < HEADERS_BYTES_MAX => {
            if let Some(on) = says_checksums(own()?) {
                sink(Touch::Checksums { on });
            }
        }
        (manager, kind) if head.info & SPECIAL != 0 => sink(Touch::Untold { manager, kind }),
        _ => {}
    }
    Some(())
}

/// A database's part in a tablespace is made by one record, however many files it has, and parts are removed by one record.
fn databases(version: Version, kind: u8, own: &[u8], sink: &mut impl FnMut(Touch)) -> Option<()> {
    // Before 15 there was one way to make one.
    let (made, removed): (&[u8], u8) = match version {
        Version::V14 => (&[0x00], 0x10),
        Version::V15 | Version::V16 | Version::V17 | Version::V18 => (&[0x00, 0x10], 0x20),
    };
    if kind != removed && !made.contains(&kind) {
        sink(Touch::Untold { manager: DBASE, kind });
        return Some(());
    }
    let database = u32_at(own, 0)?;
    if kind != removed {
        sink(Touch::Database { space: u32_at(own, 4)?, database });
        return Some(());
    }
    let count = usize::try_from(u32_at(own, 4)?).ok()?;
    let spaces = own.get(8..)?.get(..count.checked_mul(4)?)?;
    for at in (0..spaces.len()).step_by(4) {
        sink(Touch::Database { space: u32_at(spaces, at)?, database });
    }
    Some(())
}

/// `xl_logical_message`: the database, whether it belongs to a transaction, the lengths of both, a prefix that ends with a
/// zero byte, and the message.
fn says_checksums(own: &[u8]) -> Option<bool> {
    let said = own.get(24..)?.strip_prefix(CHECKSUMS_MESSAGE.as_bytes())?.strip_prefix(b"\0")?;
    match said {
        b"on" => Some(true),
        b"off" => Some(false),
        _ => None,
    }
}

const BLOCK_ID_MAX: u8 = 32;
const TOP_TRANSACTION: u8 = 252;
const ORIGIN: u8 = 253;
const LONG_DATA: u8 = 254;
const SHORT_DATA: u8 = 255;

const FORK: u8 = 0x0F;
const HAS_IMAGE: u8 = 0x10;
const SAME_RELATION: u8 = 0x80;

const IMAGE_HAS_HOLE: u8 = 0x01;

/// Reads the headers at the start of a body, and answers how many bytes of the record's own data end it.
fn references(version: Version, head: &RecordHead, body: &[u8], sink: &mut impl FnMut(Touch)) -> Option<usize> {
    let body_bytes = usize::try_from(head.total).ok()?.checked_sub(super::HEAD_BYTES)?;
    let (mut rest, mut announced, mut own, mut last) = (body, 0_usize, 0, None);
    // Headers end where all that is left was announced by them.
    while body_bytes.checked_sub(body.len().checked_sub(rest.len())?)? > announced {
        let [id] = take(&mut rest)?;
        match id {
            0..=BLOCK_ID_MAX => {
                let [flags] = take(&mut rest)?;
                let data = u16::from_ne_bytes(take(&mut rest)?);
                announced = announced.checked_add(usize::from(data))?;
                if flags & HAS_IMAGE != 0 {
                    announced = announced.checked_add(image(version, &mut rest)?)?;
                }
                if flags & SAME_RELATION == 0 {
                    last = Some(Locator::of(&take::<{ Locator::BYTES }>(&mut rest)?)?);
                }
                let block = u32::from_ne_bytes(take(&mut rest)?);
                sink(Touch::Block { locator: last?, fork: Fork::of(u32::from(flags & FORK))?, block });
            }
            TOP_TRANSACTION => drop(take::<4>(&mut rest)?),
            ORIGIN => drop(take::<2>(&mut rest)?),
            SHORT_DATA | LONG_DATA => {
                own = match id {
                    SHORT_DATA => usize::from(u8::from_ne_bytes(take(&mut rest)?)),
                    _ => usize::try_from(u32::from_ne_bytes(take(&mut rest)?)).ok()?,
                };
                announced = announced.checked_add(own)?;
                // It is the last header.
                break;
            }
            _ => return None,
        }
    }
    (body_bytes.checked_sub(body.len().checked_sub(rest.len())?)? == announced).then_some(own)
}

/// Reads the header of a page image, and answers the image's bytes.
fn image(version: Version, rest: &mut &[u8]) -> Option<usize> {
    let header = take::<5>(rest)?;
    let [.., flags] = header;
    let compressed = match version {
        Version::V14 => 0x02,
        Version::V15 | Version::V16 | Version::V17 | Version::V18 => 0x04 | 0x08 | 0x10,
    };
    if flags & compressed != 0 && flags & IMAGE_HAS_HOLE != 0 {
        take::<2>(rest)?;
    }
    u16_at(&header, 0).map(usize::from)
}

fn take<const COUNT: usize>(rest: &mut &[u8]) -> Option<[u8; COUNT]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*taken)
}
