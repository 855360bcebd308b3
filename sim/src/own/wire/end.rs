//! One end of a connection.

use std::collections::VecDeque;
use std::io;
use std::task::Waker;
use std::time::Duration;

use super::{HostIndex, LifeNumber};
use crate::own::agenda::Appointment;

/// Bytes that may be under way or unread in one direction: a writer waits beyond that.
const WINDOW: usize = 64 * 1024;

/// One of the two ends of a connection: the caller's is even, the other one follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::own) struct EndId(u64);

impl EndId {
    /// The end of the caller of that connection.
    pub(super) const fn dialling(connection: u64) -> Self {
        Self(connection << 1)
    }

    /// The end at the peer.
    pub(super) const fn other(self) -> Self {
        Self(self.0 ^ 1)
    }

    #[cfg(test)]
    pub(in crate::own) const fn new(number: u64) -> Self {
        Self(number)
    }

    #[cfg(test)]
    pub(in crate::own) const fn number(self) -> u64 {
        self.0
    }
}

/// How far a connection is, as one end knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Called so many times, and not answered yet.
    Calling {
        port: u16,
        calls: u32,
    },
    Open,
    Failed(io::ErrorKind),
}

pub(super) struct End {
    pub(super) host: HostIndex,
    pub(super) life: LifeNumber,
    pub(super) peer: HostIndex,
    pub(super) phase: Phase,
    /// The peer has heard the call.
    pub(super) heard: bool,
    /// Closed from this side.
    pub(super) shut: bool,
    /// When the next call is made.
    pub(super) redial: Option<Appointment>,
    /// When the last packet that it sent arrives: none overtakes another.
    pub(super) arrives_after: Duration,
    /// Who waits for bytes, or for an answer.
    pub(super) reader: Option<Waker>,
    writer: Option<Waker>,
    inbox: VecDeque<u8>,
    /// Closed by the peer.
    closed: bool,
    credit: usize,
    /// Read, and not yet told to the writer.
    taken: usize,
}

impl End {
    pub(super) fn new(host: HostIndex, life: LifeNumber, peer: HostIndex, phase: Phase) -> Self {
        Self {
            host,
            life,
            peer,
            phase,
            heard: false,
            shut: false,
            redial: None,
            arrives_after: Duration::ZERO,
            reader: None,
            writer: None,
            inbox: VecDeque::new(),
            closed: false,
            credit: WINDOW,
            taken: 0,
        }
    }

    pub(super) fn has_unread(&self) -> bool {
        !self.inbox.is_empty()
    }

    pub(super) fn answered(&mut self) {
        if matches!(self.phase, Phase::Calling { .. }) {
            self.phase = Phase::Open;
            wake(&mut self.reader);
        }
    }

    pub(super) fn arrived(&mut self, bytes: &[u8]) {
        assert!(self.inbox.len() + bytes.len() <= WINDOW, "a peer sends no more than there is room for");
        self.inbox.extend(bytes);
        wake(&mut self.reader);
    }

    pub(super) fn credited(&mut self, bytes: usize) {
        self.credit += bytes;
        assert!(self.credit <= WINDOW, "no more was read than was sent");
        wake(&mut self.writer);
    }

    pub(super) fn closed(&mut self) {
        self.closed = true;
        wake(&mut self.reader);
    }

    /// The first failure stays.
    pub(super) fn fail(&mut self, kind: io::ErrorKind) {
        match self.phase {
            Phase::Calling { .. } if kind == io::ErrorKind::ConnectionReset => {
                self.phase = Phase::Failed(io::ErrorKind::ConnectionRefused);
            }
            Phase::Calling { .. } | Phase::Open => self.phase = Phase::Failed(kind),
            Phase::Failed(_) => return,
        }
        wake(&mut self.reader);
        wake(&mut self.writer);
    }

    /// What there is to read: bytes, then the end or the error. `None`: nothing yet.
    pub(super) fn read(&mut self, length: usize, waker: &Waker) -> Option<io::Result<Vec<u8>>> {
        if self.inbox.is_empty() {
            return match self.phase {
                Phase::Failed(kind) => Some(Err(kind.into())),
                Phase::Open | Phase::Calling { .. } if self.closed => Some(Ok(Vec::new())),
                Phase::Open | Phase::Calling { .. } => {
                    self.reader = Some(waker.clone());
                    None
                }
            };
        }
        let bytes: Vec<u8> = self.inbox.drain(..length.min(self.inbox.len())).collect();
        self.taken += bytes.len();
        Some(Ok(bytes))
    }

    /// What the writer has to be told that there is room for again: not each byte, but half of the window.
    pub(super) fn credit_to_give(&mut self) -> Option<usize> {
        (self.taken >= WINDOW / 2).then(|| core::mem::take(&mut self.taken))
    }

    /// Takes room for up to `length` bytes. `None`: there is none yet.
    pub(super) fn room(&mut self, length: usize, waker: &Waker) -> Option<io::Result<usize>> {
        match self.phase {
            Phase::Failed(kind) => return Some(Err(kind.into())),
            Phase::Open | Phase::Calling { .. } if self.shut => return Some(Err(io::ErrorKind::BrokenPipe.into())),
            Phase::Open | Phase::Calling { .. } => {}
        }
        let room = length.min(self.credit);
        if room == 0 && length > 0 {
            self.writer = Some(waker.clone());
            return None;
        }
        self.credit -= room;
        Some(Ok(room))
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}
