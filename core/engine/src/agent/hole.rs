//! WAL that must be let go of before the archive has it: more of it waits than the disk may hold, or the database has lost
//! it. The hole is declared first, durably, in the agent's own folder, since the repository is mostly what cannot be
//! reached. Then the pin is moved. The archive goes on behind the hole once the repository shows it.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use sheetanchor_core::agent::{Belonging, Event};
use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use sheetanchor_core::format::hole::{Hole, HoleReason};
use sheetanchor_core::format::keys;
use sheetanchor_core::hole::{Declaration, Level, declared, never_archived, remainder, resumes, to_record};
use sheetanchor_core::identity::{ByteCount, Incarnation, LifeId, Nonce, OperationId, TimelineId};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::WalKept;

use super::Agent;
use super::archive::ARCHIVE_PIN;
use super::state::{self, Memory};
use crate::database::{State, Status};
use crate::repository::Created;

/// How often a hole is made larger because what lay behind it has gone meanwhile, before it is given up for this time.
const SKIPS_MAX: u32 = 4;

/// WAL that is to be let go of, and why.
#[derive(Debug)]
pub(super) struct LetGo {
    /// Where the archive goes on, were nothing let go of.
    from: Position,
    reason: HoleReason,
    message: String,
}

impl Agent {
    /// Sees to it that no more WAL waits than may, before more is shipped: declares a hole if that is so, and carries out what
    /// an earlier life has declared. `settled` is the database's life in which that was done. Says whether where the archive
    /// goes on has to be found out anew.
    pub(super) async fn keep_bound(&self, belonging: Belonging, settled: &mut Option<LifeId>) -> bool {
        if self.memory.get().holes.is_empty() && self.config.wal_kept_max.is_none() {
            return false;
        }
        let Some(status) = self.open_status(belonging).await else { return false };
        if *settled != Some(status.life) {
            *settled = self.carry_out(belonging, &status).await.is_ok().then_some(status.life);
        }
        let Some(over) = self.weigh(belonging).await else { return false };
        if let Err(error) = self.declare(belonging, over).await {
            // Whatever was declared is carried out the next time; until then nothing stands in the archive's way.
            *settled = None;
            tracing::warn!(target: "sheetanchor::archive", node = %self.config.node, %error, "cannot let go of WAL");
        }
        true
    }

    /// Returns once more WAL waits than may, and some of it could be let go of. Never without a bound.
    pub(super) async fn bound_is_passed(&self, belonging: Belonging) {
        if self.config.wal_kept_max.is_none() {
            return core::future::pending().await;
        }
        loop {
            self.env.clock.sleep(self.config.archive_interval).await;
            if self.weigh(belonging).await.is_some() {
                return;
            }
        }
    }

    async fn open_status(&self, belonging: Belonging) -> Option<Status> {
        let status = self.database.status().await.ok()?;
        let is_ours = status.incarnation.is_none_or(|known| known == belonging.incarnation);
        (status.state == State::Open && is_ours).then_some(status)
    }

    /// What is to be let go of, if more waits than may. Whatever stands against a look is the archiver's to say.
    async fn weigh(&self, belonging: Belonging) -> Option<LetGo> {
        let max = self.config.wal_kept_max?;
        let end = self.open_status(belonging).await?.end;
        let from = self.goes_on_at(belonging, end).await?;
        let kept = WalKept { bytes: ByteCount::new(end.lsn.bytes_since(from.lsn).unwrap_or(0)), max };
        let risen = self.gauge.lock().await.look(kept);
        if risen == Some(Level::High) {
            let (waiting, max) = (kept.bytes, kept.max);
            tracing::warn!(target: "sheetanchor::archive", node = %self.config.node, %waiting, %max, "WAL that waits for the archive will be let go of soon");
        }
        if kept.level() < Level::Over || self.database.resume_at().await.ok()?.lsn <= from.lsn {
            return None;
        }
        let message = format!("{} bytes of WAL waited for the archive, and {max} may", kept.bytes);
        Some(LetGo { from, reason: HoleReason::Bound, message })
    }

