//! The commands, one module a group.

pub mod agent;

pub mod backup;

pub mod point;

pub mod restore;

pub mod status;

pub mod doctor;

pub mod pins;

pub mod views;

pub mod upkeep;

pub mod wal;
