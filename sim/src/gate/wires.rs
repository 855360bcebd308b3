//! Connections, and what befalls them, whatever backend carries them: a reset, which both ends hear, and a direction in
//! which nothing arrives for a while.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use crate::host::locked;

/// The connections of one world. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Wires(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    made: u64,
    /// By number, those whose end that dialled is there, and those that were reset and whose other end has not heard of it.
    wires: BTreeMap<u64, Wire>,
    /// From whom nothing arrives at whom; twice, if it was said twice.
    clogged: Vec<(String, String)>,
}

struct Wire {
    /// Which host dialled, and which was dialled.
    hosts: [String; 2],
    reset: bool,
    dialled_gone: bool,
    accepted_gone: bool,
    /// Who reads at either end, and waits.
    readers: [Option<Waker>; 2],
}

impl Wire {
    fn joins(&self, one: &str, other: &str) -> bool {
        let [dialled, accepted] = &self.hosts;
        (dialled == one && accepted == other) || (dialled == other && accepted == one)
    }
}

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Dialled = 0,
    Accepted = 1,
}

impl Wires {
    /// The number of a connection that was just made, from 1.
    pub(crate) fn join(&self, from: &str, to: &str) -> u64 {
        let mut state = locked(&self.0);
        state.made += 1;
        let number = state.made;
        let hosts = [from.to_owned(), to.to_owned()];
        state.wires.insert(
            number,
            Wire { hosts, reset: false, dialled_gone: false, accepted_gone: false, readers: [None, None] },
        );
        number
    }

    /// One end is gone.
    pub(crate) fn part(&self, number: u64, end: End) {
        let mut state = locked(&self.0);
        let Some(wire) = state.wires.get_mut(&number) else { return };
        match end {
            End::Dialled => wire.dialled_gone = true,
            End::Accepted => wire.accepted_gone = true,
        }
        // The end that accepted may not have heard yet that it was reset.
        if wire.dialled_gone && (wire.accepted_gone || !wire.reset) {
            state.wires.remove(&number);
        }
    }

    /// Whether a connection still carries anything.
    ///
    /// # Errors
    /// It was reset.
    pub(crate) fn check(&self, number: u64) -> io::Result<()> {
        match locked(&self.0).wires.get(&number) {
            Some(wire) if wire.reset => Err(io::ErrorKind::ConnectionReset.into()),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether what was sent to this end may be read now. Whoever reads is woken when that changes.
    pub(crate) fn poll_arrives(&self, number: u64, end: End, context: &Context<'_>) -> Poll<io::Result<()>> {
        let mut state = locked(&self.0);
        let State { wires, clogged, .. } = &mut *state;
        let Some(wire) = wires.get_mut(&number) else { return Poll::Ready(Ok(())) };
        if wire.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let [dialled, accepted] = &wire.hosts;
        let (here, there, reader) = match (end, &mut wire.readers) {
            (End::Dialled, [reader, _]) => (dialled, accepted, reader),
            (End::Accepted, [_, reader]) => (accepted, dialled, reader),
        };
        if !reader.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
            *reader = Some(context.waker().clone());
        }
        if clogged.iter().any(|(from, to)| from == there && to == here) { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    /// Every connection between the two breaks.
    pub(super) fn reset(&self, one: &str, other: &str) {
        let mut woken = Vec::new();
        for wire in locked(&self.0).wires.values_mut().filter(|wire| wire.joins(one, other)) {
            wire.reset = true;
            woken.extend(wire.readers.iter_mut().filter_map(Option::take));
        }
        woken.into_iter().for_each(Waker::wake);
    }

    /// Nothing that `from` sends arrives at `to`, until it is cleared.
    pub(super) fn clog(&self, from: &str, to: &str) {
        locked(&self.0).clogged.push((from.into(), to.into()));
    }

    /// What was held arrives.
    pub(super) fn clear(&self, from: &str, to: &str) {
        let mut woken = Vec::new();
        {
            let mut state = locked(&self.0);
            let State { wires, clogged, .. } = &mut *state;
            if let Some(found) = clogged.iter().position(|(one, other)| one == from && other == to) {
                clogged.remove(found);
            }
            for wire in wires.values_mut().filter(|wire| wire.joins(from, to)) {
                woken.extend(wire.readers.iter_mut().filter_map(Option::take));
            }
        }
        woken.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn polled(wires: &Wires, number: u64, end: End, woken: &Arc<Woken>) -> Poll<Result<(), io::ErrorKind>> {
        let waker = Waker::from(woken.clone());
        wires.poll_arrives(number, end, &Context::from_waker(&waker)).map_err(|error| error.kind())
    }

    #[test]
    fn a_reset_is_heard_at_both_ends_of_the_connections_between_the_two() {
        let (wires, woken) = (Wires::default(), Arc::new(Woken::default()));
        let [hit, spared] = [wires.join("n1", "n2"), wires.join("n1", "n3")];
        for (number, end) in [(hit, End::Dialled), (hit, End::Accepted), (spared, End::Dialled)] {
            assert_eq!(polled(&wires, number, end, &woken), Poll::Ready(Ok(())));
        }
        wires.reset("n2", "n1");
        assert_eq!(woken.0.load(Ordering::Relaxed), 2, "both readers of the one, and nobody else");
        let reset = Poll::Ready(Err(io::ErrorKind::ConnectionReset));
        assert_eq!(polled(&wires, hit, End::Dialled, &woken), reset);
        assert_eq!(polled(&wires, hit, End::Accepted, &woken), reset);
        assert_eq!(wires.check(hit).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(polled(&wires, spared, End::Dialled, &woken), Poll::Ready(Ok(())));
        let after = wires.join("n1", "n2");
        wires.check(after).unwrap();
    }

    #[test]
    fn what_is_clogged_is_so_in_one_direction_and_until_it_is_cleared_as_often() {
        let (wires, woken) = (Wires::default(), Arc::new(Woken::default()));
        let number = wires.join("n1", "n2");
        wires.clog("n1", "n2");
        wires.clog("n1", "n2");
        assert_eq!(polled(&wires, number, End::Accepted, &woken), Poll::Pending);
        assert_eq!(polled(&wires, number, End::Dialled, &woken), Poll::Ready(Ok(())));
        wires.clear("n1", "n2");
        assert_eq!(polled(&wires, number, End::Accepted, &woken), Poll::Pending);
        wires.clear("n1", "n2");
        assert!(woken.0.load(Ordering::Relaxed) > 0);
        assert_eq!(polled(&wires, number, End::Accepted, &woken), Poll::Ready(Ok(())));
        wires.part(number, End::Accepted);
        wires.part(number, End::Dialled);
        wires.reset("n1", "n2");
        assert_eq!(polled(&wires, number, End::Accepted, &woken), Poll::Ready(Ok(())), "its other end is gone anyway");
    }
}
