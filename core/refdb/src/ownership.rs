//! Pages on the move. One node owns a data page at a time, and only the owner reads or changes it. The page's master
//! knows who that is. An owner gives a page up only after its log is durable to the page's last change, the page is
//! written and synced, and a record of the release is durable: crash recovery then leaves the page alone.

use std::sync::Arc;

use sheetanchor_core::error::Fault;
use sheetanchor_core::identity::NodeId;
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;
use sheetanchor_core::time::Moment;

use crate::directory::{LifeNo, Owner};
use crate::failure::Failure;
use crate::layout::PageNo;
use crate::page::{PAGE_BYTES, Page};
use crate::protocol::{Answer, Ask};
use crate::record::Body;
use crate::running::Running;

/// Keeps a page out of use until it is dropped.
struct Moving<'a> {
    running: &'a Running,
    page: PageNo,
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.running.state().pages.end_move(self.page);
        self.running.tell();
    }
}

impl Running {
    /// Returns once this node owns `page` and has it in memory. It may be gone again by the time the caller looks.
    ///
    /// # Errors
    /// Retryable while the page is elsewhere and cannot be had; `SA007` if it is damaged.
    pub(crate) async fn ensure(&self, page: PageNo, until: Moment) -> Result<(), Failure> {
        let (_moving, tenure) = loop {
            let mut seen = self.watch();
            {
                let mut state = self.state();
                state.check()?;
                if state.pages.usable(page).is_some() {
                    return Ok(());
                }
                if state.pages.len() >= self.config.cache_pages_max.saturating_mul(2) {
                    self.checkpoint_wanted.notify_one();
                    return Err(Failure::retry("too many pages are in memory"));
                }
                if state.pages.begin_move(page) {
                    break (Moving { running: self, page }, state.pages.tenure(page));
                }
            }
            self.changed(&mut seen, until, "waiting for a page").await?;
        };
        let written = match tenure {
            Some(tenure) => tenure.version,
            None if self.layout.is_data(page) => self.acquire(page, until).await?,
            None => Scn::ZERO,
        };
        self.load(page, written).await
    }

    /// Becomes the owner of `page`; answers the version that its file holds at least.
    async fn acquire(&self, page: PageNo, until: Moment) -> Result<Scn, Failure> {
        let master = self.layout.master(page);
        if master == self.node() {
            let version = self.grant(page, self.myself(), until).await?;
            self.state().pages.own(page, version);
            return Ok(version);
        }
        let (life, answer) = self.call(master, Ask::Acquire { page }, until).await?;
        let Answer::Granted { version } = answer else {
            return Err(Failure::retry(format!("node {master} answers something else")));
        };
        let mut state = self.state();
        // A grant of a master's earlier life is not in its book any more.
        state.directory.check_life(master, life)?;
        state.pages.own(page, version);
        Ok(version)
    }

    /// Reads a page from the file into memory.
    async fn load(&self, number: PageNo, written: Scn) -> Result<(), Failure> {
        let bytes = self.pages_file.read_at(Page::offset(number), PAGE_BYTES).await?;
        let damaged = |why: &str| Failure::from(Refusal::new(Code::PageDamaged, format!("{number} {why}")));
        let page = Page::decode(number, &bytes).map_err(|_| damaged("fails its checksum"))?;
        if page.version < written {
            return Err(damaged(&format!("is at {}, though {written} was written", page.version)));
        }
        let now = self.now();
        let mut state = self.state();
        // The next change of the page is stamped above this.
        state.clock.observe(page.version, now)?;
        state.pages.insert(number, page);
        Ok(())
    }

    /// As the page's master: makes `to` its owner, once the one before has given it up.
    ///
    /// # Errors
    /// Retryable while the owner does not give it up, or is dead and has not come back.
    pub(crate) async fn grant(&self, page: PageNo, to: Owner, until: Moment) -> Result<Scn, Failure> {
        let turn = {
            let mut state = self.state();
            state.check()?;
            state.directory.check(to)?;
            state.directory.turn(page)
        };
        let _turn = tokio::select! {
            biased;
            turn = turn.lock() => turn,
            () = self.env.clock.sleep_until(until) => return Err(Failure::retry(format!("{page} is in demand"))),
        };
        let owner = self.state().directory.owner(page).filter(|owner| *owner != to);
        if let Some(owner) = owner {
            let version = self.ask_back(page, owner, until).await?;
            if let Some(version) = version {
                self.state().directory.written(page, version);
            }
        }
        let mut state = self.state();
        state.directory.check(to)?;
        tracing::debug!(target: "sheetanchor::refdb", node = %self.node(), %page, to = %to.node, "page moved");
        Ok(state.directory.grant(page, to))
    }

    async fn ask_back(&self, page: PageNo, owner: Owner, until: Moment) -> Result<Option<Scn>, Failure> {
        if owner.node == self.node() {
            return self.release(page, until).await;
        }
        let deadline = until.min(self.env.clock.now().after(self.config.call_timeout));
        let (life, answer) = self.call(owner.node, Ask::Release { page }, deadline).await?;
        match answer {
            // An answer of a later life says nothing of the one that owned the page: that one has to register first.
            Answer::Released { version } if life == owner.life => Ok(version),
            Answer::Released { .. } | Answer::Registered { .. } | Answer::Granted { .. } | Answer::Status(_) => {
                Err(Failure::retry(format!("node {} has restarted", owner.node)))
            }
        }
    }

