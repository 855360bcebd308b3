//! What a node sends to a backup where nobody can read its folder, as a server does that is afar: its files, in one stream,
//! once. A stream that breaks off is over, and so is its backup: what has come of it is nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::identity::ByteCount;
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::database::{FilePart, FileStream, PageVerdict, SourceFile, SourceKind};
use sheetanchor_engine::env::{DiskFile, OpenMode};

use crate::fields;
use crate::files;
use crate::page::PAGE_BYTES;
use crate::running::Running;

/// Bytes of a file that are sent at once, at most: whole pages, and no part of an agent's piece.
const PART_BYTES: usize = 5 * PAGE_BYTES;

/// How often a page that fails its checksum is read, and how long to wait in between: it may be torn by a write in progress.
const READS_MAX: u32 = 10;
const READ_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// The files of one backup, on their way.
pub(crate) struct Sent {
    running: Arc<Running>,
    label: String,
    total: ByteCount,
    waiting: VecDeque<SourceFile>,
    /// The file whose entry was sent last.
    file: Option<Reading>,
    /// How it came to its end.
    ended: Option<Result<()>>,
}

/// A file that is being sent.
struct Reading {
    name: String,
    file: Box<dyn DiskFile>,
    at: u64,
    until: u64,
}

impl Sent {
    /// Begins to send the files of a running backup.
    ///
    /// # Errors
    /// `SA204` if it does not run, or somebody has asked for them; `SA407`, and faults.
    pub(crate) async fn begin(running: Arc<Running>, label: &str) -> Result<Self> {
        running.state().backups.send(label)?;
        let waiting = VecDeque::from(files::list(&running).await?);
        let total = waiting.iter().map(|file| file.length().get()).fold(0, u64::saturating_add);
        Ok(Self { running, label: label.to_owned(), total: ByteCount::new(total), waiting, file: None, ended: None })
    }

    /// What comes next, if this life of the node goes on; `None` after the last byte that was listed.
    async fn part(&mut self) -> Result<Option<FilePart>> {
        self.running.lives()?;
        if let Some(reading) = self.file.as_mut().filter(|reading| reading.at < reading.until) {
            return Ok(Some(FilePart::Bytes(reading.part(&self.running).await?)));
        }
        self.file = None;
        let Some(file) = self.waiting.pop_front() else { return Ok(None) };
        if let SourceKind::File { length } = &file.kind {
            let path = format!("{}/{}", self.running.folder.data(), file.name);
            let opened = self.running.env.disk.open(&path, OpenMode::Read).await?;
            self.file = Some(Reading { name: file.name.clone(), file: opened, at: 0, until: length.get() });
        }
        Ok(Some(FilePart::Entry(file)))
    }

    fn broken_off(&self, error: Error) -> Error {
        match error {
            Error::Fault(fault) => {
                let message = format!("the files of `{}` are not sent on: {fault}", self.label);
                Refusal::new(Code::LifeChanged, message).into()
            }
            refused @ (Error::Refusal(_) | Error::Bug(_)) => refused,
        }
    }
}

impl Reading {
    /// The next bytes of the file, whose pages hold.
    async fn part(&mut self, running: &Running) -> Result<Vec<u8>> {
        let want = fields::count(PART_BYTES).min(self.until.saturating_sub(self.at));
        let mut reads = 0;
        loop {
            let bytes = self.file.read_at(self.at, usize::try_from(want).unwrap_or(usize::MAX)).await?;
            if fields::count(bytes.len()) != want {
                let message =
                    format!("{} ends before byte {}, and was longer when it was listed", self.name, self.until);
                return Err(Refusal::new(Code::FileChanged, message).into());
            }
            reads += 1;
            match files::check(&self.name, self.at, &bytes) {
                PageVerdict::Sound => {
                    self.at = self.at.saturating_add(want);
                    return Ok(bytes);
                }
                PageVerdict::Fails(at) if reads == READS_MAX => {
                    let message = format!("the page at byte {at} of {} fails its checksum, {reads} times", self.name);
                    return Err(Refusal::new(Code::PageDamaged, message).into());
                }
                PageVerdict::Fails(_) => running.env.clock.sleep(READ_AGAIN_AFTER).await,
            }
        }
    }
}

#[async_trait]
impl FileStream for Sent {
    fn total(&self) -> ByteCount {
        self.total
    }

    async fn next(&mut self) -> Result<Option<FilePart>> {
        if let Some(ended) = &self.ended {
            return ended.clone().map(|()| None);
        }
        let ended = match self.part().await {
            Ok(Some(part)) => return Ok(Some(part)),
            Ok(None) => Ok(()),
            Err(Error::Fault(_)) if planted::is(Bug::StreamEndBelieved) => Ok(()),
            Err(error) => Err(self.broken_off(error)),
        };
        let ended = match ended {
            Ok(()) => self.running.state().backups.sent(&self.label).map_err(Error::from),
            broken => broken,
        };
        self.ended = Some(ended.clone());
        ended.map(|()| None)
    }
}
