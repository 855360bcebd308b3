//! The port to a database engine. Whoever writes a cluster engine implements this one trait for one node and gets the
//! protocol, the repository, restore, and the simulator. `sheetanchor-refdb` is the example to read.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use sheetanchor_core::changes::ChangeMap;
use sheetanchor_core::error::Result;
use sheetanchor_core::format::wal::WalHeader;
use sheetanchor_core::identity::{ByteCount, ClusterId, HoldId, Incarnation, LifeId, NodeId, ThreadId, TimelineId};
use sheetanchor_core::in_doubt::{Fate, Held, Trace};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;

/// Where an engine keeps its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    /// Each node has its own files; each is captured and recovered by itself.
    PerNode,
    /// All nodes share one set of files; one agent captures them, and they are recovered over all threads at once.
    Shared,
}

/// The primitives an engine has. One that lacks what a protocol needs gets a refusal (`0A000`) that names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Capabilities {
    /// Where it keeps its data.
    pub storage: Storage,
    /// Whether every WAL record carries an SCN.
    pub stamped: bool,
    /// Whether it can hold commits back.
    pub fence: bool,
    /// Whether transactions that span nodes are committed by two-phase commit, so that a fenced cut of databases that share
    /// nothing holds each of them as a whole once what is in doubt there is resolved.
    pub two_phase: bool,
}

/// What tells one database from every other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The kind of engine: `postgres`, `refdb`.
    pub engine: String,
    /// The engine's version.
    pub version: String,
    /// The system identifier; two nodes with the same one are the same database. Empty if nothing is there yet. On
    /// shared storage it names the node's own part of it.
    pub system: String,
}

/// How far a node's database is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing is there.
    Empty,
    /// It is there, and does not run.
    Down,
    /// It has recovered to a cut and waits to be opened.
    Reached,
    /// It serves.
    Open,
}

/// A look at a node's database. Taking it disturbs nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// How far it is.
    pub state: State,
    /// This run of the database; another after every restart. Zero unless open.
    pub life: LifeId,
    /// The highest SCN that it has issued or seen. Zero on engines without one.
    pub scn: Scn,
    /// Every record at or below this SCN, written or to come, is durable. Zero on engines without stamps.
    pub frontier: Scn,
    /// The end of its WAL.
    pub end: Position,
    /// The incarnation that it was opened in, where it knows.
    pub incarnation: Option<Incarnation>,
    /// In state `Reached`: the transactions that are prepared at the cut, but for those that `resolve` has ended. An engine
    /// without two-phase commit has none.
    pub in_doubt: Vec<Held>,
}

/// The cluster a node becomes part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joining {
    /// The cluster.
    pub cluster: ClusterId,
    /// All its nodes, ascending.
    pub nodes: Vec<NodeId>,
    /// The incarnation it starts in.
    pub incarnation: Incarnation,
}

/// A promise to keep WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Its name; two pins never share one.
    pub name: String,
    /// The first WAL that is kept.
    pub from: Position,
}

/// What a node says when its backup has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Where recovery of what is captured from now on has to start.
    pub start: Position,
    /// The highest SCN issued or seen so far. Pages changed later carry higher ones.
    pub scn: Scn,
}

/// What a node says when its backup has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Recovery has to come this far before the captured files are one state.
    pub stop: Position,
    /// The highest SCN issued or seen so far.
    pub scn: Scn,
    /// Files that belong to the backup and exist nowhere on disk: name relative to the data folder, and content.
    pub files: Vec<(String, Vec<u8>)>,
}

/// A node's place in a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutMade {
    /// The end, exclusive, of what belongs to the cut in this thread.
    pub until: Position,
    /// The end of the record that proves it: WAL must be durable, and archived, up to here.
    pub proof: Lsn,
}

/// Something to capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Relative to the data folder, `/`-separated, no `.` or `..` parts.
    pub name: String,
    /// What it is.
    pub kind: SourceKind,
    /// Permission bits.
    pub mode: u32,
}

impl SourceFile {
    /// Bytes that it had when it was listed; none for what is no file.
    pub fn length(&self) -> ByteCount {
        match self.kind {
            SourceKind::File { length } => length,
            SourceKind::Folder | SourceKind::Link { .. } => ByteCount::new(0),
        }
    }
}

