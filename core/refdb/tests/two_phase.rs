//! Prepared transactions: invisible, kept with all that they hold through every crash, ended from any session, fenced.
#![allow(clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used, reason = "tests may be blunt")]

mod world;

use std::sync::atomic::Ordering;

use sheetanchor_core::identity::HoldId;
use sheetanchor_core::refusal::Code;
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::database::Database;
use sheetanchor_refdb::{Client, ClientError, Session};
use world::disk::Loss;
use world::{LEASE, World, address, node, pause, run};

const KEY: u64 = 7;

async fn client(world: &World, number: u16) -> Client {
    Client::connect(&world.env(number + 50), &address(number), Session::Plain, Scn::ZERO).await.unwrap()
}

async fn prepared(world: &World, number: u16, gid: &str, key: u64, value: &str) {
    let mut client = client(world, number).await;
    client.begin().await.unwrap();
    client.write(key, value.into()).await.unwrap();
    client.prepare(gid).await.unwrap();
}

fn code<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> Option<Code> {
    match outcome.unwrap_err() {
        ClientError::Failed { code, .. } => code,
        other @ (ClientError::Retry(_) | ClientError::Lost(_) | ClientError::Unknown(_)) => panic!("{other}"),
    }
}

async fn write(world: &World, number: u16, key: u64, value: &str) -> Result<Scn, ClientError> {
    let mut client = client(world, number).await;
    client.begin().await?;
    client.write(key, value.into()).await?;
    client.commit().await
}

#[test]
fn a_prepared_transaction_is_invisible_keeps_its_rows_and_is_ended_by_any_session() {
    run(async {
        let world = World::created().await;
        write(&world, 1, KEY, "before").await.unwrap();
        for (gid, value, commit) in [("one", "after", true), ("two", "never", false)] {
            let before = client(&world, 3).await.read(KEY).await.unwrap();
            prepared(&world, 2, gid, KEY, value).await;
            for number in 1..=3 {
                assert_eq!(client(&world, number).await.read(KEY).await.unwrap(), before, "seen by node {number}");
                let written = write(&world, number, KEY, "other").await;
                assert!(matches!(written, Err(ClientError::Retry(_))), "node {number}: {written:?}");
            }
            assert_eq!(client(&world, 2).await.prepared().await.unwrap(), [gid]);
            let mut session = client(&world, 2).await;
            if commit {
                session.commit_prepared(gid).await.unwrap();
            } else {
                session.rollback_prepared(gid).await.unwrap();
            }
            for number in 1..=3 {
                assert_eq!(client(&world, number).await.read(KEY).await.unwrap().unwrap(), b"after");
            }
            assert_eq!(code(session.commit_prepared(gid).await), Some(Code::OutOfOrder), "it has ended");
        }
        write(&world, 1, KEY, "last").await.unwrap();
    });
}

#[test]
fn bad_gids_are_refused_and_leave_nothing() {
    run(async {
        let world = World::created().await;
        prepared(&world, 1, "taken", 1, "x").await;
        for (gid, expected) in [("", Code::BadName), (&*"g".repeat(201), Code::BadName), ("taken", Code::NameTaken)] {
            let mut client = client(&world, 1).await;
            client.begin().await.unwrap();
            client.write(2, b"y".to_vec()).await.unwrap();
            assert_eq!(code(client.prepare(gid).await), Some(expected), "`{gid}`");
            assert_eq!(code(client.commit().await), Some(Code::OutOfOrder), "no transaction is open");
        }
        let mut client = client(&world, 1).await;
        assert_eq!(client.prepared().await.unwrap(), ["taken"]);
        assert_eq!(client.read(2).await.unwrap(), None);
        for number in 1..32 {
            prepared(&world, 1, &format!("{number}"), 100 + number, "x").await;
        }
        client.begin().await.unwrap();
        assert_eq!(code(client.prepare("one too many").await), Some(Code::Busy));
    });
}

#[test]
fn under_a_fence_a_transaction_is_prepared_and_does_not_end() {
    run(async {
        let world = World::created().await;
        let (database, hold) = (world.database(1), HoldId::new(1));
        prepared(&world, 1, "commit", 1, "a").await;
        prepared(&world, 1, "roll back", 2, "b").await;
        database.close(hold, LEASE).await.unwrap();
        prepared(&world, 1, "passes", 3, "c").await;
        let (mut one, mut two) = (client(&world, 1).await, client(&world, 1).await);
        let ends = futures_util::future::join(one.commit_prepared("commit"), two.rollback_prepared("roll back"));
        let opens = async {
            pause(1_500).await;
            assert_eq!(client(&world, 1).await.prepared().await.unwrap(), ["commit", "passes", "roll back"]);
            database.drain(hold).await.expect("nothing is in flight: what is prepared waits");
            let cut = database.cut(hold, database.status().await.unwrap().scn, "cut").await.unwrap();
            database.release(hold).await.unwrap();
            cut
        };
        let ((committed, rolled_back), cut) = futures_util::future::join(ends, opens).await;
        assert!(committed.unwrap() > Scn::ZERO);
        rolled_back.unwrap();
        assert!(database.status().await.unwrap().end.lsn > cut.proof, "both ended after the cut");
        assert_eq!(client(&world, 1).await.prepared().await.unwrap(), ["passes"]);
    });
}

