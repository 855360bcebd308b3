//! The embedded reference database: N nodes on one shared folder, a WAL thread each, one cluster SCN. Or N databases of one
//! node each, as PostgreSQL servers are, so that the protocol can be simulated over those, too.
//!
//! Small and real. It is the example to read before implementing
//! [`Database`](sheetanchor_engine::database::Database) for another engine, and what the simulator crashes.
//!
//! Reading order: `page`, `row`, `transaction` and `record` (what lies on disk), `log` and `segments` (a thread),
//! `state` (all that is decided under one lock), `ownership` (pages between nodes), `session` (transactions), `prepared`
//! (two-phase commit), `redo` (crash recovery), `recover` (recovery of all threads to a cut), `in_doubt` (what is prepared
//! there), `files` (what a backup copies) and `sent` (what one is sent), `database` (the port), `client` and `ledger`.
//!
//! By absence: no clock, socket, file, thread or random source but those of
//! [`Env`](sheetanchor_engine::env::Env); no undo, since what no durable commit vouches for is not visible; no takeover
//! of a dead node by the living: its pages wait for its restart.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        clippy::wildcard_enum_match_arm,
        reason = "tests may be blunt"
    )
)]

mod fields;

mod layout;
mod page;
mod record;
mod row;
mod transaction;

mod control;
mod log;
mod segments;

mod backups;
mod directory;
mod failure;
mod fence;
mod pages;
mod prepared;
mod state;

mod barrier;
mod checkpoint;
mod frame;
mod links;
mod over;
mod ownership;
mod protocol;
mod running;
mod session;

mod changes;
mod create;
mod database;
mod files;
mod in_doubt;
mod pins;
mod recover;
mod redo;
mod sent;
mod serve;
mod wal;

mod client;
mod config;
mod ledger;
mod node;

pub use client::{Client, ClientError, Session};
pub use config::Config;
pub use ledger::{Across, Contents, Ledger, Outcome, Transfer};
pub use node::Node;
pub use row::VALUE_BYTES_MAX;