/// What is to be captured under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// A file. It may grow meanwhile, and shrink or go away if the engine says so: the WAL makes up for it.
    File {
        /// Its length when it was listed.
        length: ByteCount,
    },
    /// A folder, perhaps empty.
    Folder,
    /// A symbolic link whose target is captured under its own name.
    Link {
        /// Where it leads.
        target: String,
    },
}

/// What a stream of files brings next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilePart {
    /// A name, and what lies there. What is said of a file's length is believed by nobody: its bytes follow.
    Entry(SourceFile),
    /// Bytes of the file whose entry came last. Its pages have been checked.
    Bytes(Vec<u8>),
}

/// All that is to be captured, as one stream, of a database whose files cannot be opened here. Each name comes once, in any
/// order.
#[async_trait]
pub trait FileStream: Send {
    /// About how many bytes will come.
    fn total(&self) -> ByteCount;

    /// What comes next; `None` once all has come, and is proven to be all.
    ///
    /// # Errors
    /// `SA007` for a damaged page, `SA204` if the database is gone, `SA407` for a link that leads to what is not captured;
    /// faults. Nothing comes after that.
    async fn next(&mut self) -> Result<Option<FilePart>>;
}

/// What a page check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageVerdict {
    /// All pages hold, or the file has none.
    Sound,
    /// The page that starts at this offset of the file fails. It may be torn by a write in progress: read again.
    Fails(u64),
}

/// Durable WAL of one thread.
#[derive(Clone, PartialEq, Eq)]
pub struct WalPiece {
    /// Its thread, timeline and first byte.
    pub from: Position,
    /// Its end, exclusive: where the next piece starts.
    pub until: Lsn,
    /// The highest SCN in it, if the engine stamps and any record is there.
    pub scn_last: Option<Scn>,
    /// The bytes as the engine wrote them. Their number need not be `until - from`, though it mostly is. They may be shared
    /// with whoever handed them on.
    pub bytes: Bytes,
}

impl core::fmt::Debug for WalPiece {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(out, "WalPiece({} until {}, {} bytes)", self.from, self.until, self.bytes.len())
    }
}

impl WalPiece {
    /// A piece that was read back, from the place `from` in it on. Where a byte of WAL is a byte here it is cut to the place;
    /// else the engine knows what to skip.
    pub(crate) fn cut_to(from: Position, header: &WalHeader, mut bytes: Bytes) -> Self {
        let mut start = header.from;
        if header.until.bytes_since(header.from) == Some(header.length.get())
            && let Some(skip) = from.lsn.bytes_since(header.from)
        {
            bytes.advance(usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len()));
            start = from.lsn;
        }
        let from = Position { thread: from.thread, timeline: header.timeline, lsn: start };
        Self { from, until: header.until, scn_last: header.scn_last, bytes }
    }
}

/// Archived WAL, read back for recovery.
#[async_trait]
pub trait WalSource: Send + Sync {
    /// The piece of its thread and timeline that starts at `from`; `None` past the last one that the plan holds.
    ///
    /// # Errors
    /// `SA504` if the piece is damaged, `SA501` if a later piece is there but not this one.
    async fn piece(&self, from: Position) -> Result<Option<WalPiece>>;

    /// What lies before `_at` in its thread has been replayed. For whoever wants to know how far a recovery is: nothing
    /// depends on it, and an engine tells it as often as it likes.
    fn replayed(&self, _at: Position) {}
}

/// WAL of one thread on one of its branches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The thread's log branch.
    pub timeline: TimelineId,
    /// Where reading starts.
    pub from: Lsn,
    /// Where it ends, exclusive. More may be archived: it is beyond the branch.
    pub until: Lsn,
    /// Records above it have no effect.
    pub scn: Scn,
}

/// Where one thread's recovery starts and must end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadRange {
    /// What is read: one span of each incarnation from the backup's to the cut's, each from where the one before it ends.
    pub spans: Vec<Span>,
    /// The cut's end in this thread, exclusive. If it is sought, the end of the WAL that suffices to find it.
    pub until: Lsn,
    /// The end of the record that proves the cut; the last span ends there.
    pub proof: Lsn,
}

