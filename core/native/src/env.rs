//! All ports of a real process.

use std::sync::Arc;

use sheetanchor_engine::env::{Disk, Env};
use sheetanchor_engine::folder_bucket::FolderBucket;

use crate::clock::TokioClock;
use crate::disk::FileDisk;
use crate::entropy::OsEntropy;
use crate::net::TcpNet;
use crate::tasks::{BlockingWork, TokioTasks};

/// The world as this process sees it, with its repository in the folder `repository`, an absolute path. Call it inside a
/// tokio runtime: tasks run there.
pub fn native_env(repository: impl Into<String>) -> Env {
    let disk: Arc<dyn Disk> = Arc::new(FileDisk);
    let entropy = Arc::new(OsEntropy);
    Env {
        clock: Arc::new(TokioClock::new()),
        bucket: Arc::new(FolderBucket::new(disk.clone(), entropy.clone(), repository)),
        entropy,
        tasks: Arc::new(TokioTasks::here()),
        net: Arc::new(TcpNet),
        disk,
        work: Arc::new(BlockingWork::here()),
    }
}
