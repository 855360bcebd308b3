//! What goes wrong in a run, as data: a plan can be drawn, written down, shrunk, and replayed on another backend.

use serde::{Deserialize, Serialize};

/// The faults of one run. Each strikes once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// In no particular order.
    pub faults: Vec<Fault>,
}

impl Plan {
    /// A run in which nothing goes wrong.
    pub const fn peaceful() -> Self {
        Self { faults: Vec::new() }
    }

    /// This plan and one more fault.
    #[must_use]
    pub fn and(mut self, fault: Fault) -> Self {
        self.faults.push(fault);
        self
    }
}

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "kebab-case")]
pub enum Fault {
    /// The host stops in the middle of what it does.
    Crash {
        /// When; the host that stops is the one named here.
        at: When,
        /// What becomes of its unsynced bytes.
        policy: CrashPolicy,
        /// How long it stays down; `None`: until the scenario restarts it.
        restart_after_ms: Option<u64>,
        /// Whether peers hear nothing, as after a power loss. Otherwise their streams end, as after `kill -9`.
        #[serde(default)]
        silent: bool,
    },
    /// A volume is full for a while.
    NoSpace {
        /// When it fills up.
        at: When,
        /// A shared mount point such as `/repo`, or `/` for the own disk of the host named in `at`.
        volume: String,
        /// For how long.
        for_ms: u64,
    },
    /// The next sync of the host fails and its dirty pages are lost, though still readable until a crash.
    SyncFailed {
        /// From when on the next sync fails.
        at: When,
    },
    /// The next operation on a disk that it fits meets trouble.
    Io {
        /// From when on; the host whose operation it is is the one named here.
        at: When,
        /// What it meets.
        trouble: IoTrouble,
    },
    /// The repository, be it a folder or a store, is trouble to the host.
    Bucket {
        /// From when on; the host whose requests they are is the one named here.
        at: When,
        /// What they meet.
        trouble: BucketTrouble,
    },
    /// Silent damage: the next operation that it fits goes wrong and says that it did well, if it is about something that
    /// the [atlas](crate::atlas) gives up. Until then it waits.
    Silent {
        /// From when on; the host whose operation it is is the one named here.
        at: When,
        /// What is damaged.
        damage: Damage,
        /// Which bit, or which place, among those that there are: any number.
        draw: u64,
    },
    /// The host stands still: none of its code runs, while its peers, its timers and what is sent to it go on. Then it
    /// wakes, and carries on as if nothing had been: a zombie, if others have given it up.
    Pause {
        /// When it begins.
        at: When,
        /// For how long.
        for_ms: u64,
    },
    /// Two hosts hear nothing from each other for a while; what they send arrives afterwards.
    Hold {
        /// When it begins.
        at: When,
        /// One of them.
        one: String,
        /// The other.
        other: String,
        /// For how long.
        for_ms: u64,
    },
    /// Every connection between two hosts breaks; both ends hear it.
    Reset {
        /// When.
        at: When,
        /// One of them.
        one: String,
        /// The other.
        other: String,
    },
    /// What one host sends reaches another late, while it hears that one well: half of a partition.
    Clog {
        /// When it begins.
        at: When,
        /// Who sends.
        from: String,
        /// Who does not hear it.
        to: String,
        /// For how long.
        for_ms: u64,
    },
    /// The wall clock of the host jumps, and runs fast or slow from then on. Its timers go on as they were.
    Clock {
        /// When.
        at: When,
        /// By how much it jumps, in milliseconds; negative: back.
        by_ms: i64,
        /// How much too fast it runs, in millionths; negative: too slow.
        drift_ppm: i64,
    },
}

impl Fault {
    /// When it strikes.
    pub const fn at(&self) -> &When {
        match self {
            Self::Crash { at, .. }
            | Self::NoSpace { at, .. }
            | Self::SyncFailed { at }
            | Self::Io { at, .. }
            | Self::Bucket { at, .. }
            | Self::Silent { at, .. }
            | Self::Pause { at, .. }
            | Self::Hold { at, .. }
            | Self::Reset { at, .. }
            | Self::Clog { at, .. }
            | Self::Clock { at, .. } => at,
        }
    }

    /// When it strikes, to be told otherwise.
    pub const fn at_mut(&mut self) -> &mut When {
        match self {
            Self::Crash { at, .. }
            | Self::NoSpace { at, .. }
            | Self::SyncFailed { at }
            | Self::Io { at, .. }
            | Self::Bucket { at, .. }
            | Self::Silent { at, .. }
            | Self::Pause { at, .. }
            | Self::Hold { at, .. }
            | Self::Reset { at, .. }
            | Self::Clog { at, .. }
            | Self::Clock { at, .. } => at,
        }
    }