/// What to recover to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The name of the record that marks the cut, unique for ever. Engines without stamps find the cut by it.
    pub record: String,
    /// The cut: records up to and including this SCN, on engines that stamp. Zero elsewhere.
    pub scn: Scn,
    /// Whether the cut's place in each thread is to be found by its SCN. Engines without stamps refuse that.
    pub sought: bool,
    /// The highest SCN reported when all nodes had begun: pages torn during capture were changed above it.
    pub begun_scn: Scn,
    /// The threads to recover: all of them on shared storage, this node's own elsewhere.
    pub threads: BTreeMap<ThreadId, ThreadRange>,
}

/// What to look for in archived WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// Whose WAL.
    pub thread: ThreadId,
    /// Which part of it: it begins at a cut of its incarnation, or where that begins, and its last records may lie above
    /// `scn`, where records are stamped.
    pub span: Span,
    /// The global identifiers in question.
    pub gids: BTreeSet<String>,
}

impl ThreadRange {
    /// Where recovery starts.
    pub fn start(&self) -> Lsn {
        self.spans.first().map(|span| span.from).unwrap_or_default()
    }

    /// How much WAL is replayed.
    pub fn bytes(&self) -> ByteCount {
        self.spans.last().map_or(ByteCount::new(0), |last| self.bytes_before(last.timeline, self.until))
    }

    /// How much of it lies before a place: none before one on a timeline that is not replayed.
    pub fn bytes_before(&self, timeline: TimelineId, lsn: Lsn) -> ByteCount {
        let mut before = 0_u64;
        for (place, span) in self.spans.iter().enumerate() {
            // The last span ends with the record that proves the cut, which has no effect.
            let is_last = place.saturating_add(1) == self.spans.len();
            let end = if is_last { span.until.min(self.until) } else { span.until };
            let length = |until: Lsn| until.bytes_since(span.from).unwrap_or_default();
            if span.timeline == timeline {
                return ByteCount::new(before.saturating_add(length(lsn.min(end))));
            }
            before = before.saturating_add(length(end));
        }
        ByteCount::new(0)
    }
}

/// What a new incarnation is opened with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The cluster.
    pub cluster: ClusterId,
    /// All its nodes, ascending.
    pub nodes: Vec<NodeId>,
    /// The new incarnation.
    pub incarnation: Incarnation,
    /// The clock starts above this: no ancestor used an SCN beyond it.
    pub scn_floor: Scn,
    /// What the clock adds to wall time, in milliseconds.
    pub scn_offset_ms: u64,
}

/// One node's database, as its agent sees it. Every call may be repeated: the second does nothing more and says the
/// same. Unless said otherwise a call on a database that is not open is refused with `SA112`.
#[async_trait]
#[allow(clippy::missing_errors_doc, reason = "each method names its codes; faults are the world's")]
pub trait Database: Send + Sync {
    /// The engine's primitives. Known before anything is there.
    fn capabilities(&self) -> Capabilities;

    /// The folder that holds the data: a restore stages into it, and file names are relative to it.
    fn data_folder(&self) -> &str;

    /// The file without which the database cannot start; a restore writes it last.
    fn control_file(&self) -> &str;

    /// What tells this database from others. Works in every state.
    async fn identity(&self) -> Result<Identity>;

    /// A look at it. Works in every state.
    async fn status(&self) -> Result<Status>;

    /// Becomes part of a cluster. An engine that has nothing yet may create it now; one that belongs to another cluster
    /// refuses with `SA104`. Works in states `Empty` and `Open`.
    async fn join(&self, joining: &Joining) -> Result<()>;

    /// Takes note of an SCN that a verified message carried, and answers the highest one known. Engines without stamps
    /// keep it in memory. Refusals: `SA109`.
    async fn observe(&self, scn: Scn) -> Result<Scn>;

    /// Keeps WAL from now on, durably, under `name`. Answers what is kept; a repeated call moves nothing.
    async fn pin(&self, name: &str) -> Result<Position>;

    /// Lets go of a pin. One that is not there is no error. Works in every state but `Empty`.
    async fn unpin(&self, name: &str) -> Result<()>;

    /// All pins, sorted by name.
    async fn pins(&self) -> Result<Vec<Pin>>;

    /// Moves a pin forward, never back: WAL before `from` is not needed for it any more.
    async fn advance_pin(&self, name: &str, from: Lsn) -> Result<()>;

