//! Which WAL takes a backup to a cut, over all incarnations between them, and what of it is missing.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Choice;
use crate::format::catalog::{Cut, ThreadCut};
use crate::format::manifest::{Manifest, ThreadPlan, WalSpan};
use crate::format::wal::WalHeader;
use crate::hole::{Holes, hole_at};
use crate::identity::{Incarnation, ThreadId, TimelineId};
use crate::lineage::{Stretch, Way};
use crate::planted::{self, Bug};
use crate::position::Lsn;
use crate::refusal::{Code, Refusal};
use crate::scn::Scn;

/// Every piece of archived WAL: key and header, sorted by timeline and first byte, of each thread of an incarnation.
pub type Archive = BTreeMap<(Incarnation, ThreadId), Vec<(String, WalHeader)>>;

/// The archive of one thread, as far as it is contiguous.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// The pieces in order: key and header.
    pub pieces: Vec<(String, WalHeader)>,
    /// Where a later piece starts that does not follow: what lies before it is missing.
    pub resumes: Option<Lsn>,
}

/// What is replayed, and where it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// The cut. Of one that is sought, `until` is the end of the WAL that suffices to find it.
    pub cut: Cut,
    /// The WAL of each thread.
    pub threads: BTreeMap<ThreadId, ThreadPlan>,
}

/// Whether the records of whoever wrote this archive carry SCNs.
pub fn is_stamped(archive: &Archive) -> bool {
    archive.values().flatten().any(|(_, header)| header.scn_last.is_some())
}

/// The WAL that takes the backup of `manifest` to `choice`, or what is missing of it.
///
/// # Errors
/// `SA303` if some thread's archive does not reach the cut's proof yet, `SA501` if it never will, as behind a declared
/// hole; `SA002` if manifest, way and cut do not fit.
pub fn replay(
    manifest: &Manifest,
    way: &Way,
    choice: &Choice,
    archive: &Archive,
    holes: &Holes,
) -> Result<Replay, Refusal> {
    let stretches = way.between(manifest.incarnation, choice.incarnation);
    let mut replay = Replay { cut: choice.cut.clone(), threads: BTreeMap::new() };
    for (thread, first) in &manifest.threads {
        let mut reader = ThreadReader { thread: *thread, choice, archive, holes, at: first.start };
        let mut spans = Vec::new();
        for stretch in &stretches {
            if stretch.incarnation == choice.incarnation {
                let (span, cut) = reader.last(stretch.incarnation, first.timeline)?;
                replay.cut.threads.insert(*thread, cut);
                spans.push(span);
            } else {
                spans.push(reader.through(stretch)?);
            }
        }
        if spans.is_empty() {
            let message =
                format!("{} is not on the way from {} to {}", choice.backup, manifest.incarnation, choice.incarnation);
            return Err(Refusal::new(Code::Damaged, message));
        }
        replay.threads.insert(*thread, ThreadPlan { spans });
    }
    Ok(replay)
}

/// Follows one thread from incarnation to incarnation.
struct ThreadReader<'a> {
    thread: ThreadId,
    choice: &'a Choice,
    archive: &'a Archive,
    holes: &'a Holes,
    /// Where the next span starts.
    at: Lsn,
}

