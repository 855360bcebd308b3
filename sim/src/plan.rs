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
    /// The next write of the host to the simulated bucket takes effect and is answered with a time-out.
    BucketTimeout {
        /// From when on the next write times out.
        at: When,
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
}

impl Fault {
    /// When it strikes.
    pub const fn at(&self) -> &When {
        match self {
            Self::Crash { at, .. }
            | Self::NoSpace { at, .. }
            | Self::SyncFailed { at }
            | Self::BucketTimeout { at }
            | Self::Hold { at, .. } => at,
        }
    }

    /// When it strikes, to be told otherwise.
    pub const fn at_mut(&mut self) -> &mut When {
        match self {
            Self::Crash { at, .. }
            | Self::NoSpace { at, .. }
            | Self::SyncFailed { at }
            | Self::BucketTimeout { at }
            | Self::Hold { at, .. } => at,
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
    /// `kill -9`: the machine goes on. All of it stays readable, and stays unsynced.
    ProcessOnly,
}

impl CrashPolicy {
    /// The policies of a power loss.
    pub const POWER_LOSS: [Self; 3] = [Self::DropAll, Self::KeepAll, Self::TornPrefix];

    /// The word in traces.
    pub const fn word(self) -> &'static str {
        match self {
            Self::DropAll => "drop-all",
            Self::KeepAll => "keep-all",
            Self::TornPrefix => "torn-prefix",
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
            .and(Fault::BucketTimeout { at: When::pass("n1", 3) })
            .and(Fault::Hold { at: When::pass("n1", 3), one: "n1".into(), other: "n2".into(), for_ms: 9 });
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan, "{text}");
    }
}
