//! Faults as they are drawn from the seed: first which classes a run meets at all, then a few faults of those. A run that
//! meets few classes goes deeper into them than one that meets all.

use sheetanchor_sim::plan::{BucketTrouble, CrashPolicy, Fault, IoTrouble, Plan, When};

use super::Stage;
use crate::cluster::{NODES, host};

/// How often a node or an operator passes the gate in a short story, roughly.
const PASSES: u64 = 2_500;

/// The classes to draw from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Crash,
    SyncFailed,
    NoSpace,
    Hold,
    Io,
    Pause,
    Bucket,
}

const CLASSES: [Class; 7] =
    [Class::Crash, Class::SyncFailed, Class::NoSpace, Class::Hold, Class::Io, Class::Pause, Class::Bucket];

impl Stage {
    /// One to three faults, each at some pass of some host.
    pub(super) fn any_plan(&self) -> Plan {
        let drawn: Vec<Class> = CLASSES.into_iter().filter(|_| self.chance.one_in(2)).collect();
        let classes = if drawn.is_empty() { CLASSES.to_vec() } else { drawn };
        let count = self.chance.between(1, 4);
        (0..count).fold(Plan::peaceful(), |plan, _| plan.and(self.any_fault(&classes)))
    }

    /// One of these, drawn from the seed.
    pub fn any_of<T: Copy>(&self, things: &[T]) -> Option<T> {
        let count = u64::try_from(things.len()).unwrap_or(u64::MAX);
        things.get(usize::try_from(self.chance.below(count)).unwrap_or(0)).copied()
    }

    /// One of the nodes.
    pub fn any_node(&self) -> u16 {
        self.any_of(&NODES).unwrap_or(1)
    }

    fn any_fault(&self, classes: &[Class]) -> Fault {
        let (one, other) = (host(self.any_node()), host(self.any_node()));
        let victim = if self.chance.one_in(4) { self.next_operator() } else { one.clone() };
        let passed = self.swept_from.get(&victim).copied().unwrap_or(0);
        let at = When::pass(&victim, passed + 1 + self.chance.below(PASSES));
        let for_ms = self.chance.between(20, 1_500);
        // What a loss of power takes is what most code guards against: a crash is drawn more often than the rest.
        let crashes = classes.contains(&Class::Crash) && self.chance.one_in(2);
        let class = if crashes { Some(Class::Crash) } else { self.any_of(classes) };
        match class.unwrap_or(Class::Crash) {
            Class::SyncFailed => Fault::SyncFailed { at },
            Class::NoSpace => {
                let volume = self.any_of(&["/", "/repo", "/shared"]).unwrap_or("/").into();
                Fault::NoSpace { at, volume, for_ms }
            }
            Class::Hold if one != other => Fault::Hold { at, one, other, for_ms },
            Class::Bucket => Fault::Bucket { at, trouble: self.any_bucket_trouble(3_000) },
            Class::Io => Fault::Io { at, trouble: self.any_io_trouble() },
            // Longer than some leases and deadlines, shorter than others.
            Class::Pause => Fault::Pause { at, for_ms: for_ms * 3 },
            Class::Crash | Class::Hold => {
                let (policy, silent) = (self.any_policy(), self.chance.one_in(2));
                let silent = silent && policy != CrashPolicy::ProcessOnly;
                Fault::Crash { at, policy, restart_after_ms: Some(self.chance.between(10, 600)), silent }
            }
        }
    }

    /// The host of the operator who begins something next.
    pub fn next_operator(&self) -> String {
        format!("operator{}", self.operators + 1)
    }

    /// What a request to the repository may meet, drawn from the seed; if it lasts, then shorter than that.
    pub fn any_bucket_trouble(&self, for_ms_max: u64) -> BucketTrouble {
        let for_ms = self.chance.between(20, for_ms_max);
        let troubles = [
            BucketTrouble::TimesOutBefore,
            BucketTrouble::TimesOutAfter,
            BucketTrouble::LandsLater,
            BucketTrouble::Echoes,
            BucketTrouble::BreaksOff,
            BucketTrouble::Unavailable { for_ms },
            BucketTrouble::Throttled { for_ms },
        ];
        self.any_of(&troubles).unwrap_or(BucketTrouble::Echoes)
    }

    /// What an operation on a disk may meet, drawn from the seed.
    pub fn any_io_trouble(&self) -> IoTrouble {
        let stall = IoTrouble::Stall { for_ms: self.chance.between(20, 1_500) };
        let troubles =
            [IoTrouble::ReadFails, IoTrouble::WriteFails, IoTrouble::ShortRead, IoTrouble::ShortWrite, stall];
        self.any_of(&troubles).unwrap_or(stall)
    }
}
