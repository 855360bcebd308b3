//! The story: two nodes write numbers, one after the other; a backup and a point are taken; both machines are lost, and two
//! others are restored to the point. A node crashes somewhere on the way, as the plan has it.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sheetanchor_core::error::Result as Outcome;
use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::identity::{NodeId, PointName};
use sheetanchor_core::plan::Target;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::views::points::PointState;
use sheetanchor_engine::agent::{self, Agent};
use sheetanchor_engine::coordinator::{Coordinator, Limits, Setup};
use sheetanchor_engine::env::Env;
use sheetanchor_sim::backend::Backend;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::plan::{CrashPolicy, Fault, Plan, When};
use sheetanchor_sim::world::{Failure, Settings, World};

use crate::engine::{LOG, Toy, numbers};

const NODES: [u16; 2] = [1, 2];
/// Longer than anything may take.
const BOUND: Duration = Duration::from_mins(2);
/// How often an operator asks.
const ATTEMPTS: u32 = 20;

/// What the writers asked for and were told, node by node: the oracle knows no more of the engine than that.
#[derive(Clone, Debug, Default)]
struct Told {
    begun: BTreeMap<u16, Vec<u64>>,
    acknowledged: BTreeMap<u16, Vec<u64>>,
    /// A number that was acknowledged, and was gone after a crash.
    lost: Option<String>,
}

type Shared = Arc<Mutex<Told>>;

fn locked(told: &Shared) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the story once, all chance drawn from `seed`. Answers the hash over every event.
pub fn tell(seed: u64, forgetful: bool, backend: Box<dyn Backend>) -> Result<String, Failure> {
    let mut world = World::new(Settings::of(seed), backend);
    let told = Shared::default();
    for node in NODES {
        start(&mut world, "n", node, forgetful, Some(told.clone()));
    }
    world.run_for(Duration::from_millis(100))?;
    in_the_end(&mut world, "n", |operator, _| async move { operator.init().await.map(|_| ()) })?;
    let chance = world.workload_chance();
    let node = format!("n{}", chance.between(1, 3));
    let at = When::pass(&node, world.passes(&node) + chance.between(1, 600));
    let policies = CrashPolicy::POWER_LOSS;
    let drawn = chance.below(u64::try_from(policies.len()).unwrap_or(1));
    let policy = policies.get(usize::try_from(drawn).unwrap_or(0)).copied().unwrap_or(CrashPolicy::DropAll);
    world.arm(Plan::peaceful().and(Fault::Crash { at, policy, restart_after_ms: Some(80), silent: false }));

    in_the_end(&mut world, "n", |operator, _| async move { operator.backup(None, Method::Fence).await.map(|_| ()) })?;
    let before = locked(&told).clone();
    let name = in_the_end(&mut world, "n", |operator, attempt| async move {
        // A name is used once: another attempt is another point.
        let name: PointName = format!("point-{attempt}").parse()?;
        operator.create_point(name.clone()).await.map(|_| name)
    })?;
    let after = locked(&told).clone();
    let target = Target::Name(name);
    in_the_end(&mut world, "n", |operator, _| async move {
        let points = operator.points().await?;
        let waits = points.iter().any(|point| point.state == PointState::Pending);
        if waits { Err(Refusal::new(Code::ArchiveBehind, "not yet").into()) } else { Ok(()) }
    })?;

    world.power_off_all(CrashPolicy::DropAll);
    for node in NODES {
        start(&mut world, "m", node, forgetful, None);
    }
    world.run_for(Duration::from_millis(100))?;
    in_the_end(&mut world, "m", move |operator, _| {
        let target = target.clone();
        async move { operator.restore(&target).await.map(|_| ()) }
    })?;
    for node in NODES {
        let log = world.peek(&format!("m{node}"), LOG).unwrap_or_default();
        let verdict = judge(node, &numbers(&log), &before, &after);
        world.judge(verdict)?;
    }
    let lost = locked(&told).lost.take();
    world.judge(lost.map_or(Ok(()), |detail| Err(Violation::new("what was acknowledged is durable", detail))))?;
    Ok(world.trace_hash())
}

