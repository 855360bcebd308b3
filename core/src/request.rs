//! What a coordinator asks of an agent, and what it is told. Every request may be repeated and is always answered, with
//! a refusal if need be. These are the wire's own types: [`crate::wire`] versions the whole set.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::compression::Compression;
use crate::error::{Error, Fault, FaultKind};
use crate::format::hole::Hole;
use crate::hole::Level;
use crate::identity::{
    ByteCount, ClusterId, ContentHash, Epoch, HoldId, Incarnation, LifeId, Membership, NodeId, OperationId,
};
use crate::in_doubt::{Held, Searched};
use crate::position::{Lsn, Position};
use crate::refusal::{Code, Refusal};
use crate::scn::Scn;
use crate::throttle::Rate;

/// On whose behalf, and to whom. An agent refuses what is not meant for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Header {
    /// The cluster that coordinator and agent must both belong to.
    pub cluster: ClusterId,
    /// The list of members that the coordinator works with.
    pub membership: Membership,
    /// The incarnation that it works in.
    pub incarnation: Incarnation,
    /// The node that is meant.
    pub node: NodeId,
    /// The operation, where the request is part of one.
    pub operation: Option<OperationId>,
    /// The coordinator's term in that operation.
    pub epoch: Epoch,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Request {
    /// Who are you, and how are you? Needs no operation and fits every header.
    Describe,
    /// Become part of the header's cluster, with these nodes.
    Join {
        /// All members, ascending.
        nodes: Vec<NodeId>,
    },
    /// Look the operation up in the repository before anything is asked for it.
    Enlist {
        /// Whether a commit fence will be asked for.
        fence: bool,
    },
    /// Keep WAL from now on, for this operation.
    Pin {
        /// How long without renewal.
        lease_ms: u64,
    },
    /// Keep the pin for longer.
    Renew {
        /// How long from now on.
        lease_ms: u64,
    },
    /// Let go of the operation's pin, and of all else that the operation has on the node: it is decided.
    Unpin,
    /// Begin the backup.
    Begin,
    /// Copy the data into the repository: all of it, or what has changed since an earlier backup. Where the node cannot tell
    /// what has, it copies all, and says why.
    Capture {
        /// The sealed backup to go on from.
        base: Option<OperationId>,
        /// Where the backup starts in each thread: what had changed before that is told by WAL. Empty without a base.
        starts: Vec<Position>,
        /// How what is copied is packed.
        compression: Compression,
    },
    /// End the backup that was begun there, and no other: a repeated [`Request::Begin`] may have begun another one in a
    /// later life of the node.
    End {
        /// What [`Answer::Begun`] said.
        start: Position,
    },
    /// Say so once WAL has been archived through here.
    Archive {
        /// The end of the WAL that is wanted.
        through: Position,
    },
    /// Hold new commits back.
    Close {
        /// The hold that the later steps quote.
        hold: HoldId,
        /// How long at most.
        lease_ms: u64,
    },
    /// Say so once the commits in flight have finished.
    Drain {
        /// The hold of [`Request::Close`].
        hold: HoldId,
        /// The life that answered it.
        life: LifeId,
    },
    /// Write the record that marks the cut.
    Cut {
        /// The hold of [`Request::Close`].
        hold: HoldId,
        /// The life that answered it.
        life: LifeId,
        /// The cut: observe it, and stamp the record above it.
        scn: Scn,
        /// The record's name, unique for ever.
        record: String,
    },
    /// Write the record that marks this node's own cut, without a fence.
    CutAlone {
        /// The record's name, unique for ever.
        record: String,
    },
    /// Let commits flow.
    Release {
        /// The hold of [`Request::Close`].
        hold: HoldId,
    },
    /// Say so once WAL is durable through here, in the same life.
    Flush {
        /// The life that cut.
        life: LifeId,
        /// The end of the record.
        through: Lsn,
    },
    /// Put the files of the plan's backup into the data folder, which is empty or may be overwritten.
    Stage {
        /// The plan in the repository.
        plan: ContentHash,
    },
    /// Recover what was staged to the plan's cut.
    Recover {
        /// The plan in the repository.
        plan: ContentHash,
    },
    /// Say which cut you have reached.
    Prove {
        /// The plan in the repository.
        plan: ContentHash,
    },
    /// Open, if the incarnation in the repository is this restore's.
    Open {
        /// The plan in the repository.
        plan: ContentHash,
    },
    /// Remove what the operation staged, unless its incarnation was opened.
    Discard,
    /// List all pins.
    Pins,
    /// Let go of a pin by name.
    DropPin {
        /// The pin's name.
        name: String,
    },
    /// Observe the SCN, and make a record durable that is stamped above it: from then on nothing at or below it can
    /// follow in the thread. Holds nobody back.
    Mark {
        /// The life that the operation was enlisted in.
        life: LifeId,
        /// The cut.
        scn: Scn,
        /// The record's name, unique for ever.
        record: String,
    },
    /// Look through the archived WAL of your thread, from a place in the cut's incarnation up to the plan's cut, for what
    /// became of prepared transactions.
    Search {
        /// The plan in the repository.
        plan: ContentHash,
        /// Where to begin.
        from: Lsn,
        /// Which.
        gids: Vec<String>,
    },
    /// End what is prepared here as the repository says that the restore has decided.
    Resolve {
        /// The plan in the repository.
        plan: ContentHash,
    },
    /// Say whether the plan's files may be put over what is in the data folder. Changes nothing.
    Inspect {
        /// The plan in the repository.
        plan: ContentHash,
    },
    /// Read the node's files no faster for this operation, or put them in place, from now on.
    Throttle {
        /// How fast.
        rate: Rate,
    },
}

