//! The formats of WAL, told apart by the magic number of its pages.

use std::fmt;

/// The major version whose format a page has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// PostgreSQL 14.
    V14,
    /// PostgreSQL 15: transactions say which statistics they drop.
    V15,
    /// PostgreSQL 16.
    V16,
    /// PostgreSQL 17.
    V17,
    /// PostgreSQL 18: the numbers of dropped statistics are wider.
    V18,
}

impl Version {
    const MAGICS: [(u16, Self); 5] =
        [(0xD10D, Self::V14), (0xD110, Self::V15), (0xD113, Self::V16), (0xD116, Self::V17), (0xD118, Self::V18)];

    /// The version of a major release.
    pub fn of_major(major: u32) -> Option<Self> {
        match major {
            14 => Some(Self::V14),
            15 => Some(Self::V15),
            16 => Some(Self::V16),
            17 => Some(Self::V17),
            18 => Some(Self::V18),
            _ => None,
        }
    }

    /// The version whose pages carry `magic`.
    pub fn of_magic(magic: u16) -> Option<Self> {
        Self::MAGICS.iter().find(|(known, _)| *known == magic).map(|(_, version)| *version)
    }

    /// The magic number of its pages.
    pub fn magic(self) -> u16 {
        Self::MAGICS.iter().find(|(_, version)| *version == self).map_or(0, |(magic, _)| *magic)
    }

    /// Bytes of one item in a transaction's list of dropped statistics; `None` where there is no such list.
    pub(super) fn dropped_statistics_bytes(self) -> Option<usize> {
        match self {
            Self::V14 => None,
            Self::V15 | Self::V16 | Self::V17 => Some(12),
            Self::V18 => Some(16),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::V14 => "14",
            Self::V15 => "15",
            Self::V16 => "16",
            Self::V17 => "17",
            Self::V18 => "18",
        })
    }
}
