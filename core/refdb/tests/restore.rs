//! A backup of three nodes, restored and recovered to a cut, and read.
#![allow(clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used, reason = "tests may be blunt")]

mod world;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

use sheetanchor_core::error::Error;
use sheetanchor_core::identity::{HoldId, Incarnation, NodeId, ThreadId};
use sheetanchor_core::refusal::Code;
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::database::{Database, FilePart, PageVerdict, SourceFile, SourceKind, State};
use sheetanchor_refdb::{Outcome, Transfer};
use world::disk::Loss;
use world::{Archive, Cut, LEASE, World, node, opening, pause, run, transfer};

const ACCOUNTS: u64 = 30;
const PAGE_BYTES: usize = 4096;

/// What was acknowledged, and at which SCN.
type History = RefCell<BTreeMap<u64, (Scn, Transfer)>>;

/// Transfers on one node until `stop`.
async fn work(world: &World, number: u16, history: &History, stop: &Cell<bool>) {
    let mut ledger = world.ledger(number);
    for id in u64::from(number) * 10_000.. {
        if stop.get() {
            return;
        }
        match ledger.transfer(transfer(id, ACCOUNTS)).await {
            Outcome::Acknowledged(scn) => drop(history.borrow_mut().insert(id, (scn, transfer(id, ACCOUNTS)))),
            other @ (Outcome::Failed(_) | Outcome::Unknown(_)) => panic!("transfer {id}: {other:?}"),
        }
        pause(7).await;
    }
}

/// A backup and three cuts, taken while all nodes write.
struct Taken {
    archive: Archive,
    cuts: Vec<Cut>,
    history: BTreeMap<u64, (Scn, Transfer)>,
}

async fn taken() -> Taken {
    let world = World::created().await;
    world.ledger(1).create(ACCOUNTS, 1_000).await.unwrap();
    let history = History::default();
    let stop = Cell::new(false);
    let story = async {
        pause(300).await;
        let mut archive = Archive::capture(&world, "base").await;
        let mut cuts = Vec::new();
        for number in 1..=3 {
            pause(150).await;
            cuts.push(Cut::make(&world, &format!("point-{number}"), number).await);
        }
        pause(150).await;
        for cut in &cuts {
            archive.fetch(&world, cut).await;
        }
        stop.set(true);
        (archive, cuts)
    };
    let working = (1..=3).map(|number| work(&world, number, &history, &stop));
    let ((archive, cuts), _) = futures_util::future::join(story, futures_util::future::join_all(working)).await;
    Taken { archive, cuts, history: history.into_inner() }
}

/// Stages on a fresh volume and recovers from node 2.
async fn recovered(archive: &Archive, cut: &Cut) -> (World, sheetanchor_core::error::Result<()>) {
    let mut world = World::new();
    archive.stage(&world);
    world.start_all().await;
    let outcome = world.database(2).recover(&archive.recovery(cut), archive).await;
    (world, outcome)
}

async fn open_all(world: &World, floor: Scn) {
    for database in world.nodes.values() {
        assert_eq!(database.status().await.unwrap().state, State::Reached);
    }
    for database in world.nodes.values() {
        database.open(&opening(floor)).await.unwrap();
    }
    pause(500).await;
}

fn assert_history_up_to(cut: Scn, history: &BTreeMap<u64, (Scn, Transfer)>, contents: &sheetanchor_refdb::Contents) {
    let mut balances: BTreeMap<u64, i64> = (0..ACCOUNTS).map(|account| (account, 1_000)).collect();
    let mut transfers = BTreeMap::new();
    for (id, (_, transfer)) in history.iter().filter(|(_, (scn, _))| *scn <= cut) {
        *balances.get_mut(&transfer.from).unwrap() -= transfer.amount.cast_signed();
        *balances.get_mut(&transfer.to).unwrap() += transfer.amount.cast_signed();
        transfers.insert(*id, *transfer);
    }
    assert_eq!(contents.transfers, transfers);
    assert_eq!(contents.balances, balances);
}

