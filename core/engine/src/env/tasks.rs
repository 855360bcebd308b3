//! Concurrency. No task is detached: each has an owner that joins or cancels it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

/// Starts tasks.
pub trait Tasks: Send + Sync {
    /// Starts `future` at once, beside the caller. `name` is for traces. Dropping the handle cancels the task.
    fn spawn(&self, name: &'static str, future: BoxFuture<'static, ()>) -> Box<dyn Task>;
}

/// A running task. Dropping it cancels the task at its next await.
#[async_trait]
pub trait Task: Send + Sync {
    /// Asks the task to end at its next await.
    fn cancel(&self);

    /// Whether it has ended.
    fn has_ended(&self) -> bool;

    /// Returns once it has ended, by itself or cancelled.
    async fn join(&mut self);
}

/// Owns tasks of which only the whole matters, such as one per connection.
#[derive(Default)]
pub struct TaskGroup {
    tasks: Vec<Box<dyn Task>>,
}

impl TaskGroup {
    /// Adds a task, and lets go of those that have ended.
    pub fn add(&mut self, task: Box<dyn Task>) {
        self.tasks.retain(|task| !task.has_ended());
        self.tasks.push(task);
    }

    /// How many are running.
    pub fn len(&self) -> usize {
        self.tasks.iter().filter(|task| !task.has_ended()).count()
    }

    /// Whether none is running.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Cancels all and waits until they have ended.
    pub async fn stop(&mut self) {
        for task in &self.tasks {
            task.cancel();
        }
        for mut task in self.tasks.drain(..) {
            task.join().await;
        }
    }
}

impl fmt::Debug for TaskGroup {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TaskGroup").field("running", &self.len()).finish()
    }
}

/// Runs CPU-bound closures off the async threads: a thread pool natively, in place in a simulator.
pub trait Work: Send + Sync {
    /// Starts `job`. It runs to its end even if nobody waits for it.
    fn start(&self, job: Box<dyn FnOnce() + Send>);
}

/// Runs `job` on `work` and returns what it returns; `None` if the job panicked.
pub async fn run_work<T: Send + 'static>(work: &Arc<dyn Work>, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, outcome) = oneshot::channel();
    work.start(Box::new(move || drop(done.send(job()))));
    outcome.await.ok()
}
