//! Hosts that stand still, and who is to be woken with them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;

use crate::host::{HostId, locked};

/// The hosts of one world that stand still. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Paused {
    /// Whether there are any: asked at every poll of every task.
    any: Arc<AtomicBool>,
    sleepers: Arc<Mutex<BTreeMap<HostId, Vec<Waker>>>>,
}

impl Paused {
    /// A host falls asleep.
    pub(super) fn begin(&self, host: HostId) {
        locked(&self.sleepers).entry(host).or_default();
        self.any.store(true, Ordering::Relaxed);
    }

    /// A host wakes: those who are to be polled now, in the order in which they came to rest. `None`: it was awake.
    pub(super) fn end(&self, host: HostId) -> Option<Vec<Waker>> {
        let mut sleepers = locked(&self.sleepers);
        let woken = sleepers.remove(&host);
        self.any.store(!sleepers.is_empty(), Ordering::Relaxed);
        woken
    }

    /// A host begins a new life: what slept in the old one is gone.
    pub(super) fn forget(&self, host: HostId) {
        drop(self.end(host));
    }

    pub(super) fn is_paused(&self, host: HostId) -> bool {
        self.any.load(Ordering::Relaxed) && locked(&self.sleepers).contains_key(&host)
    }

    /// Whether the host stands still; `waker` is woken with it.
    pub(super) fn rests(&self, host: HostId, waker: &Waker) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return false;
        }
        let mut sleepers = locked(&self.sleepers);
        let Some(known) = sleepers.get_mut(&host) else { return false };
        if !known.iter().any(|one| one.will_wake(waker)) {
            known.push(waker.clone());
        }
        true
    }
}
