//! What a command works with: the cluster file, the ports of this process, and a coordinator.

use std::path::Path;
use std::sync::Arc;

use sheetanchor_core::error::Result as Outcome;
use sheetanchor_engine::coordinator::Coordinator;
use sheetanchor_engine::env::{Bucket, Env, Task};
use sheetanchor_native::env::native_env;

use crate::config::ClusterFile;
use crate::interrupt::cancel_on_interrupt;
use crate::progress::Progress;
use crate::report::Result;
use crate::screen::Screen;

/// The ports of this process, with the repository that `file` names.
pub fn environment(file: &ClusterFile) -> Env {
    native_env(&file.repository)
}

/// The repository that clones are made from, if `file` names one.
pub fn source(file: &ClusterFile) -> Option<Arc<dyn Bucket>> {
    file.source.as_ref().map(|folder| native_env(folder).bucket)
}

/// A coordinator that the operator can watch and interrupt.
pub struct Connected {
    /// The ports.
    pub env: Env,
    /// The coordinator.
    pub coordinator: Coordinator,
    progress: Arc<Progress>,
    _interrupts: Box<dyn Task>,
}

impl Connected {
    /// Reads the cluster file at `path`. Nobody is dialled yet.
    ///
    /// # Errors
    /// Those of [`ClusterFile::read`].
    pub fn new(path: &Path, screen: &Screen) -> Result<Self> {
        let file = ClusterFile::read(path)?;
        let env = environment(&file);
        let (cancel, interrupts) = cancel_on_interrupt(&env, screen)?;
        let progress = Arc::new(Progress::new(screen));
        let coordinator =
            Coordinator::new(env.clone(), file.setup(), file.limits).cancelled_by(cancel).watched_by(progress.clone());
        let coordinator = match source(&file) {
            Some(source) => coordinator.cloning_from(source),
            None => coordinator,
        };
        Ok(Self { env, coordinator, progress, _interrupts: interrupts })
    }

    /// Where it is shown how an operation gets on.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Shows how `operation` gets on, until it has ended.
    ///
    /// # Errors
    /// The operation's own.
    pub async fn watched<T>(&self, operation: impl Future<Output = Outcome<T>>) -> Result<T> {
        Ok(self.progress.during(&self.env, &self.coordinator, operation).await?)
    }
}
