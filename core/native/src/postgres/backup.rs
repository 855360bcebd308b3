//! Backups of one server, each held by a session of its own: a session that ends takes its backup with it, so nothing of
//! one is left behind, whoever dies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sheetanchor_core::error::{Error, FaultKind, Result};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::database::{Begun, Ended};
use tokio::sync::Mutex;

use super::session::{Fields, Session};

/// How many backups are remembered, running or ended.
const REMEMBERED_MAX: usize = 16;

/// How long the checkpoint at a backup's begin may take.
const BEGIN_WAIT: Duration = Duration::from_mins(15);

/// The backups that were begun here, by label.
#[derive(Default)]
pub(super) struct Backups {
    known: Mutex<BTreeMap<String, Backup>>,
}

#[derive(Clone)]
struct Backup {
    begun: Begun,
    /// Where replay of it starts, in the segment that `begun` says.
    redo: Lsn,
    stage: Stage,
}

#[derive(Clone)]
enum Stage {
    Running(Arc<Session>),
    Ended(Ended),
}

impl Backups {
    /// What the backup of this label said when it had begun, if it is running still.
    pub(super) async fn begun(&self, label: &str) -> Option<Begun> {
        let known = self.known.lock().await;
        let backup = known.get(label)?;
        match &backup.stage {
            Stage::Running(session) if session.is_closed() => None,
            Stage::Running(_) | Stage::Ended(_) => Some(backup.begun),
        }
    }

    /// Where replay starts at most of a backup that has begun at `start`, if one runs still.
    pub(super) async fn redo(&self, start: Position) -> Option<Lsn> {
        let known = self.known.lock().await;
        let runs = |backup: &&Backup| match &backup.stage {
            Stage::Running(session) => !session.is_closed(),
            Stage::Ended(_) => true,
        };
        known.values().filter(|backup| backup.begun.start == start).filter(runs).map(|backup| backup.redo).max()
    }

    /// Takes a running backup in, whose replay starts at `redo`.
    ///
    /// # Errors
    /// `SA205` if too many are running.
    pub(super) async fn add(&self, label: &str, session: Session, begun: Begun, redo: Lsn) -> Result<()> {
        let mut known = self.known.lock().await;
        if known.len() >= REMEMBERED_MAX {
            known.retain(|_, backup| match &backup.stage {
                Stage::Running(session) => !session.is_closed(),
                Stage::Ended(_) => false,
            });
        }
        if known.len() >= REMEMBERED_MAX {
            let message = format!("{} backups are running on this node already", known.len());
            return Err(Refusal::new(Code::Busy, message).into());
        }
        known.insert(label.to_owned(), Backup { begun, redo, stage: Stage::Running(Arc::new(session)) });
        Ok(())
    }

    /// Ends a backup; a repeated call says the same. `complete` makes the answer from what the server says.
    ///
    /// # Errors
    /// `SA204` if there is no backup of this label, or its session is gone.
    pub(super) async fn end(
        &self,
        label: &str,
        complete: impl FnOnce(&Session, &Fields) -> Result<Ended>,
    ) -> Result<Ended> {
        let found = self.known.lock().await.get(label).cloned();
        let session = match found.map(|backup| backup.stage) {
            None => return Err(gone(label, "no such backup is running here: agent or database restarted")),
            Some(Stage::Ended(ended)) => return Ok(ended),
            Some(Stage::Running(session)) => session,
        };
        let said = match session.row_within(BEGIN_WAIT, stop_call(&session), &[]).await {
            Ok(said) => said,
            Err(error) if error.is(FaultKind::Unreachable) => return Err(gone(label, &error.to_string())),
            Err(error) => return Err(error),
        };
        let ended = complete(&session, &said)?;
        if let Some(backup) = self.known.lock().await.get_mut(label) {
            backup.stage = Stage::Ended(ended.clone());
        }
        Ok(ended)
    }

    /// Forgets a backup; one that runs is over with its session.
    pub(super) async fn abandon(&self, label: &str) {
        self.known.lock().await.remove(label);
    }

    /// Forgets all.
    pub(super) async fn abandon_all(&self) {
        self.known.lock().await.clear();
    }
}

/// Makes `session` hold a backup. Answers the row of its start LSN.
///
/// # Errors
/// Faults.
pub(super) async fn start(session: &Session, label: &str) -> Result<Fields> {
    // The session is silent while files are copied, for hours perhaps.
    session.command(super::session::QUERY_WAIT, "SET idle_session_timeout = 0; SET statement_timeout = 0").await?;
    let named = format!("sheetanchor backup {label}");
    session.row("SELECT set_config('application_name', $1, false)", &[&named]).await?;
    let sql = if session.facts().version_number < 150_000 {
        "SELECT pg_start_backup($1, true, false)::text"
    } else {
        "SELECT pg_backup_start($1, true)::text"
    };
    session.row_within(BEGIN_WAIT, sql, &[&label]).await
}

fn stop_call(session: &Session) -> &'static str {
    // Whether the WAL is in the archive is ours to wait for.
    if session.facts().version_number < 150_000 {
        "SELECT lsn::text, labelfile, spcmapfile FROM pg_stop_backup(false, false)"
    } else {
        "SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(false)"
    }
}

fn gone(label: &str, seen: &str) -> Error {
    Refusal::new(Code::LifeChanged, format!("backup {label} is over: {seen}")).into()
}
