//! WAL as the server streams it, on its way into the archive: each message starts where the last one ended, every byte is
//! proven before it is handed on, and what the server is told that we keep is what the archive holds, no more.
//!
//! A task of its own takes what comes, within a bound, and keeps telling the server how far the archive is; it ends with the
//! stream that owns it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use sheetanchor_core::identity::TimelineId;
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::replication::{Replication, Streamed};
use super::wal::Place;
use super::wal_reader::Reader;

/// How often the server is told how far the archive is, whether or not it asks.
const CONFIRM_EVERY: Duration = Duration::from_secs(5);

/// Bytes that may wait to be taken; with that many the task stops reading, and the server waits.
const WAITING_BYTES_MAX: usize = 8 << 20;

/// Bytes in the longest piece that is handed on.
const PIECE_BYTES_MAX: usize = 16 << 20;

/// Bytes of a record that are held back until its end has come, and proves them.
const OPEN_BYTES_MAX: usize = 1 << 20;

/// How long WAL that is durable may take to arrive.
const ARRIVAL_WAIT: Duration = Duration::from_secs(5);

/// How long nothing may come although there is more.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// A server that is shutting down asks again and again how far we are, and waits until we have all. It waits in vain where
/// the archive does not move on: after so long we hang up. Its slot keeps the rest.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(5);

/// Questions that come closer together than this are one run of them, and are answered after a while.
const ASKS_APART: Duration = Duration::from_secs(1);
const ANSWER_AFTER: Duration = Duration::from_millis(20);

/// One stream.
pub(super) struct WalStream {
    shared: Arc<Shared>,
    driver: AbortHandle,
    place: Place,
    /// What was handed on last and is not known to be archived, with its first address.
    handed_on: Option<(Lsn, Bytes)>,
    /// The address of the first byte of `bytes`, where what was handed on ends.
    from: Lsn,
    /// What was taken and is not handed on.
    bytes: BytesMut,
    /// It has read all that was taken.
    reader: Reader,
    /// When an open segment was handed on last, or the stream began.
    handed: Instant,
    silence: Silence,
}

impl Drop for WalStream {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// When an open segment is handed on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Haste {
    /// Not before this address was reached, if it lies ahead: somebody waits for it.
    pub wanted: Lsn,
    /// Else after so long.
    pub every: Duration,
    /// Up to where the server's WAL is durable, as it says.
    pub durable: Option<Lsn>,
}

impl Haste {
    /// Whether more of a segment that is had up to `from` is worth waiting for, `came` being all that has come: it is
    /// durable, and either it makes the segment whole or somebody waits for it up to `wanted`.
    fn comes(&self, came: Lsn, from: Lsn, wanted: Lsn, segment_end: Lsn) -> bool {
        let is_enough = |durable| durable >= segment_end || (wanted > from && durable >= wanted);
        self.durable.is_some_and(|durable| durable > came && is_enough(durable))
    }
}

struct Shared {
    state: Mutex<State>,
    /// Something has come.
    came: Notify,
    /// Something was taken, or archived.
    told: Notify,
}

struct State {
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    /// The end of what has come.
    next: Lsn,
    /// The end of what the archive holds; zero until that was said.
    archived: Lsn,
    /// Where the slot stood when the stream began. A server would move it back there and then if it were told less.
    stood: Lsn,
    over: Option<Error>,
}

impl State {
    fn begun(next: Lsn, stood: Lsn) -> Self {
        Self { waiting: VecDeque::new(), waiting_bytes: 0, next, archived: Lsn::new(0), stood, over: None }
    }

    fn confirm(&mut self, until: Lsn) {
        if until >= self.stood {
            self.archived = self.archived.max(until);
        }
    }

    /// The first of what waits.
    fn pop(&mut self) -> Option<Bytes> {
        let came = self.waiting.pop_front()?;
        self.waiting_bytes = self.waiting_bytes.saturating_sub(came.len());
        Some(came)
    }

