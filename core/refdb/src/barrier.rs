//! Barriers: records that say nothing but how far a thread has come. One at an SCN makes a cut there, without a fence; an
//! idle node logs them at intervals, so that the reach of the archive, which is that of its slowest thread, moves on.

use std::collections::VecDeque;
use std::sync::Arc;

use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::database::CutMade;

use crate::record::Body;
use crate::running::Running;

/// The cuts that were marked in this life, so that a repeated request gets the same answer.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    made: VecDeque<(String, CutMade)>,
}

impl Marks {
    const MADE_MAX: usize = 64;

    fn made(&self, record: &str) -> Option<CutMade> {
        self.made.iter().find(|(name, _)| name == record).map(|(_, made)| *made)
    }

    fn make(&mut self, record: &str, made: CutMade) {
        self.made.push_back((record.into(), made));
        if self.made.len() > Self::MADE_MAX {
            self.made.pop_front();
        }
    }
}

impl Running {
    /// Makes a cut at `scn`: observes it, and makes a record durable that is stamped above it. Nobody waits.
    ///
    /// # Errors
    /// `SA209` if the place of `scn` in the thread is forgotten; `SA109` if it lies beyond the drift bound.
    pub(crate) async fn mark(&self, scn: Scn, record: &str) -> Result<CutMade> {
        let earlier = self.state().marks.made(record);
        let made = match earlier {
            Some(made) => made,
            None => self.log_mark(scn, record).await?,
        };
        if !planted::is(Bug::BarrierUnflushed) {
            self.flush_to(made.proof).await?;
        }
        Ok(made)
    }

    async fn log_mark(&self, scn: Scn, record: &str) -> Result<CutMade> {
        let now = self.now();
        // Observed before room is reserved above it; from here on nothing at or below it is stamped.
        self.state().clock.observe(scn, now)?;
        self.ready_to_stamp(self.statement_deadline()).await?;
        let now = self.now();
        let mut state = self.state();
        let until = state.log.place_of(scn).ok_or_else(|| forgotten(scn))?;
        let (stamp, proof) = state.append(now, Body::RestorePoint { name: record.into() })?;
        assert!(stamp > scn, "the record after the cut at {scn} is stamped {stamp}");
        let made = CutMade { until: self.position(until), proof };
        state.marks.make(record, made);
        tracing::info!(target: "sheetanchor::refdb", node = %self.node(), %scn, until = %until, %proof, "marked");
        Ok(made)
    }

    /// Logs a barrier if nothing was logged since `seen` was the end; answers the end.
    async fn show_that_it_is_idle(&self, seen: Lsn) -> Result<Lsn, Error> {
        let end = self.state().log.end();
        if end != seen || planted::is(Bug::IdleWithoutBarrier) {
            return Ok(end);
        }
        self.ready_to_stamp(self.statement_deadline()).await?;
        let now = self.now();
        let (_, end) = self.state().append(now, Body::Barrier)?;
        self.flush_wanted.notify_one();
        Ok(end)
    }
}

fn forgotten(scn: Scn) -> Refusal {
    Refusal::new(Code::OutOfOrder, format!("SCN {scn} is too long ago: its place in the thread is not remembered"))
}

/// Logs barriers for as long as the node lives and nothing else is logged.
pub(crate) async fn barriers_forever(running: Arc<Running>) {
    let mut end = running.state().log.end();
    while !running.has_failed() {
        running.env.clock.sleep(running.config.barrier_interval).await;
        match running.show_that_it_is_idle(end).await {
            Ok(seen) => end = seen,
            Err(error) => {
                tracing::debug!(target: "sheetanchor::refdb", node = %running.node(), %error, "no barrier");
            }
        }
    }
}
