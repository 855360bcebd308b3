//! Recovery's order on shared storage: the threads' records in one sequence, and the rule by which a page takes them.
//!
//! Inside a thread LSN order holds; between threads the order is (SCN, thread), which is causal because a node that
//! learns of another's change stamps above it. Reading is the caller's: [`Merge`] says which thread it needs next.

use alloc::collections::BTreeMap;
use alloc::format;

use crate::identity::ThreadId;
use crate::planted::{self, Bug};
use crate::position::Lsn;
use crate::refusal::{Code, Refusal};
use crate::scn::Scn;

/// A merge of WAL threads up to a cut. Each thread must show a record above the cut, which proves that nothing at or
/// below it can follow there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Merge<T> {
    cut: Scn,
    threads: BTreeMap<ThreadId, Feed>,
    /// At most one record of each thread, in the order in which they apply.
    heads: BTreeMap<(Scn, ThreadId), T>,
}

/// What a merge does next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step<T> {
    /// It needs the next record of this thread: call [`Merge::feed`], or [`Merge::ended`] if there is none.
    Feed(ThreadId),
    /// This record is next.
    Apply {
        /// Who wrote it.
        thread: ThreadId,
        /// Its stamp.
        scn: Scn,
        /// What it says.
        record: T,
    },
    /// All records at or below the cut have been handed out, and each thread has proved it.
    Reached,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Feed {
    next: Next,
    /// Stamp and end of the thread's last record.
    last: Option<(Scn, Lsn)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Next {
    Wanted,
    InHeads,
    BeyondCut,
}

impl<T> Merge<T> {
    /// A merge of `threads` up to and including `cut`.
    pub fn new(cut: Scn, threads: impl IntoIterator<Item = ThreadId>) -> Self {
        let wanted = Feed { next: Next::Wanted, last: None };
        Self { cut, threads: threads.into_iter().map(|thread| (thread, wanted)).collect(), heads: BTreeMap::new() }
    }

    /// What to do next. Repeated until it says [`Step::Reached`].
    pub fn step(&mut self) -> Step<T> {
        if let Some((thread, _)) = self.threads.iter().find(|(_, feed)| feed.next == Next::Wanted) {
            return Step::Feed(*thread);
        }
        let Some(((scn, thread), record)) = self.heads.pop_first() else { return Step::Reached };
        if let Some(feed) = self.threads.get_mut(&thread) {
            feed.next = Next::Wanted;
        }
        Step::Apply { thread, scn, record }
    }

    /// The next record of `thread`, which occupies `from..until` there.
    ///
    /// # Errors
    /// `SA504` if it does not follow the thread's last record: stamps rise and addresses have no gaps.
    ///
    /// # Panics
    /// If [`Merge::step`] did not ask for this thread: that is a caller's bug.
    pub fn feed(&mut self, thread: ThreadId, scn: Scn, from: Lsn, until: Lsn, record: T) -> Result<(), Refusal> {
        let feed = self.threads.get_mut(&thread).filter(|feed| feed.next == Next::Wanted);
        assert!(feed.is_some(), "thread {thread} was not asked for");
        let Some(feed) = feed else { return Ok(()) };
        if let Some((last, end)) = feed.last {
            if scn <= last {
                let message =
                    format!("thread {thread}: the record at {from} is stamped {scn}, the one before it {last}");
                return Err(Refusal::new(Code::WalDamaged, message));
            }
            if from != end {
                let message = format!("thread {thread}: a record starts at {from}, the one before it ends at {end}");
                return Err(Refusal::new(Code::WalDamaged, message));
            }
        }
        feed.last = Some((scn, until));
        if within_cut(scn, self.cut) {
            feed.next = Next::InHeads;
            let before = self.heads.insert((rank(scn, thread), thread), record);
            assert!(before.is_none(), "a thread has at most one head");
        } else {
            feed.next = Next::BeyondCut;
        }
        Ok(())
    }

    /// Says that the next record of `thread` lies beyond a branch, up to `until`: it has a place there, and no effect.
    ///
    /// # Panics
    /// If [`Merge::step`] did not ask for this thread: that is a caller's bug.
    pub fn left_out(&mut self, thread: ThreadId, until: Lsn) {
        let feed = self.threads.get_mut(&thread).filter(|feed| feed.next == Next::Wanted);
        assert!(feed.is_some(), "thread {thread} was not asked for");
        let Some(feed) = feed else { return };
        let scn = feed.last.map_or(Scn::ZERO, |(scn, _)| scn);
        feed.last = Some((scn, until));
    }

    /// Says that `thread`, which was asked for, has no further record.
    ///
    /// # Errors
    /// Always `SA405`: a thread that does not show a record above the cut may lack some below it.
    pub fn ended(&self, thread: ThreadId) -> Result<(), Refusal> {
        let at = self.threads.get(&thread).and_then(|feed| feed.last).map_or(Scn::ZERO, |(scn, _)| scn);
        let message = format!("thread {thread} ends at SCN {at} and shows no record above the cut {}", self.cut);
        Err(Refusal::new(Code::ThreadShort, message))
    }
}

/// What a record is ordered by. The node has no part in it.
fn rank(scn: Scn, thread: ThreadId) -> Scn {
    if planted::is(Bug::NodeBeforeScn) { Scn::new(u64::from(thread.get()) << 48) } else { scn }
}

/// A cut by SCN is inclusive.
fn within_cut(scn: Scn, cut: Scn) -> bool {
    scn < cut || scn == cut && !planted::is(Bug::CutOffByOne)
}

/// A logged change of one page, as far as its place in the page's history goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageChange {
    /// The version it was made on.
    pub previous: Scn,
    /// The version it makes.
    pub version: Scn,
    /// Whether it holds the whole page.
    pub whole: bool,
}

