//! What Sheetanchor *decides*. Nothing here waits, reads a clock, draws a random number or touches the world: every
//! decision is a pure step from a state and an event to effects, which `sheetanchor-engine` performs.
//!
//! Reading order: [`refusal`] and [`error`] (how things end badly), [`identity`], [`position`] and [`scn`] (the words),
//! [`request`] and [`wire`] (what coordinator and agent say to each other), [`agent`], [`point`], [`by_scn`],
//! [`schedule`], [`backup`] and [`restore`] (the machines), [`format`](mod@format) (what lies in the repository), [`plan`] and [`merge`].
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::as_conversions, clippy::wildcard_enum_match_arm, reason = "tests may be blunt"))]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod refusal;

pub mod error;

pub mod identity;

pub mod position;

pub mod scn;

pub mod time;

pub mod throttle;

pub mod planted;

pub mod request;

pub mod wire;

pub mod format;

pub mod agent;

pub mod exposure;

pub mod hole;

pub mod round;

pub mod point;

pub mod by_scn;

pub mod schedule;

pub mod backup;

pub mod changes;

pub mod compression;

pub mod incremental;

pub mod in_doubt;

pub mod restore;

pub mod lineage;

pub mod plan;

pub mod expiry;

pub mod views;

pub mod merge;