/// The recovery has said piece by piece how far it is in each thread, and in the end that it is at its cut.
fn assert_told(archive: &Archive, cut: &Cut) {
    let told = std::mem::take(&mut *archive.told.lock().unwrap());
    for made in cut.made.values() {
        let own: Vec<_> = told.iter().filter(|at| at.thread == made.until.thread).collect();
        assert!(own.len() > 1 && own.is_sorted_by_key(|at| at.lsn), "{own:?}");
        assert_eq!(own.last(), Some(&&made.until));
    }
}

#[test]
fn every_cut_is_restored_exactly_and_goes_on_as_a_new_incarnation() {
    run(async {
        let taken = taken().await;
        let last = taken.history.values().map(|(scn, _)| *scn).max().unwrap();
        for cut in &taken.cuts {
            assert!(cut.scn < last, "something lies beyond {}", cut.name);
            let (mut world, outcome) = recovered(&taken.archive, cut).await;
            outcome.unwrap();
            assert_told(&taken.archive, cut);
            open_all(&world, last).await;
            for number in 1..=3 {
                let contents = world.ledger(number).read_all().await.unwrap();
                assert_history_up_to(cut.scn, &taken.history, &contents);
            }
            let Outcome::Acknowledged(scn) = world.ledger(3).transfer(transfer(1, ACCOUNTS)).await else { panic!() };
            assert!(scn > last, "no SCN of the history is used again");
            let status = world.database(1).status().await.unwrap();
            assert_eq!(status.incarnation, Some(Incarnation::new(2)));
            assert_eq!(status.end.timeline, world::timeline(2));
            world.database(1).open(&opening(last)).await.unwrap();
            world.crash(1, Loss::DropAll).await;
            world.start(1, u64::MAX).await.unwrap();
            pause(3_000).await;
            assert_eq!(world.database(1).status().await.unwrap().state, State::Open);
            assert!(world.ledger(1).read_all().await.unwrap().transfers.contains_key(&1));
        }
    });
}

#[test]
fn a_commit_stamped_at_the_very_cut_is_in_it_and_the_next_one_is_not() {
    run(async {
        let world = World::created().await;
        world.ledger(1).create(ACCOUNTS, 1_000).await.unwrap();
        let mut archive = Archive::capture(&world, "base").await;
        let mut ledger = world.ledger(2);
        let Outcome::Acknowledged(last) = ledger.transfer(transfer(1, ACCOUNTS)).await else { panic!() };
        let cut = Cut::make(&world, "here", 1).await;
        assert_eq!(cut.scn, last, "nothing else is stamped on an idle cluster");
        let Outcome::Acknowledged(beyond) = ledger.transfer(transfer(2, ACCOUNTS)).await else { panic!() };
        let later = Cut::make(&world, "later", 2).await;
        archive.fetch(&world, &later).await;
        for (cut, expected) in [(cut, vec![1]), (later, vec![1, 2])] {
            let (world, outcome) = recovered(&archive, &cut).await;
            outcome.unwrap();
            open_all(&world, beyond).await;
            let contents = world.ledger(1).read_all().await.unwrap();
            assert_eq!(contents.transfers.into_keys().collect::<Vec<u64>>(), expected);
        }
    });
}

#[test]
fn the_restored_nodes_own_no_pins_but_the_archives_and_their_threads_go_on_at_the_cut() {
    run(async {
        let taken = taken().await;
        let cut = &taken.cuts[0];
        assert!(
            taken
                .archive
                .files
                .keys()
                .all(|name| !name.contains("pins") && !name.contains("lock") && !name.contains("wal"))
        );
        let (world, outcome) = recovered(&taken.archive, cut).await;
        outcome.unwrap();
        open_all(&world, cut.scn).await;
        for (node, database) in &world.nodes {
            let pins = database.pins().await.unwrap();
            let names: Vec<&str> = pins.iter().map(|pin| pin.name.as_str()).collect();
            assert_eq!(names, ["archive"]);
            assert_eq!(pins[0].from.lsn, cut.made[node].until.lsn);
        }
    });
}

