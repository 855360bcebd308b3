//! Time of a host: that of the agenda.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use sheetanchor_core::time::{Moment, WallMillis};
use sheetanchor_engine::env::Clock;

use super::Shared;
use super::agenda::{Appointment, Entry};
use crate::host::locked;

/// The clock of every host alike.
pub(super) struct HostClock {
    shared: Arc<Shared>,
}

impl HostClock {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[async_trait]
impl Clock for HostClock {
    fn now(&self) -> Moment {
        Moment::from_nanos(0).after(self.shared.now())
    }

    fn wall(&self) -> WallMillis {
        WallMillis::new(self.now().nanos() / 1_000_000)
    }

    async fn sleep_until(&self, moment: Moment) {
        let until = moment.since(Moment::from_nanos(0));
        Sleep { shared: self.shared.clone(), until, place: None }.await;
    }
}

/// Ends at a moment. Dropped before, it leaves nothing on the agenda.
struct Sleep {
    shared: Arc<Shared>,
    until: Duration,
    place: Option<Appointment>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut agenda = locked(&this.shared.agenda);
        if agenda.now() >= this.until {
            return Poll::Ready(());
        }
        let waker = context.waker().clone();
        match this.place {
            Some(place) if agenda.replace(place, Entry::Wake(waker.clone())) => {}
            Some(_) | None => this.place = Some(agenda.enter(this.until, Entry::Wake(waker))),
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            let struck = locked(&self.shared.agenda).cancel(place);
            drop(struck);
        }
    }
}
