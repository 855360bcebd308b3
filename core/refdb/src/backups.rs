//! Backups that this life of the node has begun. A restart forgets them: then their end is refused.

use std::collections::BTreeMap;

use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::database::{Begun, Ended};

/// Begun backups by label.
#[derive(Debug, Default)]
pub(crate) struct Backups {
    known: BTreeMap<String, Backup>,
}

#[derive(Debug)]
struct Backup {
    begun: Begun,
    sending: Sending,
    ended: Option<Ended>,
}

/// How far the files of a backup are sent, where the node sends them itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    /// Nobody has asked for them.
    Unasked,
    /// Somebody reads them, or has given that up.
    Begun,
    /// All of them were read.
    Done,
}

impl Backups {
    /// Backups in the works at once; those that have ended make room.
    const MAX: usize = 64;

    /// What was answered when `label` began.
    pub(crate) fn begun(&self, label: &str) -> Option<Begun> {
        self.known.get(label).map(|backup| backup.begun)
    }

    /// # Errors
    /// `SA205` if too many are in the works.
    pub(crate) fn make_room(&mut self) -> Result<(), Refusal> {
        if self.known.len() >= Self::MAX {
            self.known.retain(|_, backup| backup.ended.is_none());
        }
        if self.known.len() < Self::MAX {
            return Ok(());
        }
        Err(Refusal::new(Code::Busy, format!("{} backups are in the works on this node", self.known.len())))
    }

    pub(crate) fn add(&mut self, label: &str, begun: Begun) {
        self.known.insert(label.into(), Backup { begun, sending: Sending::Unasked, ended: None });
    }

    /// Somebody is to read the files of a backup, which are sent once.
    ///
    /// # Errors
    /// `SA204` if this life of the node has not begun it, or its files were asked for.
    pub(crate) fn send(&mut self, label: &str) -> Result<(), Refusal> {
        let backup = self.known.get_mut(label).ok_or_else(|| unknown(label))?;
        if backup.sending != Sending::Unasked {
            let message = format!("the files of `{label}` are sent once, and were asked for");
            return Err(Refusal::new(Code::LifeChanged, message));
        }
        backup.sending = Sending::Begun;
        Ok(())
    }

    /// All files of a backup were read.
    ///
    /// # Errors
    /// `SA204` if it was abandoned meanwhile.
    pub(crate) fn sent(&mut self, label: &str) -> Result<(), Refusal> {
        self.known.get_mut(label).ok_or_else(|| unknown(label))?.sending = Sending::Done;
        Ok(())
    }

    /// Ends a backup, whose files were all sent if `sends` says that the node does that; the second time it says the same.
    ///
    /// # Errors
    /// `SA204` if this life of the node has not begun it, or not all of its files were sent.
    pub(crate) fn end(&mut self, label: &str, now: Ended, sends: bool) -> Result<Ended, Refusal> {
        let backup = self.known.get_mut(label).ok_or_else(|| unknown(label))?;
        if sends && backup.sending != Sending::Done {
            return Err(Refusal::new(Code::LifeChanged, format!("the files of `{label}` have not all been sent")));
        }
        Ok(backup.ended.get_or_insert(now).clone())
    }

    pub(crate) fn abandon(&mut self, label: &str) {
        self.known.remove(label);
    }
}

fn unknown(label: &str) -> Refusal {
    Refusal::new(Code::LifeChanged, format!("this life of the node has not begun `{label}`"))
}
