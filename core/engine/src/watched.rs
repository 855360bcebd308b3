//! A value that tasks wait for. `tokio::sync::watch` wakes its waiters in an order drawn from the runtime's own random
//! stream, which no seed reaches: two runs of one seed differ as soon as two tasks wait for one value (found by the
//! determinism check of the stories). Here they are woken in the order in which they began to wait.

use core::fmt;
use core::pin::pin;

use tokio::sync::{Notify, watch};

/// A value, and word of its changes.
pub struct Watched<T> {
    /// The number of changes so far, and the value. Nobody waits on this.
    value: watch::Sender<(u64, T)>,
    changed: Notify,
}

impl<T> Watched<T> {
    /// Starts with `value`.
    pub fn new(value: T) -> Self {
        Self { value: watch::Sender::new((0, value)), changed: Notify::new() }
    }

    /// Changes the value and tells everybody who waits.
    pub fn modify(&self, change: impl FnOnce(&mut T)) {
        self.value.send_modify(|(count, value)| {
            *count = count.wrapping_add(1);
            change(value);
        });
        self.changed.notify_waiters();
    }

    /// Replaces the value and tells everybody who waits.
    pub fn set(&self, value: T) {
        self.modify(|old| *old = value);
    }

    /// Begins to watch: changes from here on are not missed.
    pub fn watch(&self) -> Watching<'_, T> {
        Watching { watched: self, seen: self.value.borrow().0 }
    }
}

impl<T: Clone> Watched<T> {
    /// The value as it is now.
    pub fn get(&self) -> T {
        self.value.borrow().1.clone()
    }
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Watched").finish_non_exhaustive()
    }
}

/// Somebody who waits for changes of a [`Watched`] value.
#[derive(Debug)]
pub struct Watching<'a, T> {
    watched: &'a Watched<T>,
    seen: u64,
}

impl<T> Watching<'_, T> {
    /// Returns once the value has changed since this was last asked, or since it began to watch. Cancelling is harmless.
    pub async fn changed(&mut self) {
        loop {
            let mut told = pin!(self.watched.changed.notified());
            // In line before the look, so that no change falls between look and wait.
            told.as_mut().enable();
            let count = self.watched.value.borrow().0;
            if count != self.seen {
                self.seen = count;
                return;
            }
            told.await;
        }
    }
}

impl<T: Clone> Watching<'_, T> {
    /// The value as it is now; later changes are news.
    pub fn get(&mut self) -> T {
        let now = self.watched.value.borrow();
        self.seen = now.0;
        now.1.clone()
    }
}
