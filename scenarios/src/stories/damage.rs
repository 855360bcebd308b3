//! Silent damage: bits rot and writes are lost or go astray, and nobody is told.

use std::ops::Range;
use std::time::Duration;

use sheetanchor_core::format::{keys, wal};
use sheetanchor_core::identity::{OperationId, ThreadId};
use sheetanchor_core::plan::Target;
use sheetanchor_core::refusal::Code;
use sheetanchor_engine::coordinator::{Manner, Sealed};
use sheetanchor_sim::atlas::{Atlas, Harm};
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::plan::{Damage, Fault, Plan, When};
use sheetanchor_sim::world::{Failure, REPOSITORY};

use crate::cluster::{NODES, host};
use crate::stage::{Stage, Victims};
use crate::workload::Load;

/// The database's folder.
const DATA: &str = "/shared/db";

/// A phase comes within this.
const SOON: Duration = Duration::from_secs(30);

/// Bytes of a piece of WAL that are read to learn its header.
const HEADER_READ_BYTES: u64 = 4_108;

/// What a backup has for itself, by where it lies in the repository.
const PARTS: [&str; 3] = ["packs", "files", "manifests"];

/// What of a database is checked before a backup relies on it: a run damages one kind of it.
const SOURCES: [&[&str]; 3] = [&["pages"], &["control"], &["nodes/"]];

/// Objects that are read and checked by whoever relies on them, while nodes run: a run damages one kind at a time, since
/// the first damage of another kind would keep it from ever reading these.
const OBJECTS: [&[&str]; 4] =
    [&["packs/"], &["files/", "manifests/"], &["wal/"], &["outcomes/", "operations/", "names/", "digests/"]];

/// Objects that are missed: if one is lost after it was acknowledged, whoever needs it notices.
const MISSED: [&str; 4] = ["packs/", "files/", "manifests/", "wal/"];

/// Bits rot in the database's files and in its log before they are archived, in every object of the repository, and in what
/// a restore has staged; writes to the repository and those of a restore are lost or land elsewhere. Whatever was asked for
/// ends right or in a refusal that names damage: a backup that is sealed and verifies is restored, and whatever is restored
/// is exactly what had been committed up to its cut. One of two backups stays whole, and is restored if nothing else is
/// damaged.
pub fn is_refused_or_without_effect(stage: &mut Stage) -> Result<(), Failure> {
    let store = stage.chance().one_in(3);
    if store {
        stage.given_an_object_store();
    }
    let root = if store { "bucket:".to_string() } else { format!("{REPOSITORY}/") };
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(100, 300)?;
    let first = stage.a_backup_is_taken()?.operation;

    let atlas = while_it_lives(stage, &root, store);
    stage.damage_begins(atlas, 2, Victims::Anybody);
    let backup = stage.begin_backup();
    let second = stage.ends_or_names_damage("a backup of what is damaged", &backup)?.map(|sealed| sealed.operation);
    stage.meanwhile(50, 200)?;
    stage.damage_ends();
    stage.transfers_end()?;

    let atlas = at_rest(stage, &root, first, second);
    stage.damage_begins(atlas, 2, Victims::Operator);
    let sound = match second {
        Some(second) => is_verified(stage, &root, second)?,
        None => false,
    };
    stage.damage_ends();
    stage.everything_is_lost()?;

    let harmed = stage.world().harm().len();
    let atlas = while_it_is_restored(stage, &root, first, second);
    stage.damage_begins(atlas, 2, Victims::Anybody);
    let restored = match second {
        Some(second) => is_restored(stage, second, sound, harmed)?,
        None => false,
    };
    if !restored {
        let spared = stage.world().harm().iter().all(|harm| second.is_some_and(|id| is_part_of(&root, id, harm)));
        let harmed = stage.world().harm().len();
        // What the one before has staged and decided is left behind.
        stage.everything_is_lost()?;
        is_restored(stage, first, spared, harmed)?;
    }
    Ok(())
}

