//! How far a plan has come: which faults have struck, and which of those are still in force.

use std::collections::BTreeSet;
use std::time::Duration;

use sheetanchor_core::error::FaultKind;

use super::requests::Requests;
use super::silent::Silent;
use super::{Kind, Met, Operation, Passed, Volume, own_volume};
use crate::bucket::VOLUME;
use crate::place::place;
use crate::plan::{Fault, IoTrouble, Plan, Trigger};

/// The faults of a plan that have not struck yet, and the ones in force.
#[derive(Debug)]
pub(super) struct Strikes {
    waiting: Vec<Waiting>,
    full: Vec<(String, Duration)>,
    sync_fails: BTreeSet<String>,
    pub(super) requests: Requests,
    pub(super) silent: Silent,
    /// By host, in the order in which they were armed.
    io: Vec<(String, IoTrouble)>,
}

#[derive(Debug)]
struct Waiting {
    fault: Fault,
    seen: u32,
    /// How many of the milestones have passed that its count begins at.
    begun: u32,
}

impl Waiting {
    const fn new(fault: Fault) -> Self {
        Self { fault, seen: 0, begun: 0 }
    }
}

impl Strikes {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            waiting: plan.faults.into_iter().map(Waiting::new).collect(),
            full: Vec::new(),
            sync_fails: BTreeSet::new(),
            requests: Requests::default(),
            silent: Silent::default(),
            io: Vec::new(),
        }
    }

    /// Adds faults to the plan.
    pub(super) fn arm(&mut self, plan: Plan) {
        self.waiting.extend(plan.faults.into_iter().map(Waiting::new));
    }

    /// How many faults have not struck.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The faults that strike now that `host` makes its pass of that number with an operation, before its effect or after.
    pub(super) fn pass(&mut self, host: &str, number: u64, operation: &Operation<'_>, after: bool) -> Vec<Fault> {
        self.take(|waiting| {
            let at = waiting.fault.at();
            if at.host != host {
                return false;
            }
            match &at.event {
                Trigger::Pass(wanted) => *wanted == number,
                Trigger::Milestone { .. } => false,
                Trigger::Place { what, nth, since } => {
                    let counts = since.as_ref().is_none_or(|since| waiting.begun >= since.nth);
                    if counts && place(&operation.said.to_string(), after) == *what {
                        waiting.seen += 1;
                        waiting.seen == *nth
                    } else {
                        false
                    }
                }
            }
        })
    }

    /// The faults that strike now that `host` reaches a milestone.
    pub(super) fn milestone(&mut self, host: &str, what: &str) -> Vec<Fault> {
        for waiting in &mut self.waiting {
            if let Trigger::Place { since: Some(since), .. } = &waiting.fault.at().event
                && since.host == host
                && says(what, &since.words)
            {
                waiting.begun += 1;
            }
        }
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

    pub(super) fn arm_io(&mut self, host: String, trouble: IoTrouble) {
        self.io.push((host, trouble));
    }

    /// What meets this operation of `host`.
    pub(super) fn meets(&mut self, host: &str, operation: &Operation<'_>, at: Duration) -> Passed {
        let fails = match operation.kind {
            Kind::Write | Kind::BucketPut | Kind::Space if self.is_full(host, operation.volume, at) => {
                Some(FaultKind::NoSpace)
            }
            Kind::Sync => self.sync_fails.remove(host).then_some(FaultKind::SyncFailed),
            Kind::Read | Kind::Space | Kind::Write | Kind::BucketPut | Kind::Name | Kind::Net => None,
        };
        if let Some(kind) = fails {
            return Passed { met: Some(Met::Fails(kind)), stall: Duration::ZERO };
        }
        if operation.kind == Kind::Net {
            return Passed::default();
        }
        let fits = |(whose, trouble): &(String, IoTrouble)| whose == host && fits(*trouble, operation);
        let Some(found) = self.io.iter().position(fits) else {
            return Passed { met: self.silent.meets(host, operation), stall: Duration::ZERO };
        };
        match self.io.remove(found).1 {
            IoTrouble::ReadFails | IoTrouble::WriteFails => {
                Passed { met: Some(Met::Fails(FaultKind::Other)), stall: Duration::ZERO }
            }
            IoTrouble::ShortRead | IoTrouble::ShortWrite => Passed { met: Some(Met::Short), stall: Duration::ZERO },
            IoTrouble::Stall { for_ms } => Passed { met: None, stall: Duration::from_millis(for_ms) },
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

/// Whether an operation is one that a trouble waits for.
fn fits(trouble: IoTrouble, operation: &Operation<'_>) -> bool {
    let on_disk = operation.volume != Volume::Named(VOLUME);
    match trouble {
        IoTrouble::ReadFails => on_disk && operation.kind == Kind::Read,
        IoTrouble::WriteFails => on_disk && matches!(operation.kind, Kind::Write | Kind::Name),
        IoTrouble::ShortRead => operation.said.verb == "disk read",
        IoTrouble::ShortWrite => operation.said.verb == "disk write",
        IoTrouble::Stall { .. } => operation.kind != Kind::Net,
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
    use crate::plan::{Since, When};

    #[test]
    fn a_fault_strikes_once_at_its_pass_of_its_host() {
        let fault = Fault::SyncFailed { at: When::pass("n1", 3) };
        let mut strikes = Strikes::new(Plan::peaceful().and(fault.clone()));
        let mut pass = |host, number| strikes.pass(host, number, &sync("/x"), false);
        assert_eq!(pass("n1", 2), []);
        assert_eq!(pass("n2", 3), []);
        assert_eq!(pass("n1", 3), [fault]);
        assert_eq!(pass("n1", 3), []);
    }

    fn sync(path: &str) -> Operation<'_> {
        Operation { kind: Kind::Sync, volume: Volume::Own, said: Said::of("disk sync", path) }
    }

    #[test]
    fn a_place_is_counted_from_its_milestone_on() {
        let since = Some(Since { host: "o1".into(), words: "phase=cut".into(), nth: 2 });
        let event = Trigger::Place { what: "after disk sync /x/#".into(), nth: 2, since };
        let fault = Fault::SyncFailed { at: When { host: "n1".into(), event } };
        let mut strikes = Strikes::new(Plan::peaceful().and(fault.clone()));
        let mut struck = |host: &str, path: &str, after: bool| strikes.pass(host, 1, &sync(path), after).len();
        assert_eq!([struck("n1", "/x/0017", true), struck("n1", "/x/0017", true)], [0, 0], "too early");
        assert_eq!(strikes.milestone("o1", "phase operation=7 phase=cut"), []);
        assert_eq!(strikes.milestone("o2", "phase operation=7 phase=cut"), []);
        assert_eq!(strikes.pass("n1", 2, &sync("/x/0017"), true), [], "the second one is meant");
        assert_eq!(strikes.milestone("o1", "phase operation=8 phase=cut"), []);
        let mut struck = |host: &str, path: &str, after: bool| strikes.pass(host, 3, &sync(path), after);
        assert_eq!(struck("n1", "/x/0018", true), []);
        assert_eq!(struck("n1", "/x/0018", false), []);
        assert_eq!(struck("n2", "/x/0018", true), []);
        assert_eq!(struck("n1", "/y/0018", true), []);
        assert_eq!(struck("n1", "/x/0019", true), [fault]);
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
        let fails = Passed { met: Some(Met::Fails(FaultKind::NoSpace)), stall: Duration::ZERO };
        assert_eq!(strikes.meets("n1", &write(Volume::Named("/repo")), ms(9)), fails);
        assert_eq!(strikes.meets("n1", &write(Volume::Own), ms(9)), Passed::default());
        assert_eq!(strikes.meets("n1", &write(Volume::Named("/repo")), ms(10)), Passed::default());
        strikes.fill(own_volume("n1"), ms(20));
        assert_eq!(strikes.meets("n1", &write(Volume::Own), ms(10)), fails);
        assert_eq!(strikes.meets("n2", &write(Volume::Own), ms(10)), Passed::default());
    }

    #[test]
    fn an_armed_sync_fails_once() {
        let mut strikes = Strikes::new(Plan::peaceful());
        strikes.arm_sync("n1".into());
        let sync = Operation { kind: Kind::Sync, volume: Volume::Own, said: Said::of("sync", "") };
        let fails = Passed { met: Some(Met::Fails(FaultKind::SyncFailed)), stall: Duration::ZERO };
        assert_eq!(strikes.meets("n2", &sync, Duration::ZERO), Passed::default());
        assert_eq!(strikes.meets("n1", &sync, Duration::ZERO), fails);
        assert_eq!(strikes.meets("n1", &sync, Duration::ZERO), Passed::default());
    }

    #[test]
    fn trouble_waits_for_an_operation_that_it_fits() {
        let operation = |kind, verb| Operation { kind, volume: Volume::Own, said: Said::of(verb, "/x") };
        let list = operation(Kind::Read, "disk list");
        let read = operation(Kind::Read, "disk read");
        let write = operation(Kind::Write, "disk write");
        let fails = Some(Met::Fails(FaultKind::Other));
        for (trouble, passes_by, met_at, met) in [
            (IoTrouble::ReadFails, &write, &list, fails),
            (IoTrouble::WriteFails, &read, &write, fails),
            (IoTrouble::ShortRead, &list, &read, Some(Met::Short)),
            (IoTrouble::ShortWrite, &read, &write, Some(Met::Short)),
        ] {
            let mut strikes = Strikes::new(Plan::peaceful());
            strikes.arm_io("n1".into(), trouble);
            let mut meets = |host: &str, operation| strikes.meets(host, operation, Duration::ZERO).met;
            assert_eq!((meets("n2", met_at), meets("n1", passes_by)), (None, None), "{trouble:?}");
            assert_eq!((meets("n1", met_at), meets("n1", met_at)), (met, None), "{trouble:?}");
        }
        let mut strikes = Strikes::new(Plan::peaceful());
        strikes.arm_io("n1".into(), IoTrouble::Stall { for_ms: 7 });
        assert_eq!(strikes.meets("n1", &operation(Kind::Net, "send"), Duration::ZERO), Passed::default());
        assert_eq!(strikes.meets("n1", &list, Duration::ZERO).stall, Duration::from_millis(7));
    }
}
