//! The diary story: determinism, crashes everywhere, panics, and the faults of the plan.

use std::collections::BTreeSet;
use std::time::Duration;

use sheetanchor_sim::diary::{self, Care, KEEPER, WRITER};
use sheetanchor_sim::oracle::replay::{SAME_RUN, check_twice};
use sheetanchor_sim::plan::{CrashPolicy, Fault, Plan, When};
use sheetanchor_sim::world::{Failure, Settings, World};

const LIMIT: Duration = Duration::from_mins(1);
const COUNT: u64 = 6;
const NOTHING: [u64; 0] = [];

fn world(seed: u64, plan: Plan) -> World {
    World::new(Settings::of(seed).with(plan), crate::backend(seed))
}

fn crash(at: When, policy: CrashPolicy, silent: bool) -> Plan {
    Plan::peaceful().and(Fault::Crash { at, policy, restart_after_ms: Some(30), silent })
}

/// A run with a crash in the middle, and its hash.
fn hash_of(seed: u64) -> String {
    let mut world = world(seed, crash(When::pass(KEEPER, 41), CrashPolicy::TornPrefix, seed.is_multiple_of(2)));
    let verdict = diary::run(&mut world, COUNT, Care::Synced).unwrap();
    assert_eq!(verdict.lost, NOTHING);
    world.trace_hash()
}

const SEED_VARIABLE: &str = "SHEETANCHOR_TEST_SEED";

/// Run by the test below in a process of its own.
#[test]
#[allow(clippy::disallowed_methods, reason = "a test talks to its own child process")]
fn one_hash_on_the_screen() {
    let seed = std::env::var(SEED_VARIABLE).map_or(7, |seed| seed.parse().unwrap());
    let hash = hash_of(seed);
    assert_eq!(hash.len(), 16);
    println!("hash={hash}=");
}

fn hash_in_a_fresh_process(seed: u64) -> String {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "diary::one_hash_on_the_screen", "--nocapture"])
        .env(SEED_VARIABLE, seed.to_string())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split('=').nth(1).unwrap_or_else(|| panic!("no hash in {text}")).to_string()
}

#[test]
fn a_seed_gives_one_run_in_a_fresh_process_and_after_other_seeds() {
    let fresh = hash_in_a_fresh_process(3);
    for other in [9, 1, 4] {
        assert_ne!(hash_of(other), fresh);
    }
    assert_eq!(check_twice(|| hash_of(3)), Ok(fresh.clone()));
    assert_eq!(hash_in_a_fresh_process(3), fresh);
}

#[test]
fn every_seed_gives_another_run() {
    let hashes: BTreeSet<String> = (0..20).map(hash_of).collect();
    assert_eq!(hashes.len(), 20);
}

#[test]
fn a_program_that_uses_hash_order_is_caught() {
    let run = || {
        let mut world = world(5, Plan::peaceful());
        let promise = world.launch("n1", |env| async move {
            #[allow(clippy::disallowed_types, reason = "nondeterministic on purpose: the check must catch it")]
            let set: std::collections::HashSet<u32> = (0..64).collect();
            #[allow(clippy::iter_over_hash_type, reason = "nondeterministic on purpose: the check must catch it")]
            for number in set {
                env.disk.create_folder(&format!("/{number}")).await.unwrap();
            }
        });
        world.finish(&promise, LIMIT).unwrap();
        world.trace_hash()
    };
    assert_eq!(check_twice(run).unwrap_err().invariant, SAME_RUN);
}

/// Crashes the keeper at each of its gate passes under each policy. What was lost, by plan.
fn sweep(care: Care, silent: bool) -> Vec<(u64, CrashPolicy)> {
    let mut base = world(1, Plan::peaceful());
    assert_eq!(diary::run(&mut base, COUNT, care).unwrap().lost, NOTHING);
    let passes = base.passes(KEEPER);
    assert!(passes > 40, "{passes}");
    let mut lost = Vec::new();
    for number in 1..=passes {
        for policy in CrashPolicy::POWER_LOSS {
            let mut world = world(1, crash(When::pass(KEEPER, number), policy, silent));
            let verdict = diary::run(&mut world, COUNT, care).unwrap_or_else(|failure| {
                panic!("crash at {number} {policy:?}: {failure}\n{}", world.timeline());
            });
            if number < passes {
                assert!(world.timeline().contains("crash keeper"), "{number} of {passes}");
            }
            if !verdict.lost.is_empty() {
                lost.push((number, policy));
            }
        }
    }
    lost
}

#[test]
fn a_crash_anywhere_loses_nothing_that_was_synced() {
    assert_eq!(sweep(Care::Synced, false), []);
    assert_eq!(sweep(Care::Synced, true), []);
}

