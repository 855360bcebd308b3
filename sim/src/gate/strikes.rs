//! How far a plan has come: which faults have struck, and which of those are still in force.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sheetanchor_core::error::FaultKind;

use super::{Kind, Operation, PutTrouble, Volume, own_volume};
use crate::plan::{Fault, Plan, Trigger};

/// The faults of a plan that have not struck yet, and the ones in force.
#[derive(Debug)]
pub(super) struct Strikes {
    waiting: Vec<Waiting>,
    full: Vec<(String, Duration)>,
    sync_fails: BTreeSet<String>,
    bucket_times_out: BTreeSet<String>,
    troubled_puts: BTreeMap<String, PutTrouble>,
}

#[derive(Debug)]
struct Waiting {
    fault: Fault,
    seen: u32,
}

impl Strikes {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            waiting: plan.faults.into_iter().map(|fault| Waiting { fault, seen: 0 }).collect(),
            full: Vec::new(),
            sync_fails: BTreeSet::new(),
            bucket_times_out: BTreeSet::new(),
            troubled_puts: BTreeMap::new(),
        }
    }

    /// Adds faults to the plan.
    pub(super) fn arm(&mut self, plan: Plan) {
        self.waiting.extend(plan.faults.into_iter().map(|fault| Waiting { fault, seen: 0 }));
    }

    /// The faults that strike now that `host` makes its pass of that number.
    pub(super) fn pass(&mut self, host: &str, number: u64) -> Vec<Fault> {
        self.take(|waiting| {
            let at = waiting.fault.at();
            at.host == host && matches!(at.event, Trigger::Pass(wanted) if wanted == number)
        })
    }

    /// The faults that strike now that `host` reaches a milestone.
    pub(super) fn milestone(&mut self, host: &str, what: &str) -> Vec<Fault> {
        self.take(|waiting| {
            let at = waiting.fault.at();
            let Trigger::Milestone { words, nth } = &at.event else { return false };
            if at.host != host || !says(what, words) {
                return false;
            }
            waiting.seen += 1;
            waiting.seen == *nth
        })
    }

    pub(super) fn fill(&mut self, volume: String, until: Duration) {
        self.full.push((volume, until));
    }

    pub(super) fn arm_sync(&mut self, host: String) {
        self.sync_fails.insert(host);
    }

    pub(super) fn arm_bucket(&mut self, host: String) {
        self.bucket_times_out.insert(host);
    }

    pub(super) fn trouble_next_put(&mut self, host: String, trouble: PutTrouble) {
        self.troubled_puts.insert(host, trouble);
    }

    /// What meets the object that `host` is writing to a repository in a folder.
    pub(super) fn put_trouble(&mut self, host: &str) -> Option<PutTrouble> {
        let planned = self.bucket_times_out.remove(host).then_some(PutTrouble::TimesOutAfter);
        self.troubled_puts.remove(host).or(planned)
    }

    /// The fault that meets this operation of `host`, if one does.
    pub(super) fn injected(&mut self, host: &str, operation: &Operation<'_>, at: Duration) -> Option<FaultKind> {
        match operation.kind {
            Kind::Write | Kind::BucketPut | Kind::Space if self.is_full(host, operation.volume, at) => {
                Some(FaultKind::NoSpace)
            }
            Kind::BucketPut => self.bucket_times_out.remove(host).then_some(FaultKind::TimedOut),
            Kind::Sync => self.sync_fails.remove(host).then_some(FaultKind::SyncFailed),
            Kind::Read | Kind::Space | Kind::Write | Kind::Name | Kind::Net => None,
        }
    }

    fn is_full(&self, host: &str, volume: Volume<'_>, at: Duration) -> bool {
        self.full.iter().filter(|(_, until)| at < *until).any(|(full, _)| match volume {
            Volume::Own => *full == own_volume(host),
            Volume::Named(name) => full == name,
            Volume::Elsewhere => false,
        })
    }

    fn take(&mut self, mut strikes: impl FnMut(&mut Waiting) -> bool) -> Vec<Fault> {
        let mut struck = Vec::new();
        self.waiting.retain_mut(|waiting| {
            let strikes = strikes(waiting);
            if strikes {
                struck.push(waiting.fault.clone());
            }
            !strikes
        });
        struck
    }
}

/// Whether a milestone's text has all of `words`.
pub(crate) fn says(what: &str, words: &str) -> bool {
    words.split_whitespace().all(|word| what.split_whitespace().any(|said| said == word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::Said;
    use crate::plan::When;

    #[test]
    fn a_fault_strikes_once_at_its_pass_of_its_host() {
        let fault = Fault::SyncFailed { at: When::pass("n1", 3) };
        let mut strikes = Strikes::new(Plan::peaceful().and(fault.clone()));
        assert_eq!(strikes.pass("n1", 2), []);
        assert_eq!(strikes.pass("n2", 3), []);
        assert_eq!(strikes.pass("n1", 3), [fault]);
        assert_eq!(strikes.pass("n1", 3), []);
    }

    #[test]
    fn a_milestone_is_matched_by_whole_words_and_counted() {
        let event = Trigger::Milestone { words: "phase=drained phase".into(), nth: 2 };
        let at = When { host: "n1".into(), event };
        let mut strikes = Strikes::new(Plan::peaceful().and(Fault::SyncFailed { at }));
        let mut struck = |what| strikes.milestone("n1", what).len();
        assert_eq!(struck("phase operation=1 phase=drained"), 0);
        assert_eq!(struck("phase operation=1 phase=drained-not"), 0);
        assert_eq!(struck("phase operation=2 phase=drained"), 1);
        assert_eq!(struck("phase operation=2 phase=drained"), 0);
    }

    #[test]
    fn a_volume_is_full_for_a_while() {
        let mut strikes = Strikes::new(Plan::peaceful());
        strikes.fill("/repo".into(), Duration::from_millis(10));
        let write = |volume| Operation { kind: Kind::Write, volume, said: Said::of("write", "") };
        let ms = Duration::from_millis;
        assert_eq!(strikes.injected("n1", &write(Volume::Named("/repo")), ms(9)), Some(FaultKind::NoSpace));
        assert_eq!(strikes.injected("n1", &write(Volume::Own), ms(9)), None);
        assert_eq!(strikes.injected("n1", &write(Volume::Named("/repo")), ms(10)), None);
        strikes.fill(own_volume("n1"), ms(20));
        assert_eq!(strikes.injected("n1", &write(Volume::Own), ms(10)), Some(FaultKind::NoSpace));
        assert_eq!(strikes.injected("n2", &write(Volume::Own), ms(10)), None);
    }

    #[test]
    fn an_armed_sync_fails_once() {
        let mut strikes = Strikes::new(Plan::peaceful());
        strikes.arm_sync("n1".into());
        let sync = Operation { kind: Kind::Sync, volume: Volume::Own, said: Said::of("sync", "") };
        assert_eq!(strikes.injected("n2", &sync, Duration::ZERO), None);
        assert_eq!(strikes.injected("n1", &sync, Duration::ZERO), Some(FaultKind::SyncFailed));
        assert_eq!(strikes.injected("n1", &sync, Duration::ZERO), None);
    }
}
