//! Volumes that hosts share, and locks on them.

use std::time::Duration;

use sheetanchor_engine::env::{Env, FaultKind, OpenMode, Put};
use sheetanchor_sim::plan::{BucketTrouble, CrashPolicy, Fault, IoTrouble, Plan, When};
use sheetanchor_sim::world::{Repository, Settings, World};
use tokio::io::AsyncReadExt;

const LIMIT: Duration = Duration::from_secs(10);

fn world(plan: Plan) -> World {
    World::new(Settings::of(1).with(plan), crate::backend(1))
}

fn done<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    world: &mut World,
    host: &str,
    program: impl Fn(Env) -> F + Send + Sync + 'static,
) -> T {
    let promise = world.launch(host, program);
    world.finish(&promise, LIMIT).unwrap()
}

async fn create(env: &Env, path: &str, bytes: &[u8]) {
    let file = env.disk.open(path, OpenMode::CreateNew).await.unwrap();
    file.write_at(0, bytes.to_vec().into()).await.unwrap();
}

#[test]
fn a_crash_takes_only_its_own_hosts_unsynced_bytes_and_names() {
    let mut world = world(Plan::peaceful());
    done(&mut world, "n1", |env| async move { create(&env, "/shared/one", b"1").await });
    done(&mut world, "n2", |env| async move { create(&env, "/shared/two", b"2").await });
    done(&mut world, "n2", |env| async move { create(&env, "/own", b"own").await });
    world.crash("n1", CrashPolicy::DropAll);
    assert_eq!(world.peek("n2", "/shared/one"), None);
    assert_eq!(world.peek("n2", "/shared/two").unwrap(), b"2");
    assert_eq!(world.peek("n1", "/own"), None, "an own disk is seen by its host only");
    assert_eq!(world.peek("n2", "/own").unwrap(), b"own");
    world.crash("n2", CrashPolicy::DropAll);
    assert_eq!(world.peek("n2", "/shared/two"), None);
    assert_eq!(world.peek("n2", "/own"), None);
}

#[test]
fn a_sync_of_one_host_covers_what_another_wrote() {
    let mut world = world(Plan::peaceful());
    done(&mut world, "n1", |env| async move { create(&env, "/shared/one", b"1").await });
    done(&mut world, "n2", |env| async move {
        env.disk.open("/shared/one", OpenMode::Write).await.unwrap().sync().await.unwrap();
        env.disk.sync_dir("/shared").await.unwrap();
    });
    world.power_off_all(CrashPolicy::DropAll);
    assert_eq!(world.peek("n2", "/shared/one").unwrap(), b"1");
}

#[test]
fn a_rename_between_folders_is_there_in_both_or_in_neither() {
    for sync in ["/a", "/b", ""] {
        let mut world = world(Plan::peaceful());
        done(&mut world, "n1", move |env| async move {
            env.disk.create_folder("/a").await.unwrap();
            env.disk.create_folder("/b").await.unwrap();
            create(&env, "/a/x", b"x").await;
            env.disk.open("/a/x", OpenMode::Write).await.unwrap().sync().await.unwrap();
            env.disk.sync_dir("/a").await.unwrap();
            env.disk.sync_dir("/").await.unwrap();
            env.disk.rename("/a/x", "/b/x").await.unwrap();
            if !sync.is_empty() {
                env.disk.sync_dir(sync).await.unwrap();
            }
        });
        world.crash("n1", CrashPolicy::DropAll);
        let there = (world.peek("n1", "/a/x").is_some(), world.peek("n1", "/b/x").is_some());
        assert_eq!(there, if sync.is_empty() { (true, false) } else { (false, true) }, "sync of `{sync}`");
    }
}

#[test]
fn a_lock_is_held_until_its_holder_dies() {
    let mut world = world(Plan::peaceful());
    world.start("n1", |env| async move {
        let _held = env.disk.lock("/shared/lock").await.unwrap().unwrap();
        tracing::info!(target: "sheetanchor::test", "locked");
        std::future::pending::<()>().await;
    });
    world.run_until_milestone("n1", "locked", LIMIT).unwrap();
    let take = |env: Env| async move { env.disk.lock("/shared/lock").await.unwrap().is_some() };
    assert!(!done(&mut world, "n2", take));
    world.crash("n1", CrashPolicy::ProcessOnly);
    assert!(done(&mut world, "n2", take));
}

#[test]
fn nothing_a_crashed_host_still_does_has_an_effect() {
    let at = When::milestone("n1", "now");
    let plan =
        Plan::peaceful().and(Fault::Crash { at, policy: CrashPolicy::KeepAll, restart_after_ms: None, silent: false });
    let mut world = world(plan);
    let promise = world.launch("n1", |env| async move {
        create(&env, "/before", b"x").await;
        tracing::info!(target: "sheetanchor::test", "now");
        tracing::info!(target: "sheetanchor::test", "a word from the dead");
        if env.clock.wall().get() == 0 {
            create(&env, "/after", b"x").await;
        }
    });
    world.run_for(Duration::from_millis(50)).unwrap();
    assert!(world.is_down("n1"));
    assert!(!promise.is_kept(), "a dead host's program returns to nobody");
    assert!(!world.has_reached("n1", "dead"), "{}", world.timeline());
    assert!(world.peek("n1", "/before").is_some());
}

