//! A reader of PostgreSQL's WAL: pure, over bytes, in pieces of any size.
//!
//! It proves that a stretch of WAL is one unbroken chain: each page is the one that belongs at its address, each record
//! holds by its CRC-32C and names the record before it, what runs over a page's end goes on at the next page, and all
//! that lies between records is zero. Of the content it understands only what decides where a recovery may end
//! ([`Event`]) and, where that is asked for, which files a record changes ([`Touch`]). By the sources of PostgreSQL: `xlog_internal.h`, `xlogrecord.h`, `xlogreader.c`, `xact.h`.
//!
//! What it cannot see: a flipped `XLP_BKP_REMOVABLE` in a page's header, which has no meaning for recovery; what came of a
//! record that a crash cut short, which is not replayed; and, where reading began inside a record, that record's rest.
//!
//! Reading order: `version`, `page`, `record`, `event`, `touch`, and here the [`Reader`].

mod event;
mod page;
mod record;
mod totals;
mod touch;
mod version;

#[cfg(test)]
pub(super) mod forge;
#[cfg(test)]
mod tests;

use std::fmt;

use sheetanchor_core::identity::TimelineId;
use sheetanchor_core::position::Lsn;

pub use self::event::{Event, Noted, Outcome};
pub use self::totals::{Total, Totals};
pub use self::touch::{CHECKSUMS_MESSAGE, Fork, Locator, Touch};
pub use self::version::Version;
pub use super::wal::SegmentSize;

use self::page::PageHead;
use self::record::{HEAD_BYTES, Pending, RecordHead};

/// Bytes of a WAL page, in every usual build.
const PAGE_BYTES: u64 = 8192;

/// Records, and with them all addresses that a record may start at, are aligned to this.
const ALIGNMENT: u64 = 8;

/// Whose WAL it has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The server's system identifier.
    pub system: u64,
    /// Its segments' size.
    pub segment: SegmentSize,
    /// The timeline that is read. Pages of older ones may come first: a timeline begins with a copy of its parent's WAL.
    pub timeline: TimelineId,
}

/// Why WAL does not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The record, or the page, that does not hold.
    pub at: Lsn,
    /// The end, exclusive, of what was looked at for that.
    pub until: Lsn,
    /// What was seen.
    pub why: String,
}

impl Broken {
    /// Whether this may be no more than WAL's torn end, where it is durable up to `durable` only. Before that it is damage.
    pub fn may_be_torn_end(&self, durable: Lsn) -> bool {
        self.until > durable
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} at {}", self.why, self.at)
    }
}

/// Takes what is read, record by record.
pub trait Sink {
    /// Whether it wants to know what each record changes.
    const TOUCHES: bool;

    /// A record that is understood.
    fn noted(&mut self, noted: Noted);

    /// What a record changes; it may change several things.
    fn touched(&mut self, touch: Touch);
}

/// Takes events alone.
struct Events<'a, F>(&'a mut F);

impl<F: FnMut(Noted)> Sink for Events<'_, F> {
    const TOUCHES: bool = false;

    fn noted(&mut self, noted: Noted) {
        self.0(noted);
    }

    fn touched(&mut self, _touch: Touch) {}
}

/// What the next byte belongs to.
#[derive(Clone, Debug)]
enum State {
    /// Nothing was read. The first page says whether it begins inside a record.
    Fresh,
    /// In a record whose start was not read; so many bytes of it are left.
    Joining(u64),
    /// Before a record, or before the zeros that align it.
    Between,
    /// Inside a record.
    Inside(Box<Pending>),
    /// After a switch: zeros up to the segment's end.
    Blank,
}

/// Reads one thread's WAL in the order of its addresses. Cloning it remembers a place to go on from.
#[derive(Clone, Debug)]
pub struct Reader {
    origin: Origin,
    version: Option<Version>,
    /// The address of the next byte.
    next: u64,
    /// The timeline of the newest page.
    timeline: u32,
    /// The start of the last record.
    last: Option<u64>,
    /// The end of the last record.
    whole: u64,
    /// The start of a record that its server gave up in a crash: the next record has to say so.
    given_up: Option<u64>,
    state: State,
    head: PageHead,
    totals: Totals,
}

