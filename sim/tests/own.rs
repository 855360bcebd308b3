//! What every backend must do, on the own executor.
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use sheetanchor_sim::backend::Backend;

#[path = "suite/conformance.rs"]
mod conformance;
#[path = "suite/damage.rs"]
mod damage;
#[path = "suite/diary.rs"]
mod diary;
#[path = "suite/folder_bucket.rs"]
mod folder_bucket;
#[path = "suite/network.rs"]
mod network;
#[path = "suite/shared.rs"]
mod shared;

fn backend(seed: u64) -> Box<dyn Backend> {
    sheetanchor_sim::own::backend(seed)
}

/// Only here: neither of the others makes a writer wait for its reader.
#[test]
fn a_writer_waits_for_its_reader() {
    use sheetanchor_sim::world::{Settings, World};
    for seed in 0..8 {
        let mut world = World::new(Settings::of(seed), backend(seed));
        let promise =
            world.launch("n1", |env| async move { sheetanchor_sim::conformance::net_unread(&env, "n1:7000").await });
        assert_eq!(world.finish(&promise, std::time::Duration::from_mins(1)), Ok(Ok(())), "seed {seed}");
    }
}