/// Whatever rots of a backup at rest, `verify` names it, kind by kind: a piece of WAL, a pack, a list of files, the manifest.
/// A page that rots on the source is not backed up. The backup before is whole, and is restored.
pub fn is_found_wherever_it_is(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(100, 300)?;
    let first = stage.a_backup_is_taken()?.operation;
    stage.meanwhile(100, 300)?;
    let second = stage.a_backup_is_taken()?.operation;
    stage.meanwhile(100, 300)?;
    let third = stage.a_backup_is_taken()?;
    stage.transfers_end()?;
    // By then every page is written, and nobody writes over what rots next.
    stage.meanwhile(900, 1_200)?;
    for backup in [second, third.operation] {
        let verify = stage.begin_verify(backup);
        stage.succeeds("a backup that is whole verifies", &verify)?;
    }
    // What is read last rots first.
    let (piece, frame) = first_piece_of(stage, &third)?;
    is_found(stage, second, ("packs/", 0..u64::MAX), Code::ChunkDamaged)?;
    is_found(stage, second, ("files/", 0..u64::MAX), Code::Damaged)?;
    is_found(stage, second, ("manifests/", 0..u64::MAX), Code::Damaged)?;
    // Not its header: that would stand in the way of the first backup, too, since every header is read.
    is_found(stage, third.operation, (&piece, frame), Code::WalDamaged)?;
    let draw = stage.chance().word();
    rots_next(stage, &format!("{DATA}/pages"), &host(1), draw);
    let backup = stage.begin_backup();
    stage.is_refused("a backup of a page that rotted", &backup, &[Code::PageDamaged])?;
    stage.damage_ends();
    stage.everything_is_lost()?;
    stage.is_restored(Target::Backup(first)).map(|_| ())
}

/// Then: a backup of which a bit rots where `verify` reads it is refused, and the refusal says what it is. A compressed frame
/// has a few bits that mean nothing: a second one is not one of those again.
fn is_found(
    stage: &mut Stage,
    backup: OperationId,
    (place, bits): (&str, Range<u64>),
    code: Code,
) -> Result<(), Failure> {
    let mut outcome = Ok(());
    for _ in 0..2 {
        let (operator, draw) = (stage.next_operator(), stage.chance().between(bits.start, bits.end));
        rots_next(stage, &format!("{REPOSITORY}/{place}"), &operator, draw);
        let verify = stage.begin_verify(backup);
        outcome = stage.ends(&verify)?;
        if outcome.is_err() {
            break;
        }
    }
    let named = outcome.as_ref().err().and_then(|error| error.refusal()).is_some_and(|refusal| refusal.code == code);
    stage.holds(named, Violation::new("verify finds the damage of what it reads", format!("{place}: {outcome:?}")))
}

/// The piece of the first thread's WAL in which a backup begins, and the bits of its frame that are read with its header.
fn first_piece_of(stage: &mut Stage, sealed: &Sealed) -> Result<(String, Range<u64>), Failure> {
    let start = sealed.manifest.threads.get(&ThreadId::new(1)).map(|span| span.start);
    let prefix = keys::wal_thread(sealed.manifest.incarnation, ThreadId::new(1));
    let listed = stage.operate(move |operator| {
        let prefix = prefix.clone();
        async move {
            let bucket = operator.repository().bucket();
            let mut pieces = bucket.list(&prefix).await?;
            pieces.retain(|key| keys::parse_wal(key).is_some_and(|(_, from)| Some(from) <= start));
            let piece = pieces.pop().unwrap_or_default();
            let body = bucket.get(&piece).await?;
            let bit = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX).min(HEADER_READ_BYTES) * 8;
            let frame = bit(wal::header(&piece, &body)?.1)..bit(body.len());
            Ok((piece, frame))
        }
    });
    stage.succeeds("pieces of WAL are listed", &listed)
}

/// When: a bit rots in what a host reads next there.
fn rots_next(stage: &mut Stage, place: &str, victim: &str, draw: u64) {
    stage.world().chart(Atlas::closed().give_up(place, &[Damage::Rot]));
    let at = When::pass(victim, stage.world().passes(victim) + 1);
    stage.world().arm(Plan::peaceful().and(Fault::Silent { at, damage: Damage::Rot, draw }));
}

/// What a restore has staged, and what recovery has written, is read again before anything relies on it: a write that the
/// disk lost or put elsewhere is refused, nothing is opened, and the next restore is good.
pub fn is_read_again(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(100, 300)?;
    stage.a_backup_is_taken()?;
    stage.meanwhile(100, 300)?;
    stage.transfers_end()?;
    for phase in ["phase=staging", "phase=recovering"] {
        stage.everything_is_lost()?;
        stage.world().chart(Atlas::closed().give_up(&format!("{DATA}/pages"), &[Damage::Lost, Damage::Astray]));
        let damage = if stage.chance().one_in(2) { Damage::Lost } else { Damage::Astray };
        let draw = stage.chance().word();
        let restore = stage.begin_restore(Target::Latest);
        stage.world().run_until_milestone(&restore.operator, phase, SOON)?;
        for host in NODES.map(host) {
            let at = When::pass(&host, stage.world().passes(&host) + 1);
            stage.world().arm(Plan::peaceful().and(Fault::Silent { at, damage, draw }));
        }
        stage.is_refused("a restore of which something was not written", &restore, &[Code::NotWritten])?;
        stage.damage_ends();
        stage.restores_are_given_up()?;
    }
    stage.everything_is_lost()?;
    stage.is_restored(Target::Latest).map(|_| ())
}

