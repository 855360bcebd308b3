//! The catalog: cluster, members, operations, outcomes, incarnations.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::Object;
use crate::identity::{
    ByteCount, ClusterId, ContentHash, Epoch, Incarnation, Membership, NodeId, Nonce, OperationId, OperationKind,
    PointName, ThreadId, TimelineId,
};
use crate::in_doubt::Resolved;
use crate::position::Lsn;
use crate::refusal::{Code, Refusal};
use crate::scn::Scn;
use crate::time::WallMillis;

/// The cluster that a repository belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// When `init` was run.
    pub created_ms: WallMillis,
    /// Its identity.
    pub id: ClusterId,
    /// What its operators call it.
    pub name: String,
    /// Who wrote this.
    pub nonce: Nonce,
}

/// One list of members. A point is cluster-wide over a stated one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Members {
    /// The kind of engine that all of them run.
    pub engine: String,
    /// Its number.
    pub membership: Membership,
    /// Each node and its database's system identifier.
    pub nodes: BTreeMap<NodeId, String>,
    /// Who wrote this.
    pub nonce: Nonce,
    /// Whether all nodes share one set of files.
    pub shared: bool,
}

impl Members {
    /// Checks that a node's database, which says that it is `system`, is the member. An empty one is nobody yet.
    ///
    /// # Errors
    /// `SA113` if it is another.
    pub fn check_identity(&self, node: NodeId, system: &str) -> Result<(), Refusal> {
        match self.nodes.get(&node) {
            Some(own) if own != system && !own.is_empty() && !system.is_empty() => {
                let message = format!("the database of node {node} is {system}, and the member is {own}");
                Err(Refusal::new(Code::OtherNode, message))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// An operation that was begun. It exists from here on, whatever becomes of its coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registered {
    /// The incarnation that it works in; for a restore, the one that it means to open.
    pub incarnation: Incarnation,
    /// The name it was given.
    pub label: Option<PointName>,
    /// The members that it covers.
    pub membership: Membership,
    /// Who wrote this.
    pub nonce: Nonce,
    /// Which operation.
    pub operation: OperationId,
}

/// A coordinator's term in an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// Its number.
    pub epoch: Epoch,
    /// Who wrote this.
    pub nonce: Nonce,
    /// Which operation.
    pub operation: OperationId,
}

/// Backups that are no target any more, since a run of `expire` on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condemned {
    /// Which.
    pub backups: Vec<OperationId>,
    /// Its number; runs do not build on each other.
    pub generation: u32,
    /// Who wrote this.
    pub nonce: Nonce,
}

/// A claim to a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameClaim {
    /// The name.
    pub name: PointName,
    /// Who wrote this.
    pub nonce: Nonce,
    /// Whose name it is unless that was aborted.
    pub operation: OperationId,
}

/// What became of a backup or a restore point. Written once; whoever would unpin or clean up must have won or read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// Who wrote this.
    pub nonce: Nonce,
    /// Which operation.
    pub operation: OperationId,
    /// What became of it.
    pub result: Ending,
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Ending {
    /// It came to nothing, for good.
    Aborted(Abort),
    /// A cluster of its own was made from this one: it needs nothing of this repository any more.
    Cloned(ClusterId),
    /// A restore point was published.
    Published(Point),
    /// A backup was sealed.
    Sealed(Seal),
}

/// Why an operation came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Abort {
    /// The refusal's code; `FAULT` for what was no refusal.
    pub code: String,
    /// What was seen.
    pub message: String,
}

/// The seal of a backup: the single write that makes it exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// The backup that it is based on; none of a full one.
    pub base: Option<OperationId>,
    /// The cut that restoring the backup itself ends at.
    pub cut: Cut,
    /// When it was sealed.
    pub ended_ms: WallMillis,
    /// What it says about the nodes together.
    pub guarantee: Guarantee,
    /// The incarnation that it was taken in.
    pub incarnation: Incarnation,
    /// What the manifest hashes to, which is also in its name.
    pub manifest: ContentHash,
    /// The point that was published for its cut, where the cut is cluster-wide.
    pub point: Option<OperationId>,
    /// Bytes that it has stored for files.
    pub stored: ByteCount,
    /// Why all files of some node were copied although less was asked for, from the manifest; none where that was not so.
    /// Always written: in a digest no field has a name.
    #[serde(default)]
    pub why_full: Option<String>,
}

/// A restore point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Where each thread is cut.
    pub cut: Cut,
    /// When it was published, by its coordinator's clock.
    pub ended_ms: WallMillis,
    /// What it says about the nodes together.
    pub guarantee: Guarantee,
    /// The incarnation that it lies in.
    pub incarnation: Incarnation,
    /// The members that it covers.
    pub membership: Membership,
    /// How it was taken.
    pub method: Method,
    /// What its operators call it; the stop cut of a backup has none.
    pub name: Option<PointName>,
}

/// How a cut was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Under a fence that all nodes held at once.
    Fence,
    /// Each node by itself.
    Alone,
    /// Every record at or below one SCN, on engines that stamp their records; no commit waited. Its guarantee covers what
    /// travels through the database and sessions that carry the SCN, and not what is tied together outside of it.
    Scn,
}

