//! Three nodes on one volume: transactions, pages that move, fences, and what a dead node stops.
#![allow(clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used, reason = "tests may be blunt")]

mod world;

use std::collections::{BTreeMap, BTreeSet};

use sheetanchor_core::identity::{HoldId, Incarnation};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::Code;
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::database::{Database, Joining, State};
use sheetanchor_refdb::{Client, ClientError, Outcome, Session};
use world::disk::Loss;
use world::{CLUSTER, LEASE, World, address, node, pause, run, transfer};

const ACCOUNTS: u64 = 30;

/// Carries transfers out on one node, one after the other.
async fn work(world: &World, number: u16, ids: std::ops::Range<u64>) -> BTreeSet<u64> {
    let mut ledger = world.ledger(number);
    let mut acknowledged = BTreeSet::new();
    for id in ids {
        match ledger.transfer(transfer(id, ACCOUNTS)).await {
            Outcome::Acknowledged(_) => drop(acknowledged.insert(id)),
            other @ (Outcome::Failed(_) | Outcome::Unknown(_)) => panic!("transfer {id}: {other:?}"),
        }
    }
    acknowledged
}

#[test]
fn what_three_nodes_commit_at_once_is_seen_by_all_and_adds_up() {
    run(async {
        let world = World::created().await;
        world.ledger(1).create(ACCOUNTS, 1_000).await.unwrap();
        let done = futures_util::future::join3(
            work(&world, 1, 1_000..1_040),
            work(&world, 2, 2_000..2_040),
            work(&world, 3, 3_000..3_040),
        )
        .await;
        let acknowledged: BTreeSet<u64> = done.0.into_iter().chain(done.1).chain(done.2).collect();
        assert_eq!(acknowledged.len(), 120);
        let mut balances: BTreeMap<u64, i64> = (0..ACCOUNTS).map(|account| (account, 1_000)).collect();
        for id in &acknowledged {
            let transfer = transfer(*id, ACCOUNTS);
            *balances.get_mut(&transfer.from).unwrap() -= transfer.amount.cast_signed();
            *balances.get_mut(&transfer.to).unwrap() += transfer.amount.cast_signed();
        }
        for number in 1..=3 {
            let contents = world.ledger(number).read_all().await.unwrap();
            assert_eq!(contents.balances, balances, "seen by node {number}");
            assert_eq!(contents.transfers.keys().copied().collect::<BTreeSet<u64>>(), acknowledged);
        }
    });
}

#[test]
fn an_open_transaction_is_invisible_blocks_no_reader_and_makes_a_second_writer_try_again() {
    run(async {
        let world = World::created().await;
        world.ledger(1).create(4, 10).await.unwrap();
        let env = world.env(9);
        let mut first = Client::connect(&env, &address(1), Session::Plain, Scn::ZERO).await.unwrap();
        let mut second = Client::connect(&env, &address(2), Session::Plain, Scn::ZERO).await.unwrap();
        first.begin().await.unwrap();
        first.write(1, b"first".to_vec()).await.unwrap();
        assert_eq!(first.read(1).await.unwrap().unwrap(), b"first");
        assert_eq!(second.read(1).await.unwrap().unwrap(), 10_i64.to_le_bytes());
        second.begin().await.unwrap();
        assert!(matches!(second.write(1, b"second".to_vec()).await, Err(ClientError::Retry(_))));
        drop(first);
        pause(10).await;
        second.begin().await.unwrap();
        second.write(1, b"second".to_vec()).await.unwrap();
        second.commit().await.unwrap();
        assert_eq!(second.read(1).await.unwrap().unwrap(), b"second", "the lost session's transaction is aborted");
    });
}

