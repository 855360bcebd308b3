//! What a backup is made of: nothing is left out in silence, nothing is sealed that was not read again.

use std::time::Duration;

use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::format::files::check_name;
use sheetanchor_core::format::keys;
use sheetanchor_core::identity::ThreadId;
use sheetanchor_core::plan::Target;
use sheetanchor_core::refusal::Code;
use sheetanchor_core::views::points::PointState;
use sheetanchor_engine::agent::stage::entries;
use sheetanchor_engine::coordinator::{ReadBack, Sealed};
use sheetanchor_engine::env::{DiskFile, Env, Fault, OpenMode};
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::plan::{self, Plan, When};
use sheetanchor_sim::world::Failure;

use crate::cluster::{DATA, NODES, host};
use crate::stage::{Begun, Stage};
use crate::workload::Load;

/// A phase comes within this.
const SOON: Duration = Duration::from_secs(30);

/// Bytes of one of its pages.
const PAGE_BYTES: u64 = 4096;

fn given_clients_at_work(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)
}

/// Somebody who has access to the shared volume does something there.
fn somebody<F>(stage: &mut Stage, act: impl Fn(Env) -> F + Send + Sync + 'static) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Fault>> + Send + 'static,
{
    let done = stage.world().launch("somebody", act);
    let done = stage.world().finish(&done, SOON)?;
    stage.holds(done.is_ok(), Violation::new("the volume can be written to", format!("{done:?}")))
}

/// The next backup is good, and restored.
fn the_next_one_is_good(stage: &mut Stage) -> Result<(), Failure> {
    let sealed = stage.a_backup_is_taken()?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.is_restored(Target::Backup(sealed.operation)).map(|_| ())
}

/// D1: the cut of a backup lies at or after the place where each node has ended, whatever changed while files were copied:
/// pages are captured that changed long after the backup began, and restoring it ends at its own cut.
pub fn cuts_at_or_after_its_end(stage: &mut Stage) -> Result<(), Failure> {
    given_clients_at_work(stage)?;
    let backup = stage.begin_backup();
    stage.world().run_until_milestone(&backup.operator, "phase=capturing", SOON)?;
    stage.world().hold(&backup.operator, &host(1));
    stage.meanwhile(1_000, 1_500)?;
    stage.world().release(&backup.operator, &host(1));
    let sealed = stage.succeeds("a backup of a busy cluster succeeds", &backup)?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.is_restored(Target::Backup(sealed.operation))?;
    let (spans, cut) = (&sealed.manifest.threads, &sealed.seal.cut.threads);
    let after = spans.iter().all(|(thread, span)| cut.get(thread).is_some_and(|cut| cut.until >= span.stop));
    let early = Violation::new("a cut lies at or after every node's end", format!("{spans:?} cut at {cut:?}"));
    stage.holds(after && spans.len() == NODES.len(), early)
}

/// What becomes of an object in the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Harm {
    Gone,
    Flipped,
    Short,
    Header,
}

/// When: somebody harms an object of the repository, which no well-behaved writer does; answers what it was.
pub(super) fn is_harmed(stage: &mut Stage, key: &str, harm: Harm) -> Result<Vec<u8>, Failure> {
    let name = key.to_owned();
    let read = stage.operate(move |operator| {
        let key = name.clone();
        async move { Ok(operator.repository().bucket().get(&key).await?) }
    });
    let whole = stage.succeeds("an object is read", &read)?;
    let mut body = whole.clone();
    let middle = body.len() / 2;
    match harm {
        Harm::Gone => {}
        Harm::Short => body.truncate(middle),
        Harm::Header => body.iter_mut().skip(60).take(1).for_each(|byte| *byte ^= 1),
        // Not one bit: of repetitive bytes it may change how they are packed, and not what they are.
        Harm::Flipped => body.iter_mut().skip(middle).take(16).for_each(|byte| *byte ^= 0xff),
    }
    is_replaced(stage, key, Some(body).filter(|_| harm != Harm::Gone))?;
    Ok(whole)
}

pub(super) fn is_replaced(stage: &mut Stage, key: &str, body: Option<Vec<u8>>) -> Result<(), Failure> {
    let key = key.to_owned();
    let replaced = stage.operate(move |operator| {
        let (key, body) = (key.clone(), body.clone());
        async move {
            let bucket = operator.repository().bucket();
            bucket.delete(&key).await?;
            if let Some(body) = body {
                bucket.put_new(&key, body.into()).await?;
            }
            Ok(())
        }
    });
    stage.succeeds("an object is replaced", &replaced)
}

