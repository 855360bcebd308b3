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
    ended: Option<Ended>,
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
        self.known.insert(label.into(), Backup { begun, ended: None });
    }

    /// Ends a backup; the second time it says the same.
    ///
    /// # Errors
    /// `SA204` if this life of the node has not begun it.
    pub(crate) fn end(&mut self, label: &str, now: Ended) -> Result<Ended, Refusal> {
        match self.known.get_mut(label) {
            Some(backup) => Ok(backup.ended.get_or_insert(now).clone()),
            None => Err(Refusal::new(Code::LifeChanged, format!("this life of the node has not begun `{label}`"))),
        }
    }

    pub(crate) fn abandon(&mut self, label: &str) {
        self.known.remove(label);
    }
}
