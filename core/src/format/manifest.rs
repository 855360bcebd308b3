//! The manifest of a backup, and the plan of a restore.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::Object;
use super::catalog::{Cut, Guarantee, Method};
use crate::identity::{
    ByteCount, ClusterId, ContentHash, Incarnation, Membership, NodeId, OperationId, PointName, ThreadId, TimelineId,
};
use crate::planted::{self, Bug};
use crate::position::Lsn;
use crate::refusal::{Code, Refusal};
use crate::request::Captured;
use crate::scn::Scn;
use crate::time::WallMillis;

/// The description of one backup. It names everything a restore needs, and what each must hash to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The highest SCN that any node had issued or seen when all had begun.
    pub begun_scn: Scn,
    /// The cluster.
    pub cluster: ClusterId,
    /// The cut that restoring the backup itself ends at.
    pub cut: Cut,
    /// The durable peak: when the backup was sealed every record of every thread at or below this SCN was in the archive.
    /// Never below the cut's own.
    pub durable_scn: Scn,
    /// The kind of engine.
    pub engine: String,
    /// What the cut says about the nodes together.
    pub guarantee: Guarantee,
    /// The incarnation.
    pub incarnation: Incarnation,
    /// The name it was given.
    pub label: Option<PointName>,
    /// The members it covers.
    pub membership: Membership,
    /// How the cut was taken.
    pub method: Method,
    /// Each node and its database's system identifier.
    pub nodes: BTreeMap<NodeId, String>,
    /// Which backup.
    pub operation: OperationId,
    /// Whether all nodes share one set of files.
    pub shared: bool,
    /// When it was begun.
    pub started_ms: WallMillis,
    /// Each thread's WAL that belongs to it.
    pub threads: BTreeMap<ThreadId, ThreadSpan>,
    /// What was captured, by the node that captured it.
    pub units: BTreeMap<NodeId, Unit>,
}

/// What one agent captured: one node's files, or those that all share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    /// The backup whose packs it goes on using, of an incremental capture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<OperationId>,
    /// Bytes of its files.
    pub bytes: ByteCount,
    /// How many files, folders and links.
    pub entries: u64,
    /// The lists that name them; a later list wins.
    pub lists: Vec<ListRef>,
    /// Bytes stored for them by this backup.
    pub stored: ByteCount,
    /// Why it is a full one although an incremental one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_full: Option<String>,
}

/// A list of files in the repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListRef {
    /// What the object hashes to.
    pub hash: ContentHash,
    /// Its key.
    pub key: String,
}

/// WAL of one thread that a backup needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThreadSpan {
    /// Where recovery starts.
    pub start: Lsn,
    /// How far it has to come before the files are one state.
    pub stop: Lsn,
    /// The thread's log branch.
    pub timeline: TimelineId,
}

impl Object for Manifest {
    const KIND: &'static str = "manifest";
}

impl Unit {
    /// A unit made of what its agent captured, in order.
    pub fn of(captured: &[Captured]) -> Self {
        Self {
            base: captured.iter().find_map(|part| part.base),
            bytes: ByteCount::new(captured.iter().map(|part| part.bytes.get()).sum()),
            entries: captured.iter().map(|part| part.entries).sum(),
            lists: captured.iter().map(|part| ListRef { hash: part.hash, key: part.list.clone() }).collect(),
            stored: ByteCount::new(captured.iter().map(|part| part.stored.get()).sum()),
            why_full: captured.iter().find_map(|part| part.why_full.clone()),
        }
    }
}

impl Manifest {
    /// The backup that it is based on; none of a full one.
    pub fn base(&self) -> Option<OperationId> {
        self.units.values().find_map(|unit| unit.base)
    }

    /// Bytes that this backup has stored.
    pub fn stored(&self) -> ByteCount {
        ByteCount::new(self.units.values().map(|unit| unit.stored.get()).sum())
    }

    /// Why all files of some node were copied although less was asked for: each such node and its reason.
    pub fn why_full(&self) -> Option<String> {
        let told = |(node, unit): (&NodeId, &Unit)| {
            let why = unit.why_full.as_ref()?;
            Some(if self.shared { why.clone() } else { format!("node {node}: {why}") })
        };
        let told: Vec<String> = self.units.iter().filter_map(told).collect();
        (!told.is_empty()).then(|| told.join("; "))
    }

