//! All that a node decides under one lock: stamping and WAL insertion must share it, and everything else is small.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use sheetanchor_core::error::Fault;
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::{Scn, ScnClock};
use sheetanchor_core::time::{Moment, WallMillis};

use crate::backups::Backups;
use crate::barrier::Marks;
use crate::directory::Directory;
use crate::failure::Failure;
use crate::fence::Fence;
use crate::layout::PageNo;
use crate::log::Log;
use crate::pages::Pages;
use crate::prepared::Held;
use crate::record::{Body, Change};
use crate::transaction::{Status, Xid};

/// Both clocks, read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    pub(crate) moment: Moment,
    pub(crate) wall: WallMillis,
}

/// What a node knows. Never held across an await.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) clock: Stamps,
    pub(crate) log: Log,
    pub(crate) pages: Pages,
    pub(crate) directory: Directory,
    pub(crate) transactions: Transactions,
    pub(crate) fence: Fence,
    pub(crate) marks: Marks,
    pub(crate) backups: Backups,
    pub(crate) pins: BTreeMap<String, Lsn>,
    /// Prepared transactions, by gid. They are active, too.
    pub(crate) prepared: BTreeMap<String, Held>,
    /// Where the log tells of all that the last recovery to a cut left in doubt, once it does.
    pub(crate) settled: Option<Lsn>,
    /// Why this life of the node is over, if it is.
    pub(crate) failed: Option<Fault>,
}

impl State {
    /// # Errors
    /// Once the node has failed: it has to be restarted.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        match &self.failed {
            None => Ok(()),
            Some(fault) => Err(Failure::retry(format!("the node has stopped: {fault}"))),
        }
    }

    /// Adds a record. Its stamp lies above all that this node has seen.
    ///
    /// # Errors
    /// `SA109`, `SA110`: the clock cannot stamp now. `SA112`: the node has failed.
    pub(crate) fn append(&mut self, now: Now, body: Body) -> Result<(Scn, Lsn), Refusal> {
        if let Some(fault) = &self.failed {
            return Err(Refusal::new(Code::DatabaseDown, format!("the node has stopped: {fault}")));
        }
        let scn = self.clock.stamp(now)?;
        Ok((scn, self.log.append(scn, body)))
    }

    /// Changes bytes of a page that is usable: in memory, and in the log. `make` says which, given the change's stamp.
    ///
    /// # Errors
    /// As for [`State::append`], and if the page is not in use now; then nothing has changed.
    pub(crate) fn change(
        &mut self,
        page: PageNo,
        now: Now,
        make: impl FnOnce(Scn) -> (usize, Vec<u8>),
    ) -> Result<(Scn, Lsn), Failure> {
        self.change_as(page, now, make, |page, previous, change| Body::Changed { page, previous, change })
    }

    /// The same, logged as the record that `tell` makes of page, version before, and change.
    pub(crate) fn change_as(
        &mut self,
        page: PageNo,
        now: Now,
        make: impl FnOnce(Scn) -> (usize, Vec<u8>),
        tell: impl FnOnce(PageNo, Scn, Change) -> Body,
    ) -> Result<(Scn, Lsn), Failure> {
        self.check()?;
        let redo = self.pages.redo();
        let Some(cached) = self.pages.usable_mut(page) else {
            return Err(Failure::retry(format!("{page} is on its way to another node")));
        };
        let scn = self.clock.stamp(now)?;
        let previous = cached.page.version;
        assert!(scn > previous, "{page}: stamp {scn} lies above its version {previous}");
        let (offset, bytes) = make(scn);
        let patched = cached.page.patch(scn, offset, &bytes);
        assert!(patched.is_some(), "{page}: a change of {} bytes at {offset} lies in the page", bytes.len());
        let start = self.log.end();
        let whole = cached.imaged.is_none_or(|imaged| imaged < redo && !planted::is(Bug::OldImageCounts));
        let change = if whole {
            cached.imaged = Some(start);
            Change::Whole(cached.page.image())
        } else {
            Change::Patch { offset: u16::try_from(offset).unwrap_or(u16::MAX), bytes }
        };
        let until = self.log.append(scn, tell(page, previous, change));
        cached.dirty = true;
        cached.last = until;
        if let Some(tenure) = self.pages.tenure_mut(page) {
            tenure.changed = true;
        }
        Ok((scn, until))
    }

    /// Records that the log is durable up to `until`: commits up to there become visible.
    pub(crate) fn made_durable(&mut self, until: Lsn) {
        self.log.made_durable(until);
        let ended = self.transactions.made_durable(until);
        // The other half of what `drain` promised: whoever cuts relies on it.
        assert!(ended == 0 || !self.fence.is_drained(), "{ended} commits were under way on a node that had drained");
    }
}

