//! Transactions: what a client's statements do on this node.
//!
//! Read committed, and first updater wins: a row that was read in a transaction can be written in it only while it is
//! what was read. Nobody waits for a row, so there is no deadlock; a conflict is a retryable failure.

use std::collections::BTreeMap;
use std::sync::Arc;

use sheetanchor_core::error::{Error, Fault};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;
use sheetanchor_core::time::Moment;

use crate::failure::Failure;
use crate::layout::PageNo;
use crate::page::Page;
use crate::protocol::{Answer, Ask};
use crate::row::{self, ROWS_PER_PAGE, Row, RowSlot, VALUE_BYTES_MAX, Version};
use crate::running::Running;
use crate::state::State;
use crate::transaction::{SLOTS_PER_PAGE, Slot, Status, Xid};

/// An open transaction. Dropping it aborts it, unless its commit record was written.
#[derive(Debug)]
pub(crate) struct Transaction {
    running: Arc<Running>,
    /// None before its first write.
    xid: Option<Xid>,
    /// The writer of the version that was read, of each row that was.
    seen: BTreeMap<u64, Option<Xid>>,
    /// Whether the record was written that commits or prepares it: then its end is no longer this session's.
    recorded: bool,
}

/// How a commit ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Commit {
    /// Durable at this SCN, and visible.
    Durable(Scn),
    /// Its record was written and is not known to be durable.
    Unknown(Fault),
}

/// Rows that a transaction may have read.
const SEEN_MAX: usize = 4096;

impl Transaction {
    pub(crate) fn begin(running: Arc<Running>) -> Self {
        Self { running, xid: None, seen: BTreeMap::new(), recorded: false }
    }

    /// The life that it runs in.
    pub(crate) fn running(&self) -> &Arc<Running> {
        &self.running
    }

    /// Its id, which it gets now if it has written nothing.
    pub(crate) async fn started(&mut self, until: Moment) -> Result<Xid, Failure> {
        Ok(match self.xid {
            Some(xid) => xid,
            None => *self.xid.insert(self.running.start_transaction(until).await?),
        })
    }

    /// Its record is written: dropping it aborts it no more.
    pub(crate) fn leave(&mut self) {
        self.recorded = true;
    }

    /// The visible value of a row.
    ///
    /// # Errors
    /// Retryable while the row's page, or the status of its writer, cannot be had.
    pub(crate) async fn read(&mut self, key: u64) -> Result<Option<Vec<u8>>, Failure> {
        let version = self.running.visible(key, self.xid, self.running.statement_deadline()).await?;
        let writer = version.as_ref().map(|version| version.writer);
        if writer.is_none() || writer != self.xid {
            if self.seen.len() >= SEEN_MAX {
                return Err(Failure::Final(
                    Refusal::new(Code::NotSupported, "a transaction reads too many rows").into(),
                ));
            }
            let first = *self.seen.entry(key).or_insert(writer);
            if first != writer {
                return Err(Failure::retry(format!("row {key} has changed since it was read")));
            }
        }
        Ok(version.map(|version| version.value))
    }

    /// Writes a row.
    ///
    /// # Errors
    /// Retryable on a conflict. `0A000` for a value that is too long and for a full page.
    pub(crate) async fn write(&mut self, key: u64, value: Vec<u8>) -> Result<(), Failure> {
        if value.len() > VALUE_BYTES_MAX {
            let message = format!("a value of {} bytes, where {VALUE_BYTES_MAX} fit", value.len());
            return Err(Failure::Final(Refusal::new(Code::NotSupported, message).into()));
        }
        let running = Arc::clone(&self.running);
        let until = running.statement_deadline();
        let xid = self.started(until).await?;
        let page = running.layout.page_of(key);
        let mut known = None;
        loop {
            running.check_time(until)?;
            running.ready_to_stamp(until).await?;
            running.ensure(page, until).await?;
            let unknown = {
                let now = running.now();
                let mut state = running.state();
                let Some(held) = state.pages.usable(page) else { continue };
                match self.place(&state, held, key, Version { writer: xid, value: value.clone() }, known)? {
                    Placed::At(offset, bytes) => {
                        state.change(page, now, |_| (offset, bytes))?;
                        return Ok(());
                    }
                    Placed::NeedsStatus(writer) => writer,
                }
            };
            known = Some((unknown, running.status_of(unknown, until).await?));
        }
    }

