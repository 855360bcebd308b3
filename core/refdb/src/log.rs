//! The end of a node's WAL thread in memory: records that wait to be written, and which segment each belongs to.

use std::collections::{BTreeSet, VecDeque};

use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::scn::Scn;

use crate::fields;
use crate::record::{Body, Record};

/// A node's thread, from its oldest segment to its end. Segments are named by their first byte and hold whole records.
#[derive(Debug)]
pub(crate) struct Log {
    segments: BTreeSet<Lsn>,
    /// Where the segment starts that takes the next record.
    current: Lsn,
    segment_bytes: u64,
    end: Lsn,
    durable: Lsn,
    last: Scn,
    /// Stamp and end of the newest records, in order.
    recent: VecDeque<(Scn, Lsn)>,
    /// The same of what came before those: no record that ends there or earlier is stamped above it.
    before_recent: (Scn, Lsn),
    pending: VecDeque<Chunk>,
}

/// Bytes that wait to be written to one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Where its segment starts.
    pub(crate) segment: Lsn,
    /// Its first byte.
    pub(crate) from: Lsn,
    pub(crate) bytes: Vec<u8>,
}

impl Chunk {
    /// The end, exclusive.
    pub(crate) fn until(&self) -> Lsn {
        self.from.plus(fields::count(self.bytes.len())).unwrap_or(self.from)
    }
}

impl Log {
    /// Records whose place is remembered.
    const RECENT_MAX: usize = 65_536;

    /// A log whose durable end is `end` in the last of `segments`. No record in it is stamped above `last`.
    pub(crate) fn new(segments: BTreeSet<Lsn>, end: Lsn, last: Scn, segment_bytes: u64) -> Self {
        let current = segments.last().copied().unwrap_or(end);
        assert!(current <= end, "the last segment starts at {current}, after the end {end}");
        Self {
            segments,
            current,
            segment_bytes,
            end,
            durable: end,
            last,
            recent: VecDeque::new(),
            before_recent: (last, end),
            pending: VecDeque::new(),
        }
    }

    /// Where the next record goes.
    pub(crate) fn end(&self) -> Lsn {
        self.end
    }

    /// How far the log is durable.
    pub(crate) fn durable(&self) -> Lsn {
        self.durable
    }

    /// Bytes that are not durable yet.
    pub(crate) fn pending_bytes(&self) -> u64 {
        self.end.bytes_since(self.durable).unwrap_or(0)
    }

    /// Adds a record stamped `scn`, and answers its end.
    pub(crate) fn append(&mut self, scn: Scn, body: Body) -> Lsn {
        assert!(scn > self.last, "stamps rise: {scn} after {}", self.last);
        let full = self.end.bytes_since(self.current).is_some_and(|bytes| bytes >= self.segment_bytes);
        if full || self.segments.is_empty() {
            self.current = self.end;
            self.segments.insert(self.end);
        }
        let bytes = Record { lsn: self.end, scn, durable: self.durable, body }.encode();
        let length = fields::count(bytes.len());
        match self.pending.back_mut().filter(|chunk| chunk.segment == self.current) {
            Some(chunk) => chunk.bytes.extend_from_slice(&bytes),
            None => self.pending.push_back(Chunk { segment: self.current, from: self.end, bytes }),
        }
        let until = self.end.plus(length);
        assert!(until.is_some(), "a thread has fewer than 2^64 bytes");
        self.end = until.unwrap_or(self.end);
        self.last = scn;
        self.recent.push_back((scn, self.end));
        if self.recent.len() > Self::RECENT_MAX
            && let Some(oldest) = self.recent.pop_front()
        {
            self.before_recent = oldest;
        }
        self.end
    }

    /// The end of the last record stamped at or below `scn`; `None` if that is too long ago to be remembered.
    pub(crate) fn place_of(&self, scn: Scn) -> Option<Lsn> {
        let at_or_below = self.recent.partition_point(|(stamp, _)| *stamp <= scn);
        match at_or_below.checked_sub(1) {
            Some(place) => self.recent.get(place).map(|(_, end)| *end),
            None => Some(self.before_recent).filter(|(stamp, _)| *stamp <= scn).map(|(_, end)| end),
        }
    }

    /// Every record here that is stamped at or below this is durable, and so is every one to come: the next stamp lies
    /// above `clock`, the highest SCN that was issued or seen.
    pub(crate) fn frontier(&self, clock: Scn) -> Scn {
        let durable = self.recent.partition_point(|(_, end)| *end <= self.durable);
        match self.recent.get(durable) {
            None => clock,
            Some((pending, _)) => Scn::new(pending.get().saturating_sub(1)),
        }
    }

    /// Takes what waits to be written, in order.
    pub(crate) fn take(&mut self) -> VecDeque<Chunk> {
        core::mem::take(&mut self.pending)
    }

    /// Records that the log is durable up to `until`.
    pub(crate) fn made_durable(&mut self, until: Lsn) {
        assert!(self.durable <= until && until <= self.end, "{until} lies between {} and {}", self.durable, self.end);
        self.durable = until;
    }

