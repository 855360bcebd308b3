//! WAL is never recycled under a pin.

use std::collections::BTreeMap;

use sheetanchor_core::position::Lsn;

use super::Violation;

/// The invariant.
pub const NEVER_UNDER_A_PIN: &str = "WAL is never recycled under a pin";

/// Watches pins and the removal of WAL, on all hosts.
#[derive(Clone, Debug, Default)]
pub struct WalKept {
    pins: BTreeMap<(String, String), Lsn>,
}

impl WalKept {
    /// A pin called `name` has become durable on `host`: WAL from `from` on stays.
    pub fn pinned(&mut self, host: &str, name: &str, from: Lsn) {
        self.pins.insert((host.into(), name.into()), from);
    }

    /// The pin is gone, dropped or expired.
    pub fn unpinned(&mut self, host: &str, name: &str) {
        self.pins.remove(&(host.to_string(), name.to_string()));
    }

    /// `host` has removed its WAL up to, not including, `until`.
    ///
    /// # Errors
    /// The violation, if a pin of that host starts below `until`.
    pub fn removed(&self, host: &str, until: Lsn) -> Result<(), Violation> {
        let broken = self.pins.iter().find(|((pinned, _), from)| pinned == host && **from < until);
        match broken {
            Some(((_, name), from)) => Err(Violation::new(
                NEVER_UNDER_A_PIN,
                format!("{host} removed WAL below {until} while pin {name} holds it from {from} on"),
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removal_stops_at_the_lowest_pin_of_the_same_host() {
        let mut wal = WalKept::default();
        wal.pinned("n1", "a", Lsn::new(100));
        wal.pinned("n1", "b", Lsn::new(50));
        wal.pinned("n2", "a", Lsn::new(10));
        assert_eq!(wal.removed("n1", Lsn::new(50)), Ok(()), "half-open");
        assert_eq!(wal.removed("n1", Lsn::new(51)).unwrap_err().invariant, NEVER_UNDER_A_PIN);
        wal.unpinned("n1", "b");
        assert_eq!(wal.removed("n1", Lsn::new(100)), Ok(()));
        assert!(wal.removed("n1", Lsn::new(101)).is_err());
        assert_eq!(wal.removed("n3", Lsn::new(101)), Ok(()));
    }
}
