//! The catalog: what was created is there for good, once, and whoever does not fit it is refused.

use std::time::Duration;

use sheetanchor_core::format::catalog::Members;
use sheetanchor_core::format::keys;
use sheetanchor_core::identity::{ClusterId, Incarnation, Membership, NodeId, Nonce, OperationId, OperationKind};
use sheetanchor_core::plan::Target;
use sheetanchor_core::refusal::Code;
use sheetanchor_core::request::{Header, Request};
use sheetanchor_sim::gate::PutTrouble;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::plan::CrashPolicy;
use sheetanchor_sim::world::Failure;

use super::point::named_point;
use crate::cluster::{NODES, host};
use crate::stage::Stage;
use crate::workload::Load;

/// A phase comes within this.
const SOON: Duration = Duration::from_secs(30);

/// L9: the catalog is in the repository. Power fails everywhere at once: backups, points, incarnations and what has no
/// outcome yet are all there again, none of them changed.
pub fn survives_a_crash_of_everything(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    stage.a_backup_is_taken()?;
    stage.a_point_is_taken("kept")?;
    let lost = stage.begin_point("without-an-outcome");
    stage.world().run_until_milestone(&lost.operator, "phase=closing", SOON)?;
    stage.world().crash(&lost.operator, CrashPolicy::DropAll);
    stage.meanwhile(2_000, 2_500)?;
    stage.transfers_end()?;
    stage.a_backup_is_taken()?;
    let before = stage.status()?;
    stage.power_fails_everywhere(CrashPolicy::DropAll)?;
    let after = stage.status()?;
    let same = before.backups == after.backups
        && before.points == after.points
        && before.incarnations == after.incarnations
        && before.unfinished == after.unfinished
        && before.unfinished.len() == 1;
    stage.holds(same, Violation::new("the catalog survives", format!("{before:?} became {after:?}")))?;
    stage.unfinished_operations_are_aborted()?;
    stage.the_point_becomes_reachable("kept")?;
    stage.everything_is_lost()?;
    stage.is_restored(named_point("kept")).map(|_| ())
}

/// L16: every request is answered, at once, with a refusal if need be; and what was refused has changed nothing.
pub fn answers_every_request(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(100, 300)?;
    let good = stage.a_good_header(Some(OperationId::new(OperationKind::Backup, 7, 7)))?;
    let pin = Request::Pin { lease_ms: 60_000 };
    stage.asked_is_refused(good.clone(), pin.clone(), Code::OutOfOrder)?;
    stage.asked_is_refused(Header { operation: None, ..good.clone() }, pin.clone(), Code::OutOfOrder)?;
    stage.asked_is_refused(good.clone(), Request::Enlist { fence: true }, Code::NotRegistered)?;
    let other = Header { cluster: ClusterId::new(7), ..good.clone() };
    stage.asked_is_refused(other, Request::Pins, Code::OtherCluster)?;
    let other = Header { incarnation: Incarnation::new(7), ..good.clone() };
    stage.asked_is_refused(other, pin, Code::OtherIncarnation)?;
    let other = Header { node: NodeId::new(2), ..good.clone() };
    stage.asked_is_refused(other, Request::Pins, Code::OtherNode)?;
    stage.nothing_is_pinned("what was refused has changed nothing")?;
    // A database that is broken cannot do what is asked; its agent says so.
    stage.the_database_stops_for_its_disk(1)?;
    stage.asked_is_refused(good, Request::Pins, Code::DatabaseDown)?;
    let backup = stage.begin_backup();
    stage.is_refused("a backup of a broken database", &backup, &[Code::DatabaseDown])?;
    stage.world().crash(&host(1), CrashPolicy::ProcessOnly);
    stage.restart_node(1);
    stage.meanwhile(1_000, 2_000)?;
    stage.a_backup_is_taken()?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.is_restored(Target::Latest).map(|_| ())
}

