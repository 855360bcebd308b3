//! The `Clock`, `Entropy`, `Tasks` and `Work` ports.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sheetanchor_engine::env::Env;
use sheetanchor_engine::env::tasks::run_work;

use super::{Breach, promise, same};

/// Checks time, chance, tasks and work. Takes about a fifth of a second.
///
/// # Errors
/// The first promise that is not kept.
pub async fn clock(env: &Env) -> Result<(), Breach> {
    let from = env.clock.now();
    let wall_from = env.clock.wall();
    env.clock.sleep(Duration::from_millis(50)).await;
    let slept = env.clock.now().since(from);
    promise(slept >= Duration::from_millis(50), "a sleep is not short")?;
    promise(slept < Duration::from_secs(10), "a sleep ends")?;
    promise(env.clock.wall().get() >= wall_from.get() + 40, "the wall clock moves on too")?;
    env.clock.sleep_until(from).await;
    promise(env.entropy.word() != env.entropy.word(), "two random words differ")?;
    tasks(env).await?;
    same(run_work(&env.work, || 6 * 7).await, Some(42), "a job's result")
}

async fn tasks(env: &Env) -> Result<(), Breach> {
    let count = Arc::new(AtomicU32::new(0));
    let counting = |wait: Duration| {
        let (clock, count) = (env.clock.clone(), count.clone());
        Box::pin(async move {
            clock.sleep(wait).await;
            count.fetch_add(1, Ordering::Relaxed);
        })
    };
    let mut done = env.tasks.spawn("done", counting(Duration::from_millis(10)));
    promise(!done.has_ended(), "a task that sleeps runs")?;
    done.join().await;
    promise(done.has_ended(), "a joined task has ended")?;
    same(count.load(Ordering::Relaxed), 1, "what a task did")?;
    let mut cancelled = env.tasks.spawn("cancelled", counting(Duration::from_millis(20)));
    cancelled.cancel();
    cancelled.join().await;
    drop(env.tasks.spawn("dropped", counting(Duration::from_millis(20))));
    env.clock.sleep(Duration::from_millis(100)).await;
    same(count.load(Ordering::Relaxed), 1, "what cancelled and dropped tasks did not do")
}
