//! Every story on turmoil.

#![allow(clippy::expect_used, reason = "a test may stop at what it did not expect")]

mod told;

use sheetanchor_sim::backend::Backend;
use told::tests;

const BACKEND: fn(u64) -> Box<dyn Backend> = sheetanchor_sim_turmoil::backend;

sheetanchor_scenarios::each_story!(tests);