    /// What the server is told that we have received, and hold for good. A server that shuts down goes by the first as
    /// long as the second is zero, so nothing is received before something is archived.
    fn kept(&self) -> (Lsn, Lsn) {
        if self.archived == Lsn::new(0) { (self.archived, self.archived) } else { (self.next, self.archived) }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WalStream {
    /// Streams from the start of the segment `place` on, where `reader` stands; `stood` is where the slot does.
    ///
    /// # Errors
    /// `SA501` if the server has it no more, `SA210` if the slot is gone or lost, `SA101`, `SA112`; faults.
    pub(super) async fn open(
        mut link: Replication,
        slot: &str,
        stood: Lsn,
        place: Place,
        reader: Reader,
    ) -> Result<Self> {
        link.check_system(place.system).await?;
        // At an explicit address only: where a slot stands says nothing of what was lost.
        link.start(Some(slot), place.timeline, place.start).await?;
        // Zero says nothing: a slot would go back to whatever else it is told, past WAL that may be gone.
        let state = State::begun(place.start, stood);
        let shared = Arc::new(Shared { state: Mutex::new(state), came: Notify::new(), told: Notify::new() });
        let own = shared.clone();
        let driver = tokio::spawn(async move {
            let over = drive(link, &own).await;
            tracing::debug!(%over, "a stream of WAL is over");
            own.lock().over = Some(over);
            own.came.notify_one();
        });
        Ok(Self::of(shared, driver.abort_handle(), place, reader))
    }

    fn of(shared: Arc<Shared>, driver: AbortHandle, place: Place, reader: Reader) -> Self {
        let (handed_on, from, bytes) = (None, place.start, BytesMut::new());
        let (handed, silence) = (Instant::now(), Silence::default());
        Self { shared, driver, place, handed_on, from, bytes, reader, handed, silence }
    }

    /// Waits for the first word of a stream from a server whose WAL is durable up to `durable`. That the WAL is gone is said
    /// only after the stream has begun.
    ///
    /// # Errors
    /// `SA501`, `SA210`, and faults.
    pub(super) async fn begins(&self, durable: Lsn) -> Result<()> {
        let until = Instant::now() + ARRIVAL_WAIT;
        loop {
            {
                let state = self.shared.lock();
                // A timeline that was left is over as soon as all of it has come, maybe before anybody looks.
                if state.next > self.place.start || (durable <= self.place.start && state.over.is_none()) {
                    return Ok(());
                }
                if let Some(over) = &state.over {
                    return Err(over.clone());
                }
            }
            if tokio::time::timeout_at(until, self.shared.came.notified()).await.is_err() {
                return Err(Fault::new(FaultKind::TimedOut, "stream WAL", "nothing comes").into());
            }
        }
    }

    /// Whether a piece from `from` on can be had of it: one whose server hung up meanwhile is begun anew.
    pub(super) fn serves(&self, timeline: TimelineId, from: Lsn) -> bool {
        let hung_up = self.shared.lock().over.as_ref().is_some_and(|over| over.is(FaultKind::Unreachable));
        let oldest = self.handed_on.as_ref().map_or(self.from, |(start, _)| *start);
        self.place.timeline == timeline && oldest <= from && !hung_up
    }

    /// Whether the server has ended it, or we had to.
    pub(super) fn is_over(&self) -> bool {
        self.shared.lock().over.is_some()
    }

    /// The end of what has come.
    pub(super) fn end(&self) -> (TimelineId, Lsn) {
        (self.place.timeline, self.shared.lock().next)
    }

    /// The archive holds everything up to `until`. What lies before the slot is no news.
    pub(super) fn confirm(&self, until: Lsn) {
        self.shared.lock().confirm(until);
        self.shared.told.notify_one();
    }

    /// A proven piece that starts at `from`, and its end; `None` if it is not time for one. What lies before `from` is not
    /// needed any more, what lies behind may be asked for again. No piece crosses the end of a segment.
    ///
    /// # Errors
    /// `SA504` for what does not hold, and whatever ended the stream. Nothing can be had of it after that.
    pub(super) async fn piece(&mut self, from: Lsn, haste: Haste) -> Result<Option<(Lsn, Bytes)>> {
        if let Some(again) = self.again(from) {
            return Ok(Some(again));
        }
        let segment_end = self.place.size.end(self.place.size.start(from));
        let wanted = haste.wanted.min(segment_end);
        let until = Instant::now() + ARRIVAL_WAIT;
        loop {
            // What ended it is seen before what came ahead of that is taken: nothing stays behind.
            let (over, came) = {
                let state = self.shared.lock();
                (state.over.clone(), state.next)
            };
            self.take(from)?;
            let ready = self.proven().min(segment_end);
            let length = usize::try_from(ready.get().saturating_sub(from.get())).unwrap_or(0).min(PIECE_BYTES_MAX);
            let whole = ready == segment_end || length == PIECE_BYTES_MAX;
            let late = self.handed.elapsed() >= haste.every;
            if length > 0 && (whole || late || (wanted > from && ready >= wanted)) {
                self.handed = Instant::now();
                assert!(
                    self.from == from && self.bytes.len() >= length,
                    "what was proven up to {ready} from {from} is here"
                );
                let bytes = self.bytes.split_to(length).freeze();
                self.handed_on = Some((from, bytes.clone()));
                self.from = beyond(from, length);
                return Ok(Some((self.from, bytes)));
            }
            if let Some(over) = over {
                return Err(over);
            }
            if !haste.comes(came, from, wanted, segment_end)
                || tokio::time::timeout_at(until, self.shared.came.notified()).await.is_err()
            {
                return self.stalled(haste.durable).map(|()| None);
            }
        }
    }

    /// Refuses to go on with a stream on which nothing comes although there is more.
    fn stalled(&mut self, durable: Option<Lsn>) -> Result<()> {
        let next = self.shared.lock().next;
        let silent = self.silence.look(Instant::now(), durable.is_some_and(|durable| durable > next));
        if silent < SILENCE_MAX {
            return Ok(());
        }
        let cause = format!("nothing comes beyond {next} for {} s", silent.as_secs());
        Err(Fault::new(FaultKind::TimedOut, "stream WAL", cause).into())
    }

    /// The end of what is proven: a record is by its last byte, in whichever segment that lies. One too long to be held
    /// counts as far as its pages go, and whoever reads the next piece proves the rest of it.
    fn proven(&self) -> Lsn {
        if self.is_full() { self.reader.next() } else { self.reader.proven_until() }
    }

    fn is_full(&self) -> bool {
        self.bytes.len() >= PIECE_BYTES_MAX + OPEN_BYTES_MAX
    }

    /// What was handed on from `from` on, as far as that piece went. What lies before it is let go of.
    fn again(&mut self, from: Lsn) -> Option<(Lsn, Bytes)> {
        self.handed_on.take_if(|(start, bytes)| beyond(*start, bytes.len()) <= from);
        let (start, bytes) = self.handed_on.as_ref().filter(|(start, _)| *start <= from)?;
        let skip = usize::try_from(from.get().saturating_sub(start.get())).unwrap_or(usize::MAX);
        Some((beyond(*start, bytes.len()), bytes.slice(skip.min(bytes.len())..)))
    }

    /// Takes what has come, as long as there is room, proves it, and lets go of what lies before `from`.
    fn take(&mut self, from: Lsn) -> Result<()> {
        while !self.is_full() {
            let Some(came) = self.shared.lock().pop() else { break };
            self.shared.told.notify_one();
            self.silence = Silence::default();
            self.prove(&came)?;
            if self.bytes.capacity().saturating_sub(self.bytes.len()) < came.len() {
                // Once for a whole piece: what is handed on shares it, and is not copied.
                self.bytes.reserve(came.len().max((PIECE_BYTES_MAX + OPEN_BYTES_MAX).saturating_sub(self.bytes.len())));
            }
            self.bytes.extend_from_slice(&came);
        }
        let passed = usize::try_from(from.get().saturating_sub(self.from.get())).unwrap_or(usize::MAX);
        let passed = passed.min(self.bytes.len());
        self.bytes.advance(passed);
        self.from = beyond(self.from, passed);
        Ok(())
    }

    fn prove(&mut self, bytes: &[u8]) -> Result<()> {
        let fed = self.reader.feed(bytes, &mut |_| ());
        fed.map_err(|broken| Place { start: self.place.size.start(broken.at), ..self.place }.damaged(&broken))
    }
}

/// Since when nothing has come although there is more. An idle server is not silent.
#[derive(Debug, Default)]
struct Silence {
    since: Option<Instant>,
}

impl Silence {
    /// How long it has lasted by now.
    fn look(&mut self, now: Instant, is_more: bool) -> Duration {
        if !is_more {
            self.since = None;
        }
        self.since = self.since.or(is_more.then_some(now));
        self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

/// Takes what comes until the stream is over; answers why it is.
async fn drive(mut link: Replication, shared: &Shared) -> Error {
    let (mut due, mut asked) = (Instant::now(), Asked::default());
    loop {
        let room = shared.lock().waiting_bytes < WAITING_BYTES_MAX;
        let came = tokio::select! {
            biased;
            () = shared.told.notified() => Ok(Streamed::Alive(true)),
            () = tokio::time::sleep_until(due) => Ok(Streamed::Alive(true)),
            came = link.next(), if room => came.inspect(|came| asked.note(Instant::now(), came)),
        };
        let answer = match came {
            Ok(Streamed::Wal(start, bytes)) => match shared.accept(start, bytes) {
                Ok(()) => false,
                Err(refusal) => return refusal.into(),
            },
            Ok(Streamed::Alive(answer)) => answer,
            Ok(Streamed::Over) => return over("the server has ended the stream"),
            Err(error) => return error,
        };
        if asked.is_in_vain() {
            return over("the server is shutting down, and the archive does not move on");
        }
        if answer {
            if asked.is_run() {
                // Whoever is answered at once asks again at once.
                tokio::time::sleep(ANSWER_AFTER).await;
            }
            let (received, archived) = shared.lock().kept();
            if let Err(error) = link.confirm(received, archived).await {
                return error;
            }
            due = Instant::now() + CONFIRM_EVERY;
        }
    }
}

fn over(why: &str) -> Error {
    Fault::new(FaultKind::Unreachable, "stream WAL", why).into()
}

impl Shared {
    /// Takes a message in, which starts where the last one ended.
    fn accept(&self, start: Lsn, bytes: Bytes) -> Result<(), Refusal> {
        let mut state = self.lock();
        if start != state.next {
            let message = format!("the server's stream goes on at {start}, not at {}", state.next);
            return Err(Refusal::new(Code::WalGap, message));
        }
        state.next = beyond(start, bytes.len());
        state.waiting_bytes = state.waiting_bytes.saturating_add(bytes.len());
        state.waiting.push_back(bytes);
        drop(state);
        self.came.notify_one();
        Ok(())
    }
}

/// The address `length` bytes after `from`.
fn beyond(from: Lsn, length: usize) -> Lsn {
    Lsn::new(from.get().saturating_add(u64::try_from(length).unwrap_or(u64::MAX)))
}

/// The run of questions that a server is in, if it is in one.
#[derive(Default)]
struct Asked {
    run: Option<(Instant, Instant)>,
}

impl Asked {
    fn note(&mut self, now: Instant, came: &Streamed) {
        self.run = match (came, self.run) {
            (Streamed::Wal(..) | Streamed::Over, _) => None,
            (Streamed::Alive(false), run) => run,
            (Streamed::Alive(true), Some((first, last))) if now - last < ASKS_APART => Some((first, now)),
            (Streamed::Alive(true), _) => Some((now, now)),
        };
    }

    fn is_run(&self) -> bool {
        self.run.is_some_and(|(first, last)| last > first)
    }

    fn is_in_vain(&self) -> bool {
        self.run.is_some_and(|(first, last)| last - first > SHUTDOWN_WAIT)
    }
}

#[cfg(test)]
mod tests {
    use super::super::wal_reader::forge::{Forge, SYSTEM};
    use super::super::wal_reader::{Origin, Version};
    use super::*;

    /// A stream that has come as far as 100, over a slot that stood at 30.
    fn at_100() -> State {
        State::begun(Lsn::new(100), Lsn::new(30))
    }

    #[test]
    fn the_rest_of_a_segment_is_waited_for_once_it_is_durable_or_somebody_waits_for_it() {
        let [from, wanted, end] = [100, 150, 200].map(Lsn::new);
        for (durable, wanted, comes) in [
            (None, wanted, false),
            (Some(149), wanted, false),
            (Some(150), wanted, true),
            (Some(199), from, false),
            // The server has the whole segment: it is on its way, and no interval need pass.
            (Some(200), from, true),
        ] {
            let haste = Haste { wanted, every: Duration::from_secs(5), durable: durable.map(Lsn::new) };
            assert_eq!(haste.comes(from, from, wanted, end), comes, "{haste:?}");
            // What is left of the segment's last record is not there yet.
            assert!(!haste.comes(Lsn::new(200), from, wanted, end), "{haste:?}");
        }
    }

    const START: u64 = 0x1_2300_0000;

    /// A stream that begins with the first segment of `forge`, whose server has sent nothing yet.
    fn begun(forge: &Forge) -> WalStream {
        let Origin { segment, timeline, .. } = forge.origin;
        let place = Place { system: SYSTEM, size: segment, timeline, start: Lsn::new(forge.start) };
        let state = State { next: place.start, ..at_100() };
        let shared = Arc::new(Shared { state: Mutex::new(state), came: Notify::new(), told: Notify::new() });
        let driver = tokio::spawn(std::future::pending::<()>()).abort_handle();
        WalStream::of(shared, driver, place, Reader::at_page_of(forge.origin, place.start))
    }

    /// What is had of it once `bytes` have come and are durable; `is_late` if no open segment may wait any longer.
    async fn after(stream: &mut WalStream, from: Lsn, bytes: &[u8], is_late: bool) -> Result<Option<Lsn>> {
        let next = stream.shared.lock().next;
        stream.shared.accept(next, Bytes::copy_from_slice(bytes)).unwrap();
        let every = if is_late { Duration::ZERO } else { Duration::from_hours(1) };
        let haste = Haste { wanted: Lsn::new(0), every, durable: Some(stream.shared.lock().next) };
        Ok(stream.piece(from, haste).await?.map(|(until, _)| until))
    }

    /// More than a segment: its last record, of `length` bytes, runs on into the next one. That record's start.
    fn crossing(length: usize) -> (Forge, Lsn) {
        let mut forge = Forge::new(Version::V15, START);
        forge.record(10, 0, 1, &vec![1; 1_000_000]);
        let (start, _) = forge.record(10, 0, 1, &vec![2; length]);
        forge.restore_point("last");
        (forge, start)
    }

    #[tokio::test]
    async fn a_segment_is_handed_on_once_its_last_record_is_proven_wherever_that_ends() {
        let ((forge, open), segment) = (crossing(100_000), 1 << 20);
        let (first, rest) = forge.bytes.split_at(segment);
        let (start, end) = (Lsn::new(START), Lsn::new(START + (1 << 20)));
        let mut stream = begun(&forge);
        assert_eq!(after(&mut stream, start, first, false).await.unwrap(), None, "not its record's first half alone");
        assert_eq!(after(&mut stream, start, &[], true).await.unwrap(), Some(open), "what is proven need not wait");
        assert_eq!(after(&mut stream, open, rest, false).await.unwrap(), Some(end));
        let mut damaged = first.to_vec();
        damaged[segment - 5] ^= 0x20;
        let mut stream = begun(&forge);
        assert_eq!(after(&mut stream, start, &damaged, false).await.unwrap(), None);
        let refused = after(&mut stream, start, rest, false).await.unwrap_err();
        assert_eq!(refused.refusal().unwrap().code, Code::WalDamaged, "{refused}");
    }

    #[tokio::test]
    async fn what_was_handed_on_is_had_again_until_the_archive_has_passed_it() {
        let (forge, open) = crossing(100_000);
        let (first, rest) = forge.bytes.split_at(1 << 20);
        let (start, end) = (Lsn::new(START), Lsn::new(START + (1 << 20)));
        let mut stream = begun(&forge);
        assert_eq!(after(&mut stream, start, first, true).await.unwrap(), Some(open));
        let haste = Haste { wanted: Lsn::new(0), every: Duration::from_hours(1), durable: None };
        let again = |until: Lsn, at: u64, length: usize| {
            let at = usize::try_from(at).unwrap();
            Some((until, Bytes::copy_from_slice(&forge.bytes[at..at + length])))
        };
        let length = usize::try_from(open.get() - START).unwrap();
        assert_eq!(stream.piece(start, haste).await.unwrap(), again(open, 0, length));
        assert_eq!(
            stream.piece(Lsn::new(START + 9), haste).await.unwrap(),
            again(open, 9, length - 9),
            "from within it"
        );
        let timeline = forge.origin.timeline;
        assert!(stream.serves(timeline, start), "nobody has passed it");
        assert_eq!(after(&mut stream, open, rest, true).await.unwrap(), Some(end));
        assert_eq!(stream.piece(open, haste).await.unwrap(), again(end, open.get() - START, (1 << 20) - length));
        assert!(!stream.serves(timeline, start) && stream.serves(timeline, open), "the first is let go of");
    }

    #[tokio::test]
    async fn what_came_before_a_stream_was_over_is_had() {
        let (forge, open) = crossing(100_000);
        let (first, _) = forge.bytes.split_at(1 << 20);
        let (start, end) = (Lsn::new(START), Lsn::new(START + (1 << 20)));
        let mut stream = begun(&forge);
        stream.shared.lock().over = Some(over("nothing has come"));
        assert!(stream.begins(end).await.is_err());
        stream.shared.accept(start, Bytes::copy_from_slice(first)).unwrap();
        stream.begins(end).await.unwrap();
        assert_eq!(after(&mut stream, start, &[], true).await.unwrap(), Some(open));
        assert!(after(&mut stream, open, &[], true).await.unwrap_err().is(FaultKind::Unreachable));
    }

    #[tokio::test]
    async fn a_record_that_does_not_end_soon_is_handed_on_unproven_lest_memory_run_out() {
        let (forge, _) = crossing(OPEN_BYTES_MAX + PIECE_BYTES_MAX);
        let mut stream = begun(&forge);
        let (start, end) = (Lsn::new(START), Lsn::new(START + (1 << 20)));
        let (some, more) = forge.bytes.split_at(OPEN_BYTES_MAX);
        assert_eq!(after(&mut stream, start, some, false).await.unwrap(), None);
        assert_eq!(after(&mut stream, start, &more[..PIECE_BYTES_MAX], false).await.unwrap(), Some(end));
    }

    #[test]
    fn a_message_that_does_not_go_on_where_the_last_one_ended_is_refused() {
        let state = at_100();
        let shared = Shared { state: Mutex::new(state), came: Notify::new(), told: Notify::new() };
        shared.accept(Lsn::new(100), Bytes::from_static(b"ten  bytes")).unwrap();
        for start in [100, 109, 111, 0, u64::MAX] {
            assert_eq!(
                shared.accept(Lsn::new(start), Bytes::from_static(b"x")).unwrap_err().code,
                Code::WalGap,
                "{start}"
            );
        }
        shared.accept(Lsn::new(110), Bytes::from_static(b"x")).unwrap();
        let state = shared.lock();
        assert_eq!((state.next, state.waiting_bytes), (Lsn::new(111), 11));
    }

    #[test]
    fn nothing_is_received_for_a_server_until_something_is_archived() {
        let mut state = at_100();
        assert_eq!(state.kept(), (Lsn::new(0), Lsn::new(0)));
        state.confirm(Lsn::new(29));
        assert_eq!(state.kept(), (Lsn::new(0), Lsn::new(0)), "the slot stands further on already");
        state.confirm(Lsn::new(40));
        assert_eq!(state.kept(), (Lsn::new(100), Lsn::new(40)));
        state.confirm(Lsn::new(30));
        assert_eq!(state.kept(), (Lsn::new(100), Lsn::new(40)), "never back");
    }

    #[test]
    fn an_idle_server_is_not_silent() {
        let (mut silence, begun) = (Silence::default(), Instant::now());
        let hour = Duration::from_hours(1);
        assert_eq!(silence.look(begun, false), Duration::ZERO);
        assert_eq!(silence.look(begun + hour, true), Duration::ZERO, "the first WAL after an idle hour");
        assert_eq!(silence.look(begun + hour + SILENCE_MAX, true), SILENCE_MAX);
        assert_eq!(silence.look(begun + hour * 2, false), Duration::ZERO);
        assert_eq!(silence.look(begun + hour * 3, true), Duration::ZERO);
    }

    #[test]
    fn a_server_that_asks_in_vain_is_left_and_one_that_asks_now_and_then_is_not() {
        let (mut asked, mut now) = (Asked::default(), Instant::now());
        for _ in 0..60 {
            asked.note(now, &Streamed::Alive(true));
            assert!(!asked.is_in_vain() && !asked.is_run());
            now += Duration::from_secs(2);
        }
        asked.note(now, &Streamed::Alive(true));
        for _ in 0..10 {
            now += Duration::from_millis(500);
            asked.note(now, &Streamed::Alive(true));
        }
        assert!(!asked.is_in_vain() && asked.is_run(), "not yet");
        asked.note(now + Duration::from_millis(1), &Streamed::Alive(true));
        assert!(asked.is_in_vain());
        asked.note(now, &Streamed::Wal(Lsn::new(1), bytes::Bytes::new()));
        assert!(!asked.is_in_vain(), "it goes on");
    }
}
