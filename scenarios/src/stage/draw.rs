//! Faults as they are drawn from the seed: first which classes a run meets at all, then a few faults of those. A run that
//! meets few classes goes deeper into them than one that meets all.

use sheetanchor_sim::place::place;
use sheetanchor_sim::plan::{BucketTrouble, CrashPolicy, Fault, IoTrouble, Plan, Since, Trigger, When};

use super::Stage;
use crate::cluster::{DATA, NODES, host};

/// How often a node or an operator passes the gate in a short story, roughly.
pub(super) const PASSES: u64 = 2_500;

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

/// How often a node does one of these things while an operation runs, roughly.
const WRITES: u64 = 40;

/// What a loss of power does most harm just before: it makes durable what was written, a page or the log or a name. Few
/// passes of a node are of this kind, so that crashes at any pass seldom meet them.
fn syncs(node: u16) -> [String; 5] {
    let own = format!("/shared/db/nodes/{node}");
    [
        "disk sync /shared/db/pages".into(),
        "disk sync /shared/db/pages".into(),
        format!("disk sync {own}/wal/00000001/0000000000000000"),
        format!("disk sync-dir {own}/wal/00000001"),
        format!("disk sync-dir {own}"),
    ]
}

/// The policies under which half of a page is written, and the other half is not.
const TEARING: [CrashPolicy; 3] = [CrashPolicy::TornPrefix, CrashPolicy::AnySectors, CrashPolicy::AnySubset];

impl Stage {
    /// One to three faults, each at some pass of some host; now and then a loss of power amid a write besides, or something
    /// that befalls connections or clocks.
    pub(super) fn any_plan(&self) -> Plan {
        let plan = self.any_faults();
        let plan = if self.amid.one_in(3) { plan.and(self.any_crash_amid_a_write()) } else { plan };
        if self.links.one_in(2) { plan.and(self.any_fault_between_hosts()) } else { plan }
    }

    /// A node loses power while it makes something durable, in the course of the operation that is begun next.
    fn any_crash_amid_a_write(&self) -> Fault {
        let node = self.amid.one_of(&NODES).unwrap_or(1);
        let what = self.amid.one_of(&syncs(node)).unwrap_or_default();
        let nth = u32::try_from(self.amid.between(1, WRITES)).unwrap_or(1);
        let policies = if self.amid.one_in(4) { &CrashPolicy::POWER_LOSS[..] } else { &TEARING[..] };
        let policy = self.amid.one_of(policies).unwrap_or(CrashPolicy::AnySectors);
        let restart_after_ms = Some(self.amid.between(10, 600));
        let since = Some(Since { host: self.next_operator(), words: "phase=registered".into(), nth: 1 });
        let event = Trigger::Place { what: place(&what, false), nth, since };
        Fault::Crash { at: When { host: host(node), event }, policy, restart_after_ms, silent: self.amid.one_in(2) }
    }

    /// Whoever stages shared files in the restore that is begun next loses power while it does: some of it has its name and its
    /// length then, and not its bytes.
    pub(super) fn any_crash_amid_staging(&self) -> Fault {
        let what = self.amid.one_of(&["disk sync", "disk sync", "disk write"]).unwrap_or("disk sync");
        let what = place(&format!("{what} {DATA}/pages"), self.amid.one_in(4));
        let nth = if self.amid.one_in(3) { 2 } else { 1 };
        let since = Some(Since { host: self.next_operator(), words: "phase=staging".into(), nth: 1 });
        let event = Trigger::Place { what, nth, since };
        // What looks as if it had been staged whole is what must not be believed.
        let policy = self.amid.one_of(&CrashPolicy::POWER_LOSS).filter(|_| self.amid.one_in(2));
        let policy = policy.unwrap_or(CrashPolicy::SizeFirst);
        let restart_after_ms = Some(self.amid.between(10, 600));
        let [first, ..] = NODES;
        // Who asked hears of it, and asks again: whoever waits for a silent one gives up, and what was staged is removed.
        Fault::Crash { at: When { host: host(first), event }, policy, restart_after_ms, silent: false }
    }

    /// Now and then: one of the next syncs of the pages that a node makes fails. Others of that node may be on their way.
    pub fn any_failed_sync_of_pages(&self, node: u16) -> Plan {
        if !self.amid.one_in(2) {
            return Plan::peaceful();
        }
        let nth = u32::try_from(self.amid.between(1, 6)).unwrap_or(1);
        let event = Trigger::Place { what: place(&format!("disk sync {DATA}/pages"), false), nth, since: None };
        Plan::peaceful().and(Fault::SyncFailed { at: When { host: host(node), event } })
    }

    fn any_faults(&self) -> Plan {
        let drawn: Vec<Class> = CLASSES.into_iter().filter(|_| self.chance.one_in(2)).collect();
        let classes = if drawn.is_empty() { CLASSES.to_vec() } else { drawn };
        let count = self.chance.between(1, 4);
        (0..count).fold(Plan::peaceful(), |plan, _| plan.and(self.any_fault(&classes)))
    }

    /// One of these, drawn from the seed.
    pub fn any_of<T: Copy>(&self, things: &[T]) -> Option<T> {
        self.chance.one_of(things)
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