/// The SCN clock, and the check of the wall clock that feeds it.
#[derive(Debug)]
pub(crate) struct Stamps {
    clock: ScnClock,
    offset_ms: u64,
    drift_max: Duration,
    reserve: Duration,
    /// When the wall clock was last seen to agree with the monotonic one.
    anchor: Now,
}

impl Stamps {
    pub(crate) fn new(floor: Scn, offset_ms: u64, drift_max: Duration, reserve: Duration, now: Now) -> Self {
        Self { clock: ScnClock::above(floor, offset_ms, drift_max), offset_ms, drift_max, reserve, anchor: now }
    }

    /// The highest SCN issued or seen.
    pub(crate) fn last(&self) -> Scn {
        self.clock.last()
    }

    pub(crate) fn observe(&mut self, scn: Scn, now: Now) -> Result<Scn, Refusal> {
        self.clock.observe(scn, now.wall)?;
        Ok(self.clock.last())
    }

    /// The next stamp.
    ///
    /// # Errors
    /// `SA110` above the durable ceiling; `SA109` while the wall clock is astray.
    pub(crate) fn stamp(&mut self, now: Now) -> Result<Scn, Refusal> {
        self.check_wall(now)?;
        self.clock.stamp(now.wall)
    }

    /// Whether a few stamps can be issued now.
    pub(crate) fn is_ready(&self, now: Now) -> Result<(), Refusal> {
        self.check_wall(now)?;
        let mut trial = self.clock.clone();
        (0..4).try_for_each(|_| trial.stamp(now.wall).map(drop))
    }

    /// The ceiling to make durable now, if less than half of the reserve is left.
    pub(crate) fn ceiling_wanted(&self, now: Now) -> Option<Scn> {
        let base = self.base(now);
        let ahead = |wait: Duration| base.saturating_add(millis(wait)).min((1 << 48) - 1);
        let short = self.clock.ceiling().millis() < ahead(self.reserve / 2);
        short.then(|| Scn::at(WallMillis::new(ahead(self.reserve))))
    }

    pub(crate) fn reserved(&mut self, ceiling: Scn) {
        self.clock.reserved(ceiling);
    }

    /// How far the clock is ahead of wall time.
    pub(crate) fn ahead(&self, now: Now) -> Duration {
        Duration::from_millis(self.clock.last().millis().saturating_sub(now.wall.get().saturating_add(self.offset_ms)))
    }

    /// Takes slow drift in: NTP slews a clock, and that is no jump.
    pub(crate) fn settle(&mut self, now: Now) {
        if self.check_wall(now).is_ok() {
            self.anchor = now;
        }
    }

    fn base(&self, now: Now) -> u64 {
        now.wall.get().saturating_add(self.offset_ms).max(self.clock.last().millis())
    }

    fn check_wall(&self, now: Now) -> Result<(), Refusal> {
        let expected = self.anchor.wall.get().saturating_add(millis(now.moment.since(self.anchor.moment)));
        let astray = now.wall.get().abs_diff(expected);
        if astray <= millis(self.drift_max) {
            return Ok(());
        }
        let message = format!("the wall clock is {astray} ms away from where the monotonic clock says it should be");
        Err(Refusal::new(Code::ClockDrift, message))
    }
}

/// A duration in milliseconds.
pub(crate) fn millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
}

/// The transactions that run on this node, and what is known of others.
#[derive(Debug, Default)]
pub(crate) struct Transactions {
    next: u64,
    /// Started, and neither durably committed nor aborted.
    active: BTreeSet<Xid>,
    /// Those of them whose commit record waits to become durable, by its end.
    committing: BTreeMap<Lsn, Xid>,
    /// What became of other nodes' transactions; a finished one never changes.
    finished: BTreeMap<Xid, Status>,
    finished_order: VecDeque<Xid>,
}

impl Transactions {
    const FINISHED_MAX: usize = 65_536;

    /// Transactions numbered from `next` on.
    pub(crate) fn new(next: u64) -> Self {
        Self { next, ..Self::default() }
    }