impl ThreadReader<'_> {
    /// The span of an ancestor, up to where its successor branched off.
    fn through(&mut self, stretch: &Stretch) -> Result<WalSpan, Refusal> {
        let place = stretch.leaves.as_ref().and_then(|leaves| Some((leaves.scn, leaves.threads.get(&self.thread)?)));
        let Some((scn, cut)) = place else {
            let message = format!("the branch off incarnation {} has no thread {}", stretch.incarnation, self.thread);
            return Err(Refusal::new(Code::Damaged, message));
        };
        self.span(stretch.incarnation, cut.timeline, cut.until, scn)
    }

    /// The span that holds the cut, and the cut's place in it.
    fn last(&mut self, incarnation: Incarnation, first: TimelineId) -> Result<(WalSpan, ThreadCut), Refusal> {
        let cut = match self.choice.cut.threads.get(&self.thread) {
            Some(cut) => *cut,
            None if self.choice.sought => self.seek(incarnation, first)?,
            None => {
                let message = format!("the cut {} does not cover thread {}", self.choice.cut.record, self.thread);
                return Err(Refusal::new(Code::Damaged, message));
            }
        };
        Ok((self.span(incarnation, cut.timeline, cut.proof, self.choice.cut.scn)?, cut))
    }

    /// The first piece that shows a record above the SCN proves that nothing at or below it can follow.
    fn seek(&self, incarnation: Incarnation, first: TimelineId) -> Result<ThreadCut, Refusal> {
        let scn = self.choice.cut.scn;
        let timeline = self.headers(incarnation).last().map_or(first, |(_, header)| header.timeline);
        let reach = self.reach(incarnation, timeline);
        if let Some((_, header)) =
            reach.pieces.iter().find(|(_, header)| header.scn_last.is_some_and(|last| last > scn))
        {
            return Ok(ThreadCut { proof: header.until, timeline, until: header.until });
        }
        let last = reach.pieces.last().and_then(|(_, header)| header.scn_last).unwrap_or(Scn::ZERO);
        let message = format!(
            "{}: the archive of thread {} is whole from {} and ends at SCN {last}, the cut needs it beyond {scn}",
            self.choice.resolved, self.thread, self.at
        );
        let reached = reach.until().unwrap_or(self.at);
        Err(self.short(message, incarnation, timeline, reached, reach.resumes))
    }

    fn span(
        &mut self,
        incarnation: Incarnation,
        timeline: TimelineId,
        until: Lsn,
        scn: Scn,
    ) -> Result<WalSpan, Refusal> {
        let from = self.at;
        let reach = self.reach(incarnation, timeline);
        let reached = reach.until().unwrap_or(from);
        if (reached < until || until < from) && !planted::is(Bug::ReachUnchecked) {
            let message = format!(
                "{}: the archive of thread {} in incarnation {incarnation} is whole from {from} to {reached}, the cut \
                 needs it to {until}",
                self.choice.resolved, self.thread
            );
            let left = self.headers(incarnation).iter().find(|(_, header)| header.timeline > timeline);
            if let Some((_, later)) = left.filter(|_| reach.resumes.is_none()) {
                let message = format!("{message}, and its node has left timeline {timeline} for {}", later.timeline);
                return Err(Refusal::new(Code::WalGap, message));
            }
            return Err(self.short(message, incarnation, timeline, reached, reach.resumes));
        }
        self.at = until;
        let pieces = reach.pieces.into_iter().filter(|(_, header)| header.from < until).map(|(key, _)| key).collect();
        Ok(WalSpan { from, incarnation, pieces, scn, timeline, until })
    }

    fn headers(&self, incarnation: Incarnation) -> &[(String, WalHeader)] {
        self.archive.get(&(incarnation, self.thread)).map(Vec::as_slice).unwrap_or_default()
    }

    fn reach(&self, incarnation: Incarnation, timeline: TimelineId) -> Reach {
        let headers = self.headers(incarnation).iter().filter(|(_, header)| header.timeline == timeline);
        Reach::from(self.at, headers.cloned().collect())
    }

    /// The refusal of a target that the archive, which ends at `reached`, does not lead to. Behind a declared hole it never
    /// will, whether or not it goes on already.
    fn short(
        &self,
        message: String,
        incarnation: Incarnation,
        timeline: TimelineId,
        reached: Lsn,
        resumes: Option<Lsn>,
    ) -> Refusal {
        let holes = self.holes.get(&(incarnation, self.thread)).map(Vec::as_slice).unwrap_or_default();
        match (hole_at(holes, timeline, reached), resumes) {
            (Some(hole), _) => Refusal::new(Code::WalGap, format!("{message}; {hole}")),
            (None, Some(later)) => Refusal::new(Code::WalGap, format!("{message}, and it goes on at {later} only")),
            (None, None) => Refusal::new(Code::NotReachable, message),
        }
    }
}

impl Reach {
    /// The longest contiguous run of pieces from the one that holds `start`. `pieces` are sorted by their first byte.
    pub fn from(start: Lsn, pieces: Vec<(String, WalHeader)>) -> Self {
        let mut run: Vec<(String, WalHeader)> = Vec::new();
        let mut resumes = None;
        for (key, header) in pieces {
            let next = run.last().map(|(_, last)| last.until);
            match next {
                None if header.until <= start => {}
                None if header.from <= start => run.push((key, header)),
                Some(next) if header.from == next => run.push((key, header)),
                Some(next) if header.until <= next => {}
                None | Some(_) => {
                    resumes = Some(header.from);
                    break;
                }
            }
        }
        Self { pieces: run, resumes }
    }

    /// The end of the run.
    pub fn until(&self) -> Option<Lsn> {
        self.pieces.last().map(|(_, header)| header.until)
    }
}