#[test]
fn a_row_that_changed_since_it_was_read_is_not_written() {
    run(async {
        let world = World::created().await;
        world.ledger(1).create(4, 10).await.unwrap();
        let env = world.env(9);
        let mut first = Client::connect(&env, &address(1), Session::Plain, Scn::ZERO).await.unwrap();
        let mut second = Client::connect(&env, &address(2), Session::Plain, Scn::ZERO).await.unwrap();
        first.begin().await.unwrap();
        first.read(2).await.unwrap();
        second.begin().await.unwrap();
        second.write(2, b"second".to_vec()).await.unwrap();
        second.commit().await.unwrap();
        assert!(matches!(first.write(2, b"first".to_vec()).await, Err(ClientError::Retry(_))));
    });
}

#[test]
fn a_full_page_and_a_long_value_are_refused() {
    run(async {
        let mut world = World::new();
        world.data_pages = 1;
        world.start_all().await;
        world.join_all().await;
        let env = world.env(9);
        let mut client = Client::connect(&env, &address(1), Session::Plain, Scn::ZERO).await.unwrap();
        client.begin().await.unwrap();
        for key in 0..26 {
            client.write(key, vec![7; 64]).await.unwrap();
        }
        client.commit().await.unwrap();
        client.begin().await.unwrap();
        let full = client.write(26, vec![7]).await;
        assert!(matches!(&full, Err(ClientError::Failed { code: Some(Code::NotSupported), .. })), "{full:?}");
        client.begin().await.unwrap();
        let long = client.write(1, vec![7; 65]).await;
        assert!(matches!(&long, Err(ClientError::Failed { code: Some(Code::NotSupported), .. })), "{long:?}");
        assert_eq!(client.scan(0, u64::MAX).await.unwrap().len(), 26);
    });
}

#[test]
fn commits_wait_for_the_fence_and_reads_do_not() {
    run(async {
        let world = World::created().await;
        world.ledger(1).create(4, 10).await.unwrap();
        let hold = HoldId::new(5);
        for database in world.nodes.values() {
            database.close(hold, LEASE).await.unwrap();
        }
        assert_eq!(
            world.database(1).close(HoldId::new(6), LEASE).await.unwrap_err().refusal().unwrap().code,
            Code::Busy
        );
        let committed = std::cell::Cell::new(false);
        let commit = async {
            let mut client = Client::connect(&world.env(9), &address(2), Session::Plain, Scn::ZERO).await.unwrap();
            client.begin().await.unwrap();
            client.write(1, b"late".to_vec()).await.unwrap();
            let scn = client.commit().await.unwrap();
            committed.set(true);
            scn
        };
        let early = world.database(2).cut(hold, Scn::ZERO, "early").await;
        assert_eq!(early.unwrap_err().refusal().unwrap().code, Code::OutOfOrder, "nobody has drained");
        let cut = async {
            let (seen, end) = world.database(2).drain(hold).await.unwrap();
            pause(500).await;
            assert!(!committed.get(), "the fence holds");
            let mut reader = Client::connect(&world.env(8), &address(3), Session::Plain, Scn::ZERO).await.unwrap();
            assert_eq!(reader.read(1).await.unwrap().unwrap(), 10_i64.to_le_bytes());
            let made = world.database(2).cut(hold, seen, "here").await.unwrap();
            assert!(made.until.lsn >= end.lsn);
            assert_eq!(world.database(2).cut(hold, seen, "here").await.unwrap(), made, "asked twice, made once");
            world.database(2).release(hold).await.unwrap();
            seen
        };
        let (scn, cut) = futures_util::future::join(commit, cut).await;
        assert!(scn > cut, "the commit lies after the cut");
        let late = world.database(2).cut(hold, cut, "late").await;
        assert_eq!(late.unwrap_err().refusal().unwrap().code, Code::HoldLost);
    });
}