    /// Where the archive goes on, as far as that is known without the repository: at its end, behind what was declared, or
    /// else where its pin stands.
    async fn goes_on_at(&self, belonging: Belonging, end: Position) -> Option<Position> {
        let archived = self.archive.get().until.filter(|until| until.timeline == end.timeline);
        let mut holes = Vec::from_iter(self.shown.lock().await.clone());
        holes.extend(self.memory.get().holes);
        holes.retain(|hole| is_of(hole, belonging.incarnation, end));
        if let Some((_, lsn)) = resumes(archived.map(|until| (until.timeline, until.lsn)), &holes) {
            return Some(Position { lsn, ..end });
        }
        let pins = self.database.pins().await.ok()?;
        let own = pins.into_iter().find(|pin| pin.name == ARCHIVE_PIN && pin.from.timeline == end.timeline);
        own.map(|pin| pin.from)
    }

    /// What is to be let go of because the database has lost it, if `error` says so: it comes back from nowhere.
    pub(super) async fn lost_wal(&self, error: &Error) -> Option<LetGo> {
        let from = self.archive.get().until?;
        let is = |error: &Error, code| error.refusal().is_some_and(|refusal| refusal.code == code);
        let lost = if is(error, Code::WalGap) {
            // WAL may be missing for other reasons, which an operator has to look at; a pin that is lost says which it was.
            self.database.pin(ARCHIVE_PIN).await.err()?
        } else {
            error.clone()
        };
        is(&lost, Code::PinLost).then(|| LetGo { from, reason: HoleReason::Lost, message: lost.to_string() })
    }

    /// Declares a hole, durably; then lets go.
    pub(super) async fn declare(&self, belonging: Belonging, let_go: LetGo) -> Result<()> {
        let LetGo { from, reason, message } = let_go;
        let mut until = self.database.resume_at().await?;
        for _ in 0..SKIPS_MAX {
            // Of a timeline that the database has left, what is not archived stays behind without a word, as ever.
            let from = if from.timeline == until.timeline { from } else { self.timeline_start(until).await? };
            if planted::is(Bug::LetGoBeforeDeclared) {
                self.skip(until).await?;
            }
            let declaration = Declaration {
                incarnation: belonging.incarnation,
                from,
                until,
                reason,
                message: message.clone(),
                at: self.env.clock.wall(),
                nonce: Nonce::new(self.env.entropy.word()),
            };
            self.remember_hole(belonging, declaration).await?;
            let kept = self.skip(until).await?;
            let is_kept = kept.timeline == until.timeline && kept.lsn <= until.lsn;
            if is_kept && until.lsn <= from.lsn {
                // The pin alone was lost.
                return Ok(());
            }
            if is_kept {
                return self.end_backups_before(until).await;
            }
            // What lay there has gone, too.
            until = self.database.resume_at().await?;
        }
        let cause = format!("WAL is gone faster than it can be declared, up to {until}");
        Err(Fault::new(FaultKind::Other, "let go of WAL", cause).into())
    }

    async fn remember_hole(&self, belonging: Belonging, declaration: Declaration) -> Result<()> {
        let _turn = self.remembering.lock().await;
        let memory = self.memory.get();
        if memory.belonging != Some(belonging) {
            let message = format!("node {} belongs elsewhere by now: nothing is let go of", self.config.node);
            return Err(Refusal::new(Code::OtherIncarnation, message).into());
        }
        let (from, until, why) = (declaration.from.lsn, declaration.until.lsn, declaration.message.clone());
        let Some(holes) = declared(&memory.holes, declaration)? else { return Ok(()) };
        let next = Memory { holes, ..memory };
        state::remember(&self.env, &self.config, &next).await?;
        self.memory.set(next);
        tracing::warn!(target: "sheetanchor::archive", node = %self.config.node, %from, %until, %why, "declared a hole: take a new backup once the repository is back");
        Ok(())
    }

    /// Moves the pin of the archive; says from where on WAL is kept.
    async fn skip(&self, until: Position) -> Result<Position> {
        let kept = self.database.skip_pin(ARCHIVE_PIN, until).await?;
        tracing::warn!(target: "sheetanchor::archive", node = %self.config.node, until = %kept.lsn, "skipped WAL");
        Ok(kept)
    }

    /// What a life that ended had declared, and perhaps not done.
    async fn carry_out(&self, belonging: Belonging, status: &Status) -> Result<()> {
        let holes = self.memory.get().holes;
        let newest = holes.iter().rfind(|hole| is_of(hole, belonging.incarnation, status.end));
        let Some(hole) = newest else { return Ok(()) };
        let until = Position { thread: hole.thread, timeline: hole.timeline, lsn: hole.until };
        let kept = self.skip(until).await?;
        if kept.lsn > until.lsn {
            let let_go = LetGo { from: until, reason: hole.reason, message: hole.message.clone() };
            return self.declare(belonging, let_go).await;
        }
        self.end_backups_before(until).await
    }

