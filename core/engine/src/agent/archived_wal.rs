//! The WAL of a restore's plan, read back piece by piece, and how much of it was replayed.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use core::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use sheetanchor_core::error::Result;
use sheetanchor_core::format::keys;
use sheetanchor_core::format::manifest::Plan;
use sheetanchor_core::identity::{ByteCount, ThreadId};
use sheetanchor_core::position::Position;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Doing, Progress};
use tokio::sync::watch;

use super::archive::read_piece;
use crate::database::{ThreadRange, WalPiece, WalSource};
use crate::repository::Repository;

/// The plan's WAL.
pub(super) struct ArchivedWal<'a> {
    pub(super) repository: &'a Repository,
    pub(super) plan: &'a Plan,
    /// What a recovery is told to; nothing where WAL is only searched.
    pub(super) replaying: Option<Replaying<'a>>,
}

/// How far a recovery is in each of its threads.
pub(super) struct Replaying<'a> {
    ranges: &'a BTreeMap<ThreadId, ThreadRange>,
    /// Bytes of each thread that were read.
    fetched: BTreeMap<ThreadId, AtomicU64>,
    /// Bytes of each thread that were replayed.
    behind: BTreeMap<ThreadId, AtomicU64>,
    progress: watch::Sender<Progress>,
}

impl<'a> Replaying<'a> {
    /// At the beginning of `ranges`; shown as `progress`.
    pub(super) fn new(ranges: &'a BTreeMap<ThreadId, ThreadRange>, progress: watch::Sender<Progress>) -> Self {
        let total = ranges.values().fold(0_u64, |total, range| total.saturating_add(range.bytes().get()));
        progress.send_modify(|progress| progress.total = ByteCount::new(total));
        let none = || ranges.keys().map(|thread| (*thread, AtomicU64::new(0))).collect();
        Self { ranges, fetched: none(), behind: none(), progress }
    }

    /// WAL was read up to there. Shown until something is replayed: an engine may want all of it before it begins.
    fn read(&self, until: Position) {
        let is_first = self.progress.borrow().doing == Doing::Fetching;
        if is_first {
            self.show(Doing::Fetching, &self.fetched, until);
        }
    }

    fn reached(&self, at: Position) {
        self.show(Doing::Recovering, &self.behind, at);
    }

    fn show(&self, doing: Doing, bytes: &BTreeMap<ThreadId, AtomicU64>, at: Position) {
        let (Some(range), Some(own)) = (self.ranges.get(&at.thread), bytes.get(&at.thread)) else { return };
        own.fetch_max(range.bytes_before(at.timeline, at.lsn).get(), Ordering::SeqCst);
        let all = bytes.values().map(|bytes| bytes.load(Ordering::SeqCst));
        let done = ByteCount::new(all.fold(0, u64::saturating_add));
        self.progress.send_modify(|progress| (progress.doing, progress.done) = (doing, done));
    }
}

#[async_trait]
impl WalSource for ArchivedWal<'_> {
    async fn piece(&self, from: Position) -> Result<Option<WalPiece>> {
        let Position { thread, timeline, lsn } = from;
        let Some(wal) = self.plan.threads.get(&thread) else { return Ok(None) };
        let holds = |key: &&String| keys::parse_wal(key).is_some_and(|(_, start)| start <= lsn);
        let spans = wal.spans.iter().filter(|span| span.timeline == timeline);
        // Pieces are in order: the last that starts at or before `from` holds it, if any does.
        let Some(key) = spans.flat_map(|span| &span.pieces).take_while(holds).last() else { return Ok(None) };
        let (header, bytes) = read_piece(key, &self.repository.get(key).await?)?;
        if header.thread != thread {
            return Err(Refusal::new(Code::WalDamaged, format!("{key} is of thread {}", header.thread)).into());
        }
        if header.until <= lsn {
            return Ok(None);
        }
        if let Some(replaying) = &self.replaying {
            replaying.read(Position { lsn: header.until, ..from });
        }
        Ok(Some(WalPiece::cut_to(from, &header, bytes.into())))
    }

    fn replayed(&self, at: Position) {
        if let Some(replaying) = &self.replaying {
            replaying.reached(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use sheetanchor_core::identity::{OperationId, OperationKind, TimelineId};
    use sheetanchor_core::position::Lsn;
    use sheetanchor_core::scn::Scn;

    use super::super::capture::progress_of;
    use super::*;
    use crate::database::Span;

    fn span(timeline: u32, from: u64, until: u64) -> Span {
        let (timeline, scn) = (TimelineId::new(timeline), Scn::ZERO);
        Span { timeline, from: Lsn::new(from), until: Lsn::new(until), scn }
    }

    #[test]
    fn what_all_threads_have_replayed_counts_once_and_up_to_the_cut_only() {
        // The cut ends before the record that proves it.
        let first = ThreadRange {
            spans: vec![span(1, 100, 200), span(3, 200, 350)],
            until: Lsn::new(300),
            proof: Lsn::new(350),
        };
        let second = ThreadRange { spans: vec![span(3, 1_000, 1_100)], until: Lsn::new(1_100), proof: Lsn::new(1_100) };
        let ranges = BTreeMap::from([(ThreadId::new(1), first), (ThreadId::new(2), second)]);
        let (progress, watched) = progress_of(OperationId::new(OperationKind::Restore, 1, 1), Doing::Fetching);
        let replaying = Replaying::new(&ranges, progress);
        let at = |thread, timeline, lsn| {
            let (thread, timeline) = (ThreadId::new(thread), TimelineId::new(timeline));
            Position { thread, timeline, lsn: Lsn::new(lsn) }
        };
        let told = || (watched.borrow().doing, watched.borrow().done.get());
        replaying.read(at(1, 1, 180));
        replaying.read(at(2, 3, 1_050));
        assert_eq!(told(), (Doing::Fetching, 130));
        let mut steps = Vec::new();
        // On the parent's timeline, on; backwards; on one that is not replayed; the other thread; a third; past the end.
        for (thread, timeline, lsn) in [
            (1, 1, 150),
            (1, 3, 210),
            (1, 1, 120),
            (1, 2, 250),
            (2, 3, 900),
            (2, 3, 1_040),
            (7, 3, 9),
            (1, 3, 350),
            (2, 3, 1_100),
        ] {
            replaying.reached(at(thread, timeline, lsn));
            replaying.read(at(thread, timeline, lsn));
            assert_eq!(told().0, Doing::Recovering);
            steps.push(told().1);
        }
        assert_eq!(steps, [50, 110, 110, 110, 110, 150, 150, 240, 300]);
        assert_eq!(watched.borrow().total.get(), 300);
    }
}