#[test]
fn that_nothing_is_prepared_is_said_only_once_it_is_durable() {
    run(async {
        let mut world = World::created().await;
        prepared(&world, 1, "a", KEY, "new").await;
        let (mut one, mut two) = (client(&world, 1).await, client(&world, 1).await);
        pause(100).await;
        world.mounts[&node(1)].fail_the_next_sync();
        let ends = futures_util::future::join(one.commit_prepared("a"), two.commit_prepared("a"));
        let (first, second) = ends.await;
        assert!(matches!(first, Err(ClientError::Unknown(_))), "{first:?}");
        assert!(matches!(second, Err(ClientError::Unknown(_))), "it may be prepared still: {second:?}");
        world.crash(1, Loss::DropAll).await;
        world.start(1, u64::MAX).await.unwrap();
        assert_eq!(client(&world, 1).await.prepared().await.unwrap(), ["a"]);
    });
}

#[test]
fn a_checkpoint_that_cannot_log_what_is_prepared_is_refused_for_now() {
    run(async {
        let world = World::created().await;
        prepared(&world, 1, "a", KEY, "new").await;
        world.wall_ahead_ms.store(3_600_000, Ordering::SeqCst);
        let refused = world.database(1).begin_backup("one").await.unwrap_err();
        assert_eq!(refused.refusal().map(|refusal| refusal.code), Some(Code::Busy), "{refused}");
        world.wall_ahead_ms.store(0, Ordering::SeqCst);
        world.database(1).begin_backup("two").await.unwrap();
    });
}

/// Node 2 loses power at operation `crash_at` while it prepares and commits; what it acknowledged stands after it.
async fn story(crash_at: u64, loss: Loss) -> bool {
    let mut world = World::new();
    world.segment_bytes = 2048;
    world.start_all().await;
    world.join_all().await;
    write(&world, 2, 1, "old").await.unwrap();
    write(&world, 2, 2, "old").await.unwrap();
    write(&world, 2, 3, "old").await.unwrap();
    // Prepared long before, with checkpoints and two lives since.
    prepared(&world, 2, "kept", 3, "new").await;
    pause(1_200).await;
    world.crash(2, loss).await;
    // The start may itself be what loses power: then it says nothing more.
    if tokio_timeout(1_000, world.start(2, crash_at)).await.is_none() {
        world.crash(2, loss).await;
        world.start(2, u64::MAX).await.unwrap();
        assert_eq!(client(&world, 2).await.prepared().await.unwrap(), ["kept"], "crash at {crash_at}");
        return true;
    }
    let mut acknowledged = (false, false, false);
    let work = async {
        let mut client = client(&world, 2).await;
        for (gid, key) in [("a", 1), ("b", 2)] {
            client.begin().await?;
            client.write(key, b"new".to_vec()).await?;
            client.prepare(gid).await?;
            pause(300).await;
        }
        acknowledged.0 = true;
        client.commit_prepared("a").await?;
        acknowledged.1 = true;
        client.rollback_prepared("b").await?;
        acknowledged.2 = true;
        pause(1_000).await;
        Ok::<(), ClientError>(())
    };
    let outcome = tokio_timeout(4_000, work).await;
    let crashed = world.mounts[&node(2)].has_crashed();
    let what = format!("crash at {crash_at}, {loss:?}, {acknowledged:?}, {outcome:?}");
    assert!(crashed || matches!(outcome, Some(Ok(()))), "{what}");
    world.crash(2, loss).await;
    for round in 0..2 {
        world.start(2, u64::MAX).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        pause(if round == 0 { 0 } else { 700 }).await;
        let gids = client(&world, 2).await.prepared().await.unwrap();
        assert!(gids.contains(&"kept".to_owned()), "{what}: {gids:?}");
        assert!(!acknowledged.1 || !gids.contains(&"a".to_owned()), "{what}: {gids:?}");
        assert!(!acknowledged.2 || !gids.contains(&"b".to_owned()), "{what}: {gids:?}");
        let value = async |key| client(&world, 2).await.read(key).await.unwrap().unwrap();
        if acknowledged.0 {
            let a = value(1).await;
            assert!(gids.contains(&"a".to_owned()) == (a == b"old"), "{what}: committed or in doubt, {gids:?}");
            assert!(!acknowledged.1 || a == b"new", "{what}");
        }
        assert_eq!((value(2).await, value(3).await), (b"old".to_vec(), b"old".to_vec()), "{what}");
        world.crash(2, loss).await;
    }
    world.start(2, u64::MAX).await.unwrap();
    let mut client = client(&world, 2).await;
    assert!(matches!(write(&world, 2, 3, "other").await, Err(ClientError::Retry(_))), "{what}: its row is kept");
    client.commit_prepared("kept").await.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(client.read(3).await.unwrap().unwrap(), b"new", "{what}");
    crashed
}

#[allow(clippy::disallowed_methods, reason = "the story's own patience, in virtual time")]
async fn tokio_timeout<T>(millis: u64, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(std::time::Duration::from_millis(millis), work).await.ok()
}

#[test]
fn a_crash_anywhere_keeps_what_was_prepared() {
    let losses: [fn(u64) -> Loss; 3] = [|_| Loss::DropAll, |_| Loss::KeepAll, Loss::Sectors];
    let mut crashed = 0;
    for (loss, from) in losses.iter().zip(1_u64..) {
        for crash_at in (from..130).step_by(3) {
            crashed += u32::from(run(story(crash_at, loss(crash_at))));
        }
    }
    assert!(crashed > 60, "{crashed} stories crashed");
}
