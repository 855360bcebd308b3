//! Silent damage: each kind has the effect that it says and no other, says so to the world and to nobody in it, and
//! strikes only where the atlas allows.

use std::time::Duration;

use sheetanchor_engine::env::{Env, FaultKind, OpenMode, Put};
use sheetanchor_sim::atlas::{Atlas, Harm};
use sheetanchor_sim::plan::{CrashPolicy, Damage, Fault, Plan, When};
use sheetanchor_sim::world::{Repository, Settings, World};

const LIMIT: Duration = Duration::from_secs(20);
const PATH: &str = "/shared/file";
const KEY: &str = "packs/1";
const BYTES: usize = 10_000;

fn body() -> Vec<u8> {
    (1..=250).cycle().take(BYTES).collect()
}

fn part(from: usize, until: usize) -> Vec<u8> {
    body().into_iter().take(until).skip(from).collect()
}

fn world(seed: u64, damage: Damage, draw: u64) -> World {
    let plan = Plan::peaceful().and(Fault::Silent { at: When::pass("n1", 1), damage, draw });
    World::new(Settings { repository: Repository::Store, ..Settings::of(seed).with(plan) }, crate::backend(seed))
}

/// Writes a file in two pieces, syncs it, and reads it twice; tells what was read.
async fn write_and_read(env: Env) -> [Vec<u8>; 2] {
    let file = env.disk.open(PATH, OpenMode::CreateNew).await.unwrap();
    file.write_at(0, part(0, 5_000).into()).await.unwrap();
    file.write_at(5_000, part(5_000, BYTES).into()).await.unwrap();
    file.sync().await.unwrap();
    env.disk.sync_dir("/shared").await.unwrap();
    [file.read_at(0, BYTES * 2).await.unwrap(), file.read_at(0, BYTES * 2).await.unwrap()]
}

/// What a disk with that damage holds; told twice, the runs are the same.
fn damaged(damage: Damage, draw: u64) -> Vec<u8> {
    let tell = || {
        let mut world = world(1, damage, draw);
        world.chart(Atlas::closed().give_up("/shared/", &Damage::ALL));
        let promise = world.launch("n1", write_and_read);
        let [once, again] = world.finish(&promise, LIMIT).unwrap();
        assert_eq!(once, again, "it stays");
        assert_eq!(world.harm(), [Harm { damage, place: PATH.into() }]);
        assert!(world.timeline().contains(&format!("{} n1 {PATH}", damage.class())), "{}", world.timeline());
        world.crash("n1", CrashPolicy::DropAll);
        assert_eq!(world.peek("n1", PATH).unwrap(), once, "it is on the disk");
        (once, world.trace_hash())
    };
    let (first, second) = (tell(), tell());
    assert_eq!(first, second);
    first.0
}

#[test]
fn one_bit_rots() {
    for draw in [0, 1, 79_999, u64::MAX] {
        let differ: Vec<u8> = damaged(Damage::Rot, draw).iter().zip(body()).map(|(is, was)| is ^ was).collect();
        assert_eq!(differ.len(), BYTES);
        assert_eq!(differ.iter().map(|bits| bits.count_ones()).sum::<u32>(), 1, "draw {draw}");
    }
}

#[test]
fn a_lost_write_leaves_its_length_and_nothing_else() {
    let found = damaged(Damage::Lost, 0);
    assert_eq!(found[..5_000], [0; 5_000]);
    assert_eq!(found[5_000..], body()[5_000..], "the next write is a good one");
}

#[test]
fn a_misdirected_write_lands_elsewhere_in_the_file() {
    let found = damaged(Damage::Astray, 2);
    assert_eq!(found[..5_000], [0; 5_000]);
    assert_eq!(found[5_000..10_000], body()[5_000..], "written afterwards");
    assert_eq!(found[10_000..], body()[10_000 - 8_192..5_000], "what is left of it, two places away");
}

#[test]
fn nothing_strikes_what_the_atlas_does_not_give_up() {
    for damage in Damage::ALL {
        let mut world = world(2, damage, 3);
        world.chart(Atlas::closed().give_up("/shared/other", &Damage::ALL).give_up("bucket:other/", &Damage::ALL));
        let promise = world.launch("n1", |env| async move {
            assert_eq!(env.bucket.put_new(KEY, body().into()).await, Ok(Put::Created));
            (write_and_read(env.clone()).await, env.bucket.get(KEY).await.unwrap())
        });
        assert_eq!(world.finish(&promise, LIMIT).unwrap(), ([body(), body()], body()));
        assert_eq!(world.harm(), []);
    }
}

#[test]
fn an_object_of_a_store_rots_or_is_lost_after_it_was_acknowledged() {
    let tell = |damage| {
        let mut world = world(3, damage, 12);
        world.chart(Atlas::closed().give_up("bucket:packs/", &Damage::ALL));
        let promise = world.launch("n1", |env| async move {
            assert_eq!(env.bucket.put_new(KEY, body().into()).await, Ok(Put::Created));
            [env.bucket.get(KEY).await, env.bucket.get(KEY).await].map(|found| found.map_err(|fault| fault.kind))
        });
        let found = world.finish(&promise, LIMIT).unwrap();
        assert_eq!(world.harm(), [Harm { damage, place: format!("bucket:{KEY}") }]);
        found
    };
    let mut rotten = body();
    rotten[1] ^= 1 << 4;
    assert_eq!(tell(Damage::Rot), [Ok(rotten.clone()), Ok(rotten)]);
    assert_eq!(tell(Damage::Lost), [Err(FaultKind::NotFound), Err(FaultKind::NotFound)]);
}

#[test]
fn of_two_copies_one_stays_whole() {
    let rot = |pass| Fault::Silent { at: When::pass("n1", pass), damage: Damage::Rot, draw: 0 };
    let mut world = World::new(Settings::of(4).with(Plan::peaceful().and(rot(1)).and(rot(2))), crate::backend(4));
    let copies = ["/shared/one", "/shared/two"].map(String::from);
    world.chart(Atlas::closed().give_up("/shared/", &[Damage::Rot]).keep_one_of(&copies));
    let promise = world.launch("n1", |env| async move {
        let mut good = Vec::new();
        for path in ["/shared/one", "/shared/two"] {
            let file = env.disk.open(path, OpenMode::CreateNew).await.unwrap();
            file.write_at(0, body().into()).await.unwrap();
            good.push(file.read_at(0, BYTES).await.unwrap() == body());
        }
        good
    });
    assert_eq!(world.finish(&promise, LIMIT).unwrap(), [false, true]);
    assert_eq!(world.harm(), [Harm { damage: Damage::Rot, place: "/shared/one".into() }]);
}