#[test]
fn a_write_that_fails_does_so_where_it_needs_no_space_too() {
    let fails = |words: &str| Fault::Io { at: When::milestone("n1", words), trouble: IoTrouble::WriteFails };
    let full = Fault::NoSpace { at: When::milestone("n1", "three"), volume: "/".into(), for_ms: 1_000 };
    let mut world = world(Plan::peaceful().and(fails("one")).and(fails("two")).and(full));
    let kinds = done(&mut world, "n1", |env| async move {
        env.disk.create_folder("/a").await.unwrap();
        create(&env, "/a/x", b"four").await;
        let file = env.disk.open("/a/x", OpenMode::Write).await.unwrap();
        tracing::info!(target: "sheetanchor::test", "one");
        let stands = env.disk.create_folder("/a").await.map_err(|fault| fault.kind);
        tracing::info!(target: "sheetanchor::test", "two");
        let shrinks = file.truncate(2).await.map_err(|fault| fault.kind);
        tracing::info!(target: "sheetanchor::test", "three");
        let full = [env.disk.create_folder("/a").await, file.truncate(1).await, file.truncate(3).await];
        (stands, shrinks, full.map(|done| done.map_err(|fault| fault.kind)))
    });
    let failed = Err(FaultKind::Other);
    assert_eq!(kinds, (failed, failed, [Ok(()), Ok(()), Err(FaultKind::NoSpace)]));
}

#[test]
fn a_plan_may_name_hosts_that_are_not_there() {
    let at = |host: &str| When::milestone(host, "now");
    let hold = |one: &str, other: &str| Fault::Hold { at: at("n1"), one: one.into(), other: other.into(), for_ms: 5 };
    let crash = Fault::Crash { at: at("n9"), policy: CrashPolicy::DropAll, restart_after_ms: Some(5), silent: false };
    let mut world = world(Plan::peaceful().and(hold("n1", "n9")).and(hold("n1", "n1")).and(crash));
    done(&mut world, "n1", |_| async move { tracing::info!(target: "sheetanchor::test", "now") });
    world.run_for(Duration::from_millis(20)).unwrap();
    assert_eq!(world.unstruck(), 1, "no host says the crash's milestone");
}

#[test]
fn a_bucket_write_that_times_out_has_taken_effect() {
    let at = When::milestone("n1", "now");
    let settings = Settings { repository: Repository::Store, ..Settings::of(1) };
    let settings = settings.with(Plan::peaceful().and(Fault::Bucket { at, trouble: BucketTrouble::TimesOutAfter }));
    let mut world = World::new(settings, crate::backend(1));
    let kinds = done(&mut world, "n1", |env| async move {
        tracing::info!(target: "sheetanchor::test", "now");
        let first = env.bucket.put_new("seal", b"mine".to_vec().into()).await.map_err(|fault| fault.kind);
        (first, env.bucket.put_new("seal", b"mine".to_vec().into()).await)
    });
    assert_eq!(kinds, (Err(FaultKind::TimedOut), Ok(Put::Exists)));
}

/// What a peer of a crashed host reads within two seconds: the end of the stream, or nothing.
fn ends_at_the_peer(silent: bool) -> bool {
    let at = When::milestone("n1", "now");
    let crash = Fault::Crash { at, policy: CrashPolicy::DropAll, restart_after_ms: None, silent };
    let mut world = world(Plan::peaceful().and(crash));
    let promise = world.launch("n2", |env| async move {
        let mut listener = env.net.listen("n2:7000").await.unwrap();
        let mut stream = listener.accept().await.unwrap();
        let limit = env.clock.now().after(Duration::from_secs(2));
        let mut byte = [0];
        tokio::select! {
            biased;
            read = stream.read(&mut byte) => { assert!(matches!(read, Ok(0) | Err(_))); true },
            () = env.clock.sleep_until(limit) => false,
        }
    });
    world.run_for(Duration::from_millis(5)).unwrap();
    world.start("n1", |env| async move {
        let _stream = env.net.connect("n2:7000").await.unwrap();
        tracing::info!(target: "sheetanchor::test", "now");
        std::future::pending::<()>().await;
    });
    world.finish(&promise, LIMIT).unwrap()
}

#[test]
fn a_peer_hears_of_a_killed_process_and_nothing_of_a_power_loss() {
    assert!(ends_at_the_peer(false));
    assert!(!ends_at_the_peer(true));
}