impl Reader {
    /// A reader that begins with the page that `lsn` lies in. What that page continues of an earlier record is passed over.
    pub fn at_page_of(origin: Origin, lsn: Lsn) -> Self {
        let next = lsn.get() & !(PAGE_BYTES - 1);
        Self {
            origin,
            version: None,
            next,
            timeline: 0,
            last: None,
            whole: next,
            given_up: None,
            state: State::Fresh,
            head: PageHead::default(),
            totals: Totals::default(),
        }
    }

    /// A reader that begins at `lsn`, where a record of a known version, or the header of the page that it begins, starts.
    pub fn at_record(origin: Origin, version: Version, lsn: Lsn) -> Self {
        let next = lsn.get();
        Self { version: Some(version), next, whole: next, state: State::Between, ..Self::at_page_of(origin, lsn) }
    }

    /// The address of the byte to feed next.
    pub fn next(&self) -> Lsn {
        Lsn::new(self.next)
    }

    /// Whether no record is open: the next byte is of another one, or of none.
    pub fn is_between_records(&self) -> bool {
        match self.state {
            State::Fresh | State::Between | State::Blank => true,
            State::Joining(_) | State::Inside(_) => false,
        }
    }

    /// The end of what needs no byte more to be proven: the start of the record that is open, or where reading stands. A
    /// record whose start was not read can never be proven.
    pub fn proven_until(&self) -> Lsn {
        Lsn::new(self.open_record().unwrap_or(self.next))
    }

    /// The end of the last whole record: recovery can come this far, and no further.
    pub fn whole_until(&self) -> Lsn {
        Lsn::new(self.whole)
    }

    /// The start of the last whole record; `None` before the first.
    pub fn last_record(&self) -> Option<Lsn> {
        self.last.map(Lsn::new)
    }

    /// Whose format the pages have, once one was seen.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// Records and bytes by resource manager.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Reads on. Each record that the reader understands goes to `sink`, once it is whole.
    ///
    /// # Errors
    /// What does not hold. Nothing can be read after that.
    pub fn feed(&mut self, bytes: &[u8], sink: &mut impl FnMut(Noted)) -> Result<(), Broken> {
        self.read(bytes, &mut Events(sink))
    }

