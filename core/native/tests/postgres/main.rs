//! Real PostgreSQL servers, with pgbench running.
#![allow(clippy::as_conversions, clippy::wildcard_enum_match_arm, clippy::unwrap_used, reason = "tests may be blunt")]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests may be blunt"
)]

mod afar;
mod bench;
mod bridge;
mod causal;
mod changes;
mod cluster;
mod failover;
mod fence;
mod identity;
mod in_doubt;
mod power;
mod privileges;
mod refused;
mod stream;
mod tablespaces;
mod tls;
mod two_phase;
mod verified;
mod wal;
