//! One life of a node's database: from its opening, or its recovery from a crash, to its end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sheetanchor_core::error::{Fault, FaultKind};
use sheetanchor_core::identity::{ClusterId, Incarnation, LifeId, NodeId, ThreadId, TimelineId};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::time::Moment;
use sheetanchor_engine::env::{DiskFile, DiskLock, Env};
use sheetanchor_engine::watched::{Watched, Watching};
use tokio::sync::Notify;

use crate::config::Config;
use crate::control::{Folder, NodeControl};
use crate::directory::{LifeNo, Owner};
use crate::failure::Failure;
use crate::layout::Layout;
use crate::links::Links;
use crate::state::{Now, State};

/// Bytes that may wait to become durable before changes have to wait for them.
const LOG_PENDING_BYTES_MAX: u64 = 8 << 20;

/// A node that serves. Its tasks hold it; it holds none of them.
pub(crate) struct Running {
    pub(crate) env: Env,
    pub(crate) config: Config,
    pub(crate) folder: Folder,
    pub(crate) cluster: ClusterId,
    pub(crate) incarnation: Incarnation,
    pub(crate) life: LifeNo,
    pub(crate) layout: Layout,
    pub(crate) pages_file: Box<dyn DiskFile>,
    pub(crate) links: Links,
    /// The node's control file as it is on disk; whoever holds it may replace it.
    pub(crate) control: tokio::sync::Mutex<NodeControl>,
    /// Whoever holds it writes pages: two writes of one page never overtake each other.
    pub(crate) page_writer: tokio::sync::Mutex<()>,
    /// Whoever holds it adds segments of the log, or takes some away: their names are synced as those of one folder.
    pub(crate) segment_namer: tokio::sync::Mutex<()>,
    /// One checkpoint at a time.
    pub(crate) checkpointing: tokio::sync::Mutex<()>,
    /// Whoever holds it replaces the file of pins.
    pub(crate) pins_writer: tokio::sync::Mutex<()>,
    pub(crate) flush_wanted: Notify,
    pub(crate) reserve_wanted: Notify,
    pub(crate) checkpoint_wanted: Notify,
    pub(crate) state: Mutex<State>,
    /// Counts changes of the state that somebody may wait for.
    pub(crate) changes: Watched<()>,
    /// Proves that no other life of this node runs. Let go when this one ends.
    pub(crate) lock: Mutex<Option<Box<dyn DiskLock>>>,
}

impl Running {
    /// The state. Never kept across an await.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Both clocks.
    pub(crate) fn now(&self) -> Now {
        Now { moment: self.env.clock.now(), wall: self.env.clock.wall() }
    }

    pub(crate) fn node(&self) -> NodeId {
        self.config.node
    }

    /// This life, as an owner of pages.
    pub(crate) fn myself(&self) -> Owner {
        Owner { node: self.config.node, life: self.life }
    }

    pub(crate) fn life_id(&self) -> LifeId {
        LifeId::new(self.life)
    }

    /// A place in this node's thread.
    pub(crate) fn position(&self, lsn: Lsn) -> Position {
        Position { thread: ThreadId::of(self.node()), timeline: TimelineId::new(self.incarnation.get()), lsn }
    }

    /// When a statement that starts now must end.
    pub(crate) fn statement_deadline(&self) -> Moment {
        self.env.clock.now().after(self.config.statement_timeout)
    }

    /// Says that the state has changed.
    pub(crate) fn tell(&self) {
        self.changes.set(());
    }

    /// To be taken before looking at the state, so that no change after the look is missed.
    pub(crate) fn watch(&self) -> Watching<'_, ()> {
        self.changes.watch()
    }

    /// Waits for a change since `seen` was taken.
    ///
    /// # Errors
    /// Retryable, once `until` has passed.
    pub(crate) async fn changed(&self, seen: &mut Watching<'_, ()>, until: Moment, what: &str) -> Result<(), Failure> {
        tokio::select! {
            biased;
            () = seen.changed() => Ok(()),
            () = self.env.clock.sleep_until(until) => Err(Failure::retry(format!("{what} took too long"))),
        }
    }

    /// Ends this life: after a failed write or sync nothing that is in memory may be trusted to reach the disk.
    pub(crate) fn fail(&self, fault: Fault) {
        {
            let mut state = self.state();
            if state.failed.is_none() {
                tracing::error!(target: "sheetanchor::refdb", node = %self.node(), %fault, "stopped");
                state.failed = Some(fault);
            }
        }
        self.tell();
        self.flush_wanted.notify_one();
    }

    /// Lets another life begin, once all tasks of this one have ended.
    pub(crate) fn unlock(&self) {
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Whether it can go on.
    ///
    /// # Errors
    /// Why the node has failed.
    pub(crate) fn lives(&self) -> Result<(), Fault> {
        self.state().failed.clone().map_or(Ok(()), Err)
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.state().failed.is_some()
    }

    /// Returns once the log is durable up to `until`.
    ///
    /// # Errors
    /// If the node fails first, and after the flush deadline: then nobody knows.
    pub(crate) async fn flush_to(&self, until: Lsn) -> Result<(), Fault> {
        let deadline = self.env.clock.now().after(self.config.flush_timeout);
        loop {
            let mut seen = self.watch();
            {
                let state = self.state();
                if state.log.durable() >= until {
                    return Ok(());
                }
                if let Some(fault) = &state.failed {
                    return Err(fault.clone());
                }
            }
            self.flush_wanted.notify_one();
            if self.changed(&mut seen, deadline, "a flush").await.is_err() {
                return Err(Fault::new(
                    FaultKind::TimedOut,
                    "flush the log",
                    format!("not durable to {until} in time"),
                ));
            }
        }
    }

    /// Returns once a few stamps can be issued, and the log has room.
    ///
    /// # Errors
    /// Retryable, once `until` has passed.
    pub(crate) async fn ready_to_stamp(&self, until: Moment) -> Result<(), Failure> {
        loop {
            let mut seen = self.watch();
            {
                let state = self.state();
                state.check()?;
                let room = state.log.pending_bytes() < LOG_PENDING_BYTES_MAX;
                if room && state.clock.is_ready(self.now()).is_ok() {
                    return Ok(());
                }
            }
            self.flush_wanted.notify_one();
            self.reserve_wanted.notify_one();
            self.changed(&mut seen, until, "reserving stamps, or room in the log,").await?;
        }
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Running(node {}, life {})", self.node(), self.life_id())
    }
}

/// The flusher: writes what the log gathered, syncs once for all of it, and goes on.
pub(crate) async fn flush_forever(running: Arc<Running>) {
    let folder = running.folder.wal(running.node(), running.incarnation);
    let mut writer = crate::segments::Writer::new(folder);
    loop {
        running.flush_wanted.notified().await;
        loop {
            if running.has_failed() {
                return;
            }
            let chunks = running.state().log.take();
            let Some(until) = chunks.back().map(crate::log::Chunk::until) else { break };
            if let Err(fault) = flush(&running, &mut writer, chunks).await {
                running.fail(fault);
                return;
            }
            running.state().made_durable(until);
            running.tell();
        }
    }
}

async fn flush(
    running: &Running,
    writer: &mut crate::segments::Writer,
    chunks: std::collections::VecDeque<crate::log::Chunk>,
) -> Result<(), Fault> {
    for chunk in chunks {
        let _turn = running.segment_namer.lock().await;
        running.lives()?;
        writer.write(&*running.env.disk, chunk).await?;
    }
    writer.sync().await
}