#[test]
fn a_keeper_that_does_not_sync_is_found_out() {
    let lost = sweep(Care::Unsynced, false);
    assert!(lost.iter().any(|(_, policy)| *policy == CrashPolicy::DropAll), "{lost:?}");
    assert!(lost.iter().any(|(_, policy)| *policy == CrashPolicy::TornPrefix), "{lost:?}");
    assert!(lost.iter().all(|(_, policy)| *policy != CrashPolicy::KeepAll), "{lost:?}");
}

#[test]
fn a_keeper_that_does_not_sync_the_name_is_found_out() {
    let lost = sweep(Care::NameUnsynced, false);
    assert!(lost.iter().any(|(_, policy)| *policy == CrashPolicy::DropAll), "{lost:?}");
    assert!(lost.iter().all(|(_, policy)| *policy != CrashPolicy::KeepAll), "{lost:?}");
}

#[test]
fn a_crash_of_the_writer_starts_it_again() {
    let mut base = world(1, Plan::peaceful());
    diary::run(&mut base, COUNT, Care::Synced).unwrap();
    for number in 1..base.passes(WRITER) {
        let mut world = world(1, crash(When::pass(WRITER, number), CrashPolicy::DropAll, number.is_multiple_of(2)));
        let verdict = diary::run(&mut world, COUNT, Care::Synced).unwrap();
        assert_eq!(verdict.lost, NOTHING, "{number}");
    }
}

#[test]
fn a_crash_strikes_at_a_milestone() {
    let plan = crash(When::milestone(KEEPER, "kept number=3"), CrashPolicy::DropAll, false);
    let mut world = world(1, plan);
    assert_eq!(diary::run(&mut world, COUNT, Care::Synced).unwrap().lost, NOTHING);
    let timeline = world.timeline();
    let lines: Vec<&str> = timeline.lines().collect();
    let kept = lines.iter().position(|line| line.ends_with("diary kept number=3")).unwrap();
    assert!(lines[kept + 1].ends_with("crash keeper policy=drop-all"), "{timeline}");
    assert!(timeline.contains("restart keeper"), "{timeline}");
    assert!(timeline.contains("diary opened numbers=3"), "the synced ones are there\n{timeline}");
}

#[test]
fn a_killed_process_loses_not_even_unsynced_bytes() {
    let plan = crash(When::milestone(KEEPER, "kept number=3"), CrashPolicy::ProcessOnly, false);
    let mut world = world(1, plan);
    assert_eq!(diary::run(&mut world, COUNT, Care::Unsynced).unwrap().lost, NOTHING);
}

#[test]
fn a_power_cut_stops_every_host_at_once() {
    let mut world = world(2, Plan::peaceful());
    let promise = diary::begin(&mut world, COUNT, Care::Synced);
    world.run_until_milestone(WRITER, "acknowledged number=4", LIMIT).unwrap();
    world.power_off_all(CrashPolicy::DropAll);
    let events = world.events();
    world.run_for(Duration::from_millis(500)).unwrap();
    assert_eq!(world.events(), events, "nothing happens in the dark");
    world.restart(KEEPER);
    world.restart(WRITER);
    assert_eq!(world.finish(&promise, LIMIT).unwrap(), (1..=COUNT).collect::<Vec<_>>());
}

#[test]
fn a_failed_sync_ends_the_keeper_and_the_story_is_stuck() {
    let plan = Plan::peaceful().and(Fault::SyncFailed { at: When::milestone(KEEPER, "kept number=2") });
    let mut world = world(1, plan);
    let failure = diary::run(&mut world, COUNT, Care::Synced).unwrap_err();
    assert!(matches!(failure, Failure::Stuck { .. }), "{failure}");
    assert!(world.has_reached(KEEPER, "ended kind=SyncFailed"), "{}", world.timeline());
    assert!(world.has_ended(KEEPER));
    assert!(!world.has_ended(WRITER));
}

#[test]
fn a_full_disk_is_answered_with_no_space() {
    let at = When::milestone(KEEPER, "kept number=2");
    let plan = Plan::peaceful().and(Fault::NoSpace { at, volume: "/".into(), for_ms: 1_000 });
    let mut world = world(1, plan);
    assert!(diary::run(&mut world, COUNT, Care::Synced).is_err());
    assert!(world.has_reached(KEEPER, "ended kind=NoSpace"), "{}", world.timeline());
}

#[test]
fn held_traffic_arrives_after_the_release() {
    let at = When::milestone(KEEPER, "kept number=2");
    let hold = Fault::Hold { at, one: KEEPER.into(), other: WRITER.into(), for_ms: 1_500 };
    let mut world = world(1, Plan::peaceful().and(hold));
    assert_eq!(diary::run(&mut world, COUNT, Care::Synced).unwrap().lost, NOTHING);
    assert!(world.timeline().contains("release keeper writer"), "{}", world.timeline());
    assert!(world.elapsed() > Duration::from_millis(1_500));
}

