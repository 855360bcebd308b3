//! A node loses power at every disk operation in turn, and what it acknowledged is there when it comes back.
#![allow(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "tests may be blunt"
)]

mod world;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sheetanchor_core::refusal::Code;
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::database::{Database, State};
use sheetanchor_refdb::{Client, ClientError, Contents, Outcome, Session};
use world::disk::Loss;
use world::{DATA, World, address, node, pause, run, transfer};

const ACCOUNTS: u64 = 20;

/// What the workload knows of its transfers.
#[derive(Default)]
struct Known {
    acknowledged: BTreeSet<u64>,
    unknown: BTreeSet<u64>,
}

async fn work(world: &World, number: u16, base: u64, known: &RefCell<Known>, stop: &Cell<bool>) {
    let mut ledger = world.ledger(number);
    for id in base.. {
        let done = async {
            while !stop.get() {
                pause(5).await;
            }
        };
        known.borrow_mut().unknown.insert(id);
        let outcome = {
            let transfer = ledger.transfer(transfer(id, ACCOUNTS));
            match futures_util::future::select(std::pin::pin!(transfer), std::pin::pin!(done)).await {
                futures_util::future::Either::Left((outcome, _)) => outcome,
                futures_util::future::Either::Right(_) => return,
            }
        };
        let mut known = known.borrow_mut();
        match outcome {
            Outcome::Acknowledged(_) => {
                known.unknown.remove(&id);
                known.acknowledged.insert(id);
            }
            Outcome::Failed(_) => drop(known.unknown.remove(&id)),
            Outcome::Unknown(_) => {}
        }
    }
}

/// The contents are exactly what was acknowledged, and perhaps some of what nobody knows.
fn assert_sound(contents: &Contents, known: &Known, what: &str) {
    let there: BTreeSet<u64> = contents.transfers.keys().copied().collect();
    let lost: Vec<&u64> = known.acknowledged.difference(&there).collect();
    assert!(lost.is_empty(), "{what}: acknowledged and lost: {lost:?}");
    let invented: Vec<&u64> =
        there.iter().filter(|id| !known.acknowledged.contains(id) && !known.unknown.contains(id)).collect();
    assert!(invented.is_empty(), "{what}: there, and never committed: {invented:?}");
    let mut balances: BTreeMap<u64, i64> = (0..ACCOUNTS).map(|account| (account, 1_000)).collect();
    for transfer in contents.transfers.values() {
        *balances.get_mut(&transfer.from).unwrap() -= transfer.amount.cast_signed();
        *balances.get_mut(&transfer.to).unwrap() += transfer.amount.cast_signed();
    }
    assert_eq!(contents.balances, balances, "{what}");
}

/// One story: node 2 restarts with its power cut at operation `crash_at`, all nodes work, it comes back.
async fn story(crash_at: u64, loss: Loss) -> bool {
    let mut world = World::new();
    world.data_pages = 6;
    world.segment_bytes = 4096;
    world.start_all().await;
    world.join_all().await;
    world.ledger(1).create(ACCOUNTS, 1_000).await.unwrap();
    world.crash(2, Loss::DropAll).await;
    // The first start may itself be what loses power.
    let crashed_early = {
        let started = tokio_timeout(1_000, world.start(2, crash_at)).await;
        started.is_none()
    };
    let known = RefCell::new(Known::default());
    let stop = Cell::new(false);
    if !crashed_early {
        let mount = Arc::clone(&world.mounts[&node(2)]);
        let watch = async {
            for _ in 0..1_500 {
                if mount.has_crashed() {
                    break;
                }
                pause(1).await;
            }
            pause(20).await;
            stop.set(true);
        };
        let working = [(1, 1_000), (2, 2_000), (2, 3_000), (3, 4_000)];
        let working = working.map(|(number, base)| work(&world, number, base, &known, &stop));
        futures_util::future::join(watch, futures_util::future::join_all(working)).await;
    }
    let crashed = world.mounts[&node(2)].has_crashed();
    world.crash(2, loss).await;
    let what = format!("crash at {crash_at}, {loss:?}");
    world.start(2, u64::MAX).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    pause(3_000).await;
    for number in [1, 2] {
        let contents = world.ledger(number).read_all().await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_sound(&contents, &known.borrow(), &what);
    }
    // Liveness: everything flows again.
    for number in 1..=3 {
        let outcome = world.ledger(number).transfer(transfer(u64::from(number), ACCOUNTS)).await;
        assert!(matches!(outcome, Outcome::Acknowledged(_)), "{what}: node {number}: {outcome:?}");
    }
    // And the whole cluster loses power, twice in a row.
    for _ in 0..2 {
        for number in 1..=3 {
            world.crash(number, loss).await;
        }
        for number in 1..=3 {
            world.start(number, u64::MAX).await.unwrap_or_else(|error| panic!("{what}, then all: {error}"));
        }
    }
    pause(3_000).await;
    known.borrow_mut().acknowledged.extend(1..=3);
    let contents = world.ledger(3).read_all().await.unwrap();
    assert_sound(&contents, &known.borrow(), &what);
    crashed
}

