//! Names in the repository. All relative: move or copy the repository and it works.

use alloc::format;
use alloc::string::String;

use crate::identity::{
    ContentHash, Epoch, Incarnation, Membership, NodeId, OperationId, OperationKind, PointName, ThreadId, TimelineId,
};
use crate::position::Lsn;

/// The cluster that this repository belongs to.
pub const CLUSTER: &str = "cluster";

/// One list of members.
pub fn members(membership: Membership) -> String {
    format!("members/{membership:010}")
}

/// Every list of members, ascending.
pub const MEMBERS: &str = "members/";

/// Everything an operation has here but its outcome.
pub fn registration(operation: OperationId) -> String {
    format!("operations/{operation}/registered")
}

/// Every operation of a kind that was ever registered, in order of time.
pub fn registrations(kind: OperationKind) -> String {
    format!("operations/{}-", kind.word())
}

/// Every operation.
pub const OPERATIONS: &str = "operations/";

/// A coordinator's term in an operation.
pub fn epoch(operation: OperationId, epoch: Epoch) -> String {
    format!("operations/{operation}/epoch/{epoch:010}")
}

/// All terms of an operation, ascending.
pub fn epochs(operation: OperationId) -> String {
    format!("operations/{operation}/epoch/")
}

/// What a restore does, step by step.
pub fn plan(operation: OperationId, hash: ContentHash) -> String {
    format!("operations/{operation}/plan-{hash}")
}

/// The plans of a restore: one, since they are named by what they hash to.
pub fn plans(operation: OperationId) -> String {
    format!("operations/{operation}/plan-")
}

/// What a restore has decided of what was in doubt at its cut.
pub fn in_doubt(operation: OperationId) -> String {
    format!("operations/{operation}/in-doubt")
}

/// That a node is being opened by a restore.
pub fn opened(operation: OperationId, node: NodeId) -> String {
    format!("{}{:05}", opened_by(operation), node.get())
}

/// The nodes that a restore has begun to open.
pub fn opened_by(operation: OperationId) -> String {
    format!("operations/{operation}/opened/")
}

/// The one outcome of a backup or a restore point. That of a restore is its incarnation.
pub fn outcome(operation: OperationId) -> String {
    format!("outcomes/{operation}")
}

/// The outcomes of a kind, in order of time.
pub fn outcomes(kind: OperationKind) -> String {
    format!("outcomes/{}-", kind.word())
}

/// A digest of `count` outcomes of a kind, named by what it hashes to.
pub fn digest(kind: OperationKind, count: usize, hash: ContentHash) -> String {
    format!("{}{count:010}-{hash}", digests(kind))
}

/// The digests of a kind, the smallest first.
pub fn digests(kind: OperationKind) -> String {
    format!("{DIGESTS}{}-", kind.word())
}

/// All digests.
pub const DIGESTS: &str = "digests/";

/// One incarnation, or the tombstone of the restore that meant to open it.
pub fn incarnation(incarnation: Incarnation) -> String {
    format!("incarnations/{incarnation:010}")
}

/// All incarnations, ascending.
pub const INCARNATIONS: &str = "incarnations/";

/// A claim to a name. Claim `k + 1` is made only when the operation of claim `k` was aborted.
pub fn name(name: &PointName, claim: u32) -> String {
    format!("names/{name}/{claim:010}")
}

/// All claims to a name, ascending.
pub fn name_claims(name: &PointName) -> String {
    format!("names/{name}/")
}

/// Backups that one run of `expire` condemned.
pub fn condemned(generation: u32) -> String {
    format!("outcomes/condemned-{generation:010}")
}

/// All that were ever condemned.
pub const CONDEMNED: &str = "outcomes/condemned-";

/// Every manifest.
pub const MANIFESTS: &str = "manifests/";

/// Every list of captured files.
pub const FILES: &str = "files/";

/// Every pack.
pub const PACKS: &str = "packs/";

/// A manifest, named by what it hashes to.
pub fn manifest(operation: OperationId, hash: ContentHash) -> String {
    format!("manifests/{operation}-{hash}")
}

/// A list of captured files.
pub fn files(operation: OperationId, node: NodeId, hash: ContentHash) -> String {
    format!("files/{operation}-{node}-{hash}")
}

/// A pack of chunks. `serial` makes it unique within the capture of one life of one node.
pub fn pack(operation: OperationId, node: NodeId, serial: u32, nonce: u64) -> String {
    format!("packs/{operation}-{node}-{nonce:016x}-{serial:06}")
}

/// A piece of WAL. The next starts at its end, which is inside.
pub fn wal(incarnation: Incarnation, thread: ThreadId, timeline: TimelineId, start: Lsn) -> String {
    format!("{}{:010}/{}", wal_thread(incarnation, thread), timeline.get(), start.to_name())
}

/// That WAL from a place on was let go of before it was archived: where the piece that starts there would be.
pub fn hole(incarnation: Incarnation, thread: ThreadId, timeline: TimelineId, start: Lsn) -> String {
    format!("{}{HOLE}", wal(incarnation, thread, timeline, start))
}

/// What the name of a declared hole ends with.
const HOLE: &str = ".hole";

/// Whether a name is one of [`hole`].
pub fn is_hole(key: &str) -> bool {
    key.ends_with(HOLE)
}

/// All pieces and declared holes of a thread in an incarnation.
pub fn wal_thread(incarnation: Incarnation, thread: ThreadId) -> String {
    format!("wal/{incarnation:010}/{:05}/", thread.get())
}

/// Reads timeline and start from a key of [`hole`].
pub fn parse_hole(key: &str) -> Option<(TimelineId, Lsn)> {
    parse_wal(key.strip_suffix(HOLE)?)
}

/// Reads timeline and start from a key of [`wal`].
pub fn parse_wal(key: &str) -> Option<(TimelineId, Lsn)> {
    let mut parts = key.rsplit('/');
    let (start, timeline) = (parts.next()?, parts.next()?);
    Some((TimelineId::new(timeline.parse().ok()?), Lsn::from_name(start)?))
}
