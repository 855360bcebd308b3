//! The simulated world. Programs run on hosts over the ports of `sheetanchor-engine`, unchanged; this crate is what the
//! ports lead to: disks, a bucket, clocks and a network that fail by plan, a gate that every operation passes, a trace
//! whose hash tells two runs apart, and oracles that know what must be true at the end.
//!
//! Reading order: [`world`] (what a scenario holds), [`backend`] (who runs the hosts), [`own`] (our own way to),
//! [`gate`] and [`plan`] (what may go wrong, and when), [`atlas`] (where, if nobody is told), [`place`] (the same on another backend), [`trace`] and [`recording`], [`disk`], [`bucket`], [`net`],
//! [`clock`], [`chance`], [`oracle`], [`conformance`], and [`diary`], a small
//! story that puts a backend through its paces.
//!
//! **An engine of your own?** Implement [`Database`](sheetanchor_engine::database::Database), and put it under test as
//! `examples/toy_engine` does: [`World::new`](world::World::new) on [`own::backend`], your node's program with
//! [`World::start`](world::World::start), operators with [`World::launch`](world::World::launch), faults as a
//! [`Plan`](plan::Plan), and your oracle's word to [`World::judge`](world::World::judge).
//!
//! By absence: nothing here reads a real clock, draws from the machine's entropy, or iterates over a hash map.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::as_conversions, clippy::wildcard_enum_match_arm, reason = "tests may be blunt"))]

pub mod world;

pub mod backend;

pub mod own;

pub mod gate;

pub mod plan;

pub mod atlas;

pub mod place;

pub mod trace;

pub mod recording;

pub mod milestone;

pub mod panics;

pub mod disk;

pub mod bucket;

pub mod net;

pub mod clock;

pub mod chance;

pub mod host;

pub mod oracle;

pub mod conformance;

pub mod diary;

pub mod echo;
