//! Which host's code is running right now. A simulator runs all hosts on one thread, so a thread-local tells.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;

use crate::gate::Life;

/// A host of the world, by the order in which hosts were first started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(u16);

impl HostId {
    /// The host of that number.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// Its number, from 0.
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "#{}", self.0)
    }
}

thread_local! {
    static RUNNING: RefCell<Vec<Life>> = const { RefCell::new(Vec::new()) };
}

/// The life whose code is running on this thread, if any.
pub fn running() -> Option<Life> {
    RUNNING.with_borrow(|lives| lives.last().cloned())
}

/// A future that is part of one life of one host: while it is polled, [`running`] names that life.
pub struct OnHost {
    life: Life,
    inner: BoxFuture<'static, ()>,
}

impl OnHost {
    /// Makes `inner` part of `life`.
    pub fn new(life: Life, inner: BoxFuture<'static, ()>) -> Self {
        Self { life, inner }
    }
}

impl Future for OnHost {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.life.rests(context.waker()) {
            return Poll::Pending;
        }
        RUNNING.with_borrow_mut(|lives| lives.push(self.life.clone()));
        // A panic passes through here; the guard keeps the stack right for the next task on this thread.
        let _guard = Leave;
        self.inner.as_mut().poll(context)
    }
}

impl fmt::Debug for OnHost {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("OnHost").field("life", &self.life).finish_non_exhaustive()
    }
}

struct Leave;

impl Drop for Leave {
    fn drop(&mut self) {
        RUNNING.with_borrow_mut(Vec::pop);
    }
}

/// Locks, also after a panic in another holder: a run that panicked has failed already, and still has to be read.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
