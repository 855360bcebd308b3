//! A server that is reached over its connection only: on a host where nothing can be installed, or one that others run. It
//! says itself what it is, and sends its files itself ([`base_backup`](super::base_backup)); nothing is restored there, since
//! nobody could write its folder. All else is as with a folder at hand.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::identity::NodeId;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::database::{Begun, Ended, FileStream, Identity};

use super::base_backup::{BaseBackups, LABEL, Sending};
use super::changes::note_checksums;
use super::database::{ENGINE, PostgresDatabase, warn_of_checksums};
use super::look::segment_size;
use super::session::{Facts, is_down, over_is_down};

/// The data folder of a server beside which there is none. Nothing can lie there, and nothing can be made there.
pub(super) const NOWHERE: &str = "/dev/null/no-data-folder";

/// The oldest release whose `BASE_BACKUP` is understood: 14 has another syntax and other messages.
const RELEASE_MIN: u32 = 15;

/// What is known of a server from afar.
#[derive(Default)]
pub(super) struct Afar {
    backups: Arc<BaseBackups>,
    /// What it said that it is, for when it does not answer.
    last_seen: Mutex<Option<Identity>>,
    /// Why it cannot be reached, since when that was noticed.
    unreachable: Mutex<Option<String>>,
}

impl Afar {
    /// Notes what the server says of itself: each connection is of one that could be another.
    pub(super) fn answers(&self, node: NodeId, facts: &Facts) {
        *locked(&self.last_seen) = Some(Identity {
            engine: ENGINE.to_owned(),
            version: facts.major().to_string(),
            system: facts.system.to_string(),
        });
        if locked(&self.unreachable).take().is_some() {
            tracing::info!(%node, "the server can be reached again");
        }
    }

    /// Notes that nobody answers, and says so once.
    pub(super) fn is_silent(&self, node: NodeId, error: &Error) {
        let why = error.refusal().map_or_else(|| error.to_string(), |refusal| refusal.message.clone());
        if locked(&self.unreachable).replace(why).is_none() {
            tracing::warn!(%node, %error, "the server cannot be reached");
        }
    }

    /// Why the server cannot be reached, if that is so.
    pub(super) fn unreachable(&self) -> Option<String> {
        locked(&self.unreachable).as_ref().map(|why| format!("the server cannot be reached: {why}"))
    }

    /// Forgets a backup.
    pub(super) fn abandon(&self, label: &str) {
        self.backups.abandon(label);
    }
}

impl PostgresDatabase {
    /// Refuses what needs the data folder.
    ///
    /// # Errors
    /// `SA415` where there is none.
    pub(super) fn check_folder(&self, what: &str) -> Result<()> {
        if !self.is_afar() {
            return Ok(());
        }
        let message = format!("node {} has no data folder here, and cannot be {what}", self.node());
        Err(Refusal::new(Code::NoDataFolder, message).into())
    }

    /// What the server says that it is, or has said last while nobody answers. An agent that has started since does not know
    /// which it is: then it is none in particular.
    ///
    /// # Errors
    /// What a connection is refused for.
    pub(super) async fn identity_from_afar(&self) -> Result<Identity> {
        match self.session().await {
            Err(error) if !is_down(&error) => return Err(error),
            Ok(_) | Err(_) => {}
        }
        let unknown = || Identity { engine: ENGINE.to_owned(), version: String::new(), system: String::new() };
        Ok(locked(&self.afar().last_seen).clone().unwrap_or_else(unknown))
    }

    /// Has the server begin to send its files.
    ///
    /// # Errors
    /// `SA205` if too many backups are running; `SA112`, `SA113`; faults.
    pub(super) async fn begin_sending(&self, label: &str) -> Result<Begun> {
        if let Some(begun) = self.afar().backups.begun(label) {
            return Ok(begun);
        }
        let session = self.session().await?;
        warn_of_checksums(self.node(), session.facts());
        let sending = Sending::begin(self.target(), session.facts(), label).await.map_err(over_is_down)?;
        note_checksums(&session).await.map_err(over_is_down)?;
        let (redo, timeline) = sending.start();
        let start = self.position(timeline, segment_size(&session)?.start(redo));
        let begun = Begun { start, scn: self.scn_seen() };
        self.afar().backups.add(label, begun, sending)?;
        Ok(begun)
    }

    /// The files of a running backup, where the server sends them.
    ///
    /// # Errors
    /// `SA204`, `SA407`.
    pub(super) fn sent_files(&self, label: &str) -> Result<Option<Box<dyn FileStream>>> {
        if self.is_afar() { Ok(Some(Box::new(self.afar().backups.take(label)?))) } else { Ok(None) }
    }

    /// What a backup says at its end, all of whose files were sent.
    ///
    /// # Errors
    /// `SA204` if they were not.
    pub(super) fn end_sending(&self, label: &str) -> Result<Ended> {
        let (begun, sent) = self.afar().backups.sent(label)?;
        let stop = self.position(begun.start.timeline, sent.stop);
        Ok(Ended { stop, scn: self.scn_seen(), files: vec![(LABEL.to_owned(), sent.label)] })
    }
}

fn locked<T>(known: &Mutex<T>) -> MutexGuard<'_, T> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refuses a release that sends its files in another way.
///
/// # Errors
/// `0A000`.
pub(super) fn check_release(facts: &Facts) -> Result<()> {
    if facts.major() >= RELEASE_MIN {
        return Ok(());
    }
    let message = format!(
        "a server without a data folder here sends its files: release {RELEASE_MIN} or later does, not {}",
        facts.version
    );
    Err(Refusal::new(Code::NotSupported, message).into())
}

#[cfg(test)]
mod tests {
    use super::super::direct::tests::facts;
    use super::*;

    #[test]
    fn a_release_that_sends_its_files_otherwise_is_refused() {
        for (version_number, refused) in [(140_012, true), (150_000, false), (180_006, false)] {
            let outcome = check_release(&Facts { version_number, ..facts(5432, None) });
            let code = outcome.err().map(|error| error.refusal().unwrap().code);
            assert_eq!(code, refused.then_some(Code::NotSupported), "{version_number}");
        }
    }
}
