//! Concurrency, from tokio.

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use sheetanchor_engine::env::{Task, Tasks, Work};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Tasks of one tokio runtime.
#[derive(Clone, Debug)]
pub struct TokioTasks {
    runtime: Handle,
}

impl TokioTasks {
    /// Tasks of the runtime that the caller runs in.
    pub fn here() -> Self {
        Self { runtime: Handle::current() }
    }
}

impl Tasks for TokioTasks {
    fn spawn(&self, name: &'static str, future: BoxFuture<'static, ()>) -> Box<dyn Task> {
        Box::new(Running { name, handle: Some(self.runtime.spawn(future)) })
    }
}

/// A task that ends with its owner. `handle` is gone once the task was joined.
struct Running {
    name: &'static str,
    handle: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel();
    }
}

#[async_trait]
impl Task for Running {
    fn cancel(&self) {
        if let Some(handle) = &self.handle {
            handle.abort();
        }
    }

    fn has_ended(&self) -> bool {
        self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }

    async fn join(&mut self) {
        // Borrowed, not taken: a join that is cancelled leaves the task owned.
        let Some(handle) = &mut self.handle else { return };
        if let Err(error) = handle.await
            && error.is_panic()
        {
            tracing::error!(task = self.name, "the task panicked");
        }
        self.handle = None;
    }
}

/// CPU-bound work on tokio's blocking threads.
#[derive(Clone, Debug)]
pub struct BlockingWork {
    runtime: Handle,
}

impl BlockingWork {
    /// Work on the blocking threads of the runtime that the caller runs in.
    pub fn here() -> Self {
        Self { runtime: Handle::current() }
    }
}

impl Work for BlockingWork {
    fn start(&self, job: Box<dyn FnOnce() + Send>) {
        // The handle is not kept: a blocking job cannot be cancelled, and `run_work` waits for its outcome.
        drop(self.runtime.spawn_blocking(job));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use sheetanchor_engine::env::tasks::run_work;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_dropped_task_is_cancelled() {
        let (held, gone) = oneshot::channel::<()>();
        let task = TokioTasks::here().spawn(
            "waits",
            Box::pin(async move {
                std::future::pending::<()>().await;
                drop(held);
            }),
        );
        assert!(!task.has_ended());
        drop(task);
        assert!(tokio::time::timeout(Duration::from_secs(5), gone).await.unwrap().is_err(), "its end was dropped");
    }

    #[tokio::test]
    async fn a_task_is_joined_once_it_has_ended_and_again() {
        let mut task = TokioTasks::here().spawn("ends", Box::pin(async {}));
        task.join().await;
        task.join().await;
        assert!(task.has_ended());
    }

    #[tokio::test]
    async fn work_that_panics_answers_nothing() {
        let work: Arc<dyn Work> = Arc::new(BlockingWork::here());
        assert_eq!(run_work(&work, || 6 * 7).await, Some(42));
        assert_eq!(run_work(&work, || -> u8 { panic!("on purpose") }).await, None);
    }
}
