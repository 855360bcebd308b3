//! What every backend must do, on turmoil.
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use sheetanchor_sim::backend::Backend;

#[path = "../../tests/suite/conformance.rs"]
mod conformance;
#[path = "../../tests/suite/damage.rs"]
mod damage;
#[path = "../../tests/suite/diary.rs"]
mod diary;
#[path = "../../tests/suite/folder_bucket.rs"]
mod folder_bucket;
#[path = "../../tests/suite/network.rs"]
mod network;
#[path = "../../tests/suite/shared.rs"]
mod shared;

fn backend(seed: u64) -> Box<dyn Backend> {
    sheetanchor_sim_turmoil::backend(seed)
}
