//! How what a backup copies is packed. Only who writes is told: a frame says by its first bytes what it is, so a repository
//! may hold both, one backup may go on from another of the other kind, and whoever reads needs no setting.

use serde::{Deserialize, Serialize};

/// How the chunks and patches of a backup are packed. Lists, WAL and digests are always packed by zstd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Compression {
    /// zstd, level 1: the smaller repository.
    #[default]
    Zstd,
    /// LZ4: less work for the processor, and a larger repository.
    Lz4,
}

impl Compression {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Zstd, Self::Lz4];

    /// The word for it: the one that is typed.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
        }
    }
}