#[test]
fn a_commit_that_waits_for_the_fence_can_be_cancelled() {
    run(async {
        let world = World::created().await;
        world.ledger(1).create(4, 10).await.unwrap();
        let hold = HoldId::new(5);
        for database in world.nodes.values() {
            database.close(hold, LEASE).await.unwrap();
        }
        let mut waiting = Client::connect(&world.env(9), &address(2), Session::Plain, Scn::ZERO).await.unwrap();
        waiting.begin().await.unwrap();
        waiting.write(1, b"cancelled".to_vec()).await.unwrap();
        waiting.set_timeout(std::time::Duration::from_millis(300));
        assert!(matches!(waiting.commit().await, Err(ClientError::Lost(_))), "the fence holds");
        drop(waiting);
        pause(50).await;
        for database in world.nodes.values() {
            database.release(hold).await.unwrap();
        }
        let mut next = Client::connect(&world.env(8), &address(2), Session::Plain, Scn::ZERO).await.unwrap();
        assert_eq!(next.read(1).await.unwrap().unwrap(), 10_i64.to_le_bytes(), "it did not commit");
        next.begin().await.unwrap();
        next.write(1, b"next".to_vec()).await.unwrap();
        next.commit().await.unwrap();
    });
}

#[test]
fn a_mark_holds_nobody_back_and_nothing_at_or_below_it_follows() {
    run(async {
        let mut world = World::created().await;
        world.ledger(1).create(4, 10).await.unwrap();
        let before = world.database(2).status().await.unwrap();
        let ahead = Scn::new(before.scn.get() + (1_500 << 16));
        let made = world.database(2).mark(ahead, "sa-x").await.unwrap();
        assert_eq!(made.until.lsn, before.end.lsn, "whatever lies before it is at or below the SCN");
        assert_eq!(world.database(2).mark(ahead, "sa-x").await.unwrap(), made, "asked twice, made once");
        let after = world.database(2).status().await.unwrap();
        assert!(after.end.lsn >= made.proof && after.frontier > ahead, "{after:?}");
        let mut client = Client::connect(&world.env(9), &address(2), Session::Plain, Scn::ZERO).await.unwrap();
        client.begin().await.unwrap();
        client.write(1, b"later".to_vec()).await.unwrap();
        assert!(client.commit().await.unwrap() > ahead, "what commits next lies above it");
        let first = world.database(2).mark(Scn::new(7), "sa-y").await.unwrap();
        assert_eq!(first.until.lsn, Lsn::new(0), "the whole thread was stamped in this life, and above that");
        let mad = world.database(2).mark(Scn::new(before.scn.get() + (100_000 << 16)), "sa-z").await.unwrap_err();
        assert_eq!(mad.refusal().unwrap().code, Code::ClockDrift);
        drop(client);
        world.crash(2, Loss::DropAll).await;
        world.start(2, u64::MAX).await.unwrap();
        let forgotten = world.database(2).mark(Scn::new(7), "sa-y2").await.unwrap_err();
        assert_eq!(forgotten.refusal().unwrap().code, Code::OutOfOrder, "the next life knows only where it began");
    });
}

#[test]
fn a_dead_node_stops_only_what_needs_it_and_comes_back_with_what_it_acknowledged() {
    run(async {
        let mut world = World::created().await;
        world.ledger(1).create(ACCOUNTS, 1_000).await.unwrap();
        let env = world.env(9);
        let mut client = Client::connect(&env, &address(2), Session::Plain, Scn::ZERO).await.unwrap();
        client.begin().await.unwrap();
        client.write(5, b"kept".to_vec()).await.unwrap();
        client.commit().await.unwrap();
        client.begin().await.unwrap();
        client.write(6, b"lost".to_vec()).await.unwrap();
        world.crash(2, Loss::DropAll).await;
        let mut other = Client::connect(&env, &address(1), Session::Plain, Scn::ZERO).await.unwrap();
        assert!(matches!(other.read(5).await, Err(ClientError::Retry(_))), "its page needs its recovery");
        let mut went_on = 0;
        for key in 0..ACCOUNTS {
            went_on += u64::from(other.read(key).await.is_ok());
        }
        assert!(went_on >= ACCOUNTS / 4, "{went_on} rows of {ACCOUNTS} can be read");
        world.start(2, u64::MAX).await.unwrap();
        pause(2_000).await;
        assert_eq!(other.read(5).await.unwrap().unwrap(), b"kept");
        assert_eq!(other.read(6).await.unwrap().unwrap(), 1_000_i64.to_le_bytes());
        assert!(world.ledger(3).read_all().await.unwrap_err().to_string().contains("none of a ledger"));
    });
}

