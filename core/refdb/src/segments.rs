//! WAL segments on disk: writing them in order, and reading them after a crash.

use std::collections::BTreeSet;

use sheetanchor_core::error::{Fault, Result};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::env::{Disk, DiskFile, OpenMode};

use crate::fields;
use crate::log::Chunk;
use crate::record::{self, Found, Record};

/// Where a segment lies.
pub(crate) fn path(folder: &str, segment: Lsn) -> String {
    format!("{folder}/{}", segment.to_name())
}

/// Appends to segments. A segment and its name are durable before the next one exists, so only the last can be torn.
pub(crate) struct Writer {
    folder: String,
    open: Option<(Lsn, Box<dyn DiskFile>)>,
}

impl Writer {
    pub(crate) fn new(folder: String) -> Self {
        Self { folder, open: None }
    }

    /// Writes a chunk. It is durable after [`Writer::sync`].
    pub(crate) async fn write(&mut self, disk: &dyn Disk, chunk: Chunk) -> Result<(), Fault> {
        let offset = chunk.from.bytes_since(chunk.segment).unwrap_or(0);
        if self.open.as_ref().is_none_or(|(segment, _)| *segment != chunk.segment) {
            if !planted::is(Bug::OlderSegmentUnsynced) {
                self.sync().await?;
            }
            self.open = None;
            let path = path(&self.folder, chunk.segment);
            // A chunk that starts its segment creates it, unless a life that wrote nothing else did so before.
            let mode = if disk.metadata(&path).await?.is_some() { OpenMode::Write } else { OpenMode::CreateNew };
            let file = disk.open(&path, mode).await?;
            if !planted::is(Bug::SegmentNameUnsynced) {
                disk.sync_dir(&self.folder).await?;
            }
            self.open = Some((chunk.segment, file));
        }
        match &self.open {
            Some((_, file)) => match file.write_at(offset, chunk.bytes.into()).await {
                Err(_) if planted::is(Bug::WriteFailureSwallowed) => Ok(()),
                written => written,
            },
            None => Ok(()),
        }
    }

    /// Makes durable what was written.
    pub(crate) async fn sync(&self) -> Result<(), Fault> {
        match &self.open {
            Some((_, file)) => file.sync().await,
            None => Ok(()),
        }
    }
}

/// A thread as a crash left it.
#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) segments: BTreeSet<Lsn>,
    /// All records from the place where the scan began.
    pub(crate) records: Vec<Record>,
    /// The end of the last one.
    pub(crate) end: Lsn,
}

/// The segments in a folder.
pub(crate) async fn list(disk: &dyn Disk, folder: &str) -> Result<BTreeSet<Lsn>, Fault> {
    Ok(disk.list(folder).await?.iter().filter_map(|entry| Lsn::from_name(&entry.name)).collect())
}

/// Reads a thread from `redo` on, cuts a torn end off, and makes the rest durable. `durable` is how far the thread was
/// known to be durable.
///
/// # Errors
/// `SA504` if what was durable is not there: damage, and no torn end.
pub(crate) async fn scan(disk: &(dyn Disk + 'static), folder: &str, redo: Lsn, durable: Lsn) -> Result<Scan> {
    let segments = list(disk, folder).await?;
    let mut scan = Scan { segments, records: Vec::new(), end: redo };
    let Some(first) = scan.segments.range(..=redo).next_back().copied() else {
        if scan.segments.is_empty() && durable <= redo {
            return Ok(scan);
        }
        return Err(damaged(redo, "no segment holds it"));
    };
    let chosen: Vec<Lsn> = scan.segments.range(first..).copied().collect();
    for (segment, next) in chosen.iter().zip(chosen.iter().skip(1).map(Some).chain([None])) {
        let bytes = disk.read(&path(folder, *segment)).await?;
        let from = redo.max(*segment);
        let good = read_segment(&mut scan, &bytes, *segment, from);
        let rest = bytes.get(good..).unwrap_or_default();
        if segment.plus(fields::count(good)) != Some(scan.end) {
            return Err(damaged(scan.end, "its segment is too short"));
        }
        match next {
            Some(next) if scan.end == *next && rest.is_empty() => {}
            Some(next) => return Err(damaged(scan.end, &format!("its segment is complete up to {next}"))),
            None => {
                if scan.end < durable || record::proves_damage(rest, scan.end) {
                    return Err(damaged(scan.end, &format!("the thread was durable beyond it, to {durable} at least")));
                }
                write_anew(disk, &path(folder, *segment), bytes.get(..good).unwrap_or_default()).await?;
            }
        }
    }
    disk.sync_dir(folder).await?;
    Ok(scan)
}

/// Reads the records of one segment from `from` on; answers how many of its bytes are good.
fn read_segment(scan: &mut Scan, bytes: &[u8], segment: Lsn, from: Lsn) -> usize {
    scan.end = from;
    loop {
        let good = fields::length(scan.end.bytes_since(segment).unwrap_or(0));
        let Some(rest) = bytes.get(good..) else { return bytes.len() };
        match Record::read(rest, scan.end) {
            Found::Record(record, until) => {
                scan.records.push(record);
                scan.end = until;
            }
            Found::Short | Found::Bad => return good,
        }
    }
}

/// Writes the last segment again, without a torn end, under its name. After the death of a process alone what is read may
/// not be durable yet, and a sync that failed may have given up its bytes, or its name, for good.
async fn write_anew(disk: &(dyn Disk + 'static), path: &str, bytes: &[u8]) -> Result<(), Fault> {
    disk.replace(path, bytes.to_vec()).await
}

fn damaged(at: Lsn, why: &str) -> sheetanchor_core::error::Error {
    Refusal::new(Code::WalDamaged, format!("the WAL is damaged at {at}: {why}")).into()
}