#[test]
fn recovery_that_is_cut_short_anywhere_starts_over_to_the_same_state() {
    run(async {
        let taken = taken().await;
        let cut = &taken.cuts[1];
        let operations = {
            let (world, outcome) = recovered(&taken.archive, cut).await;
            outcome.unwrap();
            world.mounts[&node(2)].operations()
        };
        assert!(operations > 30, "{operations} operations");
        for crash_at in (6..operations).step_by(3) {
            let mut world = World::new();
            taken.archive.stage(&world);
            for number in [1, 3] {
                world.start(number, u64::MAX).await.unwrap();
            }
            world.start(2, crash_at).await.unwrap();
            let recovery = taken.archive.recovery(cut);
            let mount = Arc::clone(&world.mounts[&node(2)]);
            {
                let dies = async {
                    while !mount.has_crashed() {
                        pause(1).await;
                    }
                };
                let recover = world.database(2).recover(&recovery, &taken.archive);
                futures_util::future::select(std::pin::pin!(recover), std::pin::pin!(dies)).await;
            }
            world.crash(2, Loss::Sectors(crash_at)).await;
            world.start(2, u64::MAX).await.unwrap();
            let outcome = world.database(3).recover(&recovery, &taken.archive).await;
            outcome.unwrap_or_else(|error| panic!("crashed at {crash_at}: {error}"));
            open_all(&world, cut.scn).await;
            let contents = world.ledger(1).read_all().await.unwrap();
            assert_history_up_to(cut.scn, &taken.history, &contents);
        }
    });
}

#[test]
fn a_damaged_control_file_is_not_backed_up() {
    run(async {
        let taken = taken().await;
        let world = World::created().await;
        let database = world.database(1);
        let control = &taken.archive.files["control"];
        assert_eq!(database.check_pages("control", 0, control), PageVerdict::Sound);
        for at in 0..control.len() {
            let mut damaged = control.clone();
            damaged[at] ^= 1;
            assert_eq!(database.check_pages("control", 0, &damaged), PageVerdict::Fails(0), "byte {at}");
        }
        assert_eq!(database.check_pages("control", 0, &[]), PageVerdict::Fails(0));
    });
}

#[test]
fn pages_torn_during_capture_are_mended_by_the_images_in_the_log() {
    run(async {
        let taken = taken().await;
        let mut archive = taken.archive.clone();
        let cut = &taken.cuts[2];
        // Every data page has been changed by every node since the backup began, so each may be read torn.
        let pages = archive.files.get_mut("pages").unwrap();
        for page in 0..12 {
            pages[page * PAGE_BYTES + 700] ^= 0x55;
        }
        assert_eq!(World::created().await.database(1).check_pages("pages", 0, pages), PageVerdict::Fails(0));
        let (world, outcome) = recovered(&archive, cut).await;
        outcome.unwrap();
        open_all(&world, cut.scn).await;
        assert_history_up_to(cut.scn, &taken.history, &world.ledger(2).read_all().await.unwrap());
    });
}

async fn refusal(archive: &Archive, cut: &Cut) -> Code {
    let (world, outcome) = recovered(archive, cut).await;
    let code = outcome.unwrap_err().refusal().unwrap().code;
    assert_eq!(world.database(2).status().await.unwrap().state, State::Down, "nothing was reached");
    code
}

#[test]
fn what_is_missing_or_damaged_is_refused() {
    run(async {
        let taken = taken().await;
        let cut = &taken.cuts[2];
        let thread = ThreadId::new(2);
        let last = taken.archive.pieces.keys().filter(|(of, _)| *of == thread).max().copied().unwrap();

        let mut short = taken.archive.clone();
        short.pieces.remove(&last);
        assert_eq!(refusal(&short, cut).await, Code::ThreadShort);

        let mut damaged = taken.archive.clone();
        let piece = damaged.pieces.get_mut(&last).unwrap();
        piece.bytes =
            piece.bytes.iter().enumerate().map(|(at, byte)| if at == 60 { byte ^ 1 } else { *byte }).collect();
        assert_eq!(refusal(&damaged, cut).await, Code::WalDamaged);

        let mut skipping = taken.archive.clone();
        skipping.begun.get_mut(&NodeId::new(2)).unwrap().start.lsn = last.1;
        assert_eq!(refusal(&skipping, cut).await, Code::ChainBroken, "the other threads' records show it");

        let mut erased = taken.archive.clone();
        let pages = erased.files.get_mut("pages").unwrap();
        pages[..PAGE_BYTES].fill(0);
        assert_eq!(refusal(&erased, cut).await, Code::ChainBroken, "a page that was lost as a whole");

        let mut early = taken.cuts[0].clone();
        early.scn = Scn::new(early.scn.get() - (200 << 16));
        assert_eq!(refusal(&taken.archive, &early).await, Code::CutMissed, "captured pages lie beyond it");
    });
}

