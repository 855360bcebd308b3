//! Incremental backups: each is as whole as a full one, whatever becomes of those that it goes on from.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use sheetanchor_core::expiry::Keep;
use sheetanchor_core::format::files::{FileContent, FileList};
use sheetanchor_core::format::manifest::ListRef;
use sheetanchor_core::identity::OperationId;
use sheetanchor_core::plan::Target;
use sheetanchor_core::refusal::Code;
use sheetanchor_engine::agent::stage::read_list;
use sheetanchor_engine::coordinator::{Expired, Sealed};
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::world::Failure;

use super::capture::{Harm, is_harmed, is_replaced, keys_under};
use crate::cluster::host;
use crate::stage::{Begun, Stage};
use crate::workload::Load;

/// A phase comes within this.
const SOON: Duration = Duration::from_secs(30);

/// So few transfers that most pages stay as they are between two backups.
const FEW: Load = Load { roaming: 2, at_home: false, pause_ms_max: 400, ..Load::SPREAD };

/// Backups that each go on from the one before, the first one from before any transfer: the files grow after it. The last one
/// is restored, and is exactly the committed history up to its cut. None but the first has stored all.
pub fn are_whole(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster_in_small_chunks(FEW)?;
    let full = stage.an_incremental_is_full_since("there is no backup yet")?;
    let mut newest = full.operation;
    stage.transfers_begin();
    for _ in 0..stage.chance().between(2, 5) {
        stage.meanwhile(100, 500)?;
        newest = stage.an_incremental_is_taken_on(newest)?.operation;
    }
    stage.transfers_end()?;
    let last = stage.an_incremental_is_taken_on(newest)?;
    let again = stage.an_incremental_is_taken_on(last.operation)?;
    let (all, little) = (full.seal.stored, again.seal.stored);
    let less = Violation::new("what has not changed is not stored again", format!("{little} bytes of {all}"));
    stage.holds(little.get() * 4 < all.get(), less)?;
    let verify = stage.begin_verify(again.operation);
    stage.succeeds("an incremental backup verifies", &verify)?;
    stage.everything_is_lost()?;
    stage.is_restored(Target::Backup(again.operation)).map(|_| ())
}

/// All backups but the newest expire, also while one is being made that goes on from them: it keeps what it uses, and no more.
/// What was condemned before is nothing to go on from.
pub fn outlive_their_base(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster_in_small_chunks(FEW)?;
    stage.transfers_begin();
    let full = stage.a_backup_is_taken()?;
    stage.meanwhile(100, 500)?;
    let middle = stage.an_incremental_is_taken_on(full.operation)?;
    stage.meanwhile(100, 500)?;
    let last = stage.begin_incremental();
    stage.world().run_until_milestone(&last.operator, "phase=capturing", SOON)?;
    stage.world().hold(&last.operator, &host(2));
    let other = stage.a_backup_is_taken()?;
    let expiry = begin_to_keep_one(stage);
    stage.meanwhile(500, 1_500)?;
    stage.world().release(&last.operator, &host(2));
    let last = stage.succeeds("an incremental backup outlives the expiry of its base", &last)?;
    let on = Violation::new("the newest backup at its beginning is the base", format!("{:?}", last.seal.base));
    stage.holds(last.seal.base == Some(middle.operation), on)?;
    let expired = stage.succeeds("expiry goes on once the backup has ended", &expiry)?;
    let gone = expired.condemned == [full.operation, middle.operation];
    stage.holds(gone, Violation::new("all but the newest are condemned", format!("{expired:?}")))?;
    only_used_packs_are_left(stage, &[full.operation, middle.operation], &[&last, &other])?;
    let verify = stage.begin_verify(last.operation);
    stage.succeeds("an incremental backup without its base verifies", &verify)?;
    // The newest is the one that was cut last, though the other began after it.
    let next = stage.an_incremental_is_taken_on(last.operation)?;
    let again = begin_to_keep_one(stage);
    stage.succeeds("expiry is run again", &again)?;
    only_used_packs_are_left(stage, &[full.operation, middle.operation, other.operation, last.operation], &[&next])?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.is_restored(Target::Backup(next.operation)).map(|_| ())
}

fn begin_to_keep_one(stage: &mut Stage) -> Begun<Expired> {
    stage.operate(|operator| async move { operator.expire(Keep::Newest(1), false).await })
}

