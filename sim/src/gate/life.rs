//! A life of a host: what its ports pass the gate with, and what ends with it.

use std::future::pending;
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use sheetanchor_core::error::Fault;
use sheetanchor_engine::env::Clock;

use super::{Cost, Gate, Met, Operation, Outcome, Passage, Passed, Request, RequestMet};
use crate::atlas::{Harm, place_of};
use crate::host::{HostId, locked};
use crate::plan::Damage;
use crate::trace::Flow;

/// One run of one host's program: from its start until the program returns or the host crashes.
#[derive(Clone)]
pub struct Life {
    pub(super) gate: Gate,
    pub(super) host: HostId,
    pub(super) number: u32,
}

impl Life {
    /// Whose life it is.
    pub const fn host(&self) -> HostId {
        self.host
    }

    /// Its number among that host's lives, from 1.
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// The gate of its world.
    pub const fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Whether it is over: nothing that its code still does may have an effect.
    pub fn is_over(&self) -> bool {
        locked(&self.gate.state).is_over(self)
    }

    /// Records that its program has returned.
    pub fn ended(&self) {
        let mut state = locked(&self.gate.state);
        if !state.is_over(self)
            && let Some(host) = state.hosts.get_mut(usize::from(self.host.number()))
        {
            host.ended = true;
        }
    }

    /// What meets a request of this life to the repository.
    pub(crate) fn request_meets(&self, request: Request) -> Option<RequestMet> {
        let at = self.gate.elapsed();
        let mut state = locked(&self.gate.state);
        let name = state.name(self.host);
        state.strikes.requests.meets(&name, request, at)
    }

    /// Keeps an object that lands later.
    pub(crate) fn keep_late(&self, key: &str, body: Bytes) {
        locked(&self.gate.state).late_objects.push((key.into(), body));
    }

    /// The object that lands now that somebody writes to its key.
    pub(crate) fn take_late(&self, key: &str) -> Option<Bytes> {
        let late = &mut locked(&self.gate.state).late_objects;
        let place = late.iter().position(|(known, _)| known == key)?;
        Some(late.swap_remove(place).1)
    }

    /// Until when the host's disks and its bucket stand still.
    fn stalled_for(&self) -> Duration {
        let at = self.gate.elapsed();
        let state = locked(&self.gate.state);
        let host = state.hosts.get(usize::from(self.host.number()));
        host.map_or(Duration::ZERO, |host| host.stalled_until.saturating_sub(at))
    }

    /// Whether the host is not to be polled: it stands still, and `waker` is woken with it, or time does.
    pub(crate) fn rests(&self, waker: &Waker) -> bool {
        !self.gate.polls.count(|| self.gate.elapsed()) || self.gate.paused.rests(self.host, waker)
    }

    /// Passes the gate before an effect. `None`: this life is over, wait for ever. Otherwise what the effect meets.
    pub fn before(&self, operation: &Operation<'_>, payload: &[u8]) -> Option<Passed> {
        let at = self.gate.elapsed();
        let mut state = locked(&self.gate.state);
        let name = state.pass(self, at, &Passage { operation, outcome: None, flow: None, payload })?;
        Some(state.strikes.meets(&name, operation, at))
    }

    /// Records silent damage that has just been done.
    fn was_harmed(&self, damage: Damage, operation: &Operation<'_>) {
        let at = self.gate.elapsed();
        let mut state = locked(&self.gate.state);
        let (name, place) = (state.name(self.host), place_of(operation));
        state.trace.milestone(at, None, format!("{} {name} {place}", damage.class()));
        state.strikes.silent.struck(Harm { damage, place });
    }

    /// Passes the gate after an effect. False: this life is over, wait for ever.
    pub fn after(&self, operation: &Operation<'_>, outcome: Outcome, payload: &[u8]) -> bool {
        let at = self.gate.elapsed();
        let passage = Passage { operation, outcome: Some(outcome), flow: None, payload };
        locked(&self.gate.state).pass(self, at, &passage).is_some()
    }

    /// Passes the gate with bytes that leave (without an outcome) or have arrived (with one). False: this life is over.
    pub(crate) fn carry(&self, operation: &Operation<'_>, outcome: Option<Outcome>, flow: Option<Flow>) -> bool {
        let at = self.gate.elapsed();
        locked(&self.gate.state).pass(self, at, &Passage { operation, outcome, flow, payload: &[] }).is_some()
    }

    /// Runs an effect through the gate. The effect is told which fault to inject. If this life ends before the answer, the
    /// returned future never completes.
    ///
    /// # Errors
    /// Those of the effect.
    pub async fn perform<T: Send>(
        &self,
        clock: &dyn Clock,
        operation: Operation<'_>,
        payload: &[u8],
        cost: Cost,
        effect: impl FnOnce(Option<Met>) -> Result<T, Fault> + Send,
    ) -> Result<T, Fault> {
        let Some(passed) = self.before(&operation, payload) else { return pending().await };
        if self.gate.paused.is_paused(self.host) {
            // What was begun when it fell asleep takes effect when it wakes.
            yield_once().await;
        }
        let wait = cost.before + passed.stall + self.stalled_for();
        if !wait.is_zero() {
            clock.sleep_until(clock.now().after(wait)).await;
            if self.is_over() {
                return pending().await;
            }
        }
        let result = effect(passed.met);
        if let (Some(Met::Silent(damage, _)), Ok(_)) = (passed.met, &result) {
            self.was_harmed(damage, &operation);
        }
        if cost.after.is_zero() {
            yield_once().await;
        } else {
            clock.sleep_until(clock.now().after(cost.after)).await;
        }
        if self.after(&operation, Outcome::of(&result), &[]) { result } else { pending().await }
    }
}

impl core::fmt::Debug for Life {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.debug_struct("Life").field("host", &self.host).field("number", &self.number).finish_non_exhaustive()
    }
}

/// Lets every other ready task run once.
async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
