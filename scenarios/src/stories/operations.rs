//! Operations side by side, and coordinators that are lost, stalled or forestalled: none harms what is not its own.

use std::time::Duration;

use sheetanchor_core::plan::Target;
use sheetanchor_core::refusal::Code;
use sheetanchor_core::request::Request;
use sheetanchor_sim::gate::PutTrouble;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::plan::CrashPolicy;
use sheetanchor_sim::world::Failure;

use super::point::named_point;
use crate::cluster::{LEASE, NODES, PIN_LEASE, host};
use crate::stage::{Begun, Stage};
use crate::workload::Load;

/// A phase comes within this.
const SOON: Duration = Duration::from_secs(30);

/// What a backup is refused with when one of its nodes has crashed.
const NODE_LOST: [Code; 5] = [Code::NodeSilent, Code::LifeChanged, Code::OutOfOrder, Code::DatabaseDown, Code::PinLost];

fn given_clients_at_work(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)
}

fn reaches<T>(stage: &mut Stage, begun: &Begun<T>, phase: &str) -> Result<(), Failure> {
    stage.world().run_until_milestone(&begun.operator, phase, SOON)
}

/// A backup is copying, and stays so: its coordinator hears nothing from node 1.
fn stays_copying<T>(stage: &mut Stage, backup: &Begun<T>) -> Result<(), Failure> {
    reaches(stage, backup, "phase=capturing")?;
    stage.world().hold(&backup.operator, &host(1));
    Ok(())
}

fn all_is_lost_and_restored(stage: &mut Stage, target: Target) -> Result<(), Failure> {
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.is_restored(target).map(|_| ())
}

/// L3: whoever dies while nodes are fenced, commits flow again within the lease: the coordinator here, in any phase.
pub fn free_commits_whoever_dies(stage: &mut Stage) -> Result<(), Failure> {
    given_clients_at_work(stage)?;
    stage.a_backup_is_taken()?;
    for (number, phase) in ["phase=closing", "phase=draining", "phase=drained", "phase=cut"].into_iter().enumerate() {
        let point = stage.begin_point(&format!("lost-{number}"));
        reaches(stage, &point, phase)?;
        stage.meanwhile(0, 4)?;
        stage.world().crash(&point.operator, CrashPolicy::DropAll);
        stage.commits_flow_again_within_the_lease()?;
        stage.meanwhile(2_000, 2_200)?;
    }
    stage.unfinished_operations_are_aborted()?;
    stage.a_point_is_taken("at-last")?;
    stage.the_point_becomes_reachable("at-last")?;
    all_is_lost_and_restored(stage, named_point("at-last"))
}

/// L4: a fence belongs to a hold with a deadline. The session that drains is cut off: the fence of its node opens by
/// itself, those of the others are opened, and nothing is published.
pub fn open_a_fence_whose_session_is_gone(stage: &mut Stage) -> Result<(), Failure> {
    given_clients_at_work(stage)?;
    stage.a_backup_is_taken()?;
    let point = stage.begin_point("cut-off");
    reaches(stage, &point, "phase=draining")?;
    let node = u16::try_from(stage.chance().between(1, 4)).unwrap_or(1);
    stage.world().hold(&point.operator, &host(node));
    stage.world().run_for(LEASE)?;
    stage.commits_flow_again_within_the_lease()?;
    let codes = [Code::NodeSilent, Code::DrainTimedOut, Code::HoldLost];
    stage.is_refused("a point whose session is cut off", &point, &codes)?;
    stage.world().release(&point.operator, &host(node));
    let named = stage.status()?.points.iter().filter(|(_, point)| point.name.is_some()).count();
    stage.holds(named == 0, Violation::new("nothing is published", format!("{named} points")))?;
    stage.a_point_is_taken("cut-off")?;
    stage.the_point_becomes_reachable("cut-off")?;
    all_is_lost_and_restored(stage, named_point("cut-off"))
}