/// Of expired backups those packs are left which kept ones name, and nothing else.
fn only_used_packs_are_left(stage: &mut Stage, gone: &[OperationId], kept: &[&Sealed]) -> Result<(), Failure> {
    let mut used = BTreeSet::new();
    for list in kept.iter().flat_map(|sealed| sealed.manifest.units.values()).flat_map(|unit| unit.lists.clone()) {
        used.extend(list_is_read(stage, list)?.packs);
    }
    let of_the_gone = |key: &String| gone.iter().any(|id| key.contains(&id.to_string()));
    let mut left = BTreeSet::new();
    for folder in ["packs/", "files/", "manifests/"] {
        left.extend(keys_under(stage, folder)?.into_iter().filter(of_the_gone));
    }
    used.retain(of_the_gone);
    let detail = format!("left are {left:?}, used are {used:?}");
    stage.holds(left == used, Violation::new("expiry keeps just the packs that kept backups use", detail))
}

/// A node crashes while its part of an incremental backup is made, and the cluster is restored to where it was: the next one
/// goes on from the newest backup that was sealed, and never from one of another incarnation.
pub fn go_on_from_their_own_incarnation(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster_in_small_chunks(FEW)?;
    stage.transfers_begin();
    let full = stage.a_backup_is_taken()?;
    stage.meanwhile(100, 500)?;
    let lost = stage.begin_incremental();
    stage.world().run_until_milestone(&lost.operator, "phase=capturing", SOON)?;
    let node = stage.any_node();
    stage.crash_node(node);
    stage.meanwhile(100, 600)?;
    stage.restart_node(node);
    let base = stage.ends(&lost)?.map_or(full.operation, |sealed| sealed.operation);
    stage.meanwhile(1_500, 2_000)?;
    let second = stage.an_incremental_is_taken_on(base)?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.is_restored(Target::Backup(second.operation))?;
    stage.history_goes_on();
    stage.transfers_begin();
    stage.meanwhile(100, 500)?;
    let first_of_this = stage.an_incremental_is_full_since("is of incarnation 1")?;
    stage.meanwhile(100, 500)?;
    let third = stage.an_incremental_is_taken_on(first_of_this.operation)?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.is_restored(Target::Backup(third.operation)).map(|_| ())
}

/// Whatever pack of an earlier backup is damaged or gone, whoever reads the incremental one is refused for it; whole again, it
/// is restored.
pub fn are_refused_with_a_damaged_base(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster_in_small_chunks(FEW)?;
    let full = stage.a_backup_is_taken()?;
    stage.transfers_begin();
    stage.meanwhile(100, 500)?;
    let last = stage.an_incremental_is_taken_on(full.operation)?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    let backup = last.operation;
    let frames = frames_of(stage, &last)?;
    for owner in [full.operation, backup] {
        let frame = frames.iter().find(|frame| frame.0.contains(&owner.to_string()));
        let Some((pack, bytes)) = frame.cloned() else {
            return stage.holds(false, Violation::new("each backup has stored something", format!("not {owner}")));
        };
        for harm in [Harm::Flipped, Harm::Gone] {
            let whole = is_harmed(stage, &pack, Harm::Gone)?;
            let mut body = whole.clone();
            // All of the frame: a single bit of it may mean nothing.
            body.get_mut(bytes.clone()).into_iter().flatten().for_each(|byte| *byte ^= 0xFF);
            is_replaced(stage, &pack, Some(body).filter(|_| harm == Harm::Flipped))?;
            let verify = stage.begin_verify(backup);
            stage.is_refused("a backup with a harmed pack", &verify, &[Code::ChunkDamaged, Code::Missing])?;
            let restore = stage.begin_restore(Target::Backup(backup));
            stage.is_refused("a restore from a harmed pack", &restore, &[Code::ChunkDamaged, Code::Missing])?;
            is_replaced(stage, &pack, Some(whole))?;
        }
    }
    stage.is_restored(Target::Backup(backup)).map(|_| ())
}

/// The frames of a backup that a restore of it reads: their packs, and where they lie in them.
fn frames_of(stage: &mut Stage, sealed: &Sealed) -> Result<Vec<(String, Range<usize>)>, Failure> {
    let mut frames = Vec::new();
    for list in sealed.manifest.units.values().flat_map(|unit| unit.lists.clone()) {
        let FileList { entries, packs } = list_is_read(stage, list)?;
        for entry in entries {
            let FileContent::File(chunks) = entry.content else { continue };
            for chunk in chunks {
                let patch = chunk.patch.map(|patch| (patch.pack, patch.offset, patch.stored));
                for (pack, offset, stored) in patch.into_iter().chain([(chunk.pack, chunk.offset, chunk.stored)]) {
                    let place = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
                    let key = packs.get(place(pack.into())).cloned().unwrap_or_default();
                    frames.push((key, place(offset)..place(offset + stored.get())));
                }
            }
        }
    }
    Ok(frames)
}

fn list_is_read(stage: &mut Stage, list: ListRef) -> Result<FileList, Failure> {
    let read = stage.operate(move |operator| {
        let list = list.clone();
        async move { read_list(operator.repository(), &list).await }
    });
    stage.succeeds("a list is read", &read)
}
