//! What holds a fenced cut together, and what must not happen under it.

use std::time::Duration;

use sheetanchor_core::identity::{ClusterId, Epoch, Incarnation, Membership, NodeId};
use sheetanchor_core::plan::Target;
use sheetanchor_core::request::{Header, Request};
use sheetanchor_core::scn::Scn;
use sheetanchor_core::time::WallMillis;
use sheetanchor_core::wire::{self, Answered, Asked};
use sheetanchor_engine::env::Env;
use sheetanchor_engine::frames;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::plan::CrashPolicy;
use sheetanchor_sim::world::Failure;

use super::point::named_point;
use crate::cluster::{NODES, agent_address, host};
use crate::stage::Stage;
use crate::workload::Load;

/// How long a fence may stay closed where nothing goes wrong: a few rounds, and one flush.
const HOLD_MAX: Duration = Duration::from_millis(120);

/// L2, D6. All nodes are fenced before any is cut, and while the cut reaches one node late, open transactions change pages
/// on the nodes that are cut already and the pages move to the one that is not: the cut holds no change without the one
/// before it.
pub fn cuts_between_moving_pages(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::CROWDED)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    stage.a_backup_is_taken()?;
    stage.meanwhile(20, 300)?;
    let point = stage.begin_point("moving");
    stage.world().run_until_milestone(&point.operator, "phase=drained", Duration::from_secs(30))?;
    let late = host(u16::try_from(stage.chance().between(1, 4)).unwrap_or(1));
    stage.world().hold(&point.operator, &late);
    stage.meanwhile(20, 400)?;
    stage.world().release(&point.operator, &late);
    stage.succeeds("a restore point outlives a slow network", &point)?;
    stage.the_point_is_restored("moving")
}

/// L5. Between close and release a node does nothing but finish the commits in flight: the hold lasts a few rounds, however
/// far behind the archive is, and the coordinator does not touch the repository meanwhile.
pub fn waits_for_no_other_io(stage: &mut Stage) -> Result<(), Failure> {
    // It reads what the operator did.
    stage.world().record_in_full();
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    stage.a_backup_is_taken()?;
    for name in ["held-1", "held-2", "held-3"] {
        stage.meanwhile(0, 300)?;
        let point = stage.begin_point(name);
        stage.world().run_until_milestone(&point.operator, "phase=cut", Duration::from_secs(3))?;
        let events = stage.world().last_events(400);
        let under_the_fence = events.lines().skip_while(|line| !line.contains("phase=closing"));
        let io = under_the_fence.filter(|line| line.contains(&point.operator) && line.contains("/repo")).count();
        let detail = format!("{} touched the repository {io} times", point.operator);
        stage.holds(io == 0, Violation::new("no other I/O under the fence", detail))?;
        stage.succeeds("a restore point without faults succeeds", &point)?;
    }
    for node in NODES {
        fences_were_short(stage, node)?;
    }
    stage.the_point_becomes_reachable("held-3")?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.is_restored(named_point("held-2")).map(|_| ())
}

fn fences_were_short(stage: &mut Stage, node: u16) -> Result<(), Failure> {
    let mut closed = None;
    for event in stage.world().milestones(&host(node)) {
        if event.what.starts_with("refdb fence closed") {
            closed = Some(event.at);
        } else if event.what.starts_with("refdb fence released")
            && let Some(from) = closed.take()
        {
            let held = event.at.saturating_sub(from);
            let detail = format!("node {node} was fenced for {held:?} from {from:?} on");
            stage.holds(held <= HOLD_MAX, Violation::new("no other I/O under the fence", detail))?;
        }
    }
    Ok(())
}