/// D13: a piece of WAL that was shipped while its segment was open is in the archive to an early end, and the node has
/// more of it by the time it hears so: it goes on at the stored end.
pub fn continues_a_piece_that_was_shipped_short(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    for _ in 0..3 {
        let backup = stage.begin_backup();
        stage.world().run_until_milestone(&backup.operator, "phase=cutting", SOON)?;
        for node in NODES {
            stage.world().trouble_next_put(&host(node), PutTrouble::LandsLater);
        }
        stage.succeeds("a backup whose WAL was shipped short", &backup)?;
        stage.meanwhile(100, 300)?;
    }
    stage.a_point_is_taken("shipped")?;
    stage.the_point_becomes_reachable("shipped")?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.is_restored(named_point("shipped")).map(|_| ())
}

/// D16: two candidates write one create-once name, both are told that time ran out, both read back: exactly one has won,
/// since each knows its own nonce.
pub fn has_one_winner_for_one_name(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    let backup = stage.begin_backup();
    stage.world().run_until_milestone(&backup.operator, "phase=capturing", SOON)?;
    stage.world().crash(&backup.operator, CrashPolicy::DropAll);
    let operation = stage.the_unfinished_operation()?;
    let candidates = [11, 12].map(|nonce| {
        let candidate = stage.operate(move |operator| async move {
            operator.repository().take_over(operation, Nonce::new(nonce)).await
        });
        stage.world().trouble_next_put(&candidate.operator, PutTrouble::TimesOutAfter);
        candidate
    });
    let mut terms = Vec::new();
    for candidate in &candidates {
        terms.push(stage.succeeds("a term begins", candidate)?.get());
    }
    terms.sort_unstable();
    stage.holds(terms == [2, 3], Violation::new("one create-once name has one winner", format!("{terms:?}")))?;
    stage.is_aborted(operation)?;
    stage.a_backup_is_taken()?;
    stage.everything_is_lost()?;
    stage.is_restored(Target::Latest).map(|_| ())
}

/// D17: `Created` means durable. All power fails at the very moment in which a backup is sealed: the seal is there, whole,
/// and so is everything that it names.
pub fn keeps_a_seal_when_power_fails(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    stage.transfers_end()?;
    let backup = stage.begin_backup();
    stage.world().run_until_milestone(&backup.operator, "phase=sealed", SOON)?;
    stage.power_fails_everywhere(CrashPolicy::DropAll)?;
    let backups = stage.status()?.backups;
    let [(sealed, _)] = backups.as_slice() else {
        return stage.holds(false, Violation::new("a seal is durable at `Created`", format!("{backups:?}")));
    };
    let sealed = *sealed;
    let verified = stage.operate(move |operator| async move { operator.verify(sealed, &|_, _| ()).await });
    stage.succeeds("what was sealed is whole", &verified)?;
    stage.everything_is_lost()?;
    stage.is_restored(Target::Backup(sealed)).map(|_| ())
}

/// D18: a point is cluster-wide over a stated membership. A coordinator that lists fewer nodes than are in force, or
/// works under another list, is refused, by itself and by every agent.
pub fn refuses_other_members(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.a_backup_is_taken()?;
    let fewer = stage.begin_point_over(&[1, 2], "over-two");
    stage.is_refused("a point over two of three nodes", &fewer, &[Code::OtherMembership])?;
    let header = Header { membership: Membership::new(2), ..stage.a_good_header(None)? };
    stage.asked_is_refused(header, Request::Pins, Code::OtherMembership)?;
    // A fourth node joins, and this coordinator has not heard of it.
    let joined = stage.operate(|operator| async move {
        let members = operator.repository().members().await?;
        let mut nodes = members.nodes.clone();
        nodes.insert(NodeId::new(4), "a-fourth-shard".to_owned());
        let membership = Membership::new(2);
        let next = Members { membership, nodes, nonce: Nonce::new(4), ..members };
        operator.repository().create(&keys::members(membership), &next).await
    });
    stage.succeeds("a list of members is written", &joined)?;
    let late = stage.begin_point("over-three");
    stage.is_refused("a point over three of four nodes", &late, &[Code::OtherMembership])?;
    let decided = stage.operate(|operator| async move { operator.repository().outcomes(OperationKind::Point).await });
    let decided = stage.succeeds("outcomes are listed", &decided)?.len();
    stage.holds(decided == 1, Violation::new("only the backup's own cut was ever begun", format!("{decided}")))?;
    stage.transfers_end()
}
