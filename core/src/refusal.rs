//! Refusals: stops for lack of evidence. The catalogue below is the one place where a code gets its meaning and its
//! hint; `docs/refusals.md` is generated from it.

use alloc::string::String;
use core::fmt;

macro_rules! catalogue {
    ($($variant:ident $text:literal $meaning:literal $hint:literal;)+) => {
        /// What a refusal is about. Five characters that are also its SQLSTATE. Append-only; a code is never reused.
        /// Class `SA` is ours: the SQL standard leaves classes that start with I to Z to vendors.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = concat!("`", $text, "`: ", $meaning, ".")] $variant,)+
        }

        impl Code {
            /// Every code, in the catalogue's order.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The five characters.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// What it means, in one clause.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning),+ }
            }

            /// What an operator can do next.
            pub const fn hint(self) -> &'static str {
                match self { $(Self::$variant => $hint),+ }
            }
        }
    };
}

catalogue! {
    NotSupported "0A000" "this database cannot do that" "see which primitive is missing; an engine without a commit fence can be backed up with `--cut per-node`, whose guarantee is per node";

    FormatNewer "SA001" "an object was written by a newer version" "use a version at least as new as the one that wrote it";
    Damaged "SA002" "an object in the repository is not what was written" "restore the object from a copy of the repository, or use another backup";
    Missing "SA003" "an object that must be in the repository is not there" "restore the object from a copy of the repository, or use another backup";
    FrameDamaged "SA004" "a message was truncated or damaged" "the sender repeats it; if it happens often, look at the network between the nodes";
    FrameTooLarge "SA005" "a message is larger than any that is valid" "something other than a Sheetanchor peer may be talking to this address";
    ChunkDamaged "SA006" "stored data does not hash to what the manifest says" "restore the pack from a copy of the repository, or use another backup";
    PageDamaged "SA007" "a database page fails its checksum" "repair the database from an earlier backup: a backup of a damaged page is not a backup";
    FileChanged "SA008" "a file changed in a way that no page or log explains while it was captured" "run the backup again; if it happens again, something other than the database writes to that folder";
    NotWritten "SA009" "a disk does not hold what was written to it" "look at the disk that the message names, and restore to another one: nothing was opened";

    ConfigInvalid "SA101" "the cluster file is not valid" "correct the line that the message names";
    NotInitialised "SA102" "the repository holds no cluster" "run `sheetanchor init` once, with every agent running";
    AlreadyInitialised "SA103" "the repository holds a cluster already" "choose an empty repository, or use this one as it is";
    OtherCluster "SA104" "a node or repository belongs to another cluster" "check the addresses and the repository in the cluster file";
    OtherMembership "SA105" "the list of members is not the one in force" "bring the cluster file in line with the members that `sheetanchor status` shows";
    BadName "SA106" "a name or id is not valid" "use 1 to 63 letters, digits, `.`, `_` or `-`, not starting with `.`";
    DuplicateIdentity "SA107" "two nodes are the same database" "give each node its own id, agent address, state and data folder";
    OtherIncarnation "SA108" "a message or node is of another incarnation" "the cluster was restored and opened since: restart the node from the new incarnation";
    ClockDrift "SA109" "an SCN is further ahead than the drift bound" "set the clocks of the nodes right, with NTP for example";
    ClockUnreserved "SA110" "a stamp would lie above the reserved ceiling" "the node's control file could not be written in time: look at its disk";
    NotLoopback "SA111" "an address is not on the loopback interface" "until transport security lands, agents may only be reached on 127.0.0.1 or ::1";
    DatabaseDown "SA112" "the node's database is not open" "start the database, or restore it";
    OtherNode "SA113" "a folder or agent belongs to another node" "check `state`, `data` and `agent` of the node in the cluster file";
    ServerUntrusted "SA114" "a database server is not as safe to speak to as it must be" "see that the server has `ssl = on`, and that `sslrootcert` in the node's `connection` holds the authority of its certificate, made out to the very host that is called";
    PrivilegeMissing "SA115" "the role that connects to a database may not do all that is needed" "run the SQL that the message gives, as a superuser, in the database that it names";

    NodeSilent "SA201" "a node did not answer in time" "see that its agent and its database are running, then try again";
    StaleEpoch "SA202" "another coordinator has taken this operation over" "nothing to do here: the other coordinator decides its outcome";
    HoldLost "SA203" "the fence was released before the step was done" "try again; if it happens often, the nodes are too slow for the lease";
    LifeChanged "SA204" "a node restarted in the middle of the operation" "try again once the node is up";
    Busy "SA205" "another operation holds this node's fence" "try again when the other operation has ended";
    DrainTimedOut "SA206" "commits in flight did not finish within the drain deadline" "look for a commit that waits for a lock, a disk or a standby, then try again";
    Aborted "SA207" "the operation was aborted" "start a new one";
    NotRegistered "SA208" "the operation is not registered in the repository" "check that coordinator and agent use the same repository";
    OutOfOrder "SA209" "a request does not fit what this node has done for the operation" "start the operation again";
    PinLost "SA210" "the pin that kept the WAL is gone" "start the backup again; if the pin expired, the coordinator was away for longer than its lease; if WAL was let go of, `sheetanchor status` says which and why";
    NotMonotonic "SA211" "a cut does not lie after the one before it" "do not use this cluster's newest restore points before you know why a node went back";
    Cancelled "SA212" "the operation was cancelled by its operator" "start a new one";
    NameTaken "SA213" "the name was used before" "choose a name that was never used in this cluster";
    Unfinished "SA214" "an earlier operation has no outcome yet" "wait for it, or end it with `sheetanchor abort ID`";

    NoSuchTarget "SA301" "there is no such backup or restore point" "list what there is with `sheetanchor status` and `sheetanchor restore-point list`";
    NoBackup "SA302" "no sealed backup lies before the target" "choose a later target, or take a backup first";
    NotReachable "SA303" "the archive does not reach the target" "wait until every node has archived its WAL past the target, or choose an earlier one";
    BadTarget "SA304" "a target is malformed, or says two things at once" "name one target: `--latest`, `--backup ID`, `--name NAME`, `--scn SCN` or `--time RFC3339`";
    OtherBranch "SA305" "the target lies on another branch of the lineage" "say `--incarnation N` with the incarnation that the message names, as `sheetanchor incarnations` shows it";
    BetweenIncarnations "SA306" "the SCN lies between two incarnations" "choose an SCN at or below the branch cut or above the floor, or say `--incarnation N` with the one that went on";
    PointsOnly "SA307" "this engine reaches restore points only" "choose a restore point, or say `--nearest-before` to take the newest one at or before the target";

    FolderNotEmpty "SA401" "a folder that must be empty is not" "restore into an empty folder, or move what lies there out of the way; `restore --delta` restores over an older copy of the node's database";
    IncarnationTaken "SA402" "another restore has opened, or ended, this incarnation" "start the restore again, from the incarnation that is in force now";
    CutMissed "SA403" "recovery did not end at the cut" "do not open this copy; check the backup with `sheetanchor verify`";
    ChainBroken "SA404" "a record does not follow the page version that it expects" "a record is missing from some WAL thread: use another backup";
    ThreadShort "SA405" "a WAL thread ends before the cut" "the archive of that thread is incomplete: choose an earlier target";
    OtherRestore "SA406" "the folder is being restored by another operation" "finish or abort the other restore first";
    UnsafePath "SA407" "a path leads out of the folder that is backed up" "map or remove the link that the message names";
    RecoveryFailed "SA408" "the database refused to recover" "read the database's own log, which the message names";
    LostAfterOpening "SA409" "a node had opened, and then lost what it had" "what it wrote since it opened is not in this restore: stop the other nodes, empty all folders, and restore the cluster anew";
    RestoreUnfinished "SA410" "an earlier restore is decided and has not opened every node" "take it up with `sheetanchor restore --resume ID`; if that cannot be done and none of its nodes lives, begin with `sheetanchor restore --anew`";
    SourceUnheld "SA411" "the source of a clone cannot be held against expiry" "let this command write to the source's repository, or say `--unheld` and see that nobody expires backups there meanwhile";
    SourceUnnamed "SA412" "the cluster file names no source to clone from" "write `source = \"file:///…\"` under `[cluster]` of the clone's own cluster file, and start its agents with it";
    FolderInUse "SA413" "something still uses a folder that is to be restored" "stop the database there, and whatever starts it again, then try again";
    ForeignFolder "SA414" "a folder that is to be restored over holds something else than the node's database" "check `data` of the node in the cluster file; if what lies there is to be replaced, empty the folder, or remove its control file to say that it is this database's";
    NoDataFolder "SA415" "a node has no data folder that could be restored into" "clone onto nodes with an agent beside each data folder (`restore --clone`, with a cluster file of their own), or give the node an agent on its own host, with `data`";

    WalGap "SA501" "WAL is missing between two archived pieces" "the gap cannot be closed: take a new backup; targets before the gap stay reachable";
    WalConflict "SA502" "two different pieces of WAL claim one place in the archive" "two servers may be writing as one node: stop one of them";
    ArchiveBehind "SA503" "the archive did not reach the cut in time" "look at the node's archiver and the repository's speed, then try again";
    WalDamaged "SA504" "a piece of WAL is damaged" "restore it from a copy of the repository, or choose a target before it";
    NoSpace "SA505" "a disk is full" "make room on the disk that the message names";
}

impl fmt::Display for Code {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl Code {
    /// Reads the five characters.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text)
    }
}

/// A stop for lack of evidence. The message shows the values that do not agree; the hint comes with the code.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Refusal {
    /// What it is about.
    pub code: Code,
    /// What was seen, lowercase and without a full stop.
    pub message: String,
}

impl Refusal {
    /// A refusal of kind `code`; `message` says what was seen.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// What an operator can do next.
    pub fn hint(&self) -> &'static str {
        self.code.hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_code_is_five_characters_unique_and_explained() {
        let unique: BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(unique.len(), Code::ALL.len());
        for code in Code::ALL {
            assert_eq!(code.as_str().len(), 5, "{code}");
            assert_eq!(Code::parse(code.as_str()), Some(*code));
            for text in [code.meaning(), code.hint()] {
                assert!(!text.is_empty() && !text.ends_with('.'), "{code}: {text}");
            }
        }
    }
}