#[test]
fn a_restarted_master_grants_nothing_that_a_dead_node_may_own() {
    run(async {
        let mut world = World::created().await;
        world.ledger(3).create(ACCOUNTS, 1_000).await.unwrap();
        // Key 1 lies on a page that node 2 is the master of; node 1 owns it, with a change that is in its log only.
        let env = world.env(9);
        let mut owner = Client::connect(&env, &address(1), Session::Plain, Scn::ZERO).await.unwrap();
        owner.begin().await.unwrap();
        owner.write(1, b"kept".to_vec()).await.unwrap();
        owner.commit().await.unwrap();
        world.crash(1, Loss::DropAll).await;
        world.crash(2, Loss::DropAll).await;
        world.start(2, u64::MAX).await.unwrap();
        pause(1_000).await;
        let mut reader = Client::connect(&env, &address(2), Session::Plain, Scn::ZERO).await.unwrap();
        assert!(matches!(reader.read(1).await, Err(ClientError::Retry(_))), "node 1 has not said what it owns");
        world.start(1, u64::MAX).await.unwrap();
        pause(1_000).await;
        assert_eq!(reader.read(1).await.unwrap().unwrap(), b"kept");
    });
}

#[test]
fn a_folder_of_another_cluster_or_a_second_process_is_refused() {
    run(async {
        let mut world = World::created().await;
        let mut joining =
            Joining { cluster: CLUSTER, nodes: (1..=3).map(node).collect(), incarnation: Incarnation::new(1) };
        world.database(1).join(&joining).await.unwrap();
        joining.cluster = sheetanchor_core::identity::ClusterId::new(7);
        assert_eq!(world.database(1).join(&joining).await.unwrap_err().refusal().unwrap().code, Code::OtherCluster);
        joining.nodes.pop();
        assert_eq!(world.database(1).join(&joining).await.unwrap_err().refusal().unwrap().code, Code::OtherMembership);
        assert_eq!(world.database(1).status().await.unwrap().state, State::Open);
        let second = world.start(1, u64::MAX).await;
        assert_eq!(second.unwrap_err().refusal().unwrap().code, Code::DuplicateIdentity);
    });
}

#[test]
fn wal_is_recycled_up_to_the_oldest_pin_and_never_beyond() {
    run(async {
        let world = World::created().await;
        let database = world.database(1);
        let kept = database.pin("backup-1").await.unwrap();
        assert_eq!(database.pin("backup-1").await.unwrap(), kept);
        world.ledger(1).create(ACCOUNTS, 1_000).await.unwrap();
        work(&world, 1, 0..60).await;
        let segments = || world.volume.names(&format!("{DATA}/nodes/1/wal/00000001/", DATA = world::DATA)).len();
        let before = segments();
        assert!(before > 2, "{before} segments");
        let end = database.status().await.unwrap().end;
        database.flush(end.lsn).await.unwrap();
        database.advance_pin("archive", end.lsn).await.unwrap();
        database.begin_backup("x").await.unwrap();
        assert!(database.durable_wal(kept, sheetanchor_core::identity::ByteCount::new(1)).await.unwrap().is_some());
        database.unpin("backup-1").await.unwrap();
        database.begin_backup("y").await.unwrap();
        assert!(segments() < before, "{} segments of {before}", segments());
        let gone = database.durable_wal(kept, sheetanchor_core::identity::ByteCount::new(1)).await;
        assert_eq!(gone.unwrap_err().refusal().unwrap().code, Code::WalGap);
        assert_eq!(database.pins().await.unwrap().len(), 1);
    });
}