/// What must be known before a request is performed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: whoever asks may know.
    Nothing,
    /// The right node; no operation.
    Node,
    /// An operation, which it makes known.
    Operation,
    /// An operation, known or not: it only ends things.
    Ending,
    /// A known operation on a node that is part of a cluster.
    KnownOperation,
    /// A known operation; the node may have lost everything, even its cluster.
    KnownRestore,
}

impl Request {
    /// What must be known before it is performed.
    pub const fn needs(&self) -> Needs {
        match self {
            Self::Describe => Needs::Nothing,
            Self::Join { .. } | Self::Pins | Self::DropPin { .. } => Needs::Node,
            Self::Enlist { .. } => Needs::Operation,
            Self::Release { .. } | Self::Unpin | Self::Discard => Needs::Ending,
            Self::Inspect { .. }
            | Self::Stage { .. }
            | Self::Recover { .. }
            | Self::Prove { .. }
            | Self::Search { .. }
            | Self::Resolve { .. }
            | Self::Throttle { .. }
            | Self::Open { .. } => Needs::KnownRestore,
            Self::Pin { .. }
            | Self::Renew { .. }
            | Self::Begin
            | Self::Capture { .. }
            | Self::End { .. }
            | Self::Archive { .. }
            | Self::Close { .. }
            | Self::Drain { .. }
            | Self::Cut { .. }
            | Self::CutAlone { .. }
            | Self::Flush { .. }
            | Self::Mark { .. } => Needs::KnownOperation,
        }
    }

    /// The word for it in traces and messages.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Describe => "describe",
            Self::Join { .. } => "join",
            Self::Enlist { .. } => "enlist",
            Self::Pin { .. } => "pin",
            Self::Renew { .. } => "renew",
            Self::Unpin => "unpin",
            Self::Begin => "begin",
            Self::Capture { .. } => "capture",
            Self::End { .. } => "end",
            Self::Archive { .. } => "archive",
            Self::Close { .. } => "close",
            Self::Drain { .. } => "drain",
            Self::Cut { .. } => "cut",
            Self::CutAlone { .. } => "cut-alone",
            Self::Release { .. } => "release",
            Self::Flush { .. } => "flush",
            Self::Stage { .. } => "stage",
            Self::Recover { .. } => "recover",
            Self::Prove { .. } => "prove",
            Self::Open { .. } => "open",
            Self::Discard => "discard",
            Self::Pins => "pins",
            Self::DropPin { .. } => "drop-pin",
            Self::Mark { .. } => "mark",
            Self::Search { .. } => "search",
            Self::Resolve { .. } => "resolve",
            Self::Inspect { .. } => "inspect",
            Self::Throttle { .. } => "throttle",
        }
    }
}

