//! A repository that answers late, wrongly, or not at all.

use std::time::Duration;

use sheetanchor_core::plan::Target;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::plan::{BucketTrouble, Fault, Plan, When};
use sheetanchor_sim::world::Failure;

use crate::cluster::host;
use crate::stage::Stage;
use crate::workload::Load;

/// An operation whose operator cannot reach the repository is over by then: it asks more than once, each for 10 s at most.
const GIVEN_UP: Duration = Duration::from_mins(1);

/// Restore points that are taken.
const POINTS: u64 = 3;

/// How far ahead of a host, in passes of the gate, trouble waits for it: an operation makes about so many.
const SOON: u64 = 200;

/// Trouble that lasts is over before any step of an operation runs out of patience with a node.
const SHORT_MS: u64 = 500;

/// Requests of nodes and operators to the repository, a folder or a store, are lost, done without an answer, done later,
/// answered wrongly, broken off, or refused for up to half a second: operations wait it out, find out what became of their
/// writes, and succeed. What they have published is restored exactly.
pub fn is_settled(stage: &mut Stage) -> Result<(), Failure> {
    if stage.chance().one_in(2) {
        stage.given_an_object_store();
    }
    stage.given_a_cluster(Load::BRIEF)?;
    stage.transfers_begin();
    requests_meet_trouble(stage);
    stage.a_backup_is_taken()?;
    for number in 0..POINTS {
        stage.meanwhile(20, 200)?;
        requests_meet_trouble(stage);
        stage.a_point_is_taken(&format!("point-{number}"))?;
    }
    stage.meanwhile(20, 200)?;
    let last = stage.a_point_is_taken("last")?;
    stage.the_point_becomes_reachable("last")?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    requests_meet_trouble(stage);
    let restored = stage.is_restored(Target::Latest)?;
    let (published, reached) = (last.cut.scn, restored.plan.cut.scn);
    let detail = format!("the last point was published at {published}, `latest` led to {reached}");
    stage.holds(published == reached, Violation::new("what was published last is the latest", detail))
}

fn requests_meet_trouble(stage: &mut Stage) {
    for _ in 0..stage.chance().between(1, 5) {
        let victim = if stage.chance().one_in(2) { stage.next_operator() } else { host(stage.any_node()) };
        let at = When::pass(&victim, stage.world().passes(&victim) + 1 + stage.chance().below(SOON));
        let fault = Fault::Bucket { at, trouble: stage.any_bucket_trouble(SHORT_MS) };
        stage.world().arm(Plan::peaceful().and(fault));
    }
}

/// The repository is out of reach of an operator, from some moment of a backup or a restore point on and for longer than
/// anybody waits: the operation ends with a fault, and commits flow within the lease. The next operator, who reaches it, ends
/// what is left and takes a backup.
pub fn is_given_up_in_time(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::CALM)?;
    stage.transfers_begin();
    stage.a_backup_is_taken()?;
    let operator = stage.next_operator();
    let at = When::pass(&operator, 1 + stage.chance().below(SOON));
    let trouble = BucketTrouble::Unavailable { for_ms: 600_000 };
    stage.world().arm(Plan::peaceful().and(Fault::Bucket { at, trouble }));
    let from = stage.world().elapsed();
    if stage.chance().one_in(2) {
        let backup = stage.begin_backup();
        drop(stage.ends(&backup)?);
    } else {
        let point = stage.begin_point("out-of-reach");
        drop(stage.ends(&point)?);
    }
    let took = stage.world().elapsed().saturating_sub(from);
    stage.world().note(format!("it ended after {} s", took.as_secs()));
    let detail = format!("it took {took:?}, and at most {GIVEN_UP:?} were to be");
    stage.holds(took <= GIVEN_UP, Violation::new("what is out of reach is given up in time", detail))?;
    stage.commits_flow_again_within_the_lease()?;
    stage.unfinished_operations_are_aborted()?;
    stage.a_backup_is_taken()?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.is_restored(Target::Latest).map(|_| ())
}
