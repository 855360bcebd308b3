//! What the operating system's errors mean to the ports' callers.

use std::io;

use rustix::io::Errno;
use sheetanchor_core::error::{Fault, FaultKind};

/// The fault for an error met while doing `operation` (an infinitive).
pub(crate) fn fault(operation: impl Into<String>, error: &io::Error) -> Fault {
    let kind = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT) => FaultKind::NotFound,
        // A folder that is to be removed or replaced and is not empty is taken, too.
        Some(Errno::EXIST | Errno::NOTEMPTY | Errno::ADDRINUSE) => FaultKind::Exists,
        Some(Errno::NOSPC | Errno::DQUOT) => FaultKind::NoSpace,
        Some(Errno::CONNREFUSED | Errno::CONNRESET | Errno::HOSTUNREACH | Errno::NETUNREACH) => FaultKind::Unreachable,
        Some(Errno::TIMEDOUT) => FaultKind::TimedOut,
        _ => FaultKind::Other,
    };
    Fault::new(kind, operation, error.to_string())
}

/// The fault for a sync that failed. A full disk is no better here: what was written may be gone.
pub(crate) fn sync_fault(operation: impl Into<String>, error: &io::Error) -> Fault {
    Fault::new(FaultKind::SyncFailed, operation, error.to_string())
}

/// Runs a call that blocks on a thread for such calls.
pub(crate) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    match tokio::task::spawn_blocking(call).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Fault::new(FaultKind::Other, "finish a blocking call", error.to_string())),
    }
}