/// What is told.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Answer {
    /// It is done, and there is nothing more to say.
    Done,
    /// To [`Request::Describe`].
    Described(Box<Description>),
    /// To [`Request::Enlist`] of a database that can do what is asked.
    Enlisted {
        /// This run of the database.
        life: LifeId,
        /// The highest epoch that the repository shows for the operation.
        epoch: Epoch,
    },
    /// To [`Request::Pin`].
    Pinned {
        /// WAL is kept from here.
        from: Position,
    },
    /// To [`Request::Begin`].
    Begun {
        /// Where recovery has to start.
        start: Position,
        /// The highest SCN so far.
        scn: Scn,
    },
    /// To [`Request::Capture`].
    Captured(Captured),
    /// To [`Request::End`].
    Ended {
        /// How far recovery has to come at least.
        stop: Position,
        /// The highest SCN so far.
        scn: Scn,
        /// The list of files that ending the backup added, where there are any.
        extra: Option<Captured>,
    },
    /// To [`Request::Archive`].
    Archived {
        /// The archive's end, at or after what was asked.
        until: Lsn,
    },
    /// To [`Request::Close`].
    Closed {
        /// This run of the database; later steps quote it.
        life: LifeId,
    },
    /// To [`Request::Drain`].
    Drained {
        /// The highest SCN so far.
        scn: Scn,
        /// The end of WAL.
        end: Position,
    },
    /// To [`Request::Cut`], [`Request::CutAlone`] and [`Request::Mark`].
    CutMade {
        /// The end, exclusive, of what belongs to the cut in this thread.
        until: Position,
        /// The end of the record that proves it.
        proof: Lsn,
    },
    /// To [`Request::Prove`].
    Reached {
        /// The SCN that it was recovered to; zero on engines without one.
        scn: Scn,
        /// The end of the recovered WAL of the node's thread.
        until: Position,
        /// What is prepared there, and was not resolved yet.
        in_doubt: Vec<Held>,
    },
    /// To [`Request::Pins`].
    Pins(Vec<PinSeen>),
    /// To [`Request::Search`].
    Searched(Searched),
}

/// A node's description.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Description {
    /// The node that the agent serves.
    pub node: NodeId,
    /// The cluster that it belongs to, if any.
    pub cluster: Option<ClusterId>,
    /// The incarnation that it was opened in.
    pub incarnation: Option<Incarnation>,
    /// `empty`, `down`, `reached` or `open`.
    pub state: String,
    /// The kind of engine.
    pub engine: String,
    /// The engine's version.
    pub version: String,
    /// The database's system identifier.
    pub system: String,
    /// Whether all nodes share one set of files.
    pub shared: bool,
    /// Whether it can hold commits back.
    pub fence: FenceSeen,
    /// The highest SCN so far.
    pub scn: Scn,
    /// The end of WAL.
    pub end: Position,
    /// The end of what is archived.
    pub archived: Lsn,
    /// Why the archive does not move on, if it does not.
    pub archive_trouble: Option<String>,
    /// The operation that holds the fence, if one does.
    pub fenced_by: Option<OperationId>,
    /// How far the agent is with what it is busy with: at most one for an operation.
    pub progress: Vec<Progress>,
    /// Whether every WAL record carries an SCN.
    pub stamped: bool,
    /// The node's durable frontier: every record that it has written, or will write, at or below this SCN is durable.
    /// Zero on engines without stamps.
    pub frontier: Scn,
    /// The incarnation that the cluster was opened in without this node, which goes on in its own.
    pub missed: Option<Incarnation>,
    /// Whether transactions that span nodes are committed by two-phase commit.
    pub two_phase: bool,
    /// How long ago the oldest WAL was written, at most, that is not archived, in milliseconds: with its disk the node would
    /// lose so much time. None while that is not known.
    pub exposed_ms: Option<u64>,
    /// How much WAL waits for the archive, on a node where that is bounded.
    pub wal_kept: Option<WalKept>,
    /// The newest hole that the node has declared and that the repository does not show yet.
    pub hole: Option<Hole>,
}

/// How much WAL waits for the archive, and how much may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WalKept {
    /// What waits.
    pub bytes: ByteCount,
    /// Above this the node lets go of it, and declares a hole.
    pub max: ByteCount,
}

impl Description {
    /// That the cluster was opened without the node, in words.
    pub fn missed_change(&self) -> Option<String> {
        self.missed.map(|newest| goes_on(self.incarnation.unwrap_or_default(), newest))
    }

