//! Backups of a server beside which nobody can read its folder: it sends its files itself, by `BASE_BACKUP`, in one stream
//! over a connection of its own, with which the backup is over. What comes is captured as if it had been read here: the same
//! names are left out, links lead to the same places, and every page is checked.

mod taking;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use sheetanchor_core::error::{Error, FaultKind, Result};
use sheetanchor_core::identity::{ByteCount, TimelineId};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::database::{Begun, FilePart, FileStream, SourceFile, SourceKind};

use self::taking::Taking;
use super::replication::{Copied, CopyPlan, Replication};
use super::session::Facts;
use super::target::Target;
use super::wal::FIRST_TIMELINE;

/// How many backups are remembered, running or ended.
const REMEMBERED_MAX: usize = 16;

/// The label of a backup, which belongs to its end.
pub(super) const LABEL: &str = "backup_label";

/// The permissions of a timeline's history, which is in no archive, as servers make it.
const HISTORY_MODE: u32 = 0o600;

/// The backups that a server sends or has sent, by label.
#[derive(Default)]
pub(super) struct BaseBackups {
    known: Mutex<BTreeMap<String, BaseBackup>>,
}

struct BaseBackup {
    begun: Begun,
    stage: Stage,
}

enum Stage {
    /// Nothing of it is read yet.
    Ready(Box<Sending>),
    /// Somebody reads it, or has given it up.
    Taken,
    /// All of it came.
    Sent(Sent),
}

/// What a backup says at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    /// Recovery has to come this far.
    pub stop: Lsn,
    /// The label, as the server made it.
    pub label: Vec<u8>,
}

/// A backup that has begun, and the connection that it comes on.
pub(super) struct Sending {
    link: Replication,
    plan: CopyPlan,
    /// The server's data folder, as it says.
    data: String,
    checksums: bool,
}

impl Sending {
    /// Has the server of `facts` begin to send its files.
    ///
    /// # Errors
    /// `SA113` if another server answers, `SA112`, `SA101`, `SA114`; faults.
    pub(super) async fn begin(target: &Target, facts: &Facts, label: &str) -> Result<Self> {
        let mut link = Replication::connect(target).await?;
        link.check_system(facts.system).await?;
        let plan = link.base_backup(label).await?;
        Ok(Self { link, plan, data: facts.data.clone(), checksums: facts.checksums })
    }

    /// Where replay of it starts.
    pub(super) fn start(&self) -> (Lsn, TimelineId) {
        (self.plan.start, self.plan.timeline)
    }
}

impl BaseBackups {
    /// What the backup of this label said when it had begun, if it is known.
    pub(super) fn begun(&self, label: &str) -> Option<Begun> {
        self.lock().get(label).map(|backup| backup.begun)
    }

    /// Takes a backup in that has begun.
    ///
    /// # Errors
    /// `SA205` if too many are running.
    pub(super) fn add(&self, label: &str, begun: Begun, sending: Sending) -> Result<()> {
        let mut known = self.lock();
        if known.len() >= REMEMBERED_MAX {
            known.retain(|_, backup| !matches!(backup.stage, Stage::Sent(_)));
        }
        if known.len() >= REMEMBERED_MAX {
            let message = format!("{} backups are running on this node already", known.len());
            return Err(Refusal::new(Code::Busy, message).into());
        }
        known.insert(label.to_owned(), BaseBackup { begun, stage: Stage::Ready(Box::new(sending)) });
        Ok(())
    }

    /// The files of a backup. A server sends them once.
    ///
    /// # Errors
    /// `SA204` if there is no such backup, or its files were taken; `SA407` for tablespaces that lie in the data folder.
    pub(super) fn take(self: &Arc<Self>, label: &str) -> Result<BaseCopy> {
        let mut known = self.lock();
        let Some(backup) = known.get_mut(label) else {
            return Err(gone(label, "no such backup is running here: agent or database restarted"));
        };
        match mem::replace(&mut backup.stage, Stage::Taken) {
            Stage::Ready(sending) => BaseCopy::new(self.clone(), label, *sending),
            Stage::Taken => Err(gone(label, "the server sends its files once, and that was cut short")),
            Stage::Sent(sent) => {
                backup.stage = Stage::Sent(sent);
                Err(gone(label, "the server has sent its files already"))
            }
        }
    }