    /// The segment that holds `lsn`, and where the next one starts.
    pub(crate) fn segment_of(&self, lsn: Lsn) -> Option<(Lsn, Option<Lsn>)> {
        let segment = self.segments.range(..=lsn).next_back().copied()?;
        let next = self.segments.iter().find(|start| **start > segment).copied();
        Some((segment, next))
    }

    /// The first byte that is kept.
    pub(crate) fn first(&self) -> Lsn {
        self.segments.first().copied().unwrap_or(self.end)
    }

    /// The segments that hold nothing at or after `keep`, and never the current one.
    pub(crate) fn recyclable(&self, keep: Lsn) -> Vec<Lsn> {
        let bound = keep.min(self.durable);
        let starts = self.segments.iter().zip(self.segments.iter().skip(1));
        let below = |(start, next): &(&Lsn, &Lsn)| {
            let end = if planted::is(Bug::RecycledOneTooMany) { **start } else { **next };
            end <= bound
        };
        starts.filter(below).map(|(start, _)| *start).collect()
    }

    /// Forgets a segment that is about to be removed.
    pub(crate) fn forget(&mut self, segment: Lsn) {
        self.segments.remove(&segment);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Found;

    fn log(segment_bytes: u64) -> Log {
        Log::new(BTreeSet::new(), Lsn::new(500), Scn::ZERO, segment_bytes)
    }

    fn point(number: u64) -> Body {
        Body::RestorePoint { name: format!("point-{number:03}") }
    }

    #[test]
    fn records_fill_segments_whole_and_read_back() {
        let mut log = log(200);
        let ends: Vec<Lsn> = (1..=20).map(|number| log.append(Scn::new(number), point(number))).collect();
        let chunks = log.take();
        assert!(chunks.len() > 2, "{} chunks", chunks.len());
        let mut read = Vec::new();
        for chunk in &chunks {
            assert_eq!(chunk.segment, chunk.from, "taken at once, a chunk is a segment");
            let mut at = chunk.from;
            while at < chunk.until() {
                let skip = fields::length(at.bytes_since(chunk.from).unwrap());
                let Found::Record(record, until) = Record::read(&chunk.bytes[skip..], at) else { panic!("at {at}") };
                assert_eq!(record.scn, Scn::new(read.len() as u64 + 1));
                at = until;
                read.push(until);
            }
        }
        assert_eq!(read, ends);
    }

    #[test]
    fn a_place_is_that_of_the_last_record_at_or_below_an_scn() {
        let mut log = Log::new(BTreeSet::new(), Lsn::new(500), Scn::new(5), 200);
        assert_eq!((log.place_of(Scn::new(4)), log.place_of(Scn::new(5))), (None, Some(Lsn::new(500))));
        let ends: Vec<Lsn> = [10, 20].map(|scn| log.append(Scn::new(scn), point(scn))).to_vec();
        for (scn, place) in [(9, Lsn::new(500)), (10, ends[0]), (19, ends[0]), (20, ends[1]), (99, ends[1])] {
            assert_eq!(log.place_of(Scn::new(scn)), Some(place), "{scn}");
        }
        for number in 0..Log::RECENT_MAX as u64 {
            log.append(Scn::new(100 + number), point(number));
        }
        assert_eq!((log.place_of(Scn::new(19)), log.place_of(Scn::new(20))), (None, Some(ends[1])));
    }

    #[test]
    fn the_frontier_lies_right_below_the_first_record_that_is_not_durable() {
        let mut log = log(200);
        assert_eq!(log.frontier(Scn::new(7)), Scn::new(7), "nothing waits, and the next stamp lies above the clock");
        let first = log.append(Scn::new(10), point(1));
        log.append(Scn::new(20), point(2));
        assert_eq!(log.frontier(Scn::new(20)), Scn::new(9));
        log.made_durable(first);
        assert_eq!(log.frontier(Scn::new(20)), Scn::new(19));
        log.made_durable(log.end());
        assert_eq!(log.frontier(Scn::new(30)), Scn::new(30));
    }

    #[test]
    fn only_segments_wholly_below_what_is_kept_are_recyclable() {
        let mut log = log(1);
        let ends: Vec<Lsn> = (1..=4).map(|number| log.append(Scn::new(number), point(number))).collect();
        assert_eq!(log.recyclable(log.end()), [], "nothing is durable");
        log.made_durable(log.end());
        assert_eq!(log.recyclable(Lsn::new(ends[1].get() - 1)), [Lsn::new(500)]);
        assert_eq!(log.recyclable(ends[1]), [Lsn::new(500), ends[0]]);
        assert_eq!(log.recyclable(Lsn::new(u64::MAX)).len(), 3, "the current one stays");
        log.forget(Lsn::new(500));
        assert_eq!(log.segment_of(Lsn::new(500)), None);
        assert_eq!(log.segment_of(ends[0]), Some((ends[0], Some(ends[1]))));
    }
}
