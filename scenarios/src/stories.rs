//! The stories, by what they are about.

pub mod backup;
pub mod chaos;
pub mod lineage;
pub mod point;
pub mod refusals;
pub mod restore;
pub mod scn;
