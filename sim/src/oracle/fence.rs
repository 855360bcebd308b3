//! Commits flow again within the lease, whoever dies.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Violation;

/// The invariant.
pub const WITHIN_THE_LEASE: &str = "commits flow again within the lease";

/// Watches fences and commits, on all hosts. It needs a workload that always has a commit waiting on each of them.
#[derive(Clone, Debug)]
pub struct FenceLease {
    lease: Duration,
    slack: Duration,
    closed: BTreeMap<String, Duration>,
}

impl FenceLease {
    /// Fences that must open after `lease`, and a commit that must follow within `slack`.
    pub fn new(lease: Duration, slack: Duration) -> Self {
        Self { lease, slack, closed: BTreeMap::new() }
    }

    /// The fence of `host` closed at the simulated time `at`. A second close of a closed fence changes nothing: a lease
    /// must not be renewed by closing again.
    pub fn closed(&mut self, host: &str, at: Duration) {
        self.closed.entry(host.into()).or_insert(at);
    }

    /// `host` is down, or its fence was seen open: nobody waits for it.
    pub fn opened(&mut self, host: &str) {
        self.closed.remove(host);
    }

    /// `host` has stood still for that long: its fence could not open meanwhile, and nobody on it waited.
    pub fn stood_still(&mut self, host: &str, length: Duration) {
        if let Some(at) = self.closed.get_mut(host) {
            *at += length;
        }
    }

    /// A transaction that began after the fence closed has committed on `host`.
    ///
    /// # Errors
    /// The violation, if it came too late.
    pub fn committed(&mut self, host: &str, at: Duration) -> Result<(), Violation> {
        let result = self.check(at);
        self.closed.remove(host);
        result
    }

    /// Judges the fences that are still closed at the simulated time `now`.
    ///
    /// # Errors
    /// The violation, if one has been closed for longer than the lease.
    pub fn check(&self, now: Duration) -> Result<(), Violation> {
        let bound = self.lease + self.slack;
        match self.closed.iter().find(|(_, at)| now.saturating_sub(**at) > bound) {
            Some((host, at)) => Err(Violation::new(
                WITHIN_THE_LEASE,
                format!("no commit on {host} from {at:?} to {now:?}; the lease is {:?}", self.lease),
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_commit_within_lease_and_slack_is_in_time() {
        let mut fence = FenceLease::new(ms(2_000), ms(100));
        fence.closed("n1", ms(10));
        assert_eq!(fence.check(ms(2_110)), Ok(()));
        assert_eq!(fence.committed("n1", ms(2_110)), Ok(()));
        assert_eq!(fence.check(ms(9_000)), Ok(()));
    }

    #[test]
    fn a_late_commit_and_a_missing_one_are_violations() {
        let mut fence = FenceLease::new(ms(2_000), ms(100));
        fence.closed("n1", ms(10));
        fence.closed("n1", ms(2_000));
        assert_eq!(fence.check(ms(2_111)).unwrap_err().invariant, WITHIN_THE_LEASE);
        assert_eq!(fence.committed("n1", ms(2_111)).unwrap_err().invariant, WITHIN_THE_LEASE);
    }

    #[test]
    fn nobody_waits_for_a_host_that_is_down() {
        let mut fence = FenceLease::new(ms(2_000), ms(100));
        fence.closed("n1", ms(10));
        fence.opened("n1");
        assert_eq!(fence.check(ms(9_000)), Ok(()));
    }
}
