//! The stories, by what they are about.

pub mod ahead;
pub mod backup;
pub mod capture;
pub mod catalog;
pub mod chaos;
pub mod copy;
pub mod day;
pub mod evidence;
pub mod expiry;
pub mod fence;
pub mod forward;
pub mod lineage;
pub mod missed;
pub mod operations;
pub mod point;
pub mod refusals;
pub mod restore;
pub mod schedule;
pub mod scn;
pub mod separate;
pub mod trials;
pub mod two_phase;
