//! The engine's repository in a folder, on the simulated disk: what a missing fsync would lose is lost here.

use std::time::Duration;

use sheetanchor_engine::env::{Env, Put};
use sheetanchor_sim::plan::{CrashPolicy, Fault, Plan, When};
use sheetanchor_sim::world::{Settings, World};

const LIMIT: Duration = Duration::from_secs(20);
const KEYS: [&str; 3] = ["backups/1/seal", "backups/1/manifest", "packs/0a"];

fn world(seed: u64, plan: Plan) -> World {
    World::new(Settings::of(seed).with(plan), crate::backend(seed))
}

/// Puts all keys, and says so for each that was answered.
async fn put_all(env: Env) {
    let bucket = &env.bucket;
    for key in KEYS {
        if bucket.put_new(key, key.as_bytes().to_vec().into()).await == Ok(Put::Created) {
            tracing::info!(target: "sheetanchor::test", key, "created");
        }
    }
}

/// What a host that had no part in the writing finds after a power cut.
async fn found(env: Env) -> Vec<(String, Vec<u8>)> {
    let bucket = &env.bucket;
    let mut found = Vec::new();
    for key in bucket.list("").await.unwrap() {
        let body = bucket.get(&key).await.unwrap();
        found.push((key, body));
    }
    found
}

#[test]
fn what_was_created_is_there_after_a_power_cut_and_whole() {
    let mut base = world(1, Plan::peaceful());
    let promise = base.launch("n1", put_all);
    base.finish(&promise, LIMIT).unwrap();
    let passes = base.passes("n1");
    assert!(passes > 60, "{passes}");
    for number in 1..=passes {
        for policy in CrashPolicy::POWER_LOSS {
            let at = When::pass("n1", number);
            let crash = Fault::Crash { at, policy, restart_after_ms: None, silent: false };
            let mut world = world(1, Plan::peaceful().and(crash));
            world.start("n1", put_all);
            world.run_until(|world| world.is_down("n1"), LIMIT).unwrap();
            let promise = world.launch("n2", found);
            let found = world.finish(&promise, LIMIT).unwrap();
            for key in KEYS.iter().filter(|key| world.has_reached("n1", &format!("created key={key}"))) {
                assert!(found.iter().any(|(there, _)| there == key), "{key} is lost: {number} {policy:?}\n{found:?}");
            }
            for (key, body) in &found {
                assert_eq!(body, key.as_bytes(), "{number} {policy:?}");
            }
        }
    }
}

/// A sync that fails drops what it was to make durable: it is seen until the power goes, and later syncs succeed without it.
#[test]
fn what_a_failed_sync_dropped_is_not_taken_for_durable() {
    let mut base = world(1, Plan::peaceful());
    let promise = base.launch("n1", put_all);
    base.finish(&promise, LIMIT).unwrap();
    for number in 1..=base.passes("n1") {
        let mut world = world(1, Plan::peaceful().and(Fault::SyncFailed { at: When::pass("n1", number) }));
        let promise = world.launch("n1", |env| async move {
            for key in KEYS {
                for _ in 0..5 {
                    if env.bucket.put_new(key, key.as_bytes().to_vec().into()).await.is_ok() {
                        tracing::info!(target: "sheetanchor::test", key, "is there");
                        break;
                    }
                }
            }
        });
        world.finish(&promise, LIMIT).unwrap();
        world.power_off_all(CrashPolicy::DropAll);
        let promise = world.launch("n2", found);
        let found = world.finish(&promise, LIMIT).unwrap();
        for key in KEYS {
            assert!(world.has_reached("n1", &format!("is there key={key}")), "{number}: {key} was given up");
            assert!(found.iter().any(|(there, _)| there == key), "{key} is lost: a sync from {number} on\n{found:?}");
        }
    }
}

#[test]
fn what_a_killed_process_left_half_done_is_made_durable_by_whoever_relies_on_it() {
    let mut base = world(1, Plan::peaceful());
    let promise = base.launch("n1", put_all);
    base.finish(&promise, LIMIT).unwrap();
    for number in 1..=base.passes("n1") {
        let at = When::pass("n1", number);
        let policy = CrashPolicy::ProcessOnly;
        let kill = Fault::Crash { at, policy, restart_after_ms: None, silent: false };
        let mut world = world(1, Plan::peaceful().and(kill));
        world.start("n1", put_all);
        world.run_until(|world| world.is_down("n1"), LIMIT).unwrap();
        // Whether they are new or there already: it is told that they are there.
        let promise = world.launch("n2", |env| async move {
            for key in KEYS {
                env.bucket.put_new(key, key.as_bytes().to_vec().into()).await.unwrap();
            }
        });
        world.finish(&promise, LIMIT).unwrap();
        world.power_off_all(CrashPolicy::DropAll);
        let promise = world.launch("n3", found);
        let found = world.finish(&promise, LIMIT).unwrap();
        let keys: Vec<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
        let mut sorted = KEYS;
        sorted.sort_unstable();
        assert_eq!(keys, sorted, "killed at {number}");
    }
}
