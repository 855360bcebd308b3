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
struct TaskId(u64);

/// Where a task stands among those that have not ended. The place of one that has is another's later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    id: TaskId,
    index: usize,
}

/// The tasks that have not ended, but for the one that is being polled.
#[derive(Default)]
pub(super) struct Roster {
    places: Vec<Option<Running>>,
}

impl Roster {
    /// Puts a task at its place.
    pub(super) fn put(&mut self, task: Running) {
        let index = task.body.place.index;
        if self.places.len() <= index {
            self.places.resize_with(index + 1, || None);
        }
        if let Some(place) = self.places.get_mut(index) {
            assert!(place.is_none(), "a place has one task");
            *place = Some(task);
        }
    }

    /// Takes a task out, if it has not ended.
    pub(super) fn take(&mut self, at: Place) -> Option<Running> {
        self.places.get_mut(at.index)?.take_if(|task| task.body.place == at)
    }

    /// Takes out all tasks that `leave` says so of, in the order in which they were spawned.
    pub(super) fn extract(&mut self, leave: impl Fn(&Running) -> bool) -> Vec<Running> {
        let mut left: Vec<Running> =
            self.places.iter_mut().filter_map(|task| task.take_if(|task| leave(task))).collect();
        left.sort_unstable_by_key(|task| task.body.place.id);
        left
    }

    /// Those that are there.
    pub(super) fn all(&self) -> impl Iterator<Item = &Running> {
        self.places.iter().flatten()
    }
}

/// The tasks that wait for the executor.
#[derive(Default)]
pub(super) struct Crew {
    ready: Arc<Mutex<Vec<Place>>>,
    spawned: Vec<Running>,
    count: u64,
    /// Places that no task stands at, and how many there are in all.
    free: Vec<usize>,
    places: usize,
}

impl Crew {
    /// What was spawned since the last look.
    pub(super) fn take_spawned(&mut self) -> Vec<Running> {
        core::mem::take(&mut self.spawned)
    }

    /// The place of a new task.
    fn place(&mut self) -> Place {
        self.count += 1;
        let index = self.free.pop().unwrap_or_else(|| {
            self.places += 1;
            self.places - 1
        });
        Place { id: TaskId(self.count), index }
    }

    /// A task has ended: another may have its place.
    pub(super) fn give_back(&mut self, place: Place) {
        self.free.push(place.index);
    }

    /// One of the tasks that are ready.
    pub(super) fn draw(&self, chance: &Chance) -> Option<Place> {
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
    place: Place,
    ready: Arc<Mutex<Vec<Place>>>,
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
            locked(&self.ready).push(self.place);
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
    pub(super) fn place(&self) -> Place {
        self.body.place
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
        let place = crew.place();
        let body = Arc::new(Body {
            place,
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
            crew.give_back(place);
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
