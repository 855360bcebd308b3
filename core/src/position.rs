//! Places in write-ahead logs.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::identity::{ThreadId, TimelineId};

/// A byte address in *one* WAL thread. Ordered within its thread only. Printed as PostgreSQL prints it: `0/16B3748`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

impl Lsn {
    /// The address `bytes` bytes from the thread's origin.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes from the thread's origin.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The address `bytes` further on, or `None` past the end of the address space.
    pub fn plus(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }

    /// Bytes from `earlier` to here, or `None` if `earlier` is not earlier.
    pub fn bytes_since(self, earlier: Self) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }

    /// Fixed-width form, whose text order is the address order: file and object names use it.
    pub fn to_name(self) -> alloc::string::String {
        alloc::format!("{:016X}", self.0)
    }

    /// Reads what [`Lsn::to_name`] wrote.
    pub fn from_name(name: &str) -> Option<Self> {
        if name.len() != 16 {
            return None;
        }
        let lsn = u64::from_str_radix(name, 16).ok().map(Self)?;
        (lsn.to_name() == name).then_some(lsn)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (high, low) = text.split_once('/').ok_or(())?;
        let high = u32::from_str_radix(high, 16).map_err(|_| ())?;
        let low = u32::from_str_radix(low, 16).map_err(|_| ())?;
        Ok(Self(u64::from(high) << 32 | u64::from(low)))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        if out.is_human_readable() { out.collect_str(self) } else { self.0.serialize(out) }
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        if input.is_human_readable() {
            let text = alloc::string::String::deserialize(input)?;
            text.parse().map_err(|()| serde::de::Error::custom(alloc::format!("`{text}` is no LSN")))
        } else {
            u64::deserialize(input).map(Self)
        }
    }
}

/// A position names its thread. No `Ord`: comparing two threads' LSNs is a type error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Whose log.
    pub thread: ThreadId,
    /// That log's branch.
    pub timeline: TimelineId,
    /// Where in it.
    pub lsn: Lsn,
}

impl fmt::Display for Position {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "thread {} at {}", self.thread, self.lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn an_lsn_reads_back_as_it_is_printed() {
        for bytes in [0, 1, 0xFFFF_FFFF, 0x1_0000_0000, u64::MAX] {
            let lsn = Lsn::new(bytes);
            assert_eq!(lsn.to_string().parse(), Ok(lsn));
            assert_eq!(Lsn::from_name(&lsn.to_name()), Some(lsn));
        }
        assert_eq!(Lsn::from_name("00000000000000ff"), None, "one spelling only");
        assert_eq!("16B3748".parse::<Lsn>(), Err(()));
    }
}
