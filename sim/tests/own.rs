//! What every backend must do, on the own executor.
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use sheetanchor_sim::backend::Backend;

#[path = "suite/conformance.rs"]
mod conformance;
#[path = "suite/diary.rs"]
mod diary;
#[path = "suite/folder_bucket.rs"]
mod folder_bucket;
#[path = "suite/shared.rs"]
mod shared;

fn backend(seed: u64) -> Box<dyn Backend> {
    sheetanchor_sim::own::backend(seed)
}