/// L12: pins are named by their backup. Two backups run at once; the end of one leaves the pin of the other.
pub fn keep_a_pin_each(stage: &mut Stage) -> Result<(), Failure> {
    given_clients_at_work(stage)?;
    let long = stage.begin_backup();
    stays_copying(stage, &long)?;
    let kept = stage.the_unfinished_operation()?;
    stage.a_backup_is_taken()?;
    let pinned = stage.pinned()?;
    let alone = pinned.values().all(|operations| operations.as_slice() == [kept]);
    stage.holds(alone, Violation::new("each backup has a pin of its own", format!("{pinned:?}")))?;
    stage.meanwhile(500, 1_500)?;
    stage.world().release(&long.operator, &host(1));
    let sealed = stage.succeeds("a backup outlives the end of another", &long)?;
    stage.nothing_is_pinned("a backup that has ended has no pin")?;
    all_is_lost_and_restored(stage, Target::Backup(sealed.operation))
}

/// L13: an operation's failure ends what is its own. A restore point fails, and is ended by an operator, while a backup
/// runs: the backup is sealed.
pub fn leave_a_backup_alone_when_a_point_fails(stage: &mut Stage) -> Result<(), Failure> {
    given_clients_at_work(stage)?;
    let backup = stage.begin_backup();
    stays_copying(stage, &backup)?;
    let running = stage.the_unfinished_operation()?;
    let point = stage.begin_point("doomed");
    reaches(stage, &point, "phase=draining")?;
    stage.world().crash(&point.operator, CrashPolicy::DropAll);
    for operation in stage.status()?.unfinished.into_iter().filter(|operation| *operation != running) {
        stage.is_aborted(operation)?;
    }
    stage.meanwhile(100, 1_000)?;
    stage.world().release(&backup.operator, &host(1));
    let sealed = stage.succeeds("a backup outlives the failure of a point", &backup)?;
    all_is_lost_and_restored(stage, Target::Backup(sealed.operation))
}

/// L14: what a lost coordinator leaves ends by itself. Its fence is busy no longer than the lease; the pins of its backup
/// expire and say so; what it began is shown until somebody ends it.
pub fn leave_nothing_of_a_lost_coordinator(stage: &mut Stage) -> Result<(), Failure> {
    given_clients_at_work(stage)?;
    let backup = stage.begin_backup();
    reaches(stage, &backup, "phase=capturing")?;
    stage.world().crash(&backup.operator, CrashPolicy::DropAll);
    stage.orphaned_pins_expire(PIN_LEASE * 2)?;
    let lost = stage.begin_point("lost");
    reaches(stage, &lost, "phase=drained")?;
    stage.world().crash(&lost.operator, CrashPolicy::DropAll);
    stage.a_point_is_taken("the-next")?;
    let unfinished = stage.status()?.unfinished.len();
    stage.holds(unfinished == 2, Violation::new("what was begun is shown", format!("{unfinished} operations")))?;
    stage.unfinished_operations_are_aborted()?;
    stage.a_backup_is_taken()?;
    all_is_lost_and_restored(stage, Target::Latest)
}

/// L18: bounds are far away. Two hundred restore points in one run, and any of them is a target.
pub fn take_two_hundred_points(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::CALM)?;
    stage.transfers_begin();
    stage.meanwhile(100, 300)?;
    stage.a_backup_is_taken()?;
    let points = stage.many_points_are_taken(200)?;
    let drawn = usize::try_from(stage.chance().below(200)).unwrap_or(0);
    stage.the_point_becomes_reachable("point-0199")?;
    let listed = stage.status()?.points.iter().filter(|(_, point)| point.name.is_some()).count();
    stage.holds(listed == 200, Violation::new("what was published is listed", format!("{listed} points")))?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    let Some((name, scn)) = points.get(drawn).cloned() else {
        return stage.holds(false, Violation::new("two hundred points were taken", format!("{}", points.len())));
    };
    let reached = stage.is_restored(Target::Name(name))?.plan.cut.scn;
    stage.holds(reached == scn, Violation::new("a target is never rounded", format!("{scn} became {reached}")))
}

