//! What will happen, and when. Two things at one moment happen in the order in which they were entered.

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::Duration;

use super::wire::{EndId, Packet};

/// Something that will happen.
pub(super) enum Entry {
    /// A task goes on.
    Wake(Waker),
    /// A packet arrives.
    Deliver(Packet),
    /// Nobody has answered a call: it is made again.
    Redial(EndId),
}

/// The place of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Appointment(Duration, u64);

/// Simulated time and everything that waits for it.
#[derive(Default)]
pub(super) struct Agenda {
    now: Duration,
    entered: u64,
    entries: BTreeMap<Appointment, Entry>,
}

impl Agenda {
    /// Since the start of the run.
    pub(super) fn now(&self) -> Duration {
        self.now
    }

    /// Enters what happens at `when`, or as soon as possible if that has passed.
    pub(super) fn enter(&mut self, when: Duration, entry: Entry) -> Appointment {
        self.entered += 1;
        let place = Appointment(when.max(self.now), self.entered);
        self.entries.insert(place, entry);
        place
    }

    /// Replaces an entry that has not happened yet. False: it has.
    pub(super) fn replace(&mut self, place: Appointment, entry: Entry) -> bool {
        self.entries.get_mut(&place).map(|old| *old = entry).is_some()
    }

    /// Strikes an entry out. Answers it, so that it is dropped outside of the lock.
    pub(super) fn cancel(&mut self, place: Appointment) -> Option<Entry> {
        self.entries.remove(&place)
    }

    /// When the next thing happens.
    pub(super) fn next_at(&self) -> Option<Duration> {
        self.entries.first_key_value().map(|(place, _)| place.0)
    }

    /// Advances to the next entry and takes it, if it is due by `until`.
    pub(super) fn take_due(&mut self, until: Duration) -> Option<Entry> {
        self.next_at().filter(|at| *at <= until)?;
        let (place, entry) = self.entries.pop_first()?;
        self.advance(place.0);
        Some(entry)
    }

    /// Lets time pass. It never goes back.
    pub(super) fn advance(&mut self, until: Duration) {
        self.now = self.now.max(until);
    }

    /// Takes everything out.
    pub(super) fn clear(&mut self) -> BTreeMap<Appointment, Entry> {
        core::mem::take(&mut self.entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(agenda: &mut Agenda, at_ms: u64, end: u64) -> Appointment {
        agenda.enter(Duration::from_millis(at_ms), Entry::Redial(EndId::new(end)))
    }

    fn next(agenda: &mut Agenda, until_ms: u64) -> Option<u64> {
        match agenda.take_due(Duration::from_millis(until_ms))? {
            Entry::Redial(end) => Some(end.number()),
            Entry::Wake(_) | Entry::Deliver(_) => None,
        }
    }

    #[test]
    fn things_happen_in_order_and_at_one_moment_in_the_order_of_entry() {
        let mut agenda = Agenda::default();
        for (at, end) in [(5, 1), (3, 2), (5, 3)] {
            noted(&mut agenda, at, end);
        }
        assert_eq!(next(&mut agenda, 4), Some(2));
        assert_eq!(agenda.now(), Duration::from_millis(3));
        assert_eq!(next(&mut agenda, 4), None);
        assert_eq!((next(&mut agenda, 9), next(&mut agenda, 9), next(&mut agenda, 9)), (Some(1), Some(3), None));
        assert_eq!(agenda.now(), Duration::from_millis(5));
    }

    #[test]
    fn what_was_cancelled_does_not_happen_and_the_past_is_now() {
        let mut agenda = Agenda::default();
        let place = noted(&mut agenda, 5, 1);
        assert!(agenda.cancel(place).is_some());
        assert!(agenda.cancel(place).is_none());
        agenda.advance(Duration::from_millis(7));
        agenda.advance(Duration::from_millis(6));
        noted(&mut agenda, 2, 2);
        assert_eq!(next(&mut agenda, 9), Some(2));
        assert_eq!(agenda.now(), Duration::from_millis(7));
    }
}