    /// What an operator has to look at, in words.
    pub fn trouble(&self) -> Option<String> {
        let missed = self.missed_change().map(|why| alloc::format!("the node {why} ({})", Code::OtherIncarnation));
        let stuck = self.archive_trouble.as_ref().map(|why| alloc::format!("the archive does not move on: {why}"));
        let parts = [missed.or(stuck), self.hole_waits(), self.wal_is_high()];
        parts.into_iter().flatten().reduce(|all, part| alloc::format!("{all}; {part}"))
    }

    fn hole_waits(&self) -> Option<String> {
        let hole = self.hole.as_ref()?;
        Some(alloc::format!(
            "{hole}; the repository does not know of it yet: once it does, take a new backup ({})",
            Code::WalGap
        ))
    }

    fn wal_is_high(&self) -> Option<String> {
        let WalKept { bytes, max } = self.wal_kept.filter(|kept| kept.level() > Level::Low)?;
        Some(alloc::format!("{bytes} bytes of WAL wait for the archive, and with more than {max} it is let go of"))
    }
}

/// What to say of a node that has missed a change of incarnation, after its name.
pub fn goes_on(own: Incarnation, newest: Incarnation) -> String {
    alloc::format!("goes on in incarnation {own}, the cluster was opened in {newest}")
}

/// Whether a node can hold commits back.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FenceSeen {
    /// It cannot, and never will.
    Absent,
    /// It can.
    Ready,
    /// It could: what is missing, and what to do about it.
    Missing(String),
}

/// How far a node is with a long part of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Progress {
    /// For which operation.
    pub operation: OperationId,
    /// With what.
    pub doing: Doing,
    /// Bytes done.
    pub done: ByteCount,
    /// Bytes in all; zero until that is known.
    pub total: ByteCount,
}

/// What takes a node long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Doing {
    /// It copies its files into the repository; bytes of files.
    Copying,
    /// It puts a backup's files in place; bytes of files.
    Staging,
    /// It gets archived WAL for its recovery, which nothing of was replayed yet; bytes of WAL.
    Fetching,
    /// Its database replays WAL up to the cut; bytes of WAL.
    Recovering,
}

impl Doing {
    /// The word for it on screens.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Copying => "copying",
            Self::Staging => "staging",
            Self::Fetching => "fetching",
            Self::Recovering => "recovering",
        }
    }
}

/// What a capture left in the repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Captured {
    /// The key of the list of files.
    pub list: String,
    /// What that object hashes to.
    pub hash: ContentHash,
    /// How many files, folders and links it names.
    pub entries: u64,
    /// Bytes of the files.
    pub bytes: ByteCount,
    /// Bytes that were stored for them.
    pub stored: ByteCount,
    /// The backup whose packs it goes on using.
    pub base: Option<OperationId>,
    /// Why everything was copied although there was a base.
    pub why_full: Option<String>,
}

/// One pin of one node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PinSeen {
    /// Its name: an operation, or `archive`.
    pub name: String,
    /// WAL is kept from here.
    pub from: Position,
    /// How long it is still kept without renewal; `None` for one that does not expire.
    pub lease_left_ms: Option<u64>,
}

/// Why a request was not done, as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Failure {
    /// A refusal: its code and message.
    Refused(String, String),
    /// A fault: whether the disk is full, the operation, the cause.
    Failed(bool, String, String),
    /// A bug.
    Broken(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Refusal(refusal) => Self::Refused(refusal.code.to_string(), refusal.message),
            Error::Fault(fault) => Self::Failed(fault.kind == FaultKind::NoSpace, fault.operation, fault.cause),
            Error::Bug(what) => Self::Broken(what),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(code, message) => match Code::parse(&code) {
                Some(code) => Self::Refusal(Refusal { code, message }),
                None => Self::Refusal(Refusal::new(Code::Aborted, alloc::format!("{message} (unknown code {code})"))),
            },
            Failure::Failed(no_space, operation, cause) => {
                let kind = if no_space { FaultKind::NoSpace } else { FaultKind::Other };
                Self::Fault(Fault { operation, cause, kind })
            }
            Failure::Broken(what) => Self::Bug(what),
        }
    }
}
