//! Prepared transactions: their changes are durable and promised, and only `COMMIT PREPARED` or `ROLLBACK PREPARED`, from
//! whichever session, ends them. They outlive crashes and restores, with all that they hold.
//!
//! The log alone remembers them. A checkpoint logs all that are open once more, right where crash recovery will start, so
//! whoever reads on from there knows all of them; so does recovery of a backup, which starts at a checkpoint.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sheetanchor_core::error::Error;
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;

use crate::failure::Failure;
use crate::layout::PageNo;
use crate::record::{Body, Record};
use crate::running::Running;
use crate::session::{Commit, Transaction};
use crate::state::{Now, State};
use crate::transaction::{Slot, Xid};

/// Bytes in the longest global identifier.
const GID_BYTES_MAX: usize = 200;

/// Prepared transactions on one node: as many as one record names.
const PREPARED_MAX: usize = 32;

/// A prepared transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    /// What the clients call it, on every node that it spans.
    pub(crate) gid: String,
    pub(crate) xid: Xid,
    /// Where it was prepared.
    pub(crate) at: Lsn,
    /// When.
    pub(crate) scn: Scn,
}

/// How a prepared transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fate {
    Committed,
    RolledBack,
}

/// A prepared transaction of a database that recovery has brought to a cut, and what was decided of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InDoubt {
    pub(crate) held: Held,
    /// None: nobody knows. It stays prepared.
    pub(crate) fate: Option<Fate>,
}

/// The prepared transactions of a thread, as its records tell of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Prepared {
    open: BTreeMap<String, Held>,
}

impl Prepared {
    /// Those that were prepared where the records begin.
    pub(crate) fn left(held: impl Iterator<Item = Held>) -> Self {
        Self { open: held.map(|held| (held.gid.clone(), held)).collect() }
    }

    /// Takes the next record in.
    pub(crate) fn take(&mut self, record: &Record) {
        match &record.body {
            Body::Prepared { gid, xid } => {
                let held = Held { gid: gid.clone(), xid: *xid, at: record.lsn, scn: record.scn };
                self.open.insert(gid.clone(), held);
            }
            Body::InDoubt { held } => self.open.extend(held.iter().map(|held| (held.gid.clone(), held.clone()))),
            Body::Committed { gid, .. } | Body::RolledBack { gid, .. } => drop(self.open.remove(gid)),
            Body::Changed { .. } | Body::Released { .. } | Body::RestorePoint { .. } | Body::Barrier => {}
        }
    }

    /// Those that have not ended.
    pub(crate) fn into_open(self) -> BTreeMap<String, Held> {
        self.open
    }
}

impl State {
    /// Logs how a prepared transaction ends; it has ended once that is durable. Its status page is usable.
    fn finish(&mut self, now: Now, held: &Held, fate: Fate, place: (PageNo, usize)) -> Result<(Scn, Lsn), Failure> {
        let (gid, xid) = (held.gid.clone(), held.xid);
        let (scn, end) = match fate {
            Fate::Committed => {
                let (page, slot) = place;
                let committed = |page, previous, change| Body::Committed { page, previous, change, gid, xid };
                self.change_as(page, now, |scn| Slot::Committed(scn).written(slot), committed)?
            }
            Fate::RolledBack => self.append(now, Body::RolledBack { gid, xid })?,
        };
        self.prepared.remove(&held.gid);
        self.transactions.committing(xid, end);
        Ok((scn, end))
    }

    /// Logs all prepared transactions once more; answers the end of the log.
    ///
    /// # Errors
    /// As for [`State::append`].
    pub(crate) fn log_in_doubt(&mut self, now: Now) -> Result<Lsn, Refusal> {
        if self.prepared.is_empty() {
            return Ok(self.log.end());
        }
        let held = self.prepared.values().cloned().collect();
        Ok(self.append(now, Body::InDoubt { held })?.1)
    }
}

impl Transaction {
    /// Prepares under `gid`: what was written is durable, and the transaction waits for its end. No fence holds it back.
    ///
    /// # Errors
    /// `SA106` for a bad gid, `SA213` if it is in use on this node, `SA205` if there are too many prepared transactions;
    /// then the transaction is aborted.
    pub(crate) async fn prepare(mut self, gid: String) -> Result<Commit, Failure> {
        if gid.is_empty() || gid.len() > GID_BYTES_MAX {
            let message = format!("a global identifier of {} bytes, where 1 to {GID_BYTES_MAX} fit", gid.len());
            return Err(Refusal::new(Code::BadName, message).into());
        }
        let running = std::sync::Arc::clone(self.running());
        let until = running.statement_deadline();
        let xid = self.started(until).await?;
        running.ready_to_stamp(until).await?;
        let (scn, end) = {
            let now = running.now();
            let mut state = running.state();
            if state.prepared.contains_key(&gid) {
                return Err(Refusal::new(Code::NameTaken, format!("`{gid}` is prepared on this node already")).into());
            }
            if state.prepared.len() >= PREPARED_MAX {
                let message = format!("{PREPARED_MAX} transactions are prepared on this node");
                return Err(Refusal::new(Code::Busy, message).into());
            }
            let at = state.log.end();
            let (scn, end) = state.append(now, Body::Prepared { gid: gid.clone(), xid })?;
            state.prepared.insert(gid.clone(), Held { gid, xid, at, scn });
            self.leave();
            (scn, end)
        };
        Ok(running.acknowledge(scn, end).await)
    }
}

