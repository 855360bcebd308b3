//! The fence, the seal and the open, explored exhaustively: every order of messages, their loss and repetition, expiring
//! leases and crashes, on the machines that run in production, not on a rewrite of them.
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::struct_excessive_bools,
    clippy::wildcard_enum_match_arm,
    reason = "tests may be blunt, and say how long they took"
)]

mod by_scn;
mod explore;
mod fence;
mod open;
mod seal;
mod term;

use std::hash::{DefaultHasher, Hash, Hasher};

use sheetanchor_core::agent::{self, Belonging};
use sheetanchor_core::error::Result;
use sheetanchor_core::identity::{ClusterId, Epoch, Incarnation, Membership, NodeId, OperationId};
use sheetanchor_core::request::{Answer, Header};

/// The cluster that every node is part of.
fn belonging() -> Belonging {
    Belonging { cluster: ClusterId::new(7), membership: Membership::new(1), incarnation: Incarnation::new(1) }
}

fn header(node: NodeId, operation: OperationId, epoch: Epoch) -> Header {
    let Belonging { cluster, membership, incarnation } = belonging();
    Header { cluster, membership, incarnation, node, operation: Some(operation), epoch }
}

/// What an agent answers once it has been told how a request was performed.
fn replied(effects: Vec<agent::Effect>) -> Result<Answer> {
    let reply = effects.into_iter().find_map(|effect| match effect {
        agent::Effect::Reply(_, answer) => Some(answer),
        _ => None,
    });
    reply.expect("what was performed is answered")
}

/// A name for a message on its way, so that equal ones are one.
fn name_of(message: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    message.hash(&mut hasher);
    hasher.finish()
}