    /// Checks what a reader relies on, before the manifest is published and after it is read: every member has a thread
    /// with a span and a cut that lies at or after its stop, and the units are those of the storage.
    ///
    /// # Errors
    /// `SA002`, naming what does not fit.
    pub fn validate(&self) -> Result<(), Refusal> {
        let bad = |what: String| Err(Refusal::new(Code::Damaged, format!("manifest of {}: {what}", self.operation)));
        if self.nodes.is_empty() {
            return bad("it covers no node".to_string());
        }
        let members: Vec<ThreadId> = self.nodes.keys().copied().map(ThreadId::of).collect();
        if !members.iter().eq(self.threads.keys()) || !members.iter().eq(self.cut.threads.keys()) {
            return bad("its threads are not those of its members".to_string());
        }
        for (thread, span) in &self.threads {
            let Some(cut) = self.cut.threads.get(thread) else { continue };
            let early = span.stop > cut.until && !planted::is(Bug::CutBeforeEnd);
            if span.timeline != cut.timeline || span.start > span.stop || early || cut.until > cut.proof {
                return bad(format!(
                    "thread {thread} starts at {}, stops at {} and is cut at {} (proof {})",
                    span.start, span.stop, cut.until, cut.proof
                ));
            }
        }
        let units_fit = if self.shared { self.units.len() == 1 } else { self.units.keys().eq(self.nodes.keys()) };
        if !units_fit || self.units.values().any(|unit| unit.lists.is_empty()) {
            return bad("its units are not those of its storage".to_string());
        }
        if self.durable_scn < self.cut.scn {
            return bad(format!("it is durable up to {} only, and its cut is at {}", self.durable_scn, self.cut.scn));
        }
        if self.method == Method::Alone && self.guarantee != Guarantee::Node {
            return bad("its guarantee is more than its method gives".to_string());
        }
        Ok(())
    }
}

/// What a restore does. Agents read it from the repository; requests only name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The backup whose files are staged.
    pub backup: OperationId,
    /// From the backup's manifest.
    pub begun_scn: Scn,
    /// The cluster.
    pub cluster: ClusterId,
    /// The cut that recovery ends at. Of one that is sought, each `until` is the end of the WAL that suffices to find it.
    pub cut: Cut,
    /// Whether folders may hold an older copy of the database: what of it is right stays, the rest is replaced.
    #[serde(default, skip_serializing_if = "is_false")]
    pub delta: bool,
    /// The kind of engine.
    pub engine: String,
    /// What the cut says about the nodes together.
    pub guarantee: Guarantee,
    /// The incarnation that the cut lies in; the backup may lie in an ancestor.
    pub incarnation: Incarnation,
    /// The members.
    pub membership: Membership,
    /// Each node and its database's system identifier.
    pub nodes: BTreeMap<NodeId, String>,
    /// The incarnation that is opened.
    pub opens: Incarnation,
    /// Which restore.
    pub operation: OperationId,
    /// What the target resolved to.
    pub resolved: Resolved,
    /// The new incarnation's clock starts above this.
    pub scn_floor: Scn,
    /// Whether all nodes share one set of files.
    pub shared: bool,
    /// Of a clone: the cluster in whose repository the backup and the WAL lie. Nothing is written there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<ClusterId>,
    /// What was asked for, in words.
    pub target: String,
    /// The WAL to replay.
    pub threads: BTreeMap<ThreadId, ThreadPlan>,
    /// What is staged, by the node whose agent does it.
    pub units: BTreeMap<NodeId, Unit>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// What a target resolved to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolved {
    /// How far apart the nodes' clocks may be, in milliseconds: `time_ms` is no better than that.
    pub clock_bound_ms: u64,
    /// Whether only the SCN of the cut is known beforehand: recovery finds its place in each thread.
    pub sought: bool,
    /// The wall time of the cut's SCN, less what the incarnation's clock adds; none on engines without stamps.
    pub time_ms: Option<WallMillis>,
    /// It, in words.
    pub words: String,
}

/// The WAL of one thread that a restore replays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThreadPlan {
    /// One span of each incarnation on the way from the backup to the cut; each starts where the one before it ends.
    pub spans: Vec<WalSpan>,
}

/// WAL of one thread in one incarnation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WalSpan {
    /// Where reading starts.
    pub from: Lsn,
    /// Who wrote it.
    pub incarnation: Incarnation,
    /// Keys of the pieces in order, contiguous, from at or before `from` through `until`.
    pub pieces: Vec<String>,
    /// Records above it do not count: they are beyond the branch, or beyond the cut.
    pub scn: Scn,
    /// The thread's log branch.
    pub timeline: TimelineId,
    /// Where reading ends, exclusive: the branch cut, or the end of the record that proves the cut.
    pub until: Lsn,
}

impl Object for Plan {
    const KIND: &'static str = "plan";
}
