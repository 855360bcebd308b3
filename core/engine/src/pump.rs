//! Runs a coordinator's machine: performs its effects side by side, feeds their results back, keeps its deadline.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use sheetanchor_core::identity::{ByteCount, OperationId};
use sheetanchor_core::time::Moment;
use sheetanchor_core::{backup, by_scn, point, restore};

use crate::env::Env;
use crate::watched::Watched;

/// A pure machine of `sheetanchor-core`.
pub trait Machine: Send {
    /// What happens to it.
    type Event: Send;
    /// What it wants done.
    type Effect: Send;

    /// The event that starts it.
    const BEGUN: Self::Event;
    /// The event of a deadline that has come.
    const ELAPSED: Self::Event;
    /// The event of an operator who wants it ended.
    const CANCELLED: Self::Event;

    /// Takes one event in.
    fn step(&mut self, now: Moment, event: Self::Event) -> alloc::vec::Vec<Self::Effect>;
    /// When [`Machine::ELAPSED`] is due.
    fn deadline(&self) -> Option<Moment>;
    /// How far it is, for traces and progress.
    fn phase(&self) -> &'static str;
}

macro_rules! machines {
    ($($module:ident :: $name:ident),+) => {$(
        impl Machine for $module::$name {
            type Event = $module::Event;
            type Effect = $module::Effect;

            const BEGUN: Self::Event = $module::Event::Begun;
            const ELAPSED: Self::Event = $module::Event::Elapsed;
            const CANCELLED: Self::Event = $module::Event::Cancelled;

            fn step(&mut self, now: Moment, event: Self::Event) -> alloc::vec::Vec<Self::Effect> {
                $module::$name::step(self, now, event)
            }

            fn deadline(&self) -> Option<Moment> {
                $module::$name::deadline(self)
            }

            fn phase(&self) -> &'static str {
                $module::$name::phase(self).word()
            }
        }
    )+};
}

machines!(point::FencedPoint, by_scn::ScnPoint, backup::Backup, restore::Restore);

/// What performing an effect came to.
#[derive(Debug)]
pub enum Performed<E, O> {
    /// Something to tell the machine.
    Event(E),
    /// The machine has ended, with this.
    Finished(O),
}

/// Performs the effects of one machine.
pub trait Perform<M: Machine, O>: Sync {
    /// Performs one effect. Dropped when the machine has ended.
    fn perform(&self, effect: M::Effect) -> BoxFuture<'_, Performed<M::Event, O>>;
}

/// Lets an operator end an operation: `true` asks for it. An operation and the restore point that it takes may both wait.
pub type Cancel = Arc<Watched<bool>>;

/// Follows operations from phase to phase, to show them.
pub trait Watcher: Send + Sync {
    /// `operation` has come to `phase`.
    fn phase(&self, operation: OperationId, phase: &'static str);

    /// The coordinator itself has proven so much for `_operation` of what is in the repository: bytes done, and in all.
    fn reading(&self, _operation: OperationId, _done: ByteCount, _total: ByteCount) {}
}

/// Runs `machine` to its end.
pub async fn run<M: Machine, O: Send>(
    env: &Env,
    operation: OperationId,
    machine: &mut M,
    performer: &impl Perform<M, O>,
    cancel: &Cancel,
    watcher: Option<&dyn Watcher>,
) -> O {
    let mut events = VecDeque::from([M::BEGUN]);
    let mut running = FuturesUnordered::new();
    let mut phase = machine.phase();
    let mut cancellable = true;
    loop {
        while let Some(event) = events.pop_front() {
            for effect in machine.step(env.clock.now(), event) {
                running.push(performer.perform(effect));
            }
            if machine.phase() != phase {
                phase = machine.phase();
                tracing::info!(target: "sheetanchor::phase", operation = %operation, phase);
                if let Some(watcher) = watcher {
                    watcher.phase(operation, phase);
                }
            }
        }
        let timer: BoxFuture<'_, ()> = match machine.deadline() {
            Some(deadline) => Box::pin(env.clock.sleep_until(deadline)),
            None => Box::pin(core::future::pending()),
        };
        tokio::select! {
            biased;
            Some(result) = running.next() => match result {
                Performed::Event(event) => events.push_back(event),
                Performed::Finished(outcome) => return outcome,
            },
            () = asked(cancel), if cancellable => {
                cancellable = false;
                events.push_back(M::CANCELLED);
            }
            () = timer => events.push_back(M::ELAPSED),
        }
    }
}

/// Returns once the operator has asked for the end.
pub(crate) async fn asked(cancel: &Cancel) {
    let mut watching = cancel.watch();
    while !watching.get() {
        watching.changed().await;
    }
}