    /// Where a version goes on its page, or whose status has to be known first.
    fn place(
        &self,
        state: &State,
        page: &Page,
        key: u64,
        version: Version,
        known: Option<(Xid, Status)>,
    ) -> Result<Placed, Failure> {
        let (slot, row) = match find(page, key)? {
            Lookup::Full => {
                return Err(Failure::Final(Refusal::new(Code::NotSupported, "the row's page is full").into()));
            }
            Lookup::Free(slot) => {
                self.check_seen(key, None)?;
                (slot, Row::inserted(key, version))
            }
            Lookup::At(slot, row) => {
                let Some(status) = known_status(state, row.newest.writer, known) else {
                    return Ok(Placed::NeedsStatus(row.newest.writer));
                };
                if row.newest.writer != version.writer {
                    self.check_seen(key, row.visible(status, None).map(|visible| visible.writer))?;
                }
                let over = row.over(status, version);
                let conflict = |_| Failure::retry(format!("row {key} is being changed by {}", row.newest.writer));
                (slot, over.map_err(conflict)?)
            }
        };
        let (offset, bytes) = row.written(slot);
        Ok(Placed::At(offset, bytes))
    }

    fn check_seen(&self, key: u64, visible: Option<Xid>) -> Result<(), Failure> {
        match self.seen.get(&key) {
            Some(seen) if *seen != visible => Err(Failure::retry(format!("row {key} has changed since it was read"))),
            Some(_) | None => Ok(()),
        }
    }

    /// Commits: the record is durable, and then the transaction visible, before this returns.
    ///
    /// # Errors
    /// Retryable, and the transaction is aborted, if a fence held it back for too long or the node failed before.
    pub(crate) async fn commit(mut self) -> Result<Commit, Failure> {
        let running = Arc::clone(&self.running);
        let Some(xid) = self.xid else { return Ok(Commit::Durable(running.state().clock.last())) };
        let Some((page, slot)) = running.layout.status_place(xid) else { return Err(no_place(xid)) };
        let until = running.env.clock.now().after(running.config.commit_timeout);
        let (scn, end) = loop {
            running.check_time(until)?;
            running.ready_to_stamp(until).await?;
            running.ensure(page, until).await?;
            let mut seen = running.watch();
            {
                let now = running.now();
                let mut state = running.state();
                if !state.fence.holds_commits_back() {
                    if state.pages.usable(page).is_none() {
                        continue;
                    }
                    let (scn, end) = state.change(page, now, |scn| Slot::Committed(scn).written(slot))?;
                    state.transactions.committing(xid, end);
                    self.leave();
                    break (scn, end);
                }
            }
            running.changed(&mut seen, until, "waiting for the fence").await?;
        };
        Ok(running.acknowledge(scn, end).await)
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if let (Some(xid), false) = (self.xid, self.recorded) {
            self.running.state().transactions.aborted(xid);
        }
    }
}

enum Placed {
    At(usize, Vec<u8>),
    NeedsStatus(Xid),
}

enum Lookup {
    At(usize, Row),
    Free(usize),
    Full,
}

/// Looks for a row on its page.
fn find(page: &Page, key: u64) -> Result<Lookup, Failure> {
    let mut free = None;
    for slot in 0..ROWS_PER_PAGE {
        match read_slot(page, slot)? {
            RowSlot::Row(row) if row.key == key => return Ok(Lookup::At(slot, row)),
            RowSlot::Row(_) => {}
            RowSlot::Free => free = free.or(Some(slot)),
        }
    }
    Ok(free.map_or(Lookup::Full, Lookup::Free))
}

fn read_slot(page: &Page, slot: usize) -> Result<RowSlot, Failure> {
    let damaged = || Refusal::new(Code::PageDamaged, format!("slot {slot} of a page holds no row"));
    row::read(&page.body, slot).ok_or_else(|| Failure::from(damaged()))
}

fn no_place(xid: Xid) -> Failure {
    Failure::Final(Refusal::new(Code::PageDamaged, format!("{xid} is of no node of this cluster")).into())
}

/// What became of `xid`, as far as can be said without asking.
fn known_status(state: &State, xid: Xid, known: Option<(Xid, Status)>) -> Option<Status> {
    if state.transactions.is_active(xid) {
        return Some(Status::InProgress);
    }
    known.filter(|(of, _)| *of == xid).map(|(_, status)| status).or_else(|| state.transactions.finished(xid))
}

impl Running {
    pub(crate) fn check_time(&self, until: Moment) -> Result<(), Failure> {
        if self.env.clock.now() < until { Ok(()) } else { Err(Failure::retry("the statement took too long")) }
    }

    /// What may be said of a transaction whose record, stamped `scn`, ends at `end`: it counts once that is durable.
    pub(crate) async fn acknowledge(&self, scn: Scn, end: Lsn) -> Commit {
        if planted::is(Bug::AckBeforeFlush) {
            self.flush_wanted.notify_one();
            return Commit::Durable(scn);
        }
        match self.flush_to(end).await {
            Ok(()) => Commit::Durable(scn),
            Err(fault) => Commit::Unknown(fault),
        }
    }

