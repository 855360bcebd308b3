//! Planted bugs: the proof that the simulator can see. Behind the feature `planted`, which the shipped binary lacks, one
//! bug of the list is chosen for the whole process, by name; without the feature every question is answered no.

/// A bug that can be planted, and where it sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// The folder repository answers `Created` without having synced anything.
    NoFsyncBeforeSeal,
    /// The folder repository takes a folder that is there for a durable one.
    FolderUnsynced,
    /// Closing the fence does not hold commits back.
    NoFence,
    /// Pins are ignored when WAL is recycled.
    NoPin,
    /// Recovery leaves out the records that carry the very SCN of the cut.
    CutOffByOne,
    /// A commit is acknowledged before its record is durable.
    AckBeforeFlush,
    /// What an ancestor's branch holds beyond the place where a descendant left it passes for the descendant's past.
    BranchCutIgnored,
    /// An SCN that is no restore point is rounded to the newest one before it.
    TargetRounded,
    /// A fence's lease is taken for an hour, whatever the coordinator asked for.
    LeaseIgnored,
    /// A pin's lease is taken for a day, whatever the coordinator asked for.
    PinNeverExpires,
    /// All backups share one pin on each node.
    OnePinSlot,
    /// Ending one operation on a node ends every operation's backup and pin there.
    AbortTouchesOthers,
    /// Requests of an older term than the newest one known are performed.
    StaleEpochAccepted,
    /// An agent that learns of an operation forgets all others.
    OneOperationAtATime,
    /// An agent refuses to learn of a seventeenth operation.
    SixteenOperationsAtMost,
    /// Requests under another list of members are performed.
    MembershipUnchecked,
    /// A request that is refused is not answered.
    RequestUnanswered,
    /// A seal replaces the outcome that somebody else has decided.
    SealOverAbort,
    /// After a time-out, whatever stands under a create-once name is taken for the writer's own.
    NonceUnchecked,
    /// A piece of WAL that is in the archive to another end is taken for a second writer's.
    ShortPieceRefused,
    /// A backup that failed lets go of its pins before failure has become its outcome.
    UnpinBeforeOutcome,
    /// Expiry does not wait for backups that are running.
    ExpiryIgnoresBackups,
    /// Expiry does not wait for restores that are running.
    ExpiryIgnoresRestores,
    /// Expiry keeps WAL from the oldest kept backup's stop on, not from its start.
    ExpiryKeepsFromStop,
    /// The SCN that a session carries from node to node is not observed.
    ScnNotObserved,
    /// A node's clock starts above the last record that it finds, and not above the ceiling that it had reserved.
    CeilingIgnored,
    /// The record that marks a cut by SCN is not made durable.
    BarrierUnflushed,
    /// An idle node logs no barriers.
    IdleWithoutBarrier,
    /// Records of different threads are ordered by their node first, and by their SCN only then.
    NodeBeforeScn,
    /// Recovery takes what lies before the cut's place in each thread, and not what lies at or below its SCN.
    CutByLsn,
    /// A node answers that it is cut once its archive has come that far: with the fence closed.
    ArchiveUnderFence,
    /// That the record of a cut is durable is confirmed without making it so.
    FlushNotAwaited,
    /// A page goes to another node before the log of its changes is durable.
    PageShippedUnflushed,
    /// A sync of pages that follows a failed one is believed.
    SyncedBehindAFailure,
    /// A checkpoint moves the place where recovery starts, and leaves changed pages unwritten.
    CheckpointTooEarly,
    /// The SCN of a message is observed whichever cluster the message is of.
    ObservedUnverified,
    /// Restore points at an interval that are late are followed by those that they overran, one after the other.
    TicksQueued,
    /// A point is a target whether or not the archive leads to it.
    ReachUnchecked,
    /// A node's pins are captured with its files, and kept when it opens.
    PinsCaptured,
    /// An incarnation adds nothing to wall time, however far its history ran ahead.
    OffsetNotStored,
    /// The clocks of a new incarnation start above its cut, and not above all that its history used.
    ScnFloorIgnored,
    /// What a node has prepared is decided by its own WAL alone.
    OwnNodeDecides,
    /// Outcomes of prepared transactions are looked for where the backup's WAL begins, and what is not there never was.
    EvidenceRangeIgnored,
    /// That a gid was used before is not noticed: its last end counts.
    GidReuseUnnoticed,
    /// Recovery to a cut forgets what is prepared there.
    PreparedLostAtRecovery,
    /// What is in doubt at a cut is decided, and left as it is.
    InDoubtUnresolved,
    /// A read that brought fewer bytes than were asked for is taken for the end of the file.
    ShortReadIgnored,
    /// A write that took fewer bytes than it was given passes for whole.
    ShortWriteIgnored,
    /// A write to the log of the embedded database that fails passes for done.
    WriteFailureSwallowed,
    /// A create-once write whose answer did not come is given up without looking whether it took place.
    TimeoutTakenForFailure,
    /// A repository that cannot just now is asked again for ever.
    RetryUnbounded,
    /// The cut of a backup is taken before its nodes have ended, and nobody compares.
    CutBeforeEnd,
    /// A backup is sealed without a look at what it has stored.
    SealedUnread,
    /// Whoever reads a list of archived WAL is refused for a damaged piece that it does not need.
    AnyDamageHinders,
    /// Symbolic links in the data folder are left out of a backup without a word.
    LinksDropped,
    /// A file that is shorter than it was listed is captured as it is, whatever its engine says.
    ShrunkFileAccepted,
    /// A node stages into a folder that another restore has begun with.
    OtherRestoreIgnored,
    /// Lists show whatever a digest holds, whether or not it has an outcome.
    DigestTrusted,
    /// A restore that is decided opens what is there, and stages nothing again.
    LostIsNotStaged,
    /// A node that had opened is staged again like any other.
    OpenedStagedAgain,
    /// A clone keeps the identity of the cluster that it is made from.
    CloneKeepsIdentity,
    /// A node archives into whatever repository it is given.
    RepositoryUnchecked,
    /// A node that missed an incarnation takes it for its own once it learns of it.
    MissedIsJoined,
    /// Pages are captured whether or not they agree with their checksums.
    PageUnchecked,
    /// A chunk is taken for what was captured, whatever it hashes to.
    ChunkUnchecked,
    /// A piece of WAL is taken for whole, whatever it hashes to.
    PieceUnchecked,
    /// What was staged is not read again.
    StagedUnread,
    /// What recovery has written is not read again.
    RecoveredUnread,
    /// A node says that it has drained while commits are under way.
    DrainNotAwaited,
    /// A page goes to another node without a record that says so.
    ReleaseNotLogged,
    /// A checkpoint moves the place where recovery starts before the pages are durable.
    CheckpointUnsynced,
    /// The name of a new segment of the log is not made durable.
    SegmentNameUnsynced,
    /// A segment of the log is left for the next one without having been made durable.
    OlderSegmentUnsynced,
    /// The segment that holds the first WAL to be kept is recycled with those before it.
    RecycledOneTooMany,
    /// The name of a file that was replaced is not made durable.
    ReplacedNameUnsynced,
    /// A pin is promised and not written.
    PinUnwritten,
    /// A piece of WAL whose write timed out passes for archived, though nothing is there.
    PieceTimeoutBelieved,
    /// A file that was staged is not made durable.
    StagedUnsynced,
    /// Expiry removes the piece of WAL that holds the first byte to be kept.
    ExpiryTakesTheFloor,
    /// Expiry removes every pack of a condemned backup, whichever backup goes on using it.
    ExpiryTakesBasePacks,
    /// A backup of another incarnation passes for one to go on from.
    BaseOfAnotherIncarnation,
    /// On shared storage only the capturing node's own WAL is asked what has changed.
    ChangesOfOneThread,
    /// The last 4 KiB of WAL before a backup starts are left out of what has changed.
    LastWalPageMissed,
    /// The last chunk of a file passes for unchanged though the file has grown.
    GrownTailUnread,
    /// A patch holds what has changed since the backup before, and not since its chunk was stored.
    PatchForgetsThePatch,
    /// A delta restore leaves files that the backup does not have.
    DeltaKeepsExtraFiles,
    /// A delta restore leaves the old control file in its place until the new one replaces it.
    DeltaKeepsControl,
    /// Neither a backup nor a restore waits for its turn to read or write.
    RateIgnored,
    /// A chunk is taken for one that zstd packed, whatever its frame begins with.
    MagicIgnored,
    /// The first change of a page after it was read from the file logs that change alone, and not the whole page.
    ImageLeftOut,
    /// A whole page that was logged before a checkpoint counts as logged after it.
    OldImageCounts,
    /// A commit is visible to others before its record is durable.
    SeenBeforeDurable,
    /// Crash recovery repeats changes of pages that were given away.
    GivenAwayRepeated,
    /// Crash recovery takes a torn page for sound.
    TornTakenForSound,
    /// A record of the log is taken for whole, whatever its checksum says.
    RecordUnchecked,
    /// A file that lies where one is staged, from before a crash or from an older copy, is taken for the right one if its length is.
    StagedByLength,
    /// WAL is let go of before the hole that it leaves is durably declared.
    LetGoBeforeDeclared,
    /// A hole that was declared is not shown in the repository, and passes for shown.
    HoleUnrecorded,
    /// Where the files that a node sends break off, what has come passes for all of them.
    StreamEndBelieved,
    /// What the catalog holds is ordered by what coordinators' clocks said, and not by where it was cut.
    NewestByTheClock,
}