    /// What a backup says at its end, and what it had said at its begin.
    ///
    /// # Errors
    /// `SA204` if not all of it has come.
    pub(super) fn sent(&self, label: &str) -> Result<(Begun, Sent)> {
        match self.lock().get(label) {
            Some(BaseBackup { begun, stage: Stage::Sent(sent) }) => Ok((*begun, sent.clone())),
            Some(_) => Err(gone(label, "its files have not all been sent")),
            None => Err(gone(label, "no such backup is running here: agent or database restarted")),
        }
    }

    /// Forgets a backup; one that nobody reads yet is over with its connection.
    pub(super) fn abandon(&self, label: &str) {
        self.lock().remove(label);
    }

    fn end(&self, label: &str, sent: Sent) -> Result<()> {
        match self.lock().get_mut(label) {
            Some(backup) => {
                backup.stage = Stage::Sent(sent);
                Ok(())
            }
            None => Err(gone(label, "it was abandoned")),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, BaseBackup>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The files of one backup, as the server sends them.
pub(super) struct BaseCopy {
    registry: Arc<BaseBackups>,
    label: String,
    link: Replication,
    timeline: TimelineId,
    total: ByteCount,
    taking: Taking,
    is_over: bool,
}

impl BaseCopy {
    fn new(registry: Arc<BaseBackups>, label: &str, sending: Sending) -> Result<Self> {
        let Sending { link, plan, data, checksums } = sending;
        let (timeline, total) = (plan.timeline, plan.total);
        let taking = Taking::new(plan, &data, checksums)?;
        Ok(Self { registry, label: label.to_owned(), link, timeline, total, taking, is_over: false })
    }

    /// Takes the end of all in: what has come is proven to be all.
    async fn finish(&mut self, stop: Lsn, timeline: TimelineId) -> Result<()> {
        if timeline != self.timeline {
            return Err(gone(&self.label, &format!("it began on timeline {}, and ended on {timeline}", self.timeline)));
        }
        let label = self.taking.finish()?;
        // Histories are no WAL: without its own, no point on a later timeline can be recovered to.
        if timeline != FIRST_TIMELINE
            && let Some(history) = self.link.history(timeline).await?
        {
            let length = ByteCount::new(u64::try_from(history.len()).unwrap_or(u64::MAX));
            let (name, kind) = (format!("pg_wal/{:08X}.history", timeline.get()), SourceKind::File { length });
            self.taking.ready.push_back(FilePart::Entry(SourceFile { name, kind, mode: HISTORY_MODE }));
            self.taking.ready.push_back(FilePart::Bytes(history.to_vec()));
        }
        self.registry.end(&self.label, Sent { stop, label })?;
        self.is_over = true;
        Ok(())
    }
}

#[async_trait]
impl FileStream for BaseCopy {
    fn total(&self) -> ByteCount {
        self.total
    }

    async fn next(&mut self) -> Result<Option<FilePart>> {
        loop {
            if let Some(part) = self.taking.ready.pop_front() {
                return Ok(Some(part));
            }
            if self.is_over {
                return Ok(None);
            }
            let came = match self.link.next_copied().await {
                Err(error) if error.is(FaultKind::Unreachable) => return Err(gone(&self.label, &error.to_string())),
                came => came?,
            };
            match came {
                Copied::Archive(tablespace) => self.taking.open(tablespace)?,
                Copied::Bytes(bytes) => self.taking.take(&bytes)?,
                Copied::Other => {}
                Copied::Over(stop, timeline) => self.finish(stop, timeline).await?,
            }
        }
    }
}

fn gone(label: &str, seen: &str) -> Error {
    Refusal::new(Code::LifeChanged, format!("backup {label} is over: {seen}")).into()
}
