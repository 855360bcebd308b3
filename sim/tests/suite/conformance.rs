//! The ports as a host of any backend sees them keep what the engine's port documentation promises.

use std::time::Duration;

use sheetanchor_sim::conformance::{self, Breach};
use sheetanchor_sim::world::{Repository, Settings, World};

const LIMIT: Duration = Duration::from_mins(1);

fn world(seed: u64) -> World {
    World::new(Settings::of(seed), crate::backend(seed))
}

#[test]
fn disk() {
    for seed in 0..8 {
        for root in ["/var/lib/x", "/shared/x", "/repo/x"] {
            let mut world = world(seed);
            let promise = world.launch("n1", move |env| async move {
                env.disk.create_folder(root).await?;
                conformance::disk(&env, root).await
            });
            assert_eq!(world.finish(&promise, LIMIT), Ok(Ok::<(), Breach>(())), "seed {seed} at {root}");
        }
    }
}

#[test]
fn bucket() {
    for seed in 0..8 {
        for repository in [Repository::Folder, Repository::Store] {
            let settings = Settings { repository, ..Settings::of(seed) };
            let mut world = World::new(settings, crate::backend(seed));
            let promise = world.launch("n1", |env| async move { conformance::bucket(env.bucket.as_ref()).await });
            assert_eq!(world.finish(&promise, LIMIT), Ok(Ok(())), "seed {seed}, {repository:?}");
        }
    }
}

#[test]
fn net() {
    for seed in 0..8 {
        for address in ["n1:7000", "n1:0"] {
            let mut world = world(seed);
            let promise = world.launch("n1", move |env| async move { conformance::net(&env, address).await });
            assert_eq!(world.finish(&promise, LIMIT), Ok(Ok(())), "seed {seed} at {address}");
        }
    }
}

#[test]
fn net_half_closed() {
    for seed in 0..8 {
        let mut world = world(seed);
        let promise = world.launch("n1", |env| async move { conformance::net_half_closed(&env, "n1:7000").await });
        assert_eq!(world.finish(&promise, LIMIT), Ok(Ok(())), "seed {seed}");
    }
}

#[test]
fn clock() {
    for seed in 0..8 {
        let mut world = world(seed);
        let promise = world.launch("n1", |env| async move { conformance::clock(&env).await });
        assert_eq!(world.finish(&promise, LIMIT), Ok(Ok(())), "seed {seed}");
    }
}
