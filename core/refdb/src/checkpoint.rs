//! What a node does beside its clients: checkpoints, recycling of segments, and reserving stamps.

use std::sync::Arc;

use sheetanchor_core::error::{Fault, Result};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::scn::Scn;

use crate::control::{NodeControl, seal};
use crate::running::Running;
use crate::segments;

impl Running {
    /// Writes all changed pages and moves the place where crash recovery starts; answers that place. From here on the
    /// first change of each page logs the whole page.
    ///
    /// # Errors
    /// `SA205`, `SA109` or `SA110` while the clock cannot stamp, and a later checkpoint may succeed. A fault: the node has
    /// failed then, but for a flush that took too long and a segment that could not be removed.
    pub(crate) async fn checkpoint(&self) -> Result<Lsn> {
        let _turn = self.checkpointing.lock().await;
        let prepared = !self.state().prepared.is_empty();
        if prepared {
            self.ready_to_stamp(self.statement_deadline()).await?;
        }
        let (redo, told, dirty) = {
            let now = self.now();
            let mut state = self.state();
            if let Some(fault) = &state.failed {
                return Err(fault.clone().into());
            }
            let redo = state.log.end();
            // Whoever starts here must learn of every prepared transaction.
            let told = state.log_in_doubt(now)?;
            (redo, told, state.pages.begin_checkpoint(redo))
        };
        let pages = dirty.len();
        self.flush_to(told).await?;
        for page in dirty.into_iter().filter(|_| !planted::is(Bug::CheckpointTooEarly)) {
            let _turn = self.page_writer.lock().await;
            self.write_page(page).await?;
        }
        if !planted::is(Bug::CheckpointUnsynced) {
            let _turn = self.page_writer.lock().await;
            self.sync_pages().await?;
        }
        self.update_control(|control| control.redo = redo).await?;
        self.state().pages.evict(self.config.cache_pages_max);
        tracing::info!(target: "sheetanchor::refdb", node = %self.node(), %redo, pages, "checkpoint");
        self.recycle(redo).await?;
        Ok(redo)
    }

    /// Removes segments that neither crash recovery nor any pin needs.
    async fn recycle(&self, redo: Lsn) -> Result<(), Fault> {
        let segments = {
            let state = self.state();
            state.log.recyclable(keep_from(redo, state.pins.values().copied()))
        };
        let Some(until) = segments.last().copied() else { return Ok(()) };
        let folder = self.folder.wal(self.node(), self.incarnation);
        let _turn = self.segment_namer.lock().await;
        self.lives()?;
        for segment in segments {
            // Forgotten first: whoever reads it meanwhile is refused, and not told of damage.
            self.state().log.forget(segment);
            self.env.disk.remove(&segments::path(&folder, segment)).await?;
        }
        self.env.disk.sync_dir(&folder).await.inspect_err(|fault| self.fail(fault.clone()))?;
        let from = self.state().log.first();
        tracing::info!(target: "sheetanchor::refdb", node = %self.node(), last = %until, until = %from, "recycled WAL");
        Ok(())
    }

    /// Replaces the node's control file by a changed one.
    pub(crate) async fn update_control(&self, change: impl FnOnce(&mut NodeControl) + Send) -> Result<(), Fault> {
        let mut control = self.control.lock().await;
        let mut next = control.clone();
        change(&mut next);
        {
            let state = self.state();
            next.durable = state.log.durable();
            if state.settled.is_some_and(|told| told <= next.durable) {
                next.in_doubt.clear();
            }
        }
        let path = self.folder.node_control(self.node());
        match self.env.disk.replace(&path, seal(&next)).await {
            Ok(()) => {
                *control = next;
                Ok(())
            }
            Err(fault) => {
                self.fail(fault.clone());
                Err(fault)
            }
        }
    }

    /// Makes a higher ceiling durable, if it is time to.
    async fn reserve(&self) -> Result<(), Fault> {
        let now = self.now();
        let wanted = {
            let mut state = self.state();
            state.clock.settle(now);
            state.clock.ceiling_wanted(now)
        };
        let Some(ceiling) = wanted else { return Ok(()) };
        self.update_control(|control| control.ceiling = ceiling.max(control.ceiling)).await?;
        self.state().clock.reserved(ceiling);
        self.tell();
        Ok(())
    }
}

/// The first WAL that has to stay: the least of what crash recovery and each pin needs.
fn keep_from(redo: Lsn, pins: impl Iterator<Item = Lsn>) -> Lsn {
    if planted::is(Bug::NoPin) { redo } else { pins.fold(redo, Lsn::min) }
}

/// The ceiling of a node that starts now above `floor`.
pub(crate) fn first_ceiling(floor: Scn, wanted: Option<Scn>) -> Scn {
    wanted.unwrap_or(floor).max(floor)
}

/// Checkpoints at intervals, and when asked to.
pub(crate) async fn checkpoint_forever(running: Arc<Running>) {
    while !running.has_failed() {
        tokio::select! {
            biased;
            () = running.checkpoint_wanted.notified() => {}
            () = running.env.clock.sleep(running.config.checkpoint_interval) => {}
        }
        if let Err(error) = running.checkpoint().await {
            tracing::warn!(target: "sheetanchor::refdb", node = %running.node(), %error, "no checkpoint");
        }
    }
}

/// Keeps the durable ceiling ahead of the clock.
pub(crate) async fn reserve_forever(running: Arc<Running>) {
    while !running.has_failed() {
        if let Err(fault) = running.reserve().await {
            tracing::warn!(target: "sheetanchor::refdb", node = %running.node(), %fault, "no stamps reserved");
        }
        tokio::select! {
            biased;
            () = running.reserve_wanted.notified() => {}
            () = running.env.clock.sleep(running.config.reserve / 8) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_pin_decides_what_is_kept() {
        let lsn = Lsn::new;
        assert_eq!(keep_from(lsn(9), [].into_iter()), lsn(9));
        assert_eq!(keep_from(lsn(9), [lsn(12), lsn(4)].into_iter()), lsn(4));
    }
}
