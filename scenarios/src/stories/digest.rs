//! Digests of the catalog: they make lists cheap, and never say what is not so.

use sheetanchor_core::format::catalog::{Ending, Outcome};
use sheetanchor_core::format::digest::{self, Digest};
use sheetanchor_core::format::keys;
use sheetanchor_core::identity::{ContentHash, OperationId, OperationKind};
use sheetanchor_engine::repository::Repository;
use sheetanchor_engine::zstd;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::world::Failure;

use super::point::named_point;
use crate::stage::{Begun, Stage};
use crate::workload::Load;

const KINDS: [OperationKind; 2] = [OperationKind::Backup, OperationKind::Point];

fn begin_to_fold(stage: &mut Stage) -> Begun<usize> {
    stage.operate(|operator| async move {
        let mut held = 0;
        for kind in KINDS {
            held += operator.repository().fold(kind, 1).await?;
        }
        Ok(held)
    })
}

/// What lists show and what lies in `outcomes/`.
async fn both(repository: &Repository) -> sheetanchor_core::error::Result<(Vec<Outcome>, Vec<Outcome>, usize)> {
    let (mut listed, mut there, mut unfolded) = (Vec::new(), Vec::new(), 0);
    for kind in KINDS {
        let ended = repository.ended_through_digests(kind, 0).await?;
        unfolded += ended.unfolded.len();
        listed.extend(ended.outcomes.into_values());
        there.extend(repository.outcomes(kind).await?);
    }
    Ok((listed, there, unfolded))
}

/// Then: a list shows exactly what has an outcome; answers of how many operations no digest says so.
fn lists_show_what_is_there(stage: &mut Stage, at_least: usize) -> Result<usize, Failure> {
    let seen = stage.operate(|operator| async move { both(operator.repository()).await });
    let (listed, there, unfolded) = stage.succeeds("the catalog is listed", &seen)?;
    let same = listed == there && there.len() >= at_least;
    stage.holds(same, Violation::new("a digest only repeats what is there", format!("{listed:?}, not {there:?}")))?;
    Ok(unfolded)
}

fn replace_digests(
    stage: &mut Stage,
    change: impl Fn(&mut Vec<u8>) + Copy + Send + Sync + 'static,
) -> Result<(), Failure> {
    let replaced = stage.operate(move |operator| async move {
        let bucket = operator.repository().bucket();
        let keys = bucket.list(keys::DIGESTS).await?;
        for key in &keys {
            let mut body = bucket.get(key).await?;
            bucket.delete(key).await?;
            change(&mut body);
            bucket.put_new(key, body.into()).await?;
        }
        Ok(keys.len())
    });
    let count = stage.succeeds("digests are replaced", &replaced)?;
    stage.holds(count > 0, Violation::new("folding leaves digests", format!("{count}")))
}

/// Somebody writes a digest that is sound, and holds a point that nobody has taken.
fn a_digest_is_forged(stage: &mut Stage) -> Result<(), Failure> {
    let forged = stage.operate(|operator| async move {
        let repository = operator.repository();
        let mut outcomes = repository.outcomes(OperationKind::Point).await?;
        outcomes.retain(|outcome| matches!(outcome.result, Ending::Published(_)));
        for outcome in &mut outcomes {
            outcome.operation = OperationId::new(OperationKind::Point, outcome.operation.started_ms(), 7);
        }
        let body = zstd::compress(&digest::write(&Digest { outcomes, registered: Vec::new() }));
        let key = keys::digest(OperationKind::Point, 1, ContentHash::of(&body));
        repository.put_hashed(&key, body).await
    });
    stage.succeeds("a digest is forged", &forged)
}

/// What a list shows is what has an outcome, whatever became of the digests: folding was cut short by a loss of all power,
/// or done by two at once; digests are damaged, gone, or hold what is not there.
pub fn never_say_what_is_not_so(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::CALM)?;
    stage.transfers_begin();
    stage.meanwhile(100, 300)?;
    stage.a_backup_is_taken()?;
    for round in 0..3 {
        for number in 0..2 {
            stage.a_point_is_taken(&format!("point-{round}-{number}"))?;
        }
        let folding = begin_to_fold(stage);
        let other = begin_to_fold(stage);
        if round > 0 {
            stage.succeeds("a catalog is folded", &folding)?;
            stage.succeeds("a catalog is folded by two at once", &other)?;
            continue;
        }
        stage.transfers_end()?;
        stage.meanwhile(0, 60)?;
        let policy = stage.any_policy();
        stage.power_fails_everywhere(policy)?;
        lists_show_what_is_there(stage, 4)?;
        stage.transfers_begin();
    }
    let unfolded = lists_show_what_is_there(stage, 8)?;
    stage
        .holds(unfolded == 0, Violation::new("what was folded is read from digests", format!("{unfolded} are not")))?;
    a_digest_is_forged(stage)?;
    lists_show_what_is_there(stage, 8)?;
    replace_digests(stage, |body| body.iter_mut().skip(20).take(1).for_each(|byte| *byte ^= 1))?;
    let unfolded = lists_show_what_is_there(stage, 8)?;
    stage.holds(unfolded >= 8, Violation::new("a damaged digest is none", format!("{unfolded} are read singly")))?;
    let again = begin_to_fold(stage);
    stage.succeeds("a catalog is folded anew", &again)?;
    let unfolded = lists_show_what_is_there(stage, 8)?;
    stage
        .holds(unfolded == 0, Violation::new("damaged digests are replaced", format!("{unfolded} are read singly")))?;
    stage.the_point_becomes_reachable("point-2-1")?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.is_restored(named_point("point-2-1")).map(|_| ())
}