#[allow(clippy::disallowed_methods, reason = "the story's own patience, in virtual time")]
async fn tokio_timeout<T>(millis: u64, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(std::time::Duration::from_millis(millis), work).await.ok()
}

fn sweep(loss: impl Fn(u64) -> Loss, from: u64) {
    let mut crashed = 0;
    for crash_at in (from..700).step_by(9) {
        crashed += u32::from(run(story(crash_at, loss(crash_at))));
    }
    assert!(crashed > 60, "{crashed} stories crashed");
}

#[test]
fn a_crash_anywhere_that_drops_what_was_not_synced() {
    sweep(|_| Loss::DropAll, 1);
}

#[test]
fn a_crash_anywhere_that_keeps_all() {
    sweep(|_| Loss::KeepAll, 4);
}

#[test]
fn a_crash_anywhere_that_keeps_any_sectors() {
    sweep(Loss::Sectors, 7);
}

#[test]
fn damage_in_the_log_is_told_from_its_torn_end() {
    run(async {
        let mut world = World::new();
        world.segment_bytes = 1 << 20;
        world.start_all().await;
        world.join_all().await;
        world.ledger(1).create(ACCOUNTS, 1_000).await.unwrap();
        for id in 0..10 {
            world.ledger(1).transfer(transfer(id, ACCOUNTS)).await;
        }
        let path = format!("{DATA}/nodes/1/wal/00000001/0000000000000000");
        let end = world.database(1).status().await.unwrap().end.lsn.get() as usize;
        world.crash(1, Loss::DropAll).await;
        let sound = world.volume.bytes(&path);
        assert_eq!(sound.len(), end);

        let mut torn = sound.clone();
        torn.extend_from_slice(&[0x77; 300]);
        world.volume.put(&path, torn);
        world.start(1, u64::MAX).await.unwrap();
        world.crash(1, Loss::DropAll).await;
        assert_eq!(world.volume.bytes(&path).len(), end, "the torn end is cut off");

        // The checkpoint of that start moved the place where recovery starts to the log's end: damage behind it.
        let mut short = sound.clone();
        short.truncate(end - 1);
        world.volume.put(&path, short);
        let refused = world.start(1, u64::MAX).await.unwrap_err();
        assert_eq!(refused.refusal().unwrap().code, Code::WalDamaged, "{refused}");
    });
}

#[test]
fn damage_before_the_durable_end_is_refused() {
    run(async {
        let mut world = World::new();
        world.segment_bytes = 1 << 20;
        world.start_all().await;
        world.join_all().await;
        world.ledger(1).create(ACCOUNTS, 1_000).await.unwrap();
        let path = format!("{DATA}/nodes/1/wal/00000001/0000000000000000");
        pause(700).await;
        let database = world.database(1);
        database.begin_backup("moves the redo position").await.unwrap();
        let redo = database.status().await.unwrap().end.lsn.get() as usize;
        for id in 0..5 {
            world.ledger(1).transfer(transfer(id, ACCOUNTS)).await;
        }
        world.crash(1, Loss::DropAll).await;
        let mut damaged = world.volume.bytes(&path);
        assert!(damaged.len() > redo + 500);
        damaged[redo + 50] ^= 1;
        world.volume.put(&path, damaged);
        let refused = world.start(1, u64::MAX).await.unwrap_err();
        assert_eq!(refused.refusal().unwrap().code, Code::WalDamaged, "{refused}");
    });
}