    /// The class that it belongs to, for those who count what was tried.
    pub const fn class(&self) -> &'static str {
        match self {
            Self::Crash { silent: true, .. } => "silent crash",
            Self::Crash { .. } => "crash",
            Self::NoSpace { .. } => "full volume",
            Self::SyncFailed { .. } => "failed sync",
            Self::Io { trouble, .. } => trouble.class(),
            Self::Bucket { trouble, .. } => trouble.class(),
            Self::Silent { damage, .. } => damage.class(),
            Self::Pause { .. } => "paused host",
            Self::Hold { .. } => "held network",
            Self::Reset { .. } => "reset connections",
            Self::Clog { .. } => "one-way network",
            Self::Clock { .. } => "clock that jumps and drifts",
        }
    }
}

/// What an operation on a disk meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IoTrouble {
    /// The next operation that reads bytes or names fails.
    ReadFails,
    /// The next operation that changes bytes or names fails; of the bytes of a file the first half is written.
    WriteFails,
    /// The next read of a file brings fewer bytes than there are: the rest has to be asked for again.
    ShortRead,
    /// The next write to a file takes fewer bytes than it was given: the rest has to be given again.
    ShortWrite,
    /// The next operation takes that much longer. Others of the host go on.
    Stall {
        /// How much longer.
        for_ms: u64,
    },
}

impl IoTrouble {
    /// The class that it belongs to.
    pub const fn class(self) -> &'static str {
        match self {
            Self::ReadFails => "failed read",
            Self::WriteFails => "failed write",
            Self::ShortRead => "short read",
            Self::ShortWrite => "short write",
            Self::Stall { .. } => "stalled operation",
        }
    }
}

/// Damage that nobody is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Damage {
    /// A bit at rest has flipped, among those of the file or object that are read next. What rots and is written over
    /// before anybody reads it, nobody can tell from what did not rot.
    Rot,
    /// The next write to a file leaves its length and none of its bytes, or the next object that is put into a store is
    /// not there.
    Lost,
    /// The next write to a file lands at another place of that file, a multiple of 4096 bytes away; where it should be
    /// is what a lost one leaves.
    Astray,
}

impl Damage {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Rot, Self::Lost, Self::Astray];

    /// The class that it belongs to.
    pub const fn class(self) -> &'static str {
        match self {
            Self::Rot => "bit rot",
            Self::Lost => "lost write",
            Self::Astray => "misdirected write",
        }
    }
}

/// What requests to the repository meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BucketTrouble {
    /// The next write does not take place, and its writer is told that time ran out.
    TimesOutBefore,
    /// The next write takes place, and its writer is told that time ran out.
    TimesOutAfter,
    /// The next write's writer is told that time ran out; it takes place when somebody writes to that key next, just before.
    LandsLater,
    /// The next write takes place and is answered with `Exists`, as by a client that asks again without a word and meets
    /// its own object.
    Echoes,
    /// The next read of an object breaks off in the middle.
    BreaksOff,
    /// Whatever the host asks for is refused for a while, as by a server in trouble (5xx).
    Unavailable {
        /// For how long.
        for_ms: u64,
    },
    /// For a while the host is answered at most every 30 ms, and refused in between.
    Throttled {
        /// For how long.
        for_ms: u64,
    },
}

impl BucketTrouble {
    /// The class that it belongs to.
    pub const fn class(self) -> &'static str {
        match self {
            Self::TimesOutBefore => "put lost",
            Self::TimesOutAfter => "put without answer",
            Self::LandsLater => "late put",
            Self::Echoes => "put told as its own rival",
            Self::BreaksOff => "get broken off",
            Self::Unavailable { .. } => "repository unavailable",
            Self::Throttled { .. } => "repository throttled",
        }
    }
}

/// A point in a run, told by what one host does. Any way it is exact, and the same on every run of a seed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct When {
    /// Whose doing it is.
    pub host: String,
    /// What it does.
    pub event: Trigger,
}

impl When {
    /// When `host` passes the gate for the `number`-th time, from 1, over all of its lives.
    pub fn pass(host: &str, number: u64) -> Self {
        Self { host: host.into(), event: Trigger::Pass(number) }
    }

    /// When `host` reaches a milestone that says all of `words` (separated by blanks).
    pub fn milestone(host: &str, words: &str) -> Self {
        Self { host: host.into(), event: Trigger::Milestone { words: words.into(), nth: 1 } }
    }
}

