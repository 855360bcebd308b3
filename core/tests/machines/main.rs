//! The machines, step by step: stories without a world.
#![allow(
    clippy::expect_used,
    clippy::items_after_statements,
    clippy::needless_pass_by_value,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "tests may be blunt"
)]

mod agent;
mod backup;
mod by_scn;
mod chaos;
mod cost;
mod point;
mod restore;

use std::collections::BTreeSet;

use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::identity::{HoldId, LifeId, NodeId, OperationId, OperationKind, ThreadId, TimelineId};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::time::Moment;

const HOLD: HoldId = HoldId::new(5);
const LIFE: LifeId = LifeId::new(9);

fn ms(millis: u64) -> Moment {
    Moment::from_nanos(millis * 1_000_000)
}

fn nodes() -> BTreeSet<NodeId> {
    [1, 2, 3].map(NodeId::new).into()
}

fn place(node: NodeId, lsn: u64) -> Position {
    Position { thread: ThreadId::of(node), timeline: TimelineId::new(1), lsn: Lsn::new(lsn) }
}

fn silent() -> Error {
    Refusal::new(Code::NodeSilent, "gone").into()
}

fn code<T: std::fmt::Debug>(outcome: &Result<T>) -> &'static str {
    outcome.as_ref().expect_err("a refusal").refusal().expect("a refusal").code.as_str()
}

fn operation(kind: OperationKind) -> OperationId {
    OperationId::new(kind, 1, 2)
}
