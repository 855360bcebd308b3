//! The stories, by what they are about.

pub mod backup;
pub mod point;
pub mod restore;
