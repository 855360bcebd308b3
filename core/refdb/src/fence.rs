//! The fence: new commits wait while a hold stands. It lives in memory; a restart loses it, and says so.

use std::collections::VecDeque;

use sheetanchor_core::identity::HoldId;
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::database::CutMade;

/// A node's fence.
#[derive(Debug, Default)]
pub(crate) struct Fence {
    hold: Option<HoldId>,
    /// Whether no commit is under way any more since the hold stands.
    drained: bool,
    /// The cut made under the hold, and the name of its record.
    cut: Option<(String, CutMade)>,
    /// Holds that were let go. A late duplicate of their closing changes nothing.
    released: VecDeque<HoldId>,
}

impl Fence {
    const RELEASED_MAX: usize = 64;

    /// Whether commits wait.
    pub(crate) fn holds_commits_back(&self) -> bool {
        self.hold.is_some() && !planted::is(Bug::NoFence)
    }

    /// Closes under `hold`.
    ///
    /// # Errors
    /// `SA205` while another hold stands, `SA203` if this one was released before.
    pub(crate) fn close(&mut self, hold: HoldId) -> Result<(), Refusal> {
        match self.hold {
            Some(standing) if standing == hold => Ok(()),
            Some(standing) => Err(Refusal::new(Code::Busy, format!("hold {standing} stands, not {hold}"))),
            None if self.released.contains(&hold) => {
                Err(Refusal::new(Code::HoldLost, format!("hold {hold} was released before")))
            }
            None => {
                self.hold = Some(hold);
                self.drained = false;
                self.cut = None;
                Ok(())
            }
        }
    }

    /// # Errors
    /// `SA203` if `hold` does not stand.
    pub(crate) fn check(&self, hold: HoldId) -> Result<(), Refusal> {
        if self.hold == Some(hold) {
            return Ok(());
        }
        let stands = self.hold.map_or_else(|| "none does".into(), |standing| format!("{standing} does"));
        Err(Refusal::new(Code::HoldLost, format!("hold {hold} does not stand: {stands}")))
    }

    /// Notes that no commit is under way under the standing hold.
    pub(crate) fn drained(&mut self) {
        self.drained = true;
    }

    /// Whether no commit may be under way: the node has drained, and none begins while the hold stands.
    pub(crate) fn is_drained(&self) -> bool {
        self.drained && self.holds_commits_back()
    }

    /// # Errors
    /// `SA203` if `hold` does not stand, `SA209` if the node has not drained under it.
    pub(crate) fn check_drained(&self, hold: HoldId) -> Result<(), Refusal> {
        self.check(hold)?;
        if self.drained {
            return Ok(());
        }
        Err(Refusal::new(Code::OutOfOrder, format!("commits may be under way: nobody has drained under hold {hold}")))
    }

    /// The cut that was made under the standing hold with the record `name`.
    pub(crate) fn cut_made(&self, name: &str) -> Option<CutMade> {
        self.cut.as_ref().filter(|(made, _)| made == name).map(|(_, cut)| *cut)
    }

    pub(crate) fn made_cut(&mut self, name: &str, cut: CutMade) {
        self.cut = Some((name.into(), cut));
    }

    /// Lets go if `hold` stands; true if it did.
    pub(crate) fn release(&mut self, hold: HoldId) -> bool {
        if !self.released.contains(&hold) {
            self.released.push_back(hold);
            if self.released.len() > Self::RELEASED_MAX {
                self.released.pop_front();
            }
        }
        let stood = self.hold == Some(hold);
        if stood {
            self.hold = None;
            self.drained = false;
            self.cut = None;
        }
        stood
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_hold_at_a_time_and_a_released_one_never_again() {
        let (first, second) = (HoldId::new(1), HoldId::new(2));
        let mut fence = Fence::default();
        fence.close(first).unwrap();
        fence.close(first).unwrap();
        assert_eq!(fence.close(second).unwrap_err().code, Code::Busy);
        assert!(!fence.release(second), "another's release opens nothing");
        assert!(fence.holds_commits_back());
        assert!(fence.release(first));
        assert!(!fence.holds_commits_back());
        assert_eq!(fence.check(first).unwrap_err().code, Code::HoldLost);
        assert_eq!(fence.close(first).unwrap_err().code, Code::HoldLost);
        assert_eq!(fence.close(second).unwrap_err().code, Code::HoldLost, "its release came first");
        fence.close(HoldId::new(3)).unwrap();
    }
}
