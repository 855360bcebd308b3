//! The engine's ports on a real machine, and the bridge to real PostgreSQL servers.
//!
//! [`env`](mod@env) puts the ports together: [`clock`], [`entropy`], [`tasks`], [`net`], [`disk`]. [`postgres`] is the
//! database port for one PostgreSQL server. [`sys`] is what needs unsafe code, and alone has any.
//!
//! By absence: no decision is taken here. What a backup is, when it is sealed, and what a restore may open, is decided
//! in `sheetanchor-core`; this crate only does, and says what it saw.
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::as_conversions, clippy::wildcard_enum_match_arm, reason = "tests may be blunt"))]

pub mod env;

pub mod clock;

pub mod entropy;

pub mod tasks;

pub mod net;

pub mod disk;

mod faults;

pub mod sys;

pub mod postgres;
