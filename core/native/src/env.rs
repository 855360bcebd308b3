//! All ports of a real process.

use std::sync::Arc;

use sheetanchor_engine::env::{Bucket, Disk, Env};

use crate::clock::TokioClock;
use crate::disk::FileDisk;
use crate::entropy::OsEntropy;
use crate::net::TcpNet;
use crate::tasks::{BlockingWork, TokioTasks};

/// The world as this process sees it, with `bucket` as its repository. Call it inside a tokio runtime: tasks run there.
pub fn native_env(bucket: Arc<dyn Bucket>) -> Env {
    Env {
        clock: Arc::new(TokioClock::new()),
        entropy: Arc::new(OsEntropy),
        tasks: Arc::new(TokioTasks::here()),
        net: Arc::new(TcpNet),
        disk: native_disk(),
        bucket,
        work: Arc::new(BlockingWork::here()),
    }
}

/// The files of this machine, for what is made before an [`Env`] is, such as a bucket in a folder.
pub fn native_disk() -> Arc<dyn Disk> {
    Arc::new(FileDisk)
}
