//! Tasks: what is ready, what was spawned, and the handles of those who wait for an end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use sheetanchor_engine::env::{Task, Tasks};

use super::Shared;
use super::wire::{HostIndex, LifeNumber};
use crate::chance::Chance;
use crate::host::locked;

/// A task, by the order in which tasks were spawned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TaskId(u64);

/// The tasks that wait for the executor.
#[derive(Default)]
pub(super) struct Crew {
    ready: Arc<Mutex<Vec<TaskId>>>,
    spawned: Vec<Running>,
    count: u64,
}

impl Crew {
    /// What was spawned since the last look.
    pub(super) fn take_spawned(&mut self) -> Vec<Running> {
        core::mem::take(&mut self.spawned)
    }

    /// One of the tasks that are ready.
    pub(super) fn draw(&self, chance: &Chance) -> Option<TaskId> {
        let mut ready = locked(&self.ready);
        match ready.len() {
            0 => None,
            1 => ready.pop(),
            many => {
                let drawn = usize::try_from(chance.below(u64::try_from(many).unwrap_or(1))).unwrap_or(0);
                Some(ready.swap_remove(drawn))
            }
        }
    }
}

/// What a task, its wakers and its handle share.
struct Body {
    id: TaskId,
    ready: Arc<Mutex<Vec<TaskId>>>,
    queued: AtomicBool,
    cancelled: AtomicBool,
    ended: AtomicBool,
    joiners: Mutex<Vec<Waker>>,
}

impl Body {
    fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        let joiners = core::mem::take(&mut *locked(&self.joiners));
        for joiner in joiners {
            joiner.wake();
        }
    }
}

impl Wake for Body {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.ended.load(Ordering::Relaxed) && !self.queued.swap(true, Ordering::Relaxed) {
            locked(&self.ready).push(self.id);
        }
    }
}

/// A task that has not ended.
pub(super) struct Running {
    host: HostIndex,
    name: &'static str,
    body: Arc<Body>,
    waker: Waker,
    future: BoxFuture<'static, ()>,
}

impl Running {
    pub(super) fn id(&self) -> TaskId {
        self.body.id
    }

    pub(super) fn host(&self) -> HostIndex {
        self.host
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Drops what is left of it, then tells those who wait.
    pub(super) fn end(self) {
        let Self { body, future, .. } = self;
        drop(future);
        body.end();
    }

    /// Lets it go on; answers it back if it has not ended by that.
    pub(super) fn poll(mut self) -> Option<Self> {
        self.body.queued.store(false, Ordering::Relaxed);
        let ended = self.body.cancelled.load(Ordering::Relaxed)
            || self.future.as_mut().poll(&mut Context::from_waker(&self.waker)).is_ready();
        if !ended {
            return Some(self);
        }
        self.end();
        None
    }
}

/// Spawns tasks of one life of one host. After that life nothing is spawned any more.
#[derive(Clone)]
pub(super) struct HostTasks {
    shared: Arc<Shared>,
    host: HostIndex,
    life: LifeNumber,
}

impl HostTasks {
    pub(super) fn new(shared: Arc<Shared>, host: HostIndex, life: LifeNumber) -> Self {
        Self { shared, host, life }
    }

    /// Starts a task that nobody owns but its host.
    pub(super) fn start(&self, name: &'static str, future: BoxFuture<'static, ()>) {
        self.run(name, future);
    }

    fn run(&self, name: &'static str, future: BoxFuture<'static, ()>) -> Arc<Body> {
        let lives = locked(&self.shared.wire).lives(self.host, self.life);
        let mut crew = locked(&self.shared.crew);
        crew.count += 1;
        let body = Arc::new(Body {
            id: TaskId(crew.count),
            ready: crew.ready.clone(),
            queued: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            ended: AtomicBool::new(!lives),
            joiners: Mutex::new(Vec::new()),
        });
        if lives {
            let waker = Waker::from(body.clone());
            crew.spawned.push(Running { host: self.host, name, body: body.clone(), waker, future });
            drop(crew);
            body.wake_by_ref();
        } else {
            drop(crew);
            drop(future);
        }
        body
    }
}

impl Tasks for HostTasks {
    fn spawn(&self, name: &'static str, future: BoxFuture<'static, ()>) -> Box<dyn Task> {
        Box::new(HostTask { body: self.run(name, future) })
    }
}

struct HostTask {
    body: Arc<Body>,
}

#[async_trait]
impl Task for HostTask {
    fn cancel(&self) {
        // It is dropped when its turn comes: whoever cancels may hold a lock that its destructors take.
        self.body.cancelled.store(true, Ordering::Relaxed);
        self.body.wake_by_ref();
    }

    fn has_ended(&self) -> bool {
        self.body.ended.load(Ordering::Relaxed)
    }

    async fn join(&mut self) {
        std::future::poll_fn(|context| {
            let mut joiners = locked(&self.body.joiners);
            if self.body.ended.load(Ordering::Relaxed) {
                return Poll::Ready(());
            }
            if !joiners.iter().any(|joiner| joiner.will_wake(context.waker())) {
                joiners.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

impl Drop for HostTask {
    fn drop(&mut self) {
        self.cancel();
    }
}
