//! Ctrl-C and SIGTERM. The first asks for an orderly end, the second ends the process.

use std::sync::Arc;

use sheetanchor_core::error::{Fault, FaultKind};
use sheetanchor_engine::env::{Env, Task};
use sheetanchor_engine::pump::Cancel;
use sheetanchor_engine::watched::Watched;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::report::Result;
use crate::screen::Screen;

/// Listens for both signals.
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// Listens from now on.
    ///
    /// # Errors
    /// A fault if the system does not let us.
    pub fn listen() -> Result<Self> {
        let listened =
            |kind| signal(kind).map_err(|error| Fault::new(FaultKind::Other, "listen for signals", error.to_string()));
        Ok(Self { interrupt: listened(SignalKind::interrupt())?, terminate: listened(SignalKind::terminate())? })
    }

    /// Returns at the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Turns the first signal into a cancellation, and ends the process at the second. Stops listening when dropped.
pub fn cancel_on_interrupt(env: &Env, screen: &Screen) -> Result<(Cancel, Box<dyn Task>)> {
    let mut interrupts = Interrupts::listen()?;
    let cancel: Cancel = Arc::new(Watched::new(false));
    let asked = Arc::clone(&cancel);
    let screen = screen.clone();
    let listening = env.tasks.spawn(
        "interrupts",
        Box::pin(async move {
            interrupts.next().await;
            screen.note("ending: fences are released and pins dropped; once more to stop at once");
            asked.set(true);
            interrupts.next().await;
            screen.note("stopped: what is left ends with its leases");
            std::process::exit(1);
        }),
    );
    Ok((cancel, listening))
}