    /// The counter of the transaction that starts next.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    pub(crate) fn started(&mut self, xid: Xid) {
        assert_eq!(xid.counter(), self.next, "transactions start in order");
        self.next += 1;
        self.active.insert(xid);
    }

    /// Takes up transactions that an earlier life had prepared.
    pub(crate) fn resumed(&mut self, prepared: impl Iterator<Item = Xid>) {
        self.active.extend(prepared);
    }

    pub(crate) fn is_active(&self, xid: Xid) -> bool {
        let ends_soon = || self.committing.values().any(|committing| *committing == xid);
        self.active.contains(&xid) && !(planted::is(Bug::SeenBeforeDurable) && ends_soon())
    }

    /// Aborts a transaction whose commit record was not written. Its changes are those of nobody from now on.
    pub(crate) fn aborted(&mut self, xid: Xid) {
        self.active.remove(&xid);
    }

    /// Notes that the record with which `xid` ends, ends at `until`.
    pub(crate) fn committing(&mut self, xid: Xid, until: Lsn) {
        assert!(self.active.contains(&xid), "{xid} is active until its commit is durable");
        self.committing.insert(until, xid);
    }

    /// Whether no commit waits to become durable.
    pub(crate) fn is_drained(&self) -> bool {
        self.committing.is_empty()
    }

    /// How many transactions have ended by it.
    fn made_durable(&mut self, until: Lsn) -> usize {
        let before = self.committing.len();
        while let Some(entry) = self.committing.first_entry().filter(|entry| *entry.key() <= until) {
            let xid = entry.remove();
            self.active.remove(&xid);
        }
        before - self.committing.len()
    }

    pub(crate) fn finished(&self, xid: Xid) -> Option<Status> {
        self.finished.get(&xid).copied()
    }

    /// Remembers what became of another node's transaction.
    pub(crate) fn learned(&mut self, xid: Xid, status: Status) {
        if status == Status::InProgress || self.finished.insert(xid, status).is_some() {
            return;
        }
        self.finished_order.push_back(xid);
        if self.finished_order.len() > Self::FINISHED_MAX
            && let Some(oldest) = self.finished_order.pop_front()
        {
            self.finished.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheetanchor_core::identity::NodeId;

    fn now(millis: u64, wall: u64) -> Now {
        Now { moment: Moment::from_nanos(millis * 1_000_000), wall: WallMillis::new(wall) }
    }

    fn stamps() -> Stamps {
        let (drift, reserve) = (Duration::from_secs(5), Duration::from_secs(2));
        Stamps::new(Scn::ZERO, 0, drift, reserve, now(0, 1_000))
    }

    #[test]
    fn nothing_is_stamped_before_a_ceiling_is_durable_and_half_the_reserve_renews_it() {
        let mut stamps = stamps();
        assert_eq!(stamps.is_ready(now(0, 1_000)).unwrap_err().code, Code::ClockUnreserved);
        let ceiling = stamps.ceiling_wanted(now(0, 1_000)).unwrap();
        assert_eq!(ceiling.millis(), 3_000);
        stamps.reserved(ceiling);
        assert_eq!(stamps.ceiling_wanted(now(0, 1_999)), None);
        assert!(stamps.ceiling_wanted(now(0, 2_001)).is_some());
        assert!(stamps.stamp(now(0, 1_000)).is_ok());
    }

    #[test]
    fn a_wall_clock_that_jumps_stops_stamping_and_one_that_drifts_does_not() {
        let mut stamps = stamps();
        stamps.reserved(Scn::new(u64::MAX));
        assert_eq!(stamps.stamp(now(10, 6_011)).unwrap_err().code, Code::ClockDrift);
        for step in 1..20 {
            let now = now(step * 1_000, 1_000 + step * 2_000);
            stamps.settle(now);
            assert!(stamps.stamp(now).is_ok(), "step {step}");
        }
    }

    #[test]
    fn a_commit_is_over_only_once_it_is_durable() {
        let mut transactions = Transactions::new(5);
        let xid = Xid::new(NodeId::new(1), 5);
        transactions.started(xid);
        transactions.committing(xid, Lsn::new(100));
        transactions.made_durable(Lsn::new(99));
        assert!(transactions.is_active(xid) && !transactions.is_drained());
        transactions.made_durable(Lsn::new(100));
        assert!(!transactions.is_active(xid) && transactions.is_drained());
    }

    #[test]
    fn what_is_remembered_of_others_is_bounded() {
        let mut transactions = Transactions::default();
        for counter in 0..=Transactions::FINISHED_MAX as u64 {
            transactions.learned(Xid::new(NodeId::new(2), counter), Status::Aborted);
        }
        assert_eq!(transactions.finished.len(), Transactions::FINISHED_MAX);
        assert_eq!(transactions.finished(Xid::new(NodeId::new(2), 0)), None);
        transactions.learned(Xid::new(NodeId::new(3), 0), Status::InProgress);
        assert_eq!(transactions.finished(Xid::new(NodeId::new(3), 0)), None);
    }
}