    /// The latest place from which the archive could go on if all WAL before it were let go of: what lies there is durable, and
    /// a backup that begins from now on starts there or later. `0A000` from an engine that knows none.
    async fn resume_at(&self) -> Result<Position> {
        Err(Refusal::new(Code::NotSupported, "the engine cannot go on behind WAL that was let go of (resume_at)")
            .into())
    }

    /// Moves a pin forward to `until`, which [`Database::resume_at`] has said, past WAL that nobody else has; makes it anew if
    /// it is gone, or has lost what it kept. Answers from where on WAL is kept now: beyond `until` if what lay there is gone,
    /// too. The one way past WAL that was not archived: whoever calls it has durably declared the hole.
    async fn skip_pin(&self, name: &str, until: Position) -> Result<Position> {
        let message = format!("the pin `{name}` cannot be moved to {until} past WAL that is let go of (skip_pin)");
        Err(Refusal::new(Code::NotSupported, message).into())
    }

    /// Begins a backup: makes a checkpoint, and from now on logs whole pages where they could be read torn.
    async fn begin_backup(&self, label: &str) -> Result<Begun>;

    /// Ends the backup that `begin_backup(label)` began. `SA204` if the database restarted in between.
    async fn end_backup(&self, label: &str) -> Result<Ended>;

    /// Ends it without using it. One that is not there is no error.
    async fn abandon_backup(&self, label: &str) -> Result<()>;

    /// What to capture, sorted by name, folders before what lies in them. `SA407` for a link that leads to what is not
    /// captured. WAL, locks, pins and temporary files are left out.
    async fn files(&self) -> Result<Vec<SourceFile>>;

    /// Everything to capture, in the place of `files`, from a database that hands its files on itself: those of the running
    /// backup `label`, once. `SA204` if no such backup runs, or its files were taken.
    async fn file_stream(&self, label: &str) -> Result<Option<Box<dyn FileStream>>> {
        let _: &str = label;
        Ok(None)
    }

    /// Where the captured link `name`, which led to `target`, is to lead in a folder that is restored. `SA407` where it may
    /// lead nowhere. A restore fills the folder there, which must be empty.
    fn link_target(&self, name: &str, target: &str) -> Result<String> {
        let message = format!("{name} led to {target}, and this engine knows no links");
        Err(Refusal::new(Code::UnsafePath, message).into())
    }

    /// What has changed in this node's files, or in those that all share, by the WAL of one thread from `since` until `until`,
    /// exclusive, both of one timeline. `wal` waits for what is not archived yet. `None` if the engine cannot tell, and
    /// refusals: then everything is read. A file that the map vouches for is, as far as nothing is told, byte for byte what a
    /// backup that started at `since` has captured, or differs in what recovery from `until` on does not need.
    async fn changes(&self, since: Position, until: Position, wal: &dyn WalSource) -> Result<Option<ChangeMap>> {
        let (_, _, _): (Position, Position, &dyn WalSource) = (since, until, wal);
        Ok(None)
    }

    /// Checks the pages in `bytes`, which start at `offset` of file `name`: a multiple of 64 KiB, or of the block that
    /// `changes` counts in.
    fn check_pages(&self, name: &str, offset: u64, bytes: &[u8]) -> PageVerdict;

    /// Whether the file `name` may shrink or go away while the database runs, with the WAL saying so. If not, one that does
    /// is not backed up (`SA008`): somebody else has written to it.
    fn may_shrink(&self, name: &str) -> bool {
        let _: &str = name;
        false
    }

    /// What is missing for a fence, and what to do about it, where `capabilities` says that there is none and one could be.
    fn fence_missing(&self) -> Option<String> {
        None
    }

    /// Holds new commits back under `hold`. They wait, and can be cancelled. `0A000` without a fence. The agent releases
    /// within `lease`; an engine whose fence could outlive the agent must end it by itself then.
    async fn close(&self, hold: HoldId, lease: Duration) -> Result<()>;

    /// Returns once the commits that were in flight when `hold` closed have finished: the highest SCN issued or seen,
    /// and the end of WAL. May take long: the caller has a deadline.
    async fn drain(&self, hold: HoldId) -> Result<(Scn, Position)>;

