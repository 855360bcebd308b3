//! Tasks of a turmoil host.

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use sheetanchor_engine::env::{Task, Tasks};
use tokio::task::JoinHandle;

/// Spawns on the runtime of whichever host runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostTasks;

impl Tasks for HostTasks {
    #[allow(clippy::disallowed_methods, reason = "this is where the port meets the runtime")]
    fn spawn(&self, _name: &'static str, future: BoxFuture<'static, ()>) -> Box<dyn Task> {
        Box::new(HostTask { handle: tokio::spawn(future), joined: false })
    }
}

struct HostTask {
    handle: JoinHandle<()>,
    joined: bool,
}

#[async_trait]
impl Task for HostTask {
    fn cancel(&self) {
        self.handle.abort();
    }

    fn has_ended(&self) -> bool {
        self.joined || self.handle.is_finished()
    }

    async fn join(&mut self) {
        if !self.joined {
            // An error says that it was cancelled or that it panicked; the world's hook has seen the panic.
            drop((&mut self.handle).await);
            self.joined = true;
        }
    }
}

impl Drop for HostTask {
    fn drop(&mut self) {
        self.handle.abort();
    }
}
