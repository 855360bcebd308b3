//! The fence, explored exhaustively: every order of messages, their loss and repetition, expiring leases and crashes, on
//! the machines that run in production, not on a rewrite of them.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::wildcard_enum_match_arm,
    reason = "tests may be blunt"
)]

mod fence;
mod world;
