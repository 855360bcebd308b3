//! One suite for every implementation of the ports, simulated and native: what `engine::env` promises, checked from
//! outside. Each function takes a fresh place to work in and leaves it behind.

use core::fmt;

use sheetanchor_core::error::{Fault, FaultKind};

mod bucket;
mod clock;
mod disk;
mod net;

pub use bucket::bucket;
pub use clock::clock;
pub use disk::disk;
pub use net::{net, net_half_closed, net_unread};

/// A promise of a port that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach(String);

impl fmt::Display for Breach {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl core::error::Error for Breach {}

impl From<Fault> for Breach {
    fn from(fault: Fault) -> Self {
        Self(format!("unexpected fault: {fault}"))
    }
}

impl From<std::io::Error> for Breach {
    fn from(error: std::io::Error) -> Self {
        Self(format!("unexpected error: {error}"))
    }
}

fn promise(kept: bool, what: &str) -> Result<(), Breach> {
    if kept { Ok(()) } else { Err(Breach(what.into())) }
}

#[allow(clippy::needless_pass_by_value, reason = "each call hands over what it just read")]
fn same<T: PartialEq + fmt::Debug>(found: T, wanted: T, what: &str) -> Result<(), Breach> {
    if found == wanted { Ok(()) } else { Err(Breach(format!("{what}: {found:?} instead of {wanted:?}"))) }
}

fn fails<T>(result: Result<T, Fault>, wanted: FaultKind, what: &str) -> Result<(), Breach> {
    match result {
        Err(fault) if fault.kind == wanted => Ok(()),
        Err(fault) => Err(Breach(format!("{what}: {:?} instead of {wanted:?} ({fault})", fault.kind))),
        Ok(_) => Err(Breach(format!("{what}: success instead of {wanted:?}"))),
    }
}