/// What a host does when a fault strikes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trigger {
    /// Its gate passes reach this number.
    Pass(u64),
    /// It reaches, for the `nth` time (from 1), a milestone that says all of `words`.
    Milestone {
        /// Words such as `phase=drained`, separated by blanks.
        words: String,
        /// Which of the matching milestones.
        nth: u32,
    },
    /// It makes, for the `nth` time (from 1), a pass of the gate at this place; told so, it carries over to other backends.
    Place {
        /// What the operation is, as [`place`](crate::place::place) says it.
        what: String,
        /// Which of the passes there.
        nth: u32,
        /// From when on they are counted; `None`: from the start of the run.
        #[serde(default)]
        since: Option<Since>,
    },
}

/// A milestone from which on something is counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    /// Whose milestone it is.
    pub host: String,
    /// Words that it says, separated by blanks.
    pub words: String,
    /// Which of the matching milestones, from 1.
    pub nth: u32,
}

/// What becomes of what a host wrote and did not sync, when the host stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CrashPolicy {
    /// Power loss: none of it is on the disk.
    DropAll,
    /// Power loss: all of it had reached the disk.
    KeepAll,
    /// Power loss: of each file a prefix of the writes in their order, the last one torn at a sector of 512 or 4096
    /// bytes; of the names a prefix of the changes. Names and files are drawn independently.
    TornPrefix,
    /// Power loss: of each file any of the sectors that were written, 512 or 4096 bytes long; of the names a prefix of the
    /// changes.
    AnySectors,
    /// Power loss: any of the sectors, and any of the changes of names and lengths, in no order.
    AnySubset,
    /// Power loss: names and lengths are on the disk and bytes are not. What they would have filled reads as zeros.
    SizeFirst,
    /// Power loss: names are on the disk, and neither bytes nor lengths: a file that was renamed into place is empty.
    NamesFirst,
    /// `kill -9`: the machine goes on. All of it stays readable, and stays unsynced.
    ProcessOnly,
}

impl CrashPolicy {
    /// The policies of a power loss.
    pub const POWER_LOSS: [Self; 7] = [
        Self::DropAll,
        Self::KeepAll,
        Self::TornPrefix,
        Self::AnySectors,
        Self::AnySubset,
        Self::SizeFirst,
        Self::NamesFirst,
    ];

    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::DropAll,
        Self::KeepAll,
        Self::TornPrefix,
        Self::AnySectors,
        Self::AnySubset,
        Self::SizeFirst,
        Self::NamesFirst,
        Self::ProcessOnly,
    ];

    /// The word in traces.
    pub const fn word(self) -> &'static str {
        match self {
            Self::DropAll => "drop-all",
            Self::KeepAll => "keep-all",
            Self::TornPrefix => "torn-prefix",
            Self::AnySectors => "any-sectors",
            Self::AnySubset => "any-subset",
            Self::SizeFirst => "size-first",
            Self::NamesFirst => "names-first",
            Self::ProcessOnly => "process-only",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_reads_back_as_it_is_written() {
        let plan = Plan::peaceful()
            .and(Fault::Crash {
                at: When::pass("n1", 17),
                policy: CrashPolicy::TornPrefix,
                restart_after_ms: Some(300),
                silent: true,
            })
            .and(Fault::NoSpace { at: When::milestone("n2", "phase=capture"), volume: "/repo".into(), for_ms: 50 })
            .and(Fault::SyncFailed { at: When::pass("n1", 3) })
            .and(Fault::SyncFailed {
                at: When {
                    host: "n1".into(),
                    event: Trigger::Place {
                        what: "before disk sync /x".into(),
                        nth: 2,
                        since: Some(Since { host: "operator1".into(), words: "phase=cut".into(), nth: 1 }),
                    },
                },
            })
            .and(Fault::Io { at: When::pass("n1", 3), trouble: IoTrouble::Stall { for_ms: 7 } })
            .and(Fault::Io { at: When::pass("n1", 3), trouble: IoTrouble::ShortWrite })
            .and(Fault::Bucket { at: When::pass("n1", 3), trouble: BucketTrouble::Unavailable { for_ms: 7 } })
            .and(Fault::Bucket { at: When::pass("n1", 3), trouble: BucketTrouble::Echoes })
            .and(Fault::Silent { at: When::pass("n1", 3), damage: Damage::Astray, draw: u64::MAX })
            .and(Fault::Pause { at: When::pass("n1", 3), for_ms: 70 })
            .and(Fault::Hold { at: When::pass("n1", 3), one: "n1".into(), other: "n2".into(), for_ms: 9 });
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan, "{text}");
    }

    #[test]
    fn every_policy_but_that_of_a_killed_process_is_a_loss_of_power() {
        let lost: Vec<CrashPolicy> =
            CrashPolicy::ALL.into_iter().filter(|policy| *policy != CrashPolicy::ProcessOnly).collect();
        assert_eq!(lost, CrashPolicy::POWER_LOSS);
    }
}
