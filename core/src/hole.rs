//! WAL that a node lets go of before the archive has it: when it has to, what it declares before it does, and what nobody
//! may pass afterwards. A node declares a hole durably first; then it lets go; the archive goes on behind the hole only
//! once the repository shows it.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::format::catalog::Seal;
use crate::format::hole::{Hole, HoleReason};
use crate::identity::{Incarnation, Nonce, ThreadId, TimelineId};
use crate::position::{Lsn, Position};
use crate::refusal::{Code, Refusal};
use crate::request::WalKept;
use crate::time::WallMillis;

/// Declared holes of each thread of an incarnation, sorted by timeline and first byte.
pub type Holes = BTreeMap<(Incarnation, ThreadId), Vec<Hole>>;

/// How many holes may wait for the repository. One that grows is one; another begins with each timeline.
const WAITING_MAX: usize = 64;

/// How full a bound is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// There is room.
    #[default]
    Low,
    /// Three quarters of it are used.
    High,
    /// More waits than may.
    Over,
}

impl WalKept {
    /// How full the bound is.
    pub fn level(self) -> Level {
        let (bytes, max) = (self.bytes.get(), self.max.get());
        if bytes > max {
            Level::Over
        } else if bytes >= max.saturating_sub(max / 4) {
            Level::High
        } else {
            Level::Low
        }
    }
}

/// What waits for the archive on a node, as it was last seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Gauge {
    kept: Option<WalKept>,
}

impl Gauge {
    /// Takes a look in. Answers the level if it is higher than it was: each rise is told once.
    pub fn look(&mut self, kept: WalKept) -> Option<Level> {
        let before = self.kept.replace(kept).map(WalKept::level).unwrap_or_default();
        Some(kept.level()).filter(|now| *now > before)
    }

    /// What was seen last; nothing where nothing is bounded.
    pub fn kept(self) -> Option<WalKept> {
        self.kept
    }
}

/// A hole that is about to be declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declaration {
    /// The incarnation that the node lives in.
    pub incarnation: Incarnation,
    /// Where the archive ends, or any place before that which nothing behind was archived from.
    pub from: Position,
    /// Where it is to go on.
    pub until: Position,
    /// Why.
    pub reason: HoleReason,
    /// Why, in words.
    pub message: String,
    /// When.
    pub at: WallMillis,
    /// Whose declaration it is.
    pub nonce: Nonce,
}

/// The holes of a node that the repository does not show yet, after one more declaration: nothing is archived behind a
/// hole that waits, so it grows instead of being followed by another. `None` if nothing is missing.
///
/// # Errors
/// `SA503` if too many wait: then nothing may be let go of.
pub fn declared(waiting: &[Hole], new: Declaration) -> Result<Option<Vec<Hole>>, Refusal> {
    let Declaration { incarnation, from, until, reason, message, at, nonce } = new;
    if until.lsn <= from.lsn {
        return Ok(None);
    }
    let mut waiting = waiting.to_vec();
    let is_same =
        |hole: &Hole| (hole.incarnation, hole.thread, hole.timeline) == (incarnation, until.thread, until.timeline);
    let is_full = waiting.len() >= WAITING_MAX;
    match waiting.last_mut().filter(|hole| is_same(hole)) {
        Some(hole) => {
            hole.from = hole.from.min(from.lsn);
            hole.until = hole.until.max(until.lsn);
            (hole.reason, hole.message) = (reason, message);
        }
        None if is_full => {
            let message = format!("{WAITING_MAX} declared holes wait for the repository already");
            return Err(Refusal::new(Code::ArchiveBehind, message));
        }
        None => waiting.push(Hole {
            declared_ms: at,
            from: from.lsn,
            incarnation,
            message,
            nonce,
            reason,
            thread: until.thread,
            timeline: until.timeline,
            until: until.lsn,
        }),
    }
    Ok(Some(waiting))
}

/// What of a hole the repository still has to be shown, given where the archive ends on that timeline: a piece may have
/// landed after the hole was declared.
pub fn to_record(hole: Hole, archived: Option<Lsn>) -> Option<Hole> {
    let from = archived.map_or(hole.from, |end| hole.from.max(end));
    (from < hole.until).then_some(Hole { from, ..hole })
}

/// What of a hole is left to be shown if `theirs` stands in its place: an earlier attempt, before it grew.
pub fn remainder(ours: Hole, theirs: &Hole) -> Option<Hole> {
    to_record(ours, Some(theirs.until))
}

/// Where an archive goes on that ends at `end`: behind the holes that it has come to. `holes` are sorted.
pub fn resumes(end: Option<(TimelineId, Lsn)>, holes: &[Hole]) -> Option<(TimelineId, Lsn)> {
    holes.iter().fold(end, |at, hole| match at {
        Some(at) if at.0 > hole.timeline => Some(at),
        Some(at) if at.0 == hole.timeline && !holds(hole, at.1) => Some(at),
        Some(_) | None => Some((hole.timeline, hole.until)),
    })
}

fn holds(hole: &Hole, at: Lsn) -> bool {
    hole.from <= at && at < hole.until
}

/// The declared hole that WAL from `at` on lies in, if it does.
pub fn hole_at(holes: &[Hole], timeline: TimelineId, at: Lsn) -> Option<&Hole> {
    holes.iter().find(|hole| hole.timeline == timeline && holds(hole, at))
}

/// The hole without which the archive would hold all up to `through`, if `through` lies in one or at its end: whoever waits
/// for that waits in vain.
pub fn never_archived(holes: &[Hole], through: Position) -> Option<&Hole> {
    let lacks = |hole: &&Hole| {
        (hole.thread, hole.timeline) == (through.thread, through.timeline)
            && hole.from < through.lsn
            && through.lsn <= hole.until
    };
    holes.iter().find(lacks)
}

/// Whether all WAL from `from` to `until` was declared a hole. `holes` are sorted.
pub fn is_declared(holes: &[Hole], timeline: TimelineId, from: Lsn, until: Lsn) -> bool {
    let own = holes.iter().filter(|hole| hole.timeline == timeline);
    own.fold(from, |at, hole| if holds(hole, at) { hole.until } else { at }) >= until
}

/// The holes behind which no backup was taken yet: nothing after them can be restored to.
pub fn unanswered<'a>(holes: &'a Holes, seals: &[&Seal]) -> Vec<&'a Hole> {
    let lies_behind = |seal: &Seal, hole: &Hole| {
        let cut = seal.cut.threads.get(&hole.thread);
        seal.incarnation == hole.incarnation
            && cut.is_some_and(|cut| (cut.timeline, cut.proof) > (hole.timeline, hole.until))
    };
    holes.values().flatten().filter(|hole| !seals.iter().any(|seal| lies_behind(seal, hole))).collect()
}

#[cfg(test)]
mod tests;