impl Running {
    /// Ends the transaction that is prepared under `gid`. It waits for a fence, as a commit does.
    ///
    /// # Errors
    /// `SA209` if none is prepared under it, and no loss of power brings it back; retryable if a fence held it back for
    /// too long.
    pub(crate) async fn finish_prepared(&self, gid: &str, fate: Fate) -> Result<Commit, Failure> {
        let until = self.env.clock.now().after(self.config.commit_timeout);
        let (scn, end) = loop {
            self.check_time(until)?;
            self.ready_to_stamp(until).await?;
            let held = {
                let state = self.state();
                state.prepared.get(gid).cloned().ok_or_else(|| state.log.end())
            };
            let held = match held {
                Ok(held) => held,
                Err(log_end) => return self.nothing_prepared(gid, log_end).await,
            };
            let place = self.place_of(&held)?;
            self.ensure(place.0, until).await?;
            let mut seen = self.watch();
            {
                let now = self.now();
                let mut state = self.state();
                if !state.fence.holds_commits_back() {
                    if state.pages.usable(place.0).is_none() || state.prepared.get(gid) != Some(&held) {
                        continue;
                    }
                    break state.finish(now, &held, fate, place)?;
                }
            }
            self.changed(&mut seen, until, "waiting for the fence").await?;
        };
        Ok(self.acknowledge(scn, end).await)
    }

    /// Says that nothing is prepared under `gid`, once that is durable: its end may be logged, and not flushed yet.
    async fn nothing_prepared(&self, gid: &str, log_end: Lsn) -> Result<Commit, Failure> {
        match self.flush_to(log_end).await {
            Ok(()) => Err(Refusal::new(Code::OutOfOrder, format!("no transaction is prepared as `{gid}`")).into()),
            Err(fault) => Ok(Commit::Unknown(fault)),
        }
    }

    fn place_of(&self, held: &Held) -> Result<(PageNo, usize), Failure> {
        let foreign = || Refusal::new(Code::PageDamaged, format!("{} is of no node of this cluster", held.xid));
        Ok(self.layout.status_place(held.xid).ok_or_else(foreign)?)
    }

    /// Ends what was decided while the database was closed, and logs what stays prepared, before anybody is served: from
    /// here on the log tells of all of them, wherever crash recovery starts.
    ///
    /// # Errors
    /// The node has to be started again; `SA205` if it could not stamp in time.
    pub(crate) async fn settle(&self, decided: Vec<InDoubt>) -> Result<(), Error> {
        if decided.is_empty() {
            return Ok(());
        }
        // A checkpoint in between would have crash recovery start behind an end that the control file does not know of.
        let _turn = self.checkpointing.lock().await;
        let until = self.statement_deadline();
        for InDoubt { held, fate } in &decided {
            let Some(fate) = fate else { continue };
            if !self.state().prepared.contains_key(&held.gid) {
                continue;
            }
            let place = self.place_of(held)?;
            self.ready_to_stamp(until).await?;
            self.ensure(place.0, until).await?;
            let now = self.now();
            self.state().finish(now, held, *fate, place)?;
            tracing::info!(target: "sheetanchor::refdb", node = %self.node(), gid = held.gid, ?fate, "resolved");
        }
        self.ready_to_stamp(until).await?;
        let end = {
            let now = self.now();
            let mut state = self.state();
            let end = state.log_in_doubt(now)?;
            state.settled = Some(end);
            end
        };
        self.flush_to(end).await?;
        Ok(self.update_control(|_| ()).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheetanchor_core::identity::NodeId;

    fn held(gid: &str, counter: u64) -> Held {
        Held { gid: gid.into(), xid: Xid::new(NodeId::new(1), counter), at: Lsn::new(counter), scn: Scn::new(counter) }
    }

    fn told(mut prepared: Prepared, bodies: Vec<Body>) -> Prepared {
        for (number, body) in (10..).zip(bodies) {
            prepared.take(&Record { lsn: Lsn::new(number), scn: Scn::new(number), durable: Lsn::default(), body });
        }
        prepared
    }

    #[test]
    fn the_records_since_a_checkpoint_tell_of_every_prepared_transaction() {
        let (gid, xid) = ("c".to_owned(), held("c", 3).xid);
        let records = vec![
            Body::InDoubt { held: vec![held("a", 1), held("b", 2)] },
            Body::Prepared { gid: gid.clone(), xid },
            Body::RolledBack { gid: "a".into(), xid: held("a", 1).xid },
        ];
        let prepared = told(Prepared::default(), records);
        let open = prepared.into_open();
        assert_eq!(open.keys().collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!((open["b"].at, open["c"].at), (Lsn::new(2), Lsn::new(11)), "each where it was first prepared");
    }

    #[test]
    fn what_ended_in_this_incarnation_is_not_taken_from_the_last_recovery_again() {
        let left = Prepared::left([held("a", 1), held("b", 2)].into_iter());
        let prepared = told(left, vec![Body::RolledBack { gid: "a".into(), xid: held("a", 1).xid }]);
        assert_eq!(prepared.into_open().into_keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn as_many_as_may_be_prepared_fit_into_one_record() {
        let held = (0..PREPARED_MAX as u64)
            .map(|counter| held(&"g".repeat(GID_BYTES_MAX), u64::MAX >> 16 & counter | 1 << 47));
        let body = Body::InDoubt {
            held: held.map(|held| Held { at: Lsn::new(u64::MAX), scn: Scn::new(u64::MAX), ..held }).collect(),
        };
        Record { lsn: Lsn::new(u64::MAX), scn: Scn::new(u64::MAX), durable: Lsn::new(u64::MAX), body }.encode();
    }
}
