//! A node that missed the change of incarnation.

use sheetanchor_core::identity::Incarnation;
use sheetanchor_core::refusal::Code;
use sheetanchor_engine::coordinator::Manner;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::world::Failure;

use super::point::named_point;
use crate::stage::Stage;
use crate::workload::Load;

/// The cluster is restored with node 3 on a new host, while the old one lives on unseen. The old one works and archives on
/// in its own incarnation; nobody reads that beyond the branch. Once it learns of the other incarnation, it says so, and
/// goes on as before.
pub fn harms_nothing(stage: &mut Stage) -> Result<(), Failure> {
    let (first, second) = (Incarnation::new(1), Incarnation::new(2));
    stage.given_separate_databases(Load::HOPPING)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    stage.a_backup_is_taken()?;
    stage.meanwhile(50, 300)?;
    let kept = stage.a_point_is_taken("kept")?;
    stage.the_point_becomes_reachable("kept")?;
    stage.transfers_end()?;

    stage.node_3_moves_and_the_others_are_lost()?;
    let restore = stage
        .operate_the_moved(|operator| async move { operator.restore_in(named_point("kept"), Manner::default()).await });
    stage.succeeds("a restore with a node on a new host", &restore)?;
    stage.the_moved_hold_the_history_up_to(kept.cut.scn)?;
    let (before, _) = stage.pieces_of_node_3(first)?;
    stage.the_old_node_says_that_it_missed_it()?;
    let seen = stage.status()?.nodes.into_iter().find(|node| node.node.get() == 3);
    let trouble = seen.and_then(|node| node.description.ok()?.trouble());
    let says = trouble.as_ref().is_some_and(|why| why.contains("SA108") && why.contains("incarnation 1"));
    stage.holds(says, Violation::new("an operator is shown who missed an incarnation", format!("{trouble:?}")))?;
    let (learned, _) = stage.pieces_of_node_3(first)?;
    stage.meanwhile(2_500, 4_000)?;
    let (after, _) = stage.pieces_of_node_3(first)?;
    let (_, timelines) = stage.pieces_of_node_3(second)?;
    let good = before < learned && learned < after && timelines == 1;
    let detail = format!("{before}, {learned}, {after} pieces in its own, {timelines} timelines in the new one");
    stage.holds(good, Violation::new("who missed an incarnation goes on in its own", detail))?;
    let refused = stage.begin_point("with-the-old-node");
    stage.is_refused("a point with the old node", &refused, &[Code::OtherIncarnation])?;

    let point = stage.operate_the_moved(|operator| async move { operator.create_point("after".parse()?).await });
    let (_, point) = stage.succeeds("a point of the new incarnation", &point)?;
    stage.meanwhile(1_000, 2_000)?;
    let plan = stage.operate_the_moved(|operator| async move { operator.plan_restore(named_point("after")).await });
    let plan = stage.succeeds("a point of the new incarnation is a target", &plan)?.plan;
    let branches = plan.threads.values().filter_map(|thread| Some((thread.spans.first()?, thread.spans.len())));
    let at_branch = branches.filter(|(span, count)| *count == 2 && span.scn == kept.cut.scn).count();
    let good = plan.cut == point.cut && at_branch == 3;
    stage.holds(good, Violation::new("readers stop at the branch cut", format!("{plan:?}")))?;
    stage.node_3_moves_and_the_others_are_lost_again()?;
    let again = stage.operate_the_moved(|operator| async move { operator.restore(named_point("after")).await });
    stage.succeeds("a restore beside a node that missed two incarnations", &again)?;
    stage.the_moved_hold_the_history_up_to(kept.cut.scn)
}