/// What is to be done with a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The page has it already.
    Skip,
    /// It is next.
    Apply,
}

/// One page's history during recovery: it finds a record that is missing from *any* thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chain {
    version: Option<Scn>,
    was_torn: bool,
}

impl Chain {
    /// A page that was found sound, at `version`.
    pub const fn sound(version: Scn) -> Self {
        Self { version: Some(version), was_torn: false }
    }

    /// A page that was found torn: a write of it was cut short.
    pub const fn torn() -> Self {
        Self { version: None, was_torn: true }
    }

    /// Whether the page is still torn: no whole image has come.
    pub const fn is_torn(&self) -> bool {
        self.version.is_none()
    }

    /// Whether the page was found torn.
    pub const fn was_torn(&self) -> bool {
        self.was_torn
    }

    /// Takes the next change of the page. `torn_until` is the SCN that no torn page's last sound version exceeds.
    ///
    /// A whole image may jump over a gap only on a page that was found torn: what it had before the tear is known to
    /// nobody, and the changes in the gap lie before the reading of the threads starts. Therefore the version under the
    /// image must be at or below `torn_until`.
    ///
    /// # Errors
    /// `SA404` if a change is missing between what the page holds and this one.
    pub fn follow(&mut self, change: PageChange, torn_until: Scn) -> Result<Verdict, Refusal> {
        let mends = self.was_torn && change.whole && change.previous <= torn_until;
        let verdict = match self.version {
            Some(version) if version >= change.version => Verdict::Skip,
            Some(version) if version == change.previous => Verdict::Apply,
            Some(version) if mends && version < change.previous => Verdict::Apply,
            None if mends => Verdict::Apply,
            found @ (Some(_) | None) => return Err(broken(found, change)),
        };
        if verdict == Verdict::Apply {
            self.version = Some(change.version);
        }
        Ok(verdict)
    }
}

