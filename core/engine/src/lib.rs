//! What Sheetanchor *performs*: it runs the machines of `sheetanchor-core` against the world. The world is a set of
//! ports ([`env`](mod@env)), and the database is one more ([`database`]); the same code runs natively and in every simulator.
//!
//! By absence: no clock, socket, file, thread, random source or `HashMap` exists here. The crate is `no_std`.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::as_conversions, clippy::wildcard_enum_match_arm, reason = "tests may be blunt"))]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod env;

pub mod database;

pub mod folder_bucket;

mod lz4;
pub mod packing;
pub mod zstd;

pub mod watched;

pub mod read_only;
pub mod repository;

pub mod frames;

pub mod patience;
pub mod pump;

pub mod caller;

pub mod agent;

pub mod coordinator;
