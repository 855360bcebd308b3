//! What happened in a run: a hash over every event, and all milestones; and every event in words, if it was asked to keep
//! them. A run of which nobody reads the events does not pay for their words.

use std::hash::{Hash, Hasher as _};
use std::time::Duration;

use crate::gate::Kind;
use crate::host::HostId;

mod digest;

use digest::Digest;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number in the run, from 1: the order in which things really happened.
    pub number: u64,
    /// Simulated time since the start.
    pub at: Duration,
    /// Whose doing it is; `None`: the world's.
    pub host: Option<HostId>,
    /// What it is.
    pub what: String,
    /// What it is, for those who draw it. Not hashed: the text says the same.
    pub detail: Detail,
}

/// What an event is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// A line of the timeline.
    Milestone,
    /// An operation passes the gate: before its effect, without an outcome; after it, with one.
    Pass {
        /// What it does.
        kind: Kind,
        /// How it ended: `done`, `failed: …`, or a number of bytes.
        outcome: Option<String>,
        /// The bytes that leave or arrive, if it is a message.
        flow: Option<Flow>,
    },
}

/// Bytes on one connection, in one direction. A message that leaves as `from..until` has arrived when the other end has
/// received `until` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The number of the connection, from 1, in the order in which connections were made.
    pub link: u64,
    /// Whether these bytes go from the end that connected to the end that accepted.
    pub forth: bool,
    /// Bytes that went before.
    pub from: u64,
    /// Bytes that have gone with these.
    pub until: u64,
}

/// The record of one run.
#[derive(Debug)]
pub struct Trace {
    digest: Digest,
    number: u64,
    milestones: Vec<Event>,
    /// Every event, if somebody wants to see them all.
    kept: Option<Vec<Event>>,
}

impl Trace {
    /// An empty record.
    pub fn new() -> Self {
        Self { digest: Digest::new(), number: 0, milestones: Vec::new(), kept: None }
    }

    /// Keeps every event from here on: as much memory as there are events.
    pub fn keep_all(&mut self) {
        self.kept.get_or_insert_default();
    }

    /// Every event since [`Trace::keep_all`].
    pub fn kept(&self) -> &[Event] {
        self.kept.as_deref().unwrap_or_default()
    }

    /// Records an event: its hash, and what `told` says of it if events are kept. `said` must tell apart whatever `told`
    /// does. `payload` goes into the hash and nowhere else.
    pub fn record(
        &mut self,
        at: Duration,
        host: Option<HostId>,
        said: impl Hash,
        payload: &[u8],
        told: impl FnOnce() -> (String, Detail),
    ) {
        self.number += 1;
        self.digest.write_u64(at.as_secs());
        self.digest.write_u32(at.subsec_nanos());
        self.digest.write_u16(host.map_or(u16::MAX, HostId::number));
        said.hash(&mut self.digest);
        payload.hash(&mut self.digest);
        if let Some(kept) = &mut self.kept {
            let (what, detail) = told();
            kept.push(Event { number: self.number, at, host, what, detail });
        }
    }

    /// Records an event that the timeline shows.
    pub fn milestone(&mut self, at: Duration, host: Option<HostId>, what: String) {
        self.record(at, host, &what, &[], || (what.clone(), Detail::Milestone));
        self.milestones.push(Event { number: self.number, at, host, what, detail: Detail::Milestone });
    }

    /// How many events there were.
    pub const fn len(&self) -> u64 {
        self.number
    }

    /// Whether nothing happened yet.
    pub const fn is_empty(&self) -> bool {
        self.number == 0
    }

    /// The hash over every event so far, as 16 digits. Equal hashes: equal runs.
    pub fn hash(&self) -> String {
        format!("{:016x}", self.digest.finish())
    }

    /// All milestones.
    pub fn milestones(&self) -> &[Event] {
        &self.milestones
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

/// Events as text in columns: time, host, what.
pub fn table<'a>(events: impl Iterator<Item = &'a Event>, name_of: impl Fn(HostId) -> String) -> String {
    let named: Vec<_> = events.map(|event| (event, event.host.map_or_else(|| "world".to_string(), &name_of))).collect();
    let width = named.iter().map(|(_, name)| name.len()).max().unwrap_or(0);
    let line = |(event, name): &(&Event, String)| {
        let (seconds, millis) = (event.at.as_secs(), event.at.subsec_millis());
        format!("{seconds:>3}.{millis:03}  {name:<width$}  {}\n", event.what)
    };
    named.iter().map(line).collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(at_ms: u64, host: Option<u16>, what: &str, payload: &[u8]) -> String {
        let mut trace = Trace::new();
        let told = || (what.into(), Detail::Milestone);
        trace.record(Duration::from_millis(at_ms), host.map(HostId::new), what, payload, told);
        trace.hash()
    }

    #[test]
    fn the_hash_sees_time_host_text_and_payload() {
        let base = one(1, Some(1), "write", b"x");
        assert_eq!(base, one(1, Some(1), "write", b"x"));
        assert_ne!(base, one(2, Some(1), "write", b"x"));
        assert_ne!(base, one(1, Some(2), "write", b"x"));
        assert_ne!(base, one(1, None, "write", b"x"));
        assert_ne!(base, one(1, Some(1), "writ", b"ex"));
        assert_ne!(base, one(1, Some(1), "write", b"y"));
    }

    #[test]
    fn every_event_is_kept_on_request_and_the_hash_is_the_same() {
        let tell = |keep: bool| {
            let mut trace = Trace::new();
            if keep {
                trace.keep_all();
            }
            trace.milestone(Duration::ZERO, None, "start".into());
            for number in 1..800 {
                let told = || (format!("event {number}"), Detail::Milestone);
                trace.record(Duration::ZERO, None, number, &[], told);
            }
            assert_eq!((trace.milestones().len(), trace.len()), (1, 800));
            (trace.kept().iter().map(|event| event.what.clone()).collect::<Vec<_>>(), trace.hash())
        };
        let ((none, hash), (all, same)) = (tell(false), tell(true));
        assert_eq!((none.len(), all.len()), (0, 800));
        assert_eq!((all[0].as_str(), all[799].as_str()), ("start", "event 799"));
        assert_eq!(hash, same);
    }

    #[test]
    fn the_table_is_aligned() {
        let mut trace = Trace::new();
        trace.milestone(Duration::from_millis(5), None, "start n1".into());
        trace.milestone(Duration::from_millis(12_345), Some(HostId::new(0)), "phase phase=drained".into());
        let text = table(trace.milestones().iter(), |_| "n1".into());
        assert_eq!(text, "  0.005  world  start n1\n 12.345  n1     phase phase=drained\n");
    }
}
