//! Expiry: what is kept stays restorable, whoever works meanwhile and whatever crashes.

use std::time::Duration;

use sheetanchor_core::expiry::Keep;
use sheetanchor_core::identity::OperationId;
use sheetanchor_core::plan::Target;
use sheetanchor_core::refusal::Code;
use sheetanchor_engine::coordinator::Expired;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::plan::CrashPolicy;
use sheetanchor_sim::world::Failure;

use super::point::named_point;
use crate::cluster::{NODES, host};
use crate::stage::{Begun, Stage};
use crate::workload::Load;

/// A phase comes within this.
const SOON: Duration = Duration::from_secs(30);

fn begin_to_keep(stage: &mut Stage, count: u32) -> Begun<Expired> {
    stage.operate(move |operator| async move { operator.expire(Keep::Newest(count), false).await })
}

fn backups_are_taken(stage: &mut Stage, count: u32) -> Result<Vec<OperationId>, Failure> {
    let mut taken = Vec::new();
    for _ in 0..count {
        taken.push(stage.a_backup_is_taken()?.operation);
        stage.meanwhile(300, 700)?;
    }
    Ok(taken)
}

/// Nothing is left of what a backup had stored.
fn nothing_is_left_of(stage: &mut Stage, backups: &[OperationId]) -> Result<(), Failure> {
    let keys = stage.operate(|operator| async move { Ok(operator.repository().bucket().list("").await?) });
    let keys = stage.succeeds("objects are listed", &keys)?;
    let stored = ["packs/", "files/", "manifests/"];
    let left = keys.iter().find(|key| {
        stored.iter().any(|folder| {
            key.strip_prefix(folder).is_some_and(|name| backups.iter().any(|id| name.starts_with(&id.to_string())))
        })
    });
    stage.holds(left.is_none(), Violation::new("what is not kept is removed", format!("{left:?}")))
}

/// D12: a restore holds its backup. Another operator lets that backup expire while it is being staged: nothing is removed
/// before the restore has ended.
pub fn waits_for_a_restore(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    let taken = backups_are_taken(stage, 2)?;
    let Some(oldest) = taken.first().copied() else { return Ok(()) };
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    let restore = stage.begin_restore(Target::Backup(oldest));
    stage.world().run_until_milestone(&restore.operator, "phase=staging", SOON)?;
    for node in NODES {
        stage.world().stall(&host(node), Duration::from_secs(4));
    }
    let expiry = begin_to_keep(stage, 1);
    let restored = stage.succeeds("a restore outlives the expiry of its backup", &restore)?;
    stage.holds_exactly_the_history_up_to(restored.plan.cut.scn)?;
    let first = stage.ends(&expiry)?;
    let waited =
        first.as_ref().map_or_else(|error| error.refusal().is_some_and(|why| why.code == Code::Unfinished), |_| true);
    stage.holds(waited, Violation::new("expiry waits, or is refused", format!("{first:?}")))?;
    // A node that is lost before it has opened is staged again; once the new incarnation has a backup, all is over.
    stage.a_backup_is_taken()?;
    let again = begin_to_keep(stage, 1);
    let expired = stage.succeeds("expiry goes on once the restore has ended", &again)?;
    stage.holds(expired.kept.len() == 1, Violation::new("the newest backup is kept", format!("{expired:?}")))?;
    nothing_is_left_of(stage, &[oldest])
}

/// D12: a backup that is running needs its WAL from its start on, which may lie before the start of every backup that is
/// kept: expiry waits for it, and is refused if that takes too long.
pub fn waits_for_a_backup(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    let first = stage.a_backup_is_taken()?.operation;
    let long = stage.begin_backup();
    stage.world().run_until_milestone(&long.operator, "phase=capturing", SOON)?;
    stage.world().hold(&long.operator, &host(1));
    stage.meanwhile(700, 1_200)?;
    stage.a_backup_is_taken()?;
    let expiry = begin_to_keep(stage, 1);
    stage.meanwhile(1_000, 1_500)?;
    stage.world().release(&long.operator, &host(1));
    let sealed = stage.succeeds("a backup outlives an expiry", &long)?;
    let expired = stage.succeeds("expiry goes on once the backup has ended", &expiry)?;
    let kept = expired.condemned == [first] && expired.kept.contains(&sealed.operation);
    stage.holds(kept, Violation::new("what is sealed meanwhile is kept", format!("{expired:?}")))?;
    let over = stage.operate(move |operator| async move { operator.verify(first, &|_, _| ()).await });
    stage.is_refused("a backup that has expired", &over, &[Code::NoSuchTarget])?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.is_restored(Target::Backup(sealed.operation)).map(|_| ())
}