#[test]
fn a_restart_ends_backups_and_holds() {
    run(async {
        let mut world = World::created().await;
        let begun = world.database(1).begin_backup("base").await.unwrap();
        assert_eq!(world.database(1).begin_backup("base").await.unwrap(), begun);
        world.database(1).close(HoldId::new(9), LEASE).await.unwrap();
        let life = world.database(1).status().await.unwrap().life;
        world.crash(1, Loss::KeepAll).await;
        world.start(1, u64::MAX).await.unwrap();
        assert_ne!(world.database(1).status().await.unwrap().life, life);
        let database = world.database(1);
        assert_eq!(database.end_backup("base").await.unwrap_err().refusal().unwrap().code, Code::LifeChanged);
        assert_eq!(database.drain(HoldId::new(9)).await.unwrap_err().refusal().unwrap().code, Code::HoldLost);
        database.release(HoldId::new(9)).await.unwrap();
    });
}

#[test]
fn files_are_sent_once_and_a_backup_ends_only_after_all_of_them() {
    run(async {
        let mut world = World::created().await;
        let listed = world.database(1).files().await.unwrap();
        world.sends_files = true;
        world.kill(1).await;
        world.start(1, u64::MAX).await.unwrap();
        let database = world.database(1);
        let code = |error: Option<Error>| error.unwrap().refusal().unwrap().code;
        assert_eq!(code(database.file_stream("base").await.err()), Code::LifeChanged, "it has not begun");
        database.begin_backup("base").await.unwrap();
        assert_eq!(code(database.end_backup("base").await.err()), Code::LifeChanged, "nobody has asked for its files");
        let mut stream = database.file_stream("base").await.unwrap().unwrap();
        assert_eq!(code(database.file_stream("base").await.err()), Code::LifeChanged, "a second time");
        let mut sent: Vec<(SourceFile, u64)> = Vec::new();
        while let Some(part) = stream.next().await.unwrap() {
            match part {
                FilePart::Entry(file) => sent.push((file, 0)),
                FilePart::Bytes(bytes) => sent.last_mut().unwrap().1 += u64::try_from(bytes.len()).unwrap(),
            }
            let is_whole =
                sent.len() == listed.len() && sent.iter().map(|(_, bytes)| bytes).sum::<u64>() == stream.total().get();
            if !is_whole {
                assert_eq!(code(database.end_backup("base").await.err()), Code::LifeChanged, "not all were sent");
            }
        }
        database.end_backup("base").await.unwrap();
        for ((file, bytes), listed) in sent.iter().zip(&listed) {
            assert_eq!(file, listed);
            let length = if let SourceKind::File { length } = file.kind { length.get() } else { 0 };
            assert_eq!(*bytes, length, "{}", file.name);
        }
        // A life that ends takes the rest along.
        database.begin_backup("cut").await.unwrap();
        let mut stream = database.file_stream("cut").await.unwrap().unwrap();
        assert!(stream.next().await.unwrap().is_some());
        database.stop().await.unwrap();
        assert_eq!(code(stream.next().await.err()), Code::LifeChanged);
        assert_eq!(code(stream.next().await.err()), Code::LifeChanged, "nothing comes after that");
    });
}

#[test]
fn an_opened_folder_is_not_recovered_again_and_a_stopped_one_serves_nobody() {
    run(async {
        let taken = taken().await;
        let cut = &taken.cuts[0];
        let (world, outcome) = recovered(&taken.archive, cut).await;
        outcome.unwrap();
        world.database(1).open(&opening(cut.scn)).await.unwrap();
        world.database(1).stop().await.unwrap();
        assert_eq!(world.database(1).status().await.unwrap().state, State::Down);
        let pinned = world.database(1).pin("x").await;
        assert_eq!(pinned.unwrap_err().refusal().unwrap().code, Code::DatabaseDown);
        let again = world.database(2).recover(&taken.archive.recovery(cut), &taken.archive).await;
        assert_eq!(again.unwrap_err().refusal().unwrap().code, Code::OutOfOrder);
    });
}
