//! What an incremental capture goes on from: an earlier backup's lists, and what archived WAL tells of the time since.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use async_trait::async_trait;
use sheetanchor_core::changes::ChangeMap;
use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::format::catalog::Ending;
use sheetanchor_core::format::files::{Chunk, FileContent};
use sheetanchor_core::format::keys;
use sheetanchor_core::identity::{Incarnation, OperationId};
use sheetanchor_core::incremental::{Range, Take, ranges, take};
use sheetanchor_core::position::Position;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::time::Moment;
use tokio::sync::Mutex;

use super::Agent;
use super::archive::read_piece;
use super::stage::entries;
use crate::database::{WalPiece, WalSource};

/// How long WAL up to the backup's start may take to come into the archive. It is on its way: each node ships what it has.
const WAL_PATIENCE: Duration = Duration::from_secs(30);

/// How often to look whether it has come.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// What a capture goes on from.
pub(super) struct Base {
    /// The earlier backup.
    pub(super) backup: OperationId,
    changes: ChangeMap,
    files: BTreeMap<String, BaseFile>,
}

struct BaseFile {
    packs: Arc<[String]>,
    /// By where they start in the file.
    chunks: BTreeMap<u64, Chunk>,
}

/// A chunk of the base, and the packs that it counts in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inherited {
    pub(super) chunk: Chunk,
    pub(super) packs: Arc<[String]>,
}

impl Base {
    /// How the piece of `want` bytes at `offset` of the file `name` comes into the backup.
    pub(super) fn take(&self, name: &str, offset: u64, want: u64) -> Take<Inherited> {
        let Some((file, chunk)) = self.files.get(name).and_then(|file| Some((file, file.chunks.get(&offset)?))) else {
            return Take::Whole;
        };
        take(chunk, &self.changes, name, offset, want)
            .with(|| Inherited { chunk: chunk.clone(), packs: file.packs.clone() })
    }
}

impl Agent {
    /// What a capture that starts at `starts` can go on from, or why it cannot, in words.
    ///
    /// # Errors
    /// Faults only: what does not fit is no reason to fail.
    pub(super) async fn base(
        &self,
        backup: OperationId,
        starts: &[Position],
    ) -> Result<core::result::Result<Base, String>> {
        match self.find_base(backup, starts).await {
            Err(Error::Refusal(refusal)) => Ok(Err(refusal.to_string())),
            outcome => outcome,
        }
    }

    async fn find_base(&self, backup: OperationId, starts: &[Position]) -> Result<core::result::Result<Base, String>> {
        let Some(Ending::Sealed(seal)) = self.repository.outcome(backup).await?.map(|outcome| outcome.result) else {
            return Ok(Err(format!("{backup} is not sealed")));
        };
        let manifest = self.repository.manifest(backup, &seal).await?;
        let Some(unit) = manifest.units.get(&self.config.node) else {
            return Ok(Err(format!("{backup} has no files of node {}", self.config.node)));
        };
        let ranges = match ranges(&manifest, starts, self.config.node) {
            Ok(ranges) => ranges,
            Err(why) => return Ok(Err(why)),
        };
        let mut changes: Option<ChangeMap> = None;
        for range in ranges {
            let wal = ArchivedRange::new(self, manifest.incarnation, range);
            let Some(of_thread) = self.database.changes(range.since, range.until, &wal).await? else {
                return Ok(Err(format!("{} cannot tell what has changed since {backup}", manifest.engine)));
            };
            changes = Some(match changes {
                Some(others) => others.and(of_thread),
                None => of_thread,
            });
        }
        let mut files = BTreeMap::new();
        for staged in entries(&self.repository, unit).await? {
            let FileContent::File(chunks) = staged.entry.content else { continue };
            let mut offset = 0;
            let placed = chunks.into_iter().map(|chunk| {
                let start = offset;
                offset += chunk.length.get();
                (start, chunk)
            });
            files.insert(staged.entry.name, BaseFile { chunks: placed.collect(), packs: staged.packs });
        }
        Ok(Ok(Base { backup, changes: changes.unwrap_or_default(), files }))
    }
}

/// WAL of one thread, as it comes into the archive.
struct ArchivedRange<'a> {
    agent: &'a Agent,
    incarnation: Incarnation,
    range: Range,
    deadline: Moment,
    /// Keys of the thread's pieces, as they were last listed.
    keys: Mutex<Vec<String>>,
}

impl<'a> ArchivedRange<'a> {
    fn new(agent: &'a Agent, incarnation: Incarnation, range: Range) -> Self {
        let deadline = agent.env.clock.now().after(WAL_PATIENCE);
        Self { agent, incarnation, range, deadline, keys: Mutex::default() }
    }

    /// The key of the last known piece that starts at or before `from`, if any does.
    async fn key_for(&self, from: Position) -> Option<String> {
        let starts = |key: &&String| keys::parse_wal(key).is_some_and(|start| start <= (from.timeline, from.lsn));
        let keys = self.keys.lock().await;
        let last = keys.iter().take_while(starts).last()?;
        keys::parse_wal(last).is_some_and(|(timeline, _)| timeline == from.timeline).then(|| last.clone())
    }
}

#[async_trait]
impl WalSource for ArchivedRange<'_> {
    async fn piece(&self, from: Position) -> Result<Option<WalPiece>> {
        if from.thread != self.range.until.thread || from.lsn >= self.range.until.lsn {
            return Ok(None);
        }
        let repository = &self.agent.repository;
        loop {
            if let Some(key) = self.key_for(from).await {
                let (header, bytes) = read_piece(&key, &repository.get(&key).await?)?;
                if header.thread != from.thread {
                    return Err(Refusal::new(Code::WalDamaged, format!("{key} is of thread {}", header.thread)).into());
                }
                if header.until > from.lsn {
                    return Ok(Some(WalPiece::cut_to(from, &header, bytes.into())));
                }
            }
            let mut listed = repository.bucket().list(&keys::wal_thread(self.incarnation, from.thread)).await?;
            listed.retain(|key| !keys::is_hole(key));
            let news = {
                let mut keys = self.keys.lock().await;
                let news = *keys != listed;
                *keys = listed;
                news
            };
            if news {
                continue;
            }
            if self.agent.env.clock.now() >= self.deadline {
                let seconds = WAL_PATIENCE.as_secs();
                let message = format!("the archive has not passed {from} within {seconds} s");
                return Err(Refusal::new(Code::ArchiveBehind, message).into());
            }
            self.agent.ship.notify_one();
            self.agent.env.clock.sleep(LOOK_AGAIN_AFTER).await;
        }
    }
}