#[test]
fn a_node_whose_sync_fails_stops_and_says_so() {
    run(async {
        let mut world = World::created().await;
        world.ledger(1).create(ACCOUNTS, 1_000).await.unwrap();
        let kept = world.ledger(1).transfer(transfer(1, ACCOUNTS)).await;
        assert!(matches!(kept, Outcome::Acknowledged(_)), "{kept:?}");
        let mut client = Client::connect(&world.env(9), &address(1), Session::Plain, Scn::ZERO).await.unwrap();
        client.begin().await.unwrap();
        client.write(3, b"never".to_vec()).await.unwrap();
        world.mounts[&node(1)].fail_the_next_sync();
        let outcome = client.commit().await;
        assert!(matches!(outcome, Err(ClientError::Unknown(_))), "{outcome:?}");
        assert!(matches!(client.read(3).await, Err(ClientError::Retry(_))), "it serves nobody");
        let database = world.database(1);
        assert_eq!(database.status().await.unwrap().state, State::Down);
        assert_eq!(database.pin("x").await.unwrap_err().refusal().unwrap().code, Code::DatabaseDown);
        world.crash(1, Loss::KeepAll).await;
        world.start(1, u64::MAX).await.unwrap();
        pause(1_000).await;
        let contents = world.ledger(2).read_all().await.unwrap();
        assert_eq!(contents.transfers.into_keys().collect::<Vec<u64>>(), [1]);
        assert_eq!(contents.balances.values().sum::<i64>(), ACCOUNTS.cast_signed() * 1_000);
    });
}

#[test]
fn what_a_failed_sync_gave_up_is_written_again_before_the_log_is_done_with() {
    run(async {
        let mut world = World::created().await;
        world.ledger(1).create(ACCOUNTS, 1_000).await.unwrap();
        let kept = world.ledger(1).transfer(transfer(1, ACCOUNTS)).await;
        assert!(matches!(kept, Outcome::Acknowledged(_)), "{kept:?}");
        world.mounts[&node(1)].give_up_at_the_next_sync_of(&format!("{DATA}/pages"));
        let failed = world.database(1).begin_backup("fails").await.unwrap_err();
        assert!(failed.to_string().contains("the disk says so"), "{failed}");
        // The next life sees every page as it was written, and starts after a log that nobody reads again.
        world.kill(1).await;
        world.start(1, u64::MAX).await.unwrap();
        pause(1_000).await;
        world.crash(1, Loss::DropAll).await;
        world.start(1, u64::MAX).await.unwrap();
        pause(1_000).await;
        let contents = world.ledger(1).read_all().await.unwrap();
        assert_eq!(contents.transfers.into_keys().collect::<Vec<u64>>(), [1]);
        assert_eq!(contents.balances.into_keys().count() as u64, ACCOUNTS);
    });
}

#[test]
fn a_crash_anywhere_while_the_database_is_created_leaves_nothing_or_all_of_it() {
    run(async {
        let mut crashed = 0;
        for crash_at in 5..90 {
            let mut world = World::new();
            world.start(1, crash_at).await.unwrap();
            for number in 2..=3 {
                world.start(number, u64::MAX).await.unwrap();
            }
            let joined = tokio_timeout(2_000, world.join_all()).await;
            crashed += u32::from(joined.is_none());
            world.crash(1, Loss::Sectors(crash_at)).await;
            world.start(1, u64::MAX).await.unwrap_or_else(|error| panic!("crash at {crash_at}: {error}"));
            world.join_all().await;
            world.ledger(1).create(ACCOUNTS, 1_000).await.unwrap();
            assert_eq!(world.ledger(3).read_all().await.unwrap().balances.len() as u64, ACCOUNTS);
        }
        assert!(crashed > 40, "{crashed} crashed while joining");
    });
}