    /// Gives a page up; answers the version that was written, or `None` if the page is not owned here.
    ///
    /// # Errors
    /// Retryable while the page is in use, and if the clock cannot stamp.
    pub(crate) async fn release(&self, page: PageNo, until: Moment) -> Result<Option<Scn>, Failure> {
        let (_moving, tenure) = loop {
            let mut seen = self.watch();
            {
                let mut state = self.state();
                state.check()?;
                if state.pages.begin_move(page) {
                    break (Moving { running: self, page }, state.pages.tenure(page));
                }
            }
            self.changed(&mut seen, until, "waiting for a page in use").await?;
        };
        let Some(tenure) = tenure else { return Ok(None) };
        let version = if tenure.changed { self.write_for_release(page).await? } else { tenure.version };
        let mut state = self.state();
        state.check()?;
        state.pages.disown(page);
        Ok(Some(version))
    }

    /// Makes the page's file and the record of its release durable.
    async fn write_for_release(&self, page: PageNo) -> Result<Scn, Failure> {
        let version = {
            let _turn = self.page_writer.lock().await;
            self.write_page(page).await?;
            self.sync_pages().await?;
            let state = self.state();
            let cached = state.pages.tenure(page).map(|tenure| tenure.version);
            state.pages.version(page).or(cached).unwrap_or(Scn::ZERO)
        };
        self.ready_to_stamp(self.statement_deadline()).await?;
        let now = self.now();
        let until = {
            let mut state = self.state();
            let until = if planted::is(Bug::ReleaseNotLogged) {
                state.log.end()
            } else {
                state.append(now, Body::Released { page, version })?.1
            };
            if let Some(tenure) = state.pages.tenure_mut(page) {
                // Should the move not end: what this node logged of the page so far is history.
                tenure.changed = false;
                tenure.version = version;
            }
            if let Some(cached) = state.pages.cached_mut(page) {
                cached.imaged = None;
            }
            until
        };
        if !planted::is(Bug::PageShippedUnflushed) {
            self.flush_to(until).await?;
        }
        Ok(version)
    }

    /// Writes a page if it is dirty, after the log. The caller holds the page writer's turn.
    ///
    /// # Errors
    /// Any fault; the node has failed then.
    pub(crate) async fn write_page(&self, page: PageNo) -> Result<(), Fault> {
        let (bytes, last, version) = {
            let mut state = self.state();
            let Some(cached) = state.pages.cached_mut(page).filter(|cached| cached.dirty) else { return Ok(()) };
            (cached.page.encode(page), cached.last, cached.page.version)
        };
        let written = async {
            if !planted::is(Bug::PageShippedUnflushed) {
                self.flush_to(last).await?;
            }
            self.pages_file.write_at(Page::offset(page), bytes.into()).await
        };
        written.await.inspect_err(|fault| self.fail(fault.clone()))?;
        if let Some(cached) = self.state().pages.cached_mut(page).filter(|cached| cached.page.version == version) {
            cached.dirty = false;
        }
        Ok(())
    }

    /// Makes what was written of pages durable. The caller holds the page writer's turn: a sync that failed has given up
    /// what was written before it, whoever wrote that, and one that came behind it would say that all is well.
    ///
    /// # Errors
    /// Any fault; the node has failed then.
    pub(crate) async fn sync_pages(&self) -> Result<(), Fault> {
        if !planted::is(Bug::SyncedBehindAFailure) {
            self.lives()?;
        }
        self.pages_file.sync().await.inspect_err(|fault| self.fail(fault.clone()))
    }

    /// Answers a hello: takes note of the peer's life, and says which of its pages this node owns.
    ///
    /// # Errors
    /// Retryable for a life older than the one known.
    pub(crate) fn registered(&self, peer: NodeId, life: LifeNo) -> Result<Vec<PageNo>, Failure> {
        let mut state = self.state();
        state.check()?;
        state.directory.register(peer, life)?;
        Ok(state.pages.owned().filter(|page| self.layout.master(*page) == peer).collect())
    }
}

/// Says hello to `peer` until it has answered. Until then this node grants none of its pages.
pub(crate) async fn register_at(running: Arc<Running>, peer: NodeId) {
    while !running.has_failed() {
        let until = running.env.clock.now().after(running.config.call_timeout);
        if let Ok((life, Answer::Registered { owned })) = running.call(peer, Ask::Register, until).await {
            let mut state = running.state();
            if state.directory.heard(Owner { node: peer, life }, owned).is_ok() {
                let ready = state.directory.has_heard_all();
                drop(state);
                tracing::debug!(target: "sheetanchor::refdb", node = %running.node(), %peer, ready, "registered");
                return;
            }
        }
        running.env.clock.sleep(running.config.call_timeout / 10).await;
    }
}