#[test]
fn a_panic_of_a_program_or_of_its_tasks_fails_the_run() {
    let mut world_one = world(1, Plan::peaceful());
    world_one.start("n1", |_| async { panic!("the mast broke") });
    let failure = world_one.run_for(Duration::from_millis(5)).unwrap_err();
    assert!(matches!(&failure, Failure::Panicked(text) if text.starts_with("n1: the mast broke at ")), "{failure}");

    let mut world_two = world(1, Plan::peaceful());
    world_two.start("n1", |env| async move {
        let mut task = env.tasks.spawn("doomed", Box::pin(async { panic!("the keel too") }));
        task.join().await;
        std::future::pending::<()>().await;
    });
    let failure = world_two.run_for(Duration::from_millis(5)).unwrap_err();
    assert!(matches!(&failure, Failure::Panicked(text) if text.starts_with("n1: the keel too at ")), "{failure}");
}

#[test]
fn what_never_comes_is_reported_as_stuck() {
    let mut world = world(1, Plan::peaceful());
    let promise = world.launch("n1", |_| std::future::pending::<()>());
    let failure = world.finish(&promise, Duration::from_millis(20)).unwrap_err();
    let words = "waited 20ms of simulated time for the program on n1 to return; n1 has done nothing lately";
    assert_eq!(failure.to_string(), words);
}

#[test]
fn what_is_stuck_says_who_waits_for_what() {
    let mut world = world(1, Plan::peaceful());
    world.record_in_full();
    world.start("n2", |_| std::future::pending::<()>());
    world.pause("n2", LIMIT * 2);
    let promise = world.launch("n1", |env| async move {
        tracing::info!(target: "sheetanchor::test", "begun");
        env.clock.sleep(Duration::from_millis(5)).await;
        env.disk.sync_dir("/shared").await
    });
    world.run_until_milestone("n1", "begun", LIMIT).unwrap();
    world.stall("n1", LIMIT * 2);
    let failure = world.finish(&promise, LIMIT).unwrap_err().to_string();
    for said in ["waited 60s", "n1 is at `disk sync-dir /shared` since ", "n2 stands still"] {
        assert!(failure.contains(said), "{failure}");
    }
}

#[test]
fn a_program_that_never_rests_is_ended_and_reported() {
    let mut world = world(1, Plan::peaceful());
    world.start("n1", |_| {
        std::future::poll_fn(|context| {
            context.waker().wake_by_ref();
            std::task::Poll::<()>::Pending
        })
    });
    let failure = world.run_for(Duration::from_secs(1)).unwrap_err();
    assert!(matches!(failure, Failure::Stuck { .. }), "no failure of the backend: {failure}");
    let failure = failure.to_string();
    let words = "time to pass: somebody is polled again and again; n1 has done nothing lately";
    assert!(failure.contains(words), "{failure}");
}

#[test]
fn a_paused_host_wakes_and_carries_on_where_it_was() {
    let pause = Fault::Pause { at: When::milestone("n1", "now"), for_ms: 700 };
    let mut world = world(1, Plan::peaceful().and(pause));
    let promise = world.launch("n1", |env| async move {
        let file = env.disk.open("/shared/x", sheetanchor_engine::env::OpenMode::CreateNew).await.unwrap();
        let _held = env.disk.lock("/shared/lock").await.unwrap().unwrap();
        tracing::info!(target: "sheetanchor::test", "now");
        file.write_at(0, b"zombie".to_vec().into()).await.unwrap();
    });
    world.run_for(Duration::from_millis(600)).unwrap();
    assert!(world.has_reached("n1", "now") && !promise.is_kept());
    assert_eq!(world.peek("n2", "/shared/x"), None, "n2 has not been there yet");
    let taken = world.launch("n2", |env| async move { env.disk.lock("/shared/lock").await.unwrap().is_some() });
    assert!(!world.finish(&taken, LIMIT).unwrap(), "who stands still holds on to its locks");
    assert_eq!(world.peek("n2", "/shared/x").unwrap(), b"");
    world.finish(&promise, LIMIT).unwrap();
    assert!(world.elapsed() >= Duration::from_millis(700));
    assert_eq!(world.peek("n2", "/shared/x").unwrap(), b"zombie");
}

#[test]
fn the_wall_clocks_of_hosts_differ_and_jump() {
    let mut world = world(1, Plan::peaceful());
    let mut walls = BTreeSet::new();
    for host in ["n1", "n2", "n3", "n4"] {
        let promise = world.launch(host, |env| async move { env.clock.wall().get() });
        let wall = world.finish(&promise, LIMIT).unwrap();
        let truth = 1_700_000_000_000 + u64::try_from(world.elapsed().as_millis()).unwrap();
        assert!(wall.abs_diff(truth) <= 55, "{wall} at {truth}");
        walls.insert(wall.wrapping_sub(truth));
    }
    assert!(walls.len() > 1, "{walls:?}");
    world.set_wall_clock("n1", 3_600_000);
    let promise = world.launch("n1", |env| async move { env.clock.wall().get() });
    let wall = world.finish(&promise, LIMIT).unwrap();
    assert!(wall > 1_700_003_600_000, "{wall}");
}