/// What a cut says about the nodes together. Never overstated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Guarantee {
    /// Each node by itself is consistent; nothing is said across nodes.
    Node,
    /// No effect without its cause on any node.
    Causal,
    /// Also, a transaction is there as a whole or not at all.
    Atomic,
}

impl Guarantee {
    /// The word for it on the screen.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Causal => "causal",
            Self::Atomic => "atomic",
        }
    }
}

/// One SCN and one position per thread that together are a state of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    /// The name of the record that marks it in every thread.
    pub record: String,
    /// The cut on engines that stamp their records: inclusive. Zero on others.
    pub scn: Scn,
    /// The place in each thread.
    pub threads: BTreeMap<ThreadId, ThreadCut>,
}

/// A cut's place in one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThreadCut {
    /// The end of the record that proves the cut; the archive must reach it.
    pub proof: Lsn,
    /// The thread's log branch.
    pub timeline: TimelineId,
    /// The end of what belongs to the cut, exclusive.
    pub until: Lsn,
}

/// An incarnation of the cluster, or the tombstone of the restore that meant to open it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IncarnationObject {
    /// Its number.
    pub incarnation: Incarnation,
    /// Who wrote this.
    pub nonce: Nonce,
    /// The restore that opened it; none for the first.
    pub restore: Option<OperationId>,
    /// What became of it.
    pub state: IncarnationState,
}

/// What became of an incarnation's number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum IncarnationState {
    /// The restore came to nothing; the number is never used.
    Aborted(Abort),
    /// The cluster lives, or lived, in it.
    Opened(Opened),
}

/// How an incarnation began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opened {
    /// Where it branched off.
    pub branch: Option<Branch>,
    /// The members that it began with.
    pub membership: Membership,
    /// What it is a clone of, where it is one: the first incarnation of a cluster of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// When it was opened.
    pub opened_ms: WallMillis,
    /// Its clock starts above this, and above every SCN that an ancestor used.
    pub scn_floor: Scn,
    /// What its clock adds to wall time.
    pub scn_offset_ms: u64,
}

impl Opened {
    /// Where its WAL begins: the cut at which it branched off, or that a clone was made from. None of a cluster's first one.
    pub fn begins(&self) -> Option<&Cut> {
        self.branch.as_ref().map(|branch| &branch.cut).or(self.origin.as_ref().map(|origin| &origin.cut))
    }
}

/// That a node is about to be opened by a restore, written before it is: whatever it holds from then on is in no backup
/// and in no plan. A node without one has taken no writes, and may be staged again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeOpened {
    /// Which node.
    pub node: NodeId,
    /// Who wrote this.
    pub nonce: Nonce,
    /// Which restore opens it.
    pub operation: OperationId,
}

/// What a clone was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The backup whose files were staged, in the other repository.
    pub backup: OperationId,
    /// The other cluster.
    pub cluster: ClusterId,
    /// The cut in it.
    pub cut: Cut,
    /// The incarnation that the cut lies in.
    pub incarnation: Incarnation,
}

/// Where an incarnation branched off its parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Branch {
    /// The cut in the parent.
    pub cut: Cut,
    /// The parent.
    pub parent: Incarnation,
}

/// What a restore has decided of every transaction that was prepared at its cut. Written once, before any node acts on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolutions {
    /// Who wrote this.
    pub nonce: Nonce,
    /// Which restore.
    pub operation: OperationId,
    /// Each node's halves.
    pub resolved: Vec<Resolved>,
}

impl Object for Cluster {
    const KIND: &'static str = "cluster";
}
impl Object for Members {
    const KIND: &'static str = "members";
}
impl Object for Registered {
    const KIND: &'static str = "registered";
}
impl Object for Term {
    const KIND: &'static str = "term";
}
impl Object for Condemned {
    const KIND: &'static str = "condemned";
}
impl Object for NameClaim {
    const KIND: &'static str = "name";
}
impl Object for Outcome {
    const KIND: &'static str = "outcome";
}
impl Object for Resolutions {
    const KIND: &'static str = "in-doubt";
}
impl Object for NodeOpened {
    const KIND: &'static str = "opened";
}
impl Object for IncarnationObject {
    const KIND: &'static str = "incarnation";
}

impl Cut {
    /// Whether this cut lies after `other`: above its SCN, and further on in every thread that both have, which is never
    /// back on an earlier timeline.
    pub fn is_after(&self, other: &Self) -> bool {
        (self.scn > other.scn || (self.scn == Scn::ZERO && other.scn == Scn::ZERO))
            && other.threads.iter().all(|(thread, earlier)| {
                self.threads.get(thread).is_none_or(|later| {
                    later.timeline > earlier.timeline
                        || later.timeline == earlier.timeline && later.until > earlier.until
                })
            })
    }
}

/// What a list of outcomes says about one operation, without reading it: its kind and when it began.
pub fn operations_in<'a>(keys: impl Iterator<Item = &'a str>, kind: OperationKind) -> Vec<OperationId> {
    let mut found: Vec<OperationId> = keys
        .filter_map(|key| key.split('/').nth(1))
        .filter_map(|part| part.parse().ok())
        .filter(|id: &OperationId| id.kind() == kind)
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}
