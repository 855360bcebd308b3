//! The database port for one PostgreSQL server, versions 14 to 18.
//!
//! [`PostgresDatabase`] speaks to a server that its operator runs, and starts one only in a folder that was restored.
//! Reading order: [`install`](mod@install) and [`postmaster`] (programs and processes), `session` (connections), `pins`,
//! `backup`, `files`, `pages`, `wal`, [`wal_reader`], `wal_chain`, `marker` and `recovery`, and [`server`], which makes new
//! servers for demonstrations and tests.
//!
//! What it relies on, by the manual of PostgreSQL: "Making a Base Backup Using the Low Level API", "Recovery Target",
//! "Replication Slots". There is no commit fence yet: a cut is of one node alone.

mod backup;
mod control;
mod database;
mod files;
pub mod install;
mod marker;
mod pages;
mod pins;
pub mod postmaster;
mod recovery;
pub mod server;
mod session;
mod wal;
mod wal_chain;
pub mod wal_reader;

pub use database::{PostgresConfig, PostgresDatabase};