    /// Marks the next transaction in the table.
    async fn start_transaction(&self, until: Moment) -> Result<Xid, Failure> {
        loop {
            self.check_time(until)?;
            let next = Xid::new(self.node(), self.state().transactions.next());
            let (page, slot) = self.layout.status_place(next).ok_or_else(|| no_place(next))?;
            self.ready_to_stamp(until).await?;
            self.ensure(page, until).await?;
            let now = self.now();
            let mut state = self.state();
            if state.transactions.next() == next.counter() && state.pages.usable(page).is_some() {
                state.change(page, now, |_| Slot::Started.written(slot))?;
                state.transactions.started(next);
                return Ok(next);
            }
        }
    }

    /// The version of a row that `reader` sees.
    pub(crate) async fn visible(
        &self,
        key: u64,
        reader: Option<Xid>,
        until: Moment,
    ) -> Result<Option<Version>, Failure> {
        let page = self.layout.page_of(key);
        let mut known = None;
        loop {
            self.check_time(until)?;
            self.ensure(page, until).await?;
            let unknown = {
                let state = self.state();
                let Some(held) = state.pages.usable(page) else { continue };
                let Lookup::At(_, row) = find(held, key)? else { return Ok(None) };
                match known_status(&state, row.newest.writer, known) {
                    Some(status) => return Ok(row.visible(status, reader).cloned()),
                    None => row.newest.writer,
                }
            };
            known = Some((unknown, self.status_of(unknown, until).await?));
        }
    }

    /// The visible rows of a page.
    pub(crate) async fn visible_rows(
        &self,
        page: PageNo,
        reader: Option<Xid>,
        until: Moment,
    ) -> Result<Vec<(u64, Vec<u8>)>, Failure> {
        let keys = loop {
            self.check_time(until)?;
            self.ensure(page, until).await?;
            let state = self.state();
            let Some(held) = state.pages.usable(page) else { continue };
            let mut keys = Vec::new();
            for slot in 0..ROWS_PER_PAGE {
                if let RowSlot::Row(row) = read_slot(held, slot)? {
                    keys.push(row.key);
                }
            }
            break keys;
        };
        let mut rows = Vec::new();
        for key in keys {
            if let Some(version) = self.visible(key, reader, until).await? {
                rows.push((key, version.value));
            }
        }
        Ok(rows)
    }

    /// What became of a transaction, asked of the node that it ran on.
    ///
    /// # Errors
    /// Retryable while that node is down.
    pub(crate) async fn status_of(&self, xid: Xid, until: Moment) -> Result<Status, Failure> {
        if xid.node() == self.node() {
            return self.own_status(xid, until).await;
        }
        if !self.layout.nodes.contains(&xid.node()) {
            return Err(no_place(xid));
        }
        let deadline = until.min(self.env.clock.now().after(self.config.call_timeout));
        let (_, answer) = self.call(xid.node(), Ask::StatusOf { xid }, deadline).await?;
        let Answer::Status(status) = answer else {
            return Err(Failure::retry(format!("node {} answers something else", xid.node())));
        };
        self.state().transactions.learned(xid, status);
        Ok(status)
    }

    /// What became of a transaction of this node.
    pub(crate) async fn own_status(&self, xid: Xid, until: Moment) -> Result<Status, Failure> {
        let (page, slot) = self.layout.status_place(xid).ok_or_else(|| no_place(xid))?;
        loop {
            self.check_time(until)?;
            if self.state().transactions.is_active(xid) {
                return Ok(Status::InProgress);
            }
            self.ensure(page, until).await?;
            let state = self.state();
            if state.transactions.is_active(xid) {
                return Ok(Status::InProgress);
            }
            let Some(held) = state.pages.usable(page) else { continue };
            return match Slot::read(&held.body, slot) {
                Some(Slot::Committed(scn)) => Ok(Status::Committed(scn)),
                Some(Slot::Started | Slot::Unused) => Ok(Status::Aborted),
                None => Err(Refusal::new(Code::PageDamaged, format!("{page} holds no status of {xid}")).into()),
            };
        }
    }

    /// The counter that no transaction of this node has used, as the pages on disk say: every one of them is marked.
    pub(crate) async fn first_unused(
        disk: &dyn sheetanchor_engine::env::DiskFile,
        layout: &crate::layout::Layout,
        node: sheetanchor_core::identity::NodeId,
    ) -> Result<u64, Error> {
        let mut next = 0;
        for k in 0_u64.. {
            let Some(number) = layout.region_page(node, k) else { break };
            let bytes = disk.read_at(Page::offset(number), crate::page::PAGE_BYTES).await?;
            let damaged = || Refusal::new(Code::PageDamaged, format!("{number} of the transaction table is damaged"));
            let page = Page::decode(number, &bytes).map_err(|_| damaged())?;
            if page.version == Scn::ZERO {
                break;
            }
            let used = (0..SLOTS_PER_PAGE).rev().find(|slot| Slot::read(&page.body, *slot) != Some(Slot::Unused));
            let used = used.map_or(0, |slot| crate::fields::count(slot) + 1);
            next = k.saturating_mul(crate::fields::count(SLOTS_PER_PAGE)).saturating_add(used);
        }
        Ok(next)
    }
}