fn broken(found: Option<Scn>, change: PageChange) -> Refusal {
    let holds = found.map_or_else(|| alloc::string::String::from("is torn"), |version| format!("is at {version}"));
    let message = format!("a change to version {} expects {}, but the page {holds}", change.version, change.previous);
    Refusal::new(Code::ChainBroken, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    type Threads = BTreeMap<ThreadId, Vec<u64>>;

    /// Runs a merge over stamps; records are numbered by their place in their thread.
    fn run(cut: u64, threads: &Threads) -> Result<Vec<(u64, u16, usize)>, Refusal> {
        let mut merge = Merge::new(Scn::new(cut), threads.keys().copied());
        let mut places: BTreeMap<ThreadId, usize> = BTreeMap::new();
        let mut applied = Vec::new();
        loop {
            match merge.step() {
                Step::Feed(thread) => {
                    let place = places.entry(thread).or_default();
                    match threads[&thread].get(*place) {
                        None => merge.ended(thread)?,
                        Some(scn) => {
                            let (from, until) = (Lsn::new(*place as u64 * 10), Lsn::new(*place as u64 * 10 + 10));
                            merge.feed(thread, Scn::new(*scn), from, until, *place)?;
                        }
                    }
                    *place += 1;
                }
                Step::Apply { thread, scn, record } => applied.push((scn.get(), thread.get(), record)),
                Step::Reached => return Ok(applied),
            }
        }
    }

    fn rising() -> impl Strategy<Value = Vec<u64>> {
        prop::collection::btree_set(1_u64..60, 0..20).prop_map(|stamps| stamps.into_iter().collect())
    }

    proptest! {
        #[test]
        fn every_record_at_or_below_the_cut_comes_once_in_causal_order(
            stamps in prop::collection::vec(rising(), 1..5), cut in 0_u64..60,
        ) {
            let mut threads: Threads = (1..).map(ThreadId::new).zip(stamps).collect();
            for records in threads.values_mut() {
                records.push(100);
            }
            let mut expected: Vec<(u64, u16, usize)> = threads.iter()
                .flat_map(|(thread, scns)| scns.iter().enumerate().map(|(place, scn)| (*scn, thread.get(), place)))
                .filter(|(scn, _, _)| *scn <= cut)
                .collect();
            expected.sort_unstable();
            prop_assert_eq!(run(cut, &threads).unwrap(), expected);
        }

        #[test]
        fn a_thread_that_does_not_pass_the_cut_is_refused(stamps in rising(), short in rising(), cut in 0_u64..60) {
            let mut threads: Threads = (1..).map(ThreadId::new).zip([stamps, short]).collect();
            threads.values_mut().next().unwrap().push(100);
            let passes = threads[&ThreadId::new(2)].iter().any(|scn| *scn > cut);
            let outcome = run(cut, &threads);
            prop_assert_eq!(outcome.is_ok(), passes);
            if let Err(refusal) = outcome {
                prop_assert_eq!(refusal.code, Code::ThreadShort);
            }
        }

        #[test]
        fn a_page_ends_at_the_last_change_wherever_it_was_captured(
            stamps in prop::collection::btree_set(1_u64..1_000, 1..20), captured in 0_usize..20, torn in any::<bool>(),
        ) {
            let versions: Vec<u64> = core::iter::once(0).chain(stamps).collect();
            let captured = captured % versions.len();
            let mut chain = if torn { Chain::torn() } else { Chain::sound(Scn::new(versions[captured])) };
            for (place, pair) in versions.windows(2).enumerate() {
                let change = PageChange { previous: Scn::new(pair[0]), version: Scn::new(pair[1]), whole: place == 0 };
                let verdict = chain.follow(change, Scn::ZERO).unwrap();
                prop_assert_eq!(verdict == Verdict::Apply, torn || place >= captured);
            }
            prop_assert_eq!(chain.version, Some(Scn::new(*versions.last().unwrap())));
        }
    }

    #[test]
    fn a_stamp_that_does_not_rise_or_an_address_gap_is_damage() {
        let thread = ThreadId::new(1);
        for (scn, from) in [(5, 10), (4, 10), (6, 11)] {
            let mut merge = Merge::new(Scn::new(9), [thread]);
            merge.feed(thread, Scn::new(5), Lsn::new(0), Lsn::new(10), ()).unwrap();
            assert_eq!(merge.step(), Step::Apply { thread, scn: Scn::new(5), record: () });
            let refusal = merge.feed(thread, Scn::new(scn), Lsn::new(from), Lsn::new(20), ()).unwrap_err();
            assert_eq!(refusal.code, Code::WalDamaged, "{scn} at {from}");
        }
    }

    #[test]
    fn a_missing_change_is_found_and_only_a_torn_page_may_be_mended() {
        let change =
            |previous, version, whole| PageChange { previous: Scn::new(previous), version: Scn::new(version), whole };
        let begun = Scn::new(50);
        for (mut chain, change, expected) in [
            (Chain::sound(Scn::new(10)), change(10, 20, false), Some(Verdict::Apply)),
            (Chain::sound(Scn::new(20)), change(10, 20, true), Some(Verdict::Skip)),
            (Chain::sound(Scn::new(10)), change(15, 20, false), None),
            (Chain::sound(Scn::new(10)), change(15, 20, true), None),
            (Chain::sound(Scn::new(12)), change(10, 20, true), None),
            (Chain::torn(), change(15, 20, false), None),
            (Chain::torn(), change(50, 60, true), Some(Verdict::Apply)),
            (Chain::torn(), change(51, 60, true), None),
        ] {
            let outcome = chain.follow(change, begun);
            assert_eq!(outcome.clone().ok(), expected, "{chain:?} {change:?}");
            assert!(outcome.err().is_none_or(|refusal| refusal.code == Code::ChainBroken));
        }
        let mut mended = Chain::torn();
        mended.follow(change(10, 20, true), begun).unwrap();
        assert_eq!(mended.follow(change(30, 60, true), begun), Ok(Verdict::Apply), "a gap before the beginning");
        assert!(mended.follow(change(65, 70, true), begun).is_err(), "a gap after it");
    }
}