/// What is given up while clients write and a backup is taken. A lost write of a page leaves an older page, of which nobody
/// knows that there was a newer one: that is given up nowhere.
fn while_it_lives(stage: &Stage, root: &str, store: bool) -> Atlas {
    let begun = match stage.damage_of(&[0, 0, 1, 2]) {
        Some(0) => return under(Atlas::closed(), &format!("{DATA}/"), stage.damage_of(&SOURCES)),
        Some(1) => return rotting(stage, root),
        Some(_) | None => Atlas::closed(),
    };
    if store {
        return MISSED.iter().fold(begun, |atlas, kind| atlas.give_up(&format!("{root}{kind}"), &[Damage::Lost]));
    }
    // Objects get their names only when they are written.
    begun.give_up(&format!("{root}.tmp/"), &[Damage::Lost, Damage::Astray])
}

/// What is given up once both backups are there: never of both of them.
fn at_rest(stage: &Stage, root: &str, first: OperationId, second: Option<OperationId>) -> Atlas {
    let parts = |backup: OperationId| PARTS.map(|kind| format!("{root}{kind}/{backup}-"));
    let (first, second) = (parts(first), second.map(parts));
    let pairs = first.into_iter().zip(second.into_iter().flatten());
    pairs.fold(rotting(stage, root), |atlas, (one, other)| atlas.keep_one_of(&[one, other]))
}

/// What is given up while a restore runs.
fn while_it_is_restored(stage: &Stage, root: &str, first: OperationId, second: Option<OperationId>) -> Atlas {
    if stage.damage_of(&[false, true]) == Some(true) {
        return at_rest(stage, root, first, second);
    }
    let staged = ["pages", "control"].map(|name| format!("{DATA}/{name}"));
    staged.iter().fold(Atlas::closed(), |atlas, path| atlas.give_up(path, &Damage::ALL))
}

/// One kind of objects rots.
fn rotting(stage: &Stage, root: &str) -> Atlas {
    under(Atlas::closed(), root, stage.damage_of(&OBJECTS))
}

fn under(atlas: Atlas, root: &str, kinds: Option<&[&str]>) -> Atlas {
    let kinds = kinds.unwrap_or_default().iter();
    kinds.fold(atlas, |atlas, kind| atlas.give_up(&format!("{root}{kind}"), &[Damage::Rot]))
}

/// Whether damage struck what belongs to one backup alone.
fn is_part_of(root: &str, backup: OperationId, harm: &Harm) -> bool {
    PARTS.iter().any(|kind| harm.place.starts_with(&format!("{root}{kind}/{backup}-")))
}

/// Then: a backup verifies, or it is refused by what is wrong with it; damage of what is its own is never overlooked.
fn is_verified(stage: &mut Stage, root: &str, backup: OperationId) -> Result<bool, Failure> {
    let verify = stage.begin_verify(backup);
    let sound = stage.ends_or_names_damage("a backup is verified", &verify)?.is_some();
    let mut harm = stage.world().harm();
    // Of a pack what comes out counts: a bit of a compressed frame may mean nothing.
    harm.retain(|harm| is_part_of(root, backup, harm) && !harm.place.starts_with(&format!("{root}packs/")));
    let blind = Violation::new("verify finds the damage of what it reads", format!("{harm:?}"));
    stage.holds(!sound || harm.is_empty(), blind)?;
    Ok(sound)
}

/// Then: a backup is restored and is what it should be, or the restore is refused by what is wrong. It is not refused, if
/// it is sound and nothing was damaged since there were `harmed` kinds of damage.
fn is_restored(stage: &mut Stage, backup: OperationId, sound: bool, harmed: usize) -> Result<bool, Failure> {
    let anew = Manner { anew: true, ..Manner::default() };
    let restore = stage.begin_restore_of(backup, anew);
    let restored = stage.ends_or_names_damage("a backup is restored", &restore)?;
    stage.damage_ends();
    let harm = stage.world().harm();
    let refused = Violation::new("a backup that verifies is restored", format!("{backup} is not, after {harm:?}"));
    stage.holds(restored.is_some() || !sound || harm.len() > harmed, refused)?;
    match restored {
        Some(restored) => stage.is_exactly(&restored).map(|()| true),
        None => stage.restores_are_given_up().map(|()| false),
    }
}