/// D2: terms belong to operations. Restore points are taken at every moment of a long backup, by other coordinators; the
/// backup lives, and the points after its end can be restored from it.
pub fn spare_a_long_backup(stage: &mut Stage) -> Result<(), Failure> {
    given_clients_at_work(stage)?;
    let backup = stage.begin_backup();
    stays_copying(stage, &backup)?;
    for number in 0..4 {
        stage.a_point_is_taken(&format!("meanwhile-{number}"))?;
        stage.meanwhile(20, 300)?;
    }
    stage.world().release(&backup.operator, &host(1));
    stage.a_point_is_taken("at-its-end")?;
    stage.succeeds("a backup outlives the points taken meanwhile", &backup)?;
    stage.a_point_is_taken("afterwards")?;
    stage.the_point_becomes_reachable("afterwards")?;
    all_is_lost_and_restored(stage, named_point("afterwards"))
}

/// D3: an operation has one outcome. A coordinator validates its manifest and stalls; another aborts the backup, and its
/// pins go; the first wakes and seals, finds its outcome taken, and obeys.
pub fn find_their_outcome_taken(stage: &mut Stage) -> Result<(), Failure> {
    given_clients_at_work(stage)?;
    let first = stage.a_backup_is_taken()?;
    let stalled = stage.begin_backup();
    reaches(stage, &stalled, "phase=deciding")?;
    // What it writes next is the manifest, and then the seal: all that it names has been read by then.
    stage.world().trouble_next_put(&stalled.operator, PutTrouble::Waits(Duration::from_secs(8)));
    let operation = stage.the_unfinished_operation()?;
    stage.is_aborted(operation)?;
    stage.nothing_is_pinned("what was aborted has no pin")?;
    stage.is_refused("a seal after the abort", &stalled, &[Code::Aborted])?;
    let backups: Vec<_> = stage.status()?.backups.into_iter().map(|(id, _)| id).collect();
    let kept = backups == [first.operation];
    stage.holds(kept, Violation::new("an outcome is never replaced", format!("{backups:?}")))?;
    all_is_lost_and_restored(stage, Target::Latest)
}

/// A coordinator whose operation was taken over obeys: its requests carry an older term and are refused, and it leaves
/// nothing on the nodes.
pub fn obey_the_newer_term(stage: &mut Stage) -> Result<(), Failure> {
    given_clients_at_work(stage)?;
    let loser = stage.begin_backup();
    reaches(stage, &loser, "phase=capturing")?;
    for node in NODES {
        stage.world().hold(&loser.operator, &host(node));
    }
    let operation = stage.the_unfinished_operation()?;
    stage.is_aborted(operation)?;
    let header = stage.a_good_header(Some(operation))?;
    stage.asked_is_refused(header.clone(), Request::Pin { lease_ms: 60_000 }, Code::StaleEpoch)?;
    stage.asked_is_refused(header, Request::Begin, Code::StaleEpoch)?;
    for node in NODES {
        stage.world().release(&loser.operator, &host(node));
    }
    stage.is_refused("a backup that was taken over", &loser, &[Code::StaleEpoch, Code::Aborted])?;
    stage.nothing_is_pinned("what was taken over leaves no pin")?;
    stage.a_backup_is_taken()?;
    all_is_lost_and_restored(stage, Target::Latest)
}

/// Nobody unpins before the outcome is decided: a backup fails while its coordinator cannot reach the repository, and
/// its pins stay until it can.
pub fn keep_pins_until_the_outcome(stage: &mut Stage) -> Result<(), Failure> {
    given_clients_at_work(stage)?;
    let backup = stage.begin_backup();
    reaches(stage, &backup, "phase=capturing")?;
    stage.world().stall(&backup.operator, Duration::from_secs(4));
    stage.crash_node(3);
    stage.meanwhile(50, 300)?;
    stage.restart_node(3);
    reaches(stage, &backup, "phase=aborting")?;
    stage.meanwhile(200, 400)?;
    let operation = stage.the_unfinished_operation()?;
    let pinned = stage.pinned()?;
    let kept = pinned.iter().all(|(node, pins)| node.get() == 3 || pins.as_slice() == [operation]);
    stage.holds(kept, Violation::new("pins stay until the outcome is decided", format!("{pinned:?}")))?;
    stage.is_refused("a backup whose node crashed", &backup, &NODE_LOST)?;
    stage.nothing_is_pinned("once the outcome is decided, pins go")?;
    stage.a_backup_is_taken()?;
    all_is_lost_and_restored(stage, Target::Latest)
}
