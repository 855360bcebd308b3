//! Tasks of a turmoil host.

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use sheetanchor_engine::env::{Task, Tasks};
use tokio::task::JoinHandle;

/// Spawns on the local set of whichever host runs. `tokio::spawn` would do, but for a crash: the runtime drops its tasks
/// in an order that depends on how many tasks this process has spawned before (they are kept in shards, by number), and
/// the streams that they hold draw from turmoil's chance as they close. A local set drops its tasks in order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostTasks;

impl Tasks for HostTasks {
    #[allow(clippy::disallowed_methods, reason = "this is where the port meets the runtime")]
    fn spawn(&self, _name: &'static str, future: BoxFuture<'static, ()>) -> Box<dyn Task> {
        Box::new(HostTask { handle: tokio::task::spawn_local(future), joined: false })
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