    /// Reads on, as [`feed`](Self::feed) does, for whoever wants to know more.
    ///
    /// # Errors
    /// What does not hold. Nothing can be read after that.
    pub fn read(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<(), Broken> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if matches!(self.state, State::Blank) && self.next.is_multiple_of(self.origin.segment.bytes()) {
                self.state = State::Between;
            }
            let offset = self.next % PAGE_BYTES;
            let blank = matches!(self.state, State::Blank);
            let head = if blank { 0 } else { self.head_bytes() };
            let room = if offset < head { head } else { PAGE_BYTES }.saturating_sub(offset);
            let (taken, after) = rest.split_at(bound(room, rest.len()));
            if blank {
                self.take_zeros(taken, "after the end of a segment that was switched")?;
            } else if offset < head {
                self.take_head(taken, head)?;
            } else {
                self.take_body(taken, sink)?;
            }
            rest = after;
        }
        Ok(())
    }

    /// Bytes of the header of the page that the next byte lies in.
    fn head_bytes(&self) -> u64 {
        let page = self.next & !(PAGE_BYTES - 1);
        if page.is_multiple_of(self.origin.segment.bytes()) { page::LONG_BYTES } else { page::SHORT_BYTES }
    }

    fn take_head(&mut self, bytes: &[u8], head_bytes: u64) -> Result<(), Broken> {
        self.head.extend(bytes);
        self.next = self.next.saturating_add(length(bytes));
        if self.next % PAGE_BYTES < head_bytes {
            return Ok(());
        }
        let head = std::mem::take(&mut self.head);
        let page = self.next & !(PAGE_BYTES - 1);
        let until = Lsn::new(self.next);
        let broken = |why: String| Broken { at: Lsn::new(page), until, why };
        let known = head.check(&self.origin, page, self.version, self.timeline).map_err(broken)?;
        // Where a record does not go on, it is the record that does not hold: its length may be what is damaged.
        let open = self.open_record();
        let state = self.enter(&head).map_err(|why| Broken { at: Lsn::new(open.unwrap_or(page)), until, why })?;
        self.version = Some(known);
        self.timeline = head.timeline();
        self.state = state;
        Ok(())
    }

    fn open_record(&self) -> Option<u64> {
        match &self.state {
            State::Inside(pending) => Some(pending.start()),
            State::Fresh | State::Joining(_) | State::Between | State::Blank => None,
        }
    }

    /// What a page begins with, where its header and what came before it agree.
    fn enter(&mut self, head: &PageHead) -> Result<State, String> {
        let (gives_up, left) = (head.gives_record_up(), head.continues());
        let state = std::mem::replace(&mut self.state, State::Between);
        let expected = match &state {
            State::Fresh => return Ok(left.map_or(State::Between, State::Joining)),
            State::Joining(left) => Some(*left),
            State::Between | State::Blank => None,
            State::Inside(pending) => Some(pending.left()),
        };
        if let (true, Some(_)) = (gives_up, expected) {
            self.given_up = match state {
                State::Inside(pending) => Some(pending.start()),
                State::Fresh | State::Joining(_) | State::Between | State::Blank => None,
            };
            return Ok(State::Between);
        }
        if gives_up || left != expected {
            let words =
                |bytes: Option<u64>| bytes.map_or_else(|| "nothing".to_owned(), |bytes| format!("{bytes} bytes"));
            return Err(format!("a page that continues {} of a record, not {}", words(left), words(expected)));
        }
        Ok(state)
    }

    /// Takes bytes of one page, none of its header.
    fn take_body(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<(), Broken> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let used = match &mut self.state {
                State::Fresh | State::Between => {
                    let padding = self.next.next_multiple_of(ALIGNMENT).saturating_sub(self.next);
                    if padding > 0 {
                        let used = bound(padding, rest.len());
                        self.take_zeros(rest.get(..used).unwrap_or_default(), "between two records")?;
                        used
                    } else {
                        self.begin(rest, sink)?
                    }
                }
                State::Joining(left) => {
                    let used = bound(*left, rest.len());
                    *left = left.saturating_sub(widen(used));
                    self.next = self.next.saturating_add(widen(used));
                    if *left == 0 {
                        self.state = State::Between;
                    }
                    used
                }
                State::Inside(_) => self.go_on(rest, sink)?,
                State::Blank => {
                    self.take_zeros(rest, "after the end of a segment that was switched")?;
                    rest.len()
                }
            };
            rest = rest.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    fn take_zeros(&mut self, bytes: &[u8], place: &str) -> Result<(), Broken> {
        // A switched segment is megabytes of them: without an end to look for, many are looked at at once.
        let are_zeros = bytes.iter().fold(0, |seen, byte| seen | byte) == 0;
        if !are_zeros && let Some(index) = bytes.iter().position(|byte| *byte != 0) {
            let at = self.next.saturating_add(widen(index));
            let why = format!("a byte that is not zero {place}");
            return Err(Broken { at: Lsn::new(at), until: Lsn::new(at.saturating_add(1)), why });
        }
        self.next = self.next.saturating_add(length(bytes));
        Ok(())
    }

    /// Begins a record, and takes all of it if it lies in `bytes`; says how many of them were used.
    fn begin(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<usize, Broken> {
        let start = self.next;
        // Most records lie whole in one page, and need not be copied.
        if let Some(head) = bytes.first_chunk::<HEAD_BYTES>().map(RecordHead::of)
            && let Ok(total) = usize::try_from(head.total)
            && let Some(record) = bytes.get(..total)
            && let Some(body) = record.get(HEAD_BYTES..)
        {
            self.next = start.saturating_add(length(record));
            self.check_head(&head, start)?;
            self.finish(&head, start, crc32c::crc32c(body), body, sink)?;
            return Ok(total);
        }
        self.state = State::Inside(Box::new(Pending::new(start)));
        self.go_on(bytes, sink)
    }

    /// Goes on with the record that is open; says how many bytes were used.
    fn go_on<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<usize, Broken> {
        let state = std::mem::replace(&mut self.state, State::Between);
        let State::Inside(mut pending) = state else { return Ok(0) };
        let start = pending.start();
        let used = pending.take_head(bytes);
        self.next = self.next.saturating_add(widen(used));
        if let Some(total) = pending.total() {
            record::check_length(total).map_err(|why| self.broken(start, why))?;
        }
        let Some(head) = pending.head() else {
            self.state = State::Inside(pending);
            return Ok(used);
        };
        if used > 0 {
            self.check_head(&head, start)?;
            pending.keep(bytes_wanted::<S>(&head));
        }
        let body = bytes.get(used..).unwrap_or_default();
        let body = body.get(..bound(pending.left(), body.len())).unwrap_or_default();
        pending.take_body(body);
        self.next = self.next.saturating_add(length(body));
        let used = used.saturating_add(body.len());
        if pending.left() == 0 {
            self.finish(&head, start, pending.checksum(), pending.kept(), sink)?;
        } else {
            self.state = State::Inside(pending);
        }
        Ok(used)
    }

    fn check_head(&self, head: &RecordHead, start: u64) -> Result<(), Broken> {
        record::check_length(head.total).map_err(|why| self.broken(start, why))?;
        let follows = match self.last {
            Some(last) => head.previous == last,
            None => head.previous < start,
        };
        if !follows {
            let last = self.last.map_or_else(|| "an earlier one".to_owned(), |last| Lsn::new(last).to_string());
            let why = format!("a record that follows {}, not {last}", Lsn::new(head.previous));
            return Err(self.broken(start, why));
        }
        Ok(())
    }

    /// Accepts a whole record. Of its body, those bytes are there that are wanted.
    fn finish<S: Sink>(
        &mut self,
        head: &RecordHead,
        start: u64,
        body_checksum: u32,
        body: &[u8],
        sink: &mut S,
    ) -> Result<(), Broken> {
        let seen = head.checksum_over(body_checksum);
        if seen != head.checksum {
            let why = format!("a record whose CRC is {seen:08X}, not {:08X}", head.checksum);
            return Err(self.broken(start, why));
        }
        self.totals.add(head);
        self.last = Some(start);
        self.whole = self.next.next_multiple_of(ALIGNMENT);
        self.state = State::Between;
        if !S::TOUCHES && !event::is_understood(head) {
            return self.check_given_up(start, None);
        }
        // A page was read before any record was.
        let Some(version) = self.version else { return Err(self.broken(start, "a record before any page".to_owned())) };
        let strange = || {
            let why = format!(
                "a record of resource manager {} and kind {:02X} that is not understood",
                head.manager, head.info
            );
            self.broken(start, why)
        };
        if S::TOUCHES {
            touch::read(version, head, body, &mut |touch| sink.touched(touch)).ok_or_else(strange)?;
        }
        if !event::is_understood(head) {
            return self.check_given_up(start, None);
        }
        let event = event::read(version, head, body).ok_or_else(strange)?;
        self.check_given_up(start, Some(&event))?;
        if event == Event::Switch && !self.whole.is_multiple_of(self.origin.segment.bytes()) {
            self.state = State::Blank;
        }
        sink.noted(Noted { start: Lsn::new(start), end: self.whole_until(), event });
        Ok(())
    }

    /// After a record was given up, the next one has to name it.
    fn check_given_up(&mut self, start: u64, event: Option<&Event>) -> Result<(), Broken> {
        let named = match event {
            Some(Event::GivenUp { record }) => Some(record.get()),
            Some(_) | None => None,
        };
        match self.given_up.take() {
            Some(given_up) if named != Some(given_up) => Err(self.broken(
                start,
                format!("the record at {} breaks off, and this one does not say so", Lsn::new(given_up)),
            )),
            Some(_) | None => Ok(()),
        }
    }

    fn broken(&self, start: u64, why: String) -> Broken {
        let until = self.next.max(start.saturating_add(ALIGNMENT));
        Broken { at: Lsn::new(start), until: Lsn::new(until), why }
    }
}

/// How much of a record's body is read, from its start.
fn bytes_wanted<S: Sink>(head: &RecordHead) -> usize {
    match (event::is_understood(head), S::TOUCHES) {
        (true, _) => usize::MAX,
        (false, true) => touch::bytes_wanted(head),
        (false, false) => 0,
    }
}

fn length(bytes: &[u8]) -> u64 {
    widen(bytes.len())
}

fn widen(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn bound(count: u64, most: usize) -> usize {
    usize::try_from(count).map_or(most, |count| count.min(most))
}