/// D12: expiry may be cut short anywhere, together with everything else: every backup that is kept is whole, and so are
/// the points after it; the next run goes on to the same end.
pub fn may_be_cut_short(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    let mut taken = backups_are_taken(stage, 3)?;
    let Some(kept) = taken.pop() else { return Ok(()) };
    stage.a_point_is_taken("after-the-last")?;
    stage.the_point_becomes_reachable("after-the-last")?;
    stage.transfers_end()?;
    begin_to_keep(stage, 1);
    stage.meanwhile(0, 250)?;
    let policy = stage.any_policy();
    stage.power_fails_everywhere(policy)?;
    for _ in 0..2 {
        let verified = stage.operate(move |operator| async move { operator.verify(kept, &|_, _| ()).await });
        stage.succeeds("what is kept is whole", &verified)?;
        let again = begin_to_keep(stage, 1);
        let expired = stage.succeeds("expiry is run again", &again)?;
        let backups: Vec<_> = stage.status()?.backups.into_iter().map(|(id, _)| id).collect();
        let good = expired.kept == [kept] && backups == [kept];
        stage.holds(good, Violation::new("the newest backup is kept", format!("{expired:?}, {backups:?}")))?;
    }
    nothing_is_left_of(stage, &taken)?;
    stage.everything_is_lost()?;
    stage.is_restored(named_point("after-the-last")).map(|_| ())
}

/// Expiry waits for a backup whose coordinator is gone no longer than it is told to, and is refused then: nothing has been
/// removed. Once somebody has ended that backup, the next run goes on.
pub fn is_refused_while_something_has_no_outcome(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    let taken = backups_are_taken(stage, 2)?;
    let lost = stage.begin_backup();
    stage.world().run_until_milestone(&lost.operator, "phase=capturing", SOON)?;
    stage.world().crash(&lost.operator, CrashPolicy::DropAll);
    stage.transfers_end()?;
    let stored = |stage: &mut Stage| {
        let keys = stage.operate(|operator| async move { Ok(operator.repository().bucket().list("packs/").await?) });
        stage.succeeds("packs are listed", &keys)
    };
    let before = stored(stage)?;
    let expiry = begin_to_keep(stage, 1);
    stage.is_refused("an expiry beside what has no outcome", &expiry, &[Code::Unfinished])?;
    let after = stored(stage)?;
    let gone = before.iter().find(|key| !after.contains(key));
    stage.holds(gone.is_none(), Violation::new("what was refused has removed nothing", format!("{gone:?}")))?;
    stage.unfinished_operations_are_aborted()?;
    let again = begin_to_keep(stage, 1);
    let expired = stage.succeeds("expiry goes on once all is decided", &again)?;
    let (old, kept) = taken.split_at(1);
    stage.holds(expired.kept == kept, Violation::new("the newest backup is kept", format!("{expired:?}")))?;
    nothing_is_left_of(stage, old)?;
    stage.everything_is_lost()?;
    stage.is_restored(Target::Latest).map(|_| ())
}

/// By how much the clock of an operator is ahead.
const AHEAD_MS: i64 = 86_400_000;

/// A backup is taken by an operator whose clock is a day ahead, and later ones by others whose clocks are right. The newest is
/// the one that was cut last: what is kept by their number, and what an incremental one goes on from.
pub fn goes_by_cuts(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    let early = stage.a_backup_is_taken()?.operation;
    let ahead = stage.begin_backup();
    stage.world().set_wall_clock(&ahead.operator, AHEAD_MS);
    let ahead = stage.succeeds("a backup by a clock that is ahead", &ahead)?.operation;
    stage.meanwhile(300, 700)?;
    let last = stage.a_backup_is_taken()?.operation;
    let named_later = ahead.started_ms() > last.started_ms();
    stage.holds(named_later, Violation::new("ids go by clocks", format!("{ahead}, {last}")))?;
    stage.meanwhile(100, 400)?;
    let newest = stage.an_incremental_is_taken_on(last)?.operation;
    stage.a_point_is_taken("after-the-last")?;
    stage.the_point_becomes_reachable("after-the-last")?;
    stage.transfers_end()?;
    let expiry = begin_to_keep(stage, 2);
    let expired = stage.succeeds("expiry is run", &expiry)?;
    let good = expired.condemned == [early, ahead] && expired.kept.len() == 2;
    stage.holds(good, Violation::new("what was cut last is kept", format!("{expired:?}")))?;
    nothing_is_left_of(stage, &[early, ahead])?;
    let listed: Vec<_> = stage.status()?.backups.into_iter().map(|(id, _)| id).collect();
    stage.holds(listed == [last, newest], Violation::new("the newest backups are listed", format!("{listed:?}")))?;
    stage.everything_is_lost()?;
    let target = if stage.chance().one_in(2) { Target::Latest } else { named_point("after-the-last") };
    stage.is_restored(target).map(|_| ())
}
