//! The ports: all that the engine relies on, and no more. Faults are part of each contract. One conformance suite holds
//! every implementation, native and simulated, to what is written here.

pub mod bucket;
pub mod clock;
pub mod disk;
pub mod net;
pub mod tasks;
pub mod whole;

use alloc::sync::Arc;
use core::fmt;

pub use bucket::{Bucket, Put, folders_in};
pub use clock::{Clock, Entropy};
pub use disk::{Disk, DiskFile, DiskLock, Entry, EntryKind, Metadata, OpenMode, Published};
pub use net::{Listener, Net, Stream};
pub use sheetanchor_core::error::{Fault, FaultKind};
pub use tasks::{Task, TaskGroup, Tasks, Work, run_work};

/// The world of one process. Cheap to clone; no generic parameter travels through every signature.
#[derive(Clone)]
pub struct Env {
    /// Monotonic and wall time.
    pub clock: Arc<dyn Clock>,
    /// Random words.
    pub entropy: Arc<dyn Entropy>,
    /// Concurrent tasks.
    pub tasks: Arc<dyn Tasks>,
    /// Byte streams to other processes.
    pub net: Arc<dyn Net>,
    /// Files of this machine, and of volumes shared with others.
    pub disk: Arc<dyn Disk>,
    /// The repository.
    pub bucket: Arc<dyn Bucket>,
    /// CPU-bound work.
    pub work: Arc<dyn Work>,
}

impl fmt::Debug for Env {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Env").finish_non_exhaustive()
    }
}
