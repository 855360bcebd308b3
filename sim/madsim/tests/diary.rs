//! The diary story on madsim, to keep the ports honest.
#![cfg(madsim)]
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::time::Duration;

use sheetanchor_sim::backend::Backend;
use sheetanchor_sim::conformance;
use sheetanchor_sim::diary::{self, Care, KEEPER};
use sheetanchor_sim::oracle::replay::check_twice;
use sheetanchor_sim::plan::{CrashPolicy, Fault, Plan, When};
use sheetanchor_sim::world::{Failure, Settings, World};

#[path = "../../tests/suite/network.rs"]
mod network;

fn backend(seed: u64) -> Box<dyn Backend> {
    sheetanchor_sim_madsim::backend(seed).unwrap()
}

const LIMIT: Duration = Duration::from_mins(1);
const COUNT: u64 = 6;
const NOTHING: [u64; 0] = [];

/// Madsim re-seeds the standard library's hash maps on a fresh thread only.
fn on_a_fresh_thread<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    #[allow(clippy::disallowed_methods, reason = "the simulator itself needs it")]
    std::thread::spawn(run).join().unwrap()
}

fn world(seed: u64, plan: Plan) -> World {
    World::new(Settings::of(seed).with(plan), backend(seed))
}

fn crash(number: u64, policy: CrashPolicy) -> Plan {
    Plan::peaceful().and(Fault::Crash {
        at: When::pass(KEEPER, number),
        policy,
        restart_after_ms: Some(30),
        silent: false,
    })
}

#[test]
fn a_seed_gives_one_run_and_another_seed_another() {
    let hash = |seed| {
        on_a_fresh_thread(move || {
            let mut world = world(seed, crash(41, CrashPolicy::TornPrefix));
            assert_eq!(diary::run(&mut world, COUNT, Care::Synced).unwrap().lost, NOTHING);
            world.trace_hash()
        })
    };
    let third = check_twice(|| hash(3)).unwrap();
    assert_ne!(hash(4), third);
    assert_eq!(hash(3), third);
}

fn sweep(care: Care) -> Vec<(u64, CrashPolicy)> {
    on_a_fresh_thread(move || {
        let mut base = world(1, Plan::peaceful());
        assert_eq!(diary::run(&mut base, COUNT, care).unwrap().lost, NOTHING);
        let mut lost = Vec::new();
        for number in 1..=base.passes(KEEPER) {
            for policy in CrashPolicy::POWER_LOSS {
                let mut world = world(1, crash(number, policy));
                let verdict = diary::run(&mut world, COUNT, care).unwrap();
                if !verdict.lost.is_empty() {
                    lost.push((number, policy));
                }
            }
        }
        lost
    })
}

#[test]
fn a_crash_anywhere_loses_nothing_that_was_synced() {
    assert_eq!(sweep(Care::Synced), []);
}

#[test]
fn a_keeper_that_does_not_sync_is_found_out() {
    assert!(sweep(Care::Unsynced).iter().any(|(_, policy)| *policy == CrashPolicy::DropAll));
}

#[test]
fn a_panic_of_a_task_fails_the_run() {
    let failure = on_a_fresh_thread(|| {
        let mut world = world(1, Plan::peaceful());
        world.start("n1", |env| async move {
            let mut task = env.tasks.spawn("doomed", Box::pin(async { panic!("the keel too") }));
            task.join().await;
        });
        world.run_for(Duration::from_millis(5)).unwrap_err()
    });
    assert!(matches!(&failure, Failure::Panicked(text) if text.starts_with("n1: the keel too at ")), "{failure}");
}

#[test]
fn held_traffic_arrives_after_the_release() {
    on_a_fresh_thread(|| {
        let at = When::milestone(KEEPER, "kept number=2");
        let hold = Fault::Hold { at, one: KEEPER.into(), other: diary::WRITER.into(), for_ms: 1_500 };
        let mut world = world(1, Plan::peaceful().and(hold));
        assert_eq!(diary::run(&mut world, COUNT, Care::Synced).unwrap().lost, NOTHING);
        assert!(world.elapsed() > Duration::from_millis(1_500));
    });
}

/// Madsim's own clogged links would refuse the call, and deliver what waited up to twice as late.
#[test]
fn a_call_and_a_word_over_a_held_link_arrive_when_it_is_released() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    on_a_fresh_thread(|| {
        let mut world = world(1, Plan::peaceful());
        world.start("n1", |env| async move {
            let mut listener = env.net.listen("n1:7000").await.unwrap();
            while let Ok(mut stream) = listener.accept().await {
                let letter = stream.read_u8().await.unwrap();
                stream.write_u8(letter + 1).await.unwrap();
                stream.flush().await.unwrap();
            }
        });
        // Only hosts that are there are held apart.
        let there = world.launch("n2", |_| async {});
        assert_eq!(world.finish(&there, LIMIT), Ok(()));
        world.run_for(Duration::from_millis(20)).unwrap();
        world.hold("n1", "n2");
        let asked = world.launch("n2", |env| async move {
            let mut stream = env.net.connect("n1:7000").await.unwrap();
            env.clock.sleep(Duration::from_millis(100)).await;
            stream.write_u8(7).await.unwrap();
            stream.flush().await.unwrap();
            stream.read_u8().await.unwrap()
        });
        world.run_for(Duration::from_secs(3)).unwrap();
        world.release("n2", "n1");
        // The call goes through now; the letter is held in its turn.
        world.run_for(Duration::from_millis(50)).unwrap();
        world.hold("n2", "n1");
        world.run_for(Duration::from_secs(3)).unwrap();
        assert!(!asked.is_kept());
        world.release("n1", "n2");
        assert_eq!(world.finish(&asked, Duration::from_millis(80)), Ok(8));
    });
}

#[test]
fn the_ports_conform() {
    for seed in 0..4 {
        on_a_fresh_thread(move || {
            let mut world = world(seed, Plan::peaceful());
            let promise = world.launch("n1", |env| async move {
                env.disk.create_folder("/x").await?;
                conformance::disk(&env, "/x").await?;
                conformance::bucket(env.bucket.as_ref()).await?;
                conformance::clock(&env).await?;
                conformance::net(&env, "n1:7000").await
            });
            assert_eq!(world.finish(&promise, LIMIT), Ok(Ok(())), "seed {seed}");
        });
    }
}