/// What a node was restored to is all that was acknowledged when the point was begun, and nothing that was begun after it
/// had been taken.
fn judge(node: u16, restored: &[u64], before: &Told, after: &Told) -> Result<(), Violation> {
    let of = |numbers: &BTreeMap<u16, Vec<u64>>| numbers.get(&node).cloned().unwrap_or_default();
    if let Some(lost) = of(&before.acknowledged).iter().find(|number| !restored.contains(number)) {
        return Err(Violation::new("nothing that was acknowledged is lost", format!("node {node} lacks {lost}")));
    }
    if let Some(extra) = restored.iter().find(|number| !of(&after.begun).contains(number)) {
        return Err(Violation::new("nothing after the point is there", format!("node {node} has {extra}")));
    }
    Ok(())
}

/// Starts a node on a machine of its own: the engine, a writer in the same process, and the agent beside them.
fn start(world: &mut World, machines: &str, node: u16, forgetful: bool, told: Option<Shared>) {
    let host = format!("{machines}{node}");
    let listen = format!("{host}:7000");
    world.start(&host, move |env| {
        let (listen, told) = (listen.clone(), told.clone());
        async move {
            if let Err(error) = serve(env, node, listen, forgetful, told).await {
                tracing::info!(target: "sheetanchor::toy", node, %error, "ended");
            }
        }
    });
}

async fn serve(env: Env, node: u16, listen: String, forgetful: bool, told: Option<Shared>) -> Outcome<()> {
    let toy = Toy::start(env.clone(), NodeId::new(node), forgetful).await?;
    let mut config = agent::Config::new(NodeId::new(node), listen, "/state");
    config.archive_interval = Duration::from_millis(100);
    let agent = Agent::load(env.clone(), config, toy.clone()).await?;
    let Some(told) = told else { return agent.serve().await };
    tokio::select! {
        biased;
        served = agent.serve() => served,
        wrote = write(&env, node, &toy, &told) => wrote,
    }
}

/// Writes one number after the other, and remembers what it was told.
async fn write(env: &Env, node: u16, toy: &Toy, told: &Shared) -> Outcome<()> {
    while !toy.is_open().await {
        env.clock.sleep(Duration::from_millis(5)).await;
    }
    let found = toy.numbers().await?;
    let mut next = {
        let mut told = locked(told);
        let acknowledged = told.acknowledged.entry(node).or_default();
        let lost = acknowledged.iter().find(|number| !found.contains(number));
        let lost = lost.map(|number| format!("node {node} restarted without {number}"));
        told.lost = told.lost.take().or(lost);
        told.begun.get(&node).and_then(|begun| begun.last()).copied().unwrap_or_default() + 1
    };
    loop {
        locked(told).begun.entry(node).or_default().push(next);
        toy.commit(next).await?;
        locked(told).acknowledged.entry(node).or_default().push(next);
        next += 1;
        env.clock.sleep(Duration::from_millis(15)).await;
    }
}

/// An operator asks until it is done: nodes may be down for a while. Each attempt is one on a host of its own.
fn in_the_end<T, F>(
    world: &mut World,
    machines: &str,
    act: impl Fn(Coordinator, u32) -> F + Clone + Send + Sync + 'static,
) -> Result<T, Failure>
where
    T: Send + 'static,
    F: Future<Output = Outcome<T>> + Send + 'static,
{
    let addresses: BTreeMap<NodeId, String> =
        NODES.iter().map(|node| (NodeId::new(*node), format!("{machines}{node}:7000"))).collect();
    for attempt in 1..=ATTEMPTS {
        let (act, addresses) = (act.clone(), addresses.clone());
        let promise = world.launch("operator", move |env| {
            let setup = Setup { name: "toys".into(), addresses: addresses.clone() };
            act(Coordinator::new(env, setup, Limits::default()), attempt)
        });
        match world.finish(&promise, BOUND)? {
            Ok(value) => return Ok(value),
            Err(error) => world.note(format!("attempt {attempt}: {error}")),
        }
        world.run_for(Duration::from_millis(500))?;
    }
    Err(Violation::new("what nothing stands in the way of succeeds", format!("{ATTEMPTS} attempts failed")).into())
}