    /// Observes `scn` and writes a record named `record` above it: what lies before it, at or below `scn`, is the cut.
    /// `SA203` if `hold` does not stand. `SA209` from an engine that can tell that nobody has drained under it.
    async fn cut(&self, hold: HoldId, scn: Scn, record: &str) -> Result<CutMade>;

    /// Lets commits flow again if `hold` stands. Must not wait for any I/O.
    async fn release(&self, hold: HoldId) -> Result<()>;

    /// For engines without a fence: writes a record named `record` now and makes it durable. A cut of this node alone.
    async fn cut_alone(&self, record: &str) -> Result<CutMade>;

    /// For engines that stamp every record: observes `scn`, and makes a record named `record` durable that is stamped
    /// above it. What lies at or below `scn` is the cut, and nothing of it can follow. Holds nobody back. `0A000` without
    /// stamps; `SA209` if the node has forgotten where the SCN lies in its thread: take the next point at a newer one.
    async fn mark(&self, scn: Scn, record: &str) -> Result<CutMade> {
        let message =
            format!("SCN {scn} cannot be marked as `{record}`: the engine's WAL records carry no SCN (stamped)");
        Err(Refusal::new(Code::NotSupported, message).into())
    }

    /// Returns once WAL up to `until` is durable.
    async fn flush(&self, until: Lsn) -> Result<()>;

    /// Durable WAL that starts exactly at `from`, at most about `bytes_max` of it; `None` if nothing is durable beyond. Of a
    /// timeline that the database has left, whatever it still has up to there. `SA501` if it is not kept any more, or lies
    /// beyond where the timeline was left; `SA504` if it is damaged.
    async fn durable_wal(&self, from: Position, bytes_max: ByteCount) -> Result<Option<WalPiece>>;

    /// Recovers the files that were staged into the data folder to a cut, exactly. Works in states `Down` and `Reached`.
    /// Refusals: `SA009`, `SA403`, `SA404`, `SA405`, `SA408`, `SA504`.
    async fn recover(&self, recovery: &Recovery, wal: &dyn WalSource) -> Result<()>;

    /// What archived WAL says of some prepared transactions: each PREPARE and each end of them at or below the cut, in
    /// order, and every end whose gid is neither in its record nor in a PREPARE that was met. Works in every state.
    /// Refusals: `SA504`.
    async fn search(&self, search: &Search, _wal: &dyn WalSource) -> Result<Vec<Trace>> {
        let message = format!("thread {} has no prepared transactions to look for", search.thread);
        Err(Refusal::new(Code::NotSupported, message).into())
    }

    /// Ends prepared transactions, by gid, as they were decided; durable once it returns, and visible once the database is
    /// open. One that is not there has ended. Works in state `Reached`.
    async fn resolve(&self, fates: &[(String, Fate)]) -> Result<()> {
        if fates.is_empty() {
            return Ok(());
        }
        Err(Refusal::new(Code::NotSupported, "the engine has no two-phase commit (two_phase)").into())
    }

    /// Opens what `recover` has reached, as a new incarnation. A repeated call does nothing more. Works in states
    /// `Reached` and `Open`.
    async fn open(&self, opening: &Opening) -> Result<()>;

    /// Ends the database's use of the data folder, so that staged files may be removed. Works in every state.
    async fn stop(&self) -> Result<()>;

    /// Whether nothing uses the data folder, so that a restore may write over what lies there: no server runs, no process
    /// that one has left. `SA413` else. Asked of one node at a time. Works in every state; `0A000` from an engine that cannot tell.
    async fn check_unused(&self) -> Result<()> {
        Err(Refusal::new(Code::NotSupported, "the engine cannot be restored over what is there (delta)").into())
    }

    /// Whether what lies in the data folder, which is not empty, is a copy of the node's database, or what a restore over
    /// one has left. One without a control file can only be told to be some database of this engine. `system` is what the
    /// database said that it was when it joined `cluster`; empty of an engine that made it then. `SA414` for anything else.
    /// Works in every state.
    async fn check_own(&self, cluster: ClusterId, system: &str) -> Result<()> {
        let message = format!("the engine cannot be restored over what is there (delta): {cluster} {system}");
        Err(Refusal::new(Code::NotSupported, message).into())
    }
}