impl Bug {
    /// Every bug, with the name that chooses it.
    pub const ALL: &[(&'static str, Self)] = &[
        ("no-fsync-before-seal", Self::NoFsyncBeforeSeal),
        ("folder-unsynced", Self::FolderUnsynced),
        ("no-fence", Self::NoFence),
        ("no-pin", Self::NoPin),
        ("cut-off-by-one", Self::CutOffByOne),
        ("ack-before-flush", Self::AckBeforeFlush),
        ("branch-cut-ignored", Self::BranchCutIgnored),
        ("target-rounded", Self::TargetRounded),
        ("lease-ignored", Self::LeaseIgnored),
        ("pin-never-expires", Self::PinNeverExpires),
        ("one-pin-slot", Self::OnePinSlot),
        ("abort-touches-others", Self::AbortTouchesOthers),
        ("stale-epoch-accepted", Self::StaleEpochAccepted),
        ("one-operation-at-a-time", Self::OneOperationAtATime),
        ("sixteen-operations-at-most", Self::SixteenOperationsAtMost),
        ("membership-unchecked", Self::MembershipUnchecked),
        ("request-unanswered", Self::RequestUnanswered),
        ("seal-over-abort", Self::SealOverAbort),
        ("nonce-unchecked", Self::NonceUnchecked),
        ("short-piece-refused", Self::ShortPieceRefused),
        ("unpin-before-outcome", Self::UnpinBeforeOutcome),
        ("expiry-ignores-backups", Self::ExpiryIgnoresBackups),
        ("expiry-ignores-restores", Self::ExpiryIgnoresRestores),
        ("expiry-keeps-from-stop", Self::ExpiryKeepsFromStop),
        ("scn-not-observed", Self::ScnNotObserved),
        ("ceiling-ignored", Self::CeilingIgnored),
        ("barrier-unflushed", Self::BarrierUnflushed),
        ("idle-without-barrier", Self::IdleWithoutBarrier),
        ("node-before-scn", Self::NodeBeforeScn),
        ("cut-by-lsn", Self::CutByLsn),
        ("archive-under-fence", Self::ArchiveUnderFence),
        ("flush-not-awaited", Self::FlushNotAwaited),
        ("page-shipped-unflushed", Self::PageShippedUnflushed),
        ("checkpoint-too-early", Self::CheckpointTooEarly),
        ("observed-unverified", Self::ObservedUnverified),
        ("ticks-queued", Self::TicksQueued),
        ("reach-unchecked", Self::ReachUnchecked),
        ("pins-captured", Self::PinsCaptured),
        ("offset-not-stored", Self::OffsetNotStored),
        ("scn-floor-ignored", Self::ScnFloorIgnored),
        ("own-node-decides", Self::OwnNodeDecides),
        ("evidence-range-ignored", Self::EvidenceRangeIgnored),
        ("gid-reuse-unnoticed", Self::GidReuseUnnoticed),
        ("prepared-lost-at-recovery", Self::PreparedLostAtRecovery),
        ("in-doubt-unresolved", Self::InDoubtUnresolved),
        ("short-read-ignored", Self::ShortReadIgnored),
        ("short-write-ignored", Self::ShortWriteIgnored),
        ("write-failure-swallowed", Self::WriteFailureSwallowed),
        ("timeout-taken-for-failure", Self::TimeoutTakenForFailure),
        ("retry-unbounded", Self::RetryUnbounded),
        ("cut-before-end", Self::CutBeforeEnd),
        ("sealed-unread", Self::SealedUnread),
        ("any-damage-hinders", Self::AnyDamageHinders),
        ("links-dropped", Self::LinksDropped),
        ("shrunk-file-accepted", Self::ShrunkFileAccepted),
        ("other-restore-ignored", Self::OtherRestoreIgnored),
        ("digest-trusted", Self::DigestTrusted),
        ("lost-is-not-staged", Self::LostIsNotStaged),
        ("opened-staged-again", Self::OpenedStagedAgain),
        ("clone-keeps-identity", Self::CloneKeepsIdentity),
        ("repository-unchecked", Self::RepositoryUnchecked),
        ("missed-is-joined", Self::MissedIsJoined),
        ("page-unchecked", Self::PageUnchecked),
        ("chunk-unchecked", Self::ChunkUnchecked),
        ("piece-unchecked", Self::PieceUnchecked),
        ("staged-unread", Self::StagedUnread),
        ("recovered-unread", Self::RecoveredUnread),
        ("drain-not-awaited", Self::DrainNotAwaited),
        ("release-not-logged", Self::ReleaseNotLogged),
        ("synced-behind-a-failure", Self::SyncedBehindAFailure),
        ("checkpoint-unsynced", Self::CheckpointUnsynced),
        ("segment-name-unsynced", Self::SegmentNameUnsynced),
        ("older-segment-unsynced", Self::OlderSegmentUnsynced),
        ("recycled-one-too-many", Self::RecycledOneTooMany),
        ("replaced-name-unsynced", Self::ReplacedNameUnsynced),
        ("pin-unwritten", Self::PinUnwritten),
        ("piece-timeout-believed", Self::PieceTimeoutBelieved),
        ("staged-unsynced", Self::StagedUnsynced),
        ("expiry-takes-the-floor", Self::ExpiryTakesTheFloor),
        ("expiry-takes-base-packs", Self::ExpiryTakesBasePacks),
        ("base-of-another-incarnation", Self::BaseOfAnotherIncarnation),
        ("changes-of-one-thread", Self::ChangesOfOneThread),
        ("last-wal-page-missed", Self::LastWalPageMissed),
        ("grown-tail-unread", Self::GrownTailUnread),
        ("patch-forgets-the-patch", Self::PatchForgetsThePatch),
        ("delta-keeps-extra-files", Self::DeltaKeepsExtraFiles),
        ("delta-keeps-control", Self::DeltaKeepsControl),
        ("rate-ignored", Self::RateIgnored),
        ("magic-ignored", Self::MagicIgnored),
        ("image-left-out", Self::ImageLeftOut),
        ("old-image-counts", Self::OldImageCounts),
        ("seen-before-durable", Self::SeenBeforeDurable),
        ("given-away-repeated", Self::GivenAwayRepeated),
        ("torn-taken-for-sound", Self::TornTakenForSound),
        ("record-unchecked", Self::RecordUnchecked),
        ("staged-by-length", Self::StagedByLength),
        ("let-go-before-declared", Self::LetGoBeforeDeclared),
        ("hole-unrecorded", Self::HoleUnrecorded),
        ("stream-end-believed", Self::StreamEndBelieved),
        ("newest-by-the-clock", Self::NewestByTheClock),
    ];
}

#[cfg(feature = "planted")]
mod chosen {
    use core::sync::atomic::{AtomicUsize, Ordering};

    use super::Bug;

    /// Found by `cargo xtask ci` in a binary that must not have the feature.
    pub static MARKER: &str = "sheetanchor-planted-bugs";

    /// One more than the bug's place in [`Bug::ALL`]; zero for none.
    static CHOSEN: AtomicUsize = AtomicUsize::new(0);

    /// Plants the bug called `name` in this process, and says whether there is one of that name.
    pub fn plant(name: &str) -> bool {
        let place = Bug::ALL.iter().position(|(known, _)| *known == name);
        CHOSEN.store(place.map_or(0, |place| place + 1), Ordering::SeqCst);
        place.is_some()
    }

    pub(super) fn is(bug: Bug) -> bool {
        let place = CHOSEN.load(Ordering::SeqCst);
        place.checked_sub(1).and_then(|place| Bug::ALL.get(place)).is_some_and(|(_, chosen)| *chosen == bug)
    }
}

#[cfg(feature = "planted")]
pub use chosen::{MARKER, plant};

/// Whether `bug` is planted in this process.
#[inline]
pub fn is(bug: Bug) -> bool {
    #[cfg(feature = "planted")]
    return chosen::is(bug);
    #[cfg(not(feature = "planted"))]
    {
        let _: Bug = bug;
        false
    }
}
