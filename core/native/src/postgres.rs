//! The database port for one PostgreSQL server, versions 14 to 18.
//!
//! [`PostgresDatabase`] speaks to a server that its operator runs, and starts one only in a folder that was restored.
//! Reading order: [`install`](mod@install) and [`postmaster`] (programs and processes), `target`, `tls` and `session` (connections), `direct`, `privileges`, `look`,
//! `pins`, `backup`, `files`, `pages`, `wal`, [`wal_reader`], `changes`, `wal_chain`, `replication`, `wal_stream`, `wal_road`, `fence`,
//! `marker`, `wal_out`, `delivery`, `fetch`, `recovery` and `in_doubt`; `tar`, `base_backup`, `wal_from_afar` and `afar`, for servers
//! beside whose folder nobody is; and [`server`], which makes new servers for demonstrations and tests.
//!
//! What it relies on, by the manual of PostgreSQL: "Making a Base Backup Using the Low Level API", "Recovery Target",
//! "Replication Slots". The commit fence is an extension of the server, in `core/native/postgres/sheetanchor_fence`; without
//! it a cut is of one node alone.

mod afar;
mod backup;
mod base_backup;
mod changes;
mod control;
mod database;
mod delivery;
mod direct;
mod fence;
mod fetch;
mod files;
mod in_doubt;
pub mod install;
mod look;
mod marker;
mod pages;
mod pins;
pub mod postmaster;
mod privileges;
mod recovery;
mod replication;
pub mod server;
mod session;
mod tar;
mod target;
mod tls;
mod wal;
mod wal_chain;
mod wal_from_afar;
mod wal_out;
pub mod wal_reader;
mod wal_road;
mod wal_stream;

pub use database::{PostgresConfig, PostgresDatabase};
pub use delivery::WalBack;
pub use fetch::{Fetched, fetch};
pub use wal_road::WalRoad;