pub(super) fn keys_under(stage: &mut Stage, prefix: &'static str) -> Result<Vec<String>, Failure> {
    let keys = stage.operate(move |operator| async move { Ok(operator.repository().bucket().list(prefix).await?) });
    stage.succeeds("objects are listed", &keys)
}

/// One backup, of which something that it has stored is harmed before it is sealed: it is refused.
fn harmed_before_the_seal(
    stage: &mut Stage,
    how: ReadBack,
    (folder, harm): (&'static str, Harm),
    codes: &[Code],
) -> Result<(), Failure> {
    let backup =
        stage.operate(move |operator| async move { operator.reading_back(how).backup(None, Method::Fence).await });
    stage.world().run_until_milestone(&backup.operator, "phase=beginning", SOON)?;
    let before = keys_under(stage, folder)?;
    // From that very moment on: node 2 may have its answer ready.
    let (at, one) = (When::milestone(&backup.operator, "phase=archiving"), backup.operator.clone());
    stage.world().arm(Plan::peaceful().and(plan::Fault::Hold { at, one, other: host(2), for_ms: 60_000 }));
    stage.world().run_until_milestone(&backup.operator, "phase=archiving", SOON)?;
    // The archivers reach the cut meanwhile; only the coordinator has not heard so.
    stage.meanwhile(600, 900)?;
    let mut stored = keys_under(stage, folder)?;
    stored.retain(|key| !before.contains(key));
    stage.holds(!stored.is_empty(), Violation::new("a backup stores something", folder))?;
    let mut whole = Vec::new();
    for key in stored {
        whole.push((key.clone(), is_harmed(stage, &key, harm)?));
    }
    stage.world().release(&backup.operator, &host(2));
    stage.is_refused(&format!("a backup whose {folder} was {harm:?}"), &backup, codes)?;
    whole.into_iter().try_for_each(|(key, body)| is_replaced(stage, &key, Some(body)))
}

/// L17: what a manifest names is read again before it is sealed: a pack, a list of files or a piece of WAL that is missing
/// or damaged by then is refused, and there is no backup. What is sealed names everything by relative names and hashes.
pub fn reads_again_what_it_seals(stage: &mut Stage) -> Result<(), Failure> {
    given_clients_at_work(stage)?;
    let damaged = [Code::ChunkDamaged, Code::Missing, Code::Damaged];
    harmed_before_the_seal(stage, ReadBack::Contents, ("packs/", Harm::Flipped), &damaged)?;
    let harm = if stage.chance().one_in(2) { Harm::Gone } else { Harm::Short };
    harmed_before_the_seal(stage, ReadBack::Presence, ("packs/", harm), &damaged)?;
    let harm = if stage.chance().one_in(2) { Harm::Gone } else { Harm::Flipped };
    harmed_before_the_seal(stage, ReadBack::Presence, ("files/", harm), &damaged)?;
    let wal = ("wal/0000000001/00001/", Harm::Flipped);
    harmed_before_the_seal(stage, ReadBack::Contents, wal, &[Code::WalDamaged])?;
    let status = stage.status()?;
    let none = status.backups.is_empty() && status.unfinished.is_empty();
    stage.holds(none, Violation::new("what was refused does not exist", format!("{:?}", status.backups)))?;
    let backup = stage.begin_backup();
    all_names_are_relative(stage, &backup)?;
    the_next_one_is_good(stage)
}

/// A piece of archived WAL that is damaged is in nobody's way who does not need it: backups that begin behind it are taken,
/// shown, verified and restored. What lies beyond it, seen from an earlier backup, is refused for the damage.
pub fn goes_on_beside_damaged_wal(stage: &mut Stage) -> Result<(), Failure> {
    given_clients_at_work(stage)?;
    let first = stage.a_backup_is_taken()?;
    stage.meanwhile(300, 900)?;
    let point = stage.a_point_is_taken("between")?;
    stage.the_point_becomes_reachable("between")?;
    let thread = ThreadId::new(1);
    let end = first.seal.cut.threads.get(&thread).map(|cut| cut.proof);
    let pieces = keys_under(stage, "wal/0000000001/00001/")?;
    let behind = pieces.iter().find(|key| keys::parse_wal(key).map(|(_, from)| from) >= end);
    let Some(behind) = behind else {
        return stage.holds(false, Violation::new("WAL is archived behind a backup", format!("{pieces:?}, {end:?}")));
    };
    is_harmed(stage, behind, Harm::Header)?;
    let listed = stage.point_is_listed_as("between")?;
    let shown = Violation::new("what lies behind damage is not shown as reachable", format!("{listed:?}"));
    stage.holds(listed.is_some_and(|state| state != PointState::Reachable), shown)?;
    let plan = stage.begin_plan(point.name.map_or(Target::Latest, Target::Name));
    stage.is_refused("a plan that needs damaged WAL", &plan, &[Code::WalDamaged])?;
    the_next_one_is_good(stage)
}

fn all_names_are_relative(stage: &mut Stage, backup: &Begun<Sealed>) -> Result<(), Failure> {
    let sealed = stage.succeeds("a backup without faults succeeds", backup)?;
    let units = sealed.manifest.units;
    let listed = stage.operate(move |operator| {
        let units = units.clone();
        async move {
            let mut names = Vec::new();
            for unit in units.values() {
                names.extend(unit.lists.iter().map(|list| list.key.clone()));
                for staged in entries(operator.repository(), unit).await? {
                    names.extend(staged.packs.iter().cloned());
                    names.push(staged.entry.name);
                }
            }
            Ok(names)
        }
    });
    let names = stage.succeeds("a manifest is read", &listed)?;
    let relative = names.len() > 3 && names.iter().all(|name| check_name(name).is_ok());
    stage.holds(relative, Violation::new("every name in a backup is relative", format!("{names:?}")))
}

/// L10: a symbolic link in the data folder is refused, since what it leads to would be missing in the copy: one that
/// somebody put there, and one in the place of a file of the database's own.
pub fn refuses_links_that_lead_out(stage: &mut Stage) -> Result<(), Failure> {
    given_clients_at_work(stage)?;
    let place = if stage.chance().one_in(2) { "fast" } else { "nodes/fast" };
    let link = format!("{DATA}/{place}");
    let made = link.clone();
    somebody(stage, move |env| {
        let made = made.clone();
        async move { env.disk.symlink("/elsewhere", &made).await }
    })?;
    let backup = stage.begin_backup();
    stage.is_refused("a backup of a folder with a link", &backup, &[Code::UnsafePath])?;
    let backups = stage.status()?.backups;
    stage.holds(backups.is_empty(), Violation::new("what was refused does not exist", format!("{backups:?}")))?;
    somebody(stage, move |env| {
        let link = link.clone();
        async move { env.disk.remove(&link).await }
    })?;
    the_next_one_is_good(stage)
}

fn change_pages<F>(
    stage: &mut Stage,
    change: impl Fn(Box<dyn DiskFile>, u64) -> F + Copy + Send + Sync + 'static,
) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Fault>> + Send + 'static,
{
    somebody(stage, move |env| async move {
        let pages = env.disk.open(&format!("{DATA}/pages"), OpenMode::Write).await?;
        let length = pages.length().await?.get();
        change(pages, length).await
    })
}

/// A file that is shorter than it was listed, where its engine never shortens one, was written to by somebody else: there
/// is no backup of it.
pub fn refuses_a_file_that_shrank(stage: &mut Stage) -> Result<(), Failure> {
    given_clients_at_work(stage)?;
    let first = stage.a_backup_is_taken()?;
    stage.transfers_end()?;
    // By then every page is written, and nobody writes over what is damaged next.
    stage.meanwhile(900, 1_200)?;
    // A page that fails is read again, for a while: time enough to shorten the file between listing and reading.
    change_pages(stage, |pages, length| async move {
        let last = pages.read_at(length - 1, 1).await?.iter().map(|byte| byte ^ 1).collect();
        pages.write_at(length - 1, last).await
    })?;
    let backup = stage.begin_backup();
    stage.world().run_until_milestone(&backup.operator, "phase=capturing", SOON)?;
    stage.meanwhile(40, 120)?;
    change_pages(stage, |pages, length| async move { pages.truncate(length / PAGE_BYTES / 2 * PAGE_BYTES).await })?;
    stage.is_refused("a backup of a file that shrank", &backup, &[Code::FileChanged])?;
    let backups: Vec<_> = stage.status()?.backups.into_iter().map(|(id, _)| id).collect();
    let kept = backups == [first.operation];
    stage.holds(kept, Violation::new("what was refused does not exist", format!("{backups:?}")))?;
    stage.everything_is_lost()?;
    stage.is_restored(Target::Backup(first.operation)).map(|_| ())
}