    /// A backup that began before a hole's end can never be sealed, and its pin would keep what is to go.
    async fn end_backups_before(&self, until: Position) -> Result<()> {
        let pins = self.database.pins().await?;
        let before = pins.iter().filter(|pin| pin.from.lsn < until.lsn);
        let operations: Vec<OperationId> = before.filter_map(|pin| pin.name.parse().ok()).collect();
        for operation in operations {
            tracing::warn!(target: "sheetanchor::agent", node = %self.config.node, %operation, "its WAL was let go of");
            self.let_go(operation).await?;
            let effects = self.step(Event::LostPins(Vec::from([operation]))).await;
            self.run(effects).await;
        }
        Ok(())
    }

    /// Shows the repository what waits to be shown. Nothing behind a hole is archived before.
    pub(super) async fn record_holes(&self, belonging: Belonging) -> Result<()> {
        let waiting = self.memory.get().holes;
        if waiting.is_empty() {
            return Ok(());
        }
        self.check_repository(belonging).await?;
        for hole in &waiting {
            self.record(hole).await?;
        }
        // Before it is forgotten: whoever looks meanwhile must find the hole in one of the two.
        *self.shown.lock().await = waiting.last().cloned();
        let _turn = self.remembering.lock().await;
        let mut next = self.memory.get();
        next.holes.retain(|hole| !waiting.contains(hole));
        state::remember(&self.env, &self.config, &next).await?;
        self.memory.set(next);
        Ok(())
    }

    async fn record(&self, hole: &Hole) -> Result<()> {
        let archived = self.archived_before(hole).await?;
        let mut left = to_record(hole.clone(), archived);
        while let Some(hole) = left.take().filter(|_| !planted::is(Bug::HoleUnrecorded)) {
            let key = keys::hole(hole.incarnation, hole.thread, hole.timeline, hole.from);
            if let Created::Theirs(theirs) = self.repository.create(&key, &hole).await? {
                // It has grown since it was shown first.
                left = remainder(hole, &theirs.checked(&key)?);
                continue;
            }
            tracing::warn!(target: "sheetanchor::archive", node = %self.config.node, from = %hole.from, until = %hole.until, "recorded a hole: take a new backup");
        }
        Ok(())
    }

    /// Where the archive of a hole's timeline ends before the hole's end.
    async fn archived_before(&self, hole: &Hole) -> Result<Option<Lsn>> {
        let listed = self.repository.bucket().list(&keys::wal_thread(hole.incarnation, hole.thread)).await?;
        let before = listed.iter().filter_map(|key| Some((keys::parse_wal(key)?, key)));
        let before = before.filter(|((timeline, from), _)| *timeline == hole.timeline && *from < hole.until);
        match before.max() {
            Some((_, key)) => Ok(Some(self.repository.wal_header(key).await?.until)),
            None => Ok(None),
        }
    }

    /// The declared holes of a thread that the archive may have to pass: those that `listed` holds from `from` on.
    pub(super) async fn holes_from(&self, listed: &[String], from: Option<(TimelineId, Lsn)>) -> Result<Vec<Hole>> {
        let mut holes = Vec::new();
        for key in listed.iter().filter(|key| keys::parse_hole(key).is_some_and(|at| Some(at) >= from)) {
            holes.push(self.repository.hole(key).await?);
        }
        if let Some(newest) = holes.last() {
            *self.shown.lock().await = Some(newest.clone());
        }
        Ok(holes)
    }

    /// Refuses to wait for what will never be archived.
    ///
    /// # Errors
    /// `SA210`.
    pub(super) async fn check_not_let_go(&self, through: Position) -> Result<()> {
        let mut holes = self.memory.get().holes;
        holes.extend(self.shown.lock().await.clone());
        match never_archived(&holes, through) {
            Some(hole) => Err(Refusal::new(Code::PinLost, hole.to_string()).into()),
            None => Ok(()),
        }
    }
}

/// Whether a hole is of the timeline that a database writes in an incarnation.
fn is_of(hole: &Hole, incarnation: Incarnation, end: Position) -> bool {
    (hole.incarnation, hole.thread, hole.timeline) == (incarnation, end.thread, end.timeline)
}