/// D4. A node is cut, released, and loses power before or after its record is durable: the point is void, or its record is
/// there; it is never published without it.
pub fn is_void_without_its_record(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    stage.a_backup_is_taken()?;
    stage.transfers_end()?;
    let point = stage.begin_point("voidable");
    let phase = if stage.chance().one_in(2) { "phase=released" } else { "phase=flushed" };
    stage.world().run_until_milestone(&point.operator, phase, Duration::from_secs(30))?;
    stage.meanwhile(0, 4)?;
    let node = u16::try_from(stage.chance().between(1, 4)).unwrap_or(1);
    stage.world().crash(&host(node), CrashPolicy::DropAll);
    stage.restart_node(node);
    stage.transfers_begin();
    let published = stage.ends(&point)?.is_ok();
    stage.world().note(format!("node {node} crashed at {phase}, published: {published}"));
    stage.meanwhile(500, 1_000)?;
    stage.a_point_is_taken("after")?;
    stage.the_point_becomes_reachable("after")?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    let target = if published { named_point("voidable") } else { Target::Latest };
    stage.is_restored(target).map(|_| ())
}

/// D15. Nodes fight for the same few pages and lose power again and again, each time with whatever it had not flushed: no
/// page goes on from a change that nobody has, neither after the crashes nor in what is restored.
pub fn loses_no_change_of_a_page_that_moves(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::CROWDED)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    stage.a_backup_is_taken()?;
    for _ in 0..6 {
        stage.meanwhile(100, 500)?;
        let node = u16::try_from(stage.chance().between(1, 4)).unwrap_or(1);
        stage.world().crash(&host(node), CrashPolicy::DropAll);
        stage.meanwhile(0, 200)?;
        stage.restart_node(node);
    }
    stage.meanwhile(500, 1_000)?;
    stage.commits_flow_again_within_the_lease()?;
    stage.a_point_is_taken("survived")?;
    stage.the_point_is_restored("survived")
}

/// Messages that are damaged, of another cluster, or from beyond the drift bound move no node's clock, each is answered
/// with its refusal, and points go on as before.
pub fn moves_no_clock_by_what_is_not_verified(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    stage.a_backup_is_taken()?;
    let status = stage.status()?;
    let (cluster, now) = (status.cluster.id, stage.history().last_scn().unwrap_or_default());
    // Within the drift bound: nothing but the check before it keeps it from being believed.
    let ahead = |ms: u64| Scn::at(WallMillis::new(now.millis() + ms));
    let bound = ahead(20_000);
    for (what, scn, of, damaged, code) in [
        ("another cluster", ahead(30_000), ClusterId::new(cluster.get() ^ 1), false, "SA104"),
        ("damaged", ahead(30_000), cluster, true, "SA004"),
        ("beyond the drift bound", ahead(120_000), cluster, false, "SA109"),
    ] {
        let sent = stage.world().launch("stranger", move |env| tell(env, scn, of, damaged));
        let answer = stage.world().finish(&sent, Duration::from_secs(30))?;
        let refused = answer.as_ref().is_some_and(|answer| format!("{:?}", answer.answer).contains(code));
        let detail = format!("a message {what}: {answer:?}");
        stage.holds(refused, Violation::new("what is not verified is refused", detail))?;
        let seen = stage.status()?.nodes.iter().filter_map(|node| Some(node.description.as_ref().ok()?.scn)).max();
        let detail = format!("after a message {what} at {scn} a node is at {seen:?}");
        let moved = seen.is_none_or(|seen| seen >= bound);
        stage.holds(!moved, Violation::new("only verified messages move the clock", detail))?;
    }
    stage.a_point_is_taken("unmoved")?;
    stage.the_point_is_restored("unmoved")
}

/// Sends node 1 one message, with one bit wrong if it is to be damaged; answers what it says.
async fn tell(env: Env, scn: Scn, cluster: ClusterId, damaged: bool) -> Option<Answered> {
    let header = Header {
        cluster,
        membership: Membership::new(1),
        incarnation: Incarnation::new(1),
        node: NodeId::new(1),
        operation: None,
        epoch: Epoch::default(),
    };
    let mut frame = wire::encode(&Asked { number: 1, scn, header, request: Request::Pins }).ok()?;
    if damaged && let Some(last) = frame.last_mut() {
        *last ^= 1;
    }
    let mut stream = env.net.connect(&agent_address(1)).await.ok()?;
    frames::send_frame(&mut stream, &frame).await.ok()?;
    frames::receive(&mut stream).await.ok()?
}
