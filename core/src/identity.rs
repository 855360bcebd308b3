//! Names of things, each its own type. Values print as operators type them and have one spelling each.

use alloc::format;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::refusal::{Code, Refusal};

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident($inner:ty);)+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name($inner);

        impl $name {
            /// Wraps the bare number.
            pub const fn new(number: $inner) -> Self {
                Self(number)
            }

            /// The bare number.
            pub const fn get(self) -> $inner {
                self.0
            }

            /// The next one, or `None` at the end of the range.
            pub fn next(self) -> Option<Self> {
                self.0.checked_add(1).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, out)
            }
        }
    )+};
}

numbers! {
    /// One database instance of the cluster. It writes exactly one WAL thread.
    NodeId(u16);
    /// A node's own redo stream.
    ThreadId(u16);
    /// PostgreSQL's branch number of one node's WAL. refdb uses the incarnation's number.
    TimelineId(u32);
    /// The cluster's branch: a new one starts whenever a restored cluster is opened.
    Incarnation(u32);
    /// Which list of members the cluster has; a message of another list is refused.
    Membership(u32);
    /// The term of one operation's coordinator; a message of an older term is refused.
    Epoch(u32);
    /// An amount of bytes.
    ByteCount(u64);
}

impl ThreadId {
    /// The thread that `node` writes: they have the same number.
    pub fn of(node: NodeId) -> Self {
        Self(node.0)
    }
}

macro_rules! hex_words {
    ($($(#[$doc:meta])* $name:ident;)+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a random word.
            pub const fn new(word: u64) -> Self {
                Self(word)
            }

            /// The bare word.
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(out, "{:016x}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = ();

            fn from_str(text: &str) -> Result<Self, ()> {
                let word = (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten().map(Self).ok_or(())?;
                if format!("{word}") == text { Ok(word) } else { Err(()) }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
                if out.is_human_readable() { out.collect_str(self) } else { self.0.serialize(out) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                if input.is_human_readable() {
                    let text = String::deserialize(input)?;
                    text.parse().map_err(|()| serde::de::Error::custom(format!("`{text}` is no 16-digit word")))
                } else {
                    u64::deserialize(input).map(Self)
                }
            }
        }
    )+};
}

hex_words! {
    /// One cluster, for ever. A clone gets another.
    ClusterId;
    /// One run of a node's database: a restart is a new life. Holds and backups quote it.
    LifeId;
    /// One closing of a fence.
    HoldId;
    /// Marks who wrote a create-once object, so that the writer knows its own after an ambiguous time-out.
    Nonce;
}

/// What an operation is for; the first part of its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperationKind {
    /// A backup of the cluster. Its success is a seal.
    Backup,
    /// A restore point. Its success is the published point.
    Point,
    /// A restore. Its success is an incarnation.
    Restore,
    /// A clone that is restored from this repository into another. It only holds what the clone is made from.
    Clone,
}

impl OperationKind {
    /// Every kind, in the order of this enum.
    pub const ALL: [Self; 4] = [Self::Backup, Self::Point, Self::Restore, Self::Clone];

    /// The word in ids and object names.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Point => "point",
            Self::Restore => "restore",
            Self::Clone => "clone",
        }
    }
}

/// One operation over the cluster: `backup-0190f3a2c4d5-9f31a2b7`. Kind, wall-clock milliseconds at its start, and a
/// random word, so that ids never meet, and sort by time as far as coordinators' clocks were right: nothing that matters
/// goes by that order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId {
    kind: OperationKind,
    started_ms: u64,
    word: u32,
}

impl OperationId {
    /// An id from its parts; `started_ms` keeps its lower 48 bits.
    pub const fn new(kind: OperationKind, started_ms: u64, word: u32) -> Self {
        Self { kind, started_ms: started_ms & 0xFFFF_FFFF_FFFF, word }
    }

    /// The operation of another kind that was begun with this one.
    #[must_use]
    pub const fn as_kind(self, kind: OperationKind) -> Self {
        Self { kind, ..self }
    }

    /// What the operation is for.
    pub const fn kind(self) -> OperationKind {
        self.kind
    }

    /// Wall-clock milliseconds since 1970 at its start, by its coordinator's clock, which may have been wrong.
    pub const fn started_ms(self) -> u64 {
        self.started_ms
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}-{:012x}-{:08x}", self.kind.word(), self.started_ms, self.word)
    }
}

impl FromStr for OperationId {
    type Err = Refusal;

    /// # Errors
    /// `SA106` if the text is not an operation id in its one spelling.
    fn from_str(text: &str) -> Result<Self, Refusal> {
        let parse = || {
            let mut parts = text.split('-');
            let (kind, started, word) = (parts.next()?, parts.next()?, parts.next()?);
            let kind = OperationKind::ALL.into_iter().find(|known| known.word() == kind)?;
            let id = Self::new(kind, u64::from_str_radix(started, 16).ok()?, u32::from_str_radix(word, 16).ok()?);
            (format!("{id}") == text).then_some(id)
        };
        parse().ok_or_else(|| Refusal::new(Code::BadName, format!("`{}` is no operation id", text.escape_debug())))
    }
}

impl Serialize for OperationId {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for OperationId {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        String::deserialize(input)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The name an operator gives to a restore point, or the label of a backup: 1 to 63 bytes of letters, digits, and
/// `.`, `_`, `-`, not starting with a `.`; so it is safe as an object name, and PostgreSQL takes it as a record's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PointName(String);

impl PointName {
    /// Bytes in the longest name.
    pub const LENGTH_MAX: usize = 63;

    /// The text as given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PointName {
    type Err = Refusal;

    /// # Errors
    /// `SA106` for a name that is empty, too long, or holds anything but letters, digits, `.`, `_` and `-`.
    fn from_str(text: &str) -> Result<Self, Refusal> {
        let fits = (1..=Self::LENGTH_MAX).contains(&text.len());
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        if fits && plain && !text.starts_with('.') {
            return Ok(Self(text.into()));
        }
        let shown: String = text.escape_debug().take(80).collect();
        Err(Refusal::new(Code::BadName, format!("`{shown}` cannot be a name")))
    }
}

impl fmt::Display for PointName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl Serialize for PointName {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for PointName {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        String::deserialize(input)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The BLAKE3 hash of some content: what an object, a chunk or a file must hash to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    /// The hash of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(*blake3::hash(content).as_bytes())
    }

    /// Wraps the bytes of a hash that was computed piece by piece.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl FromStr for ContentHash {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let mut bytes = [0; 32];
        if pairs.len() != bytes.len() || !rest.is_empty() {
            return Err(());
        }
        for (byte, pair) in bytes.iter_mut().zip(pairs) {
            let digits = core::str::from_utf8(pair).map_err(|_| ())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| ())?;
        }
        let hash = Self(bytes);
        if format!("{hash}") == text { Ok(hash) } else { Err(()) }
    }
}

impl Serialize for ContentHash {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        if out.is_human_readable() { out.collect_str(self) } else { self.0.serialize(out) }
    }
}

impl<'de> Deserialize<'de> for ContentHash {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        if input.is_human_readable() {
            let text = String::deserialize(input)?;
            text.parse().map_err(|()| serde::de::Error::custom("a content hash is 64 hexadecimal digits"))
        } else {
            <[u8; 32]>::deserialize(input).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn an_operation_id_has_one_spelling() {
        let id = OperationId::new(OperationKind::Backup, 0x0190_f3a2_c4d5, 0x9f31_a2b7);
        assert_eq!(id.to_string(), "backup-0190f3a2c4d5-9f31a2b7");
        assert_eq!(id.to_string().parse(), Ok(id));
        for other in [
            "backup-0190F3A2C4D5-9f31a2b7",
            "backup-190f3a2c4d5-9f31a2b7",
            "backup",
            "",
            "x-0-0",
            "backup-0190f3a2c4d5-9f31a2b7-1",
        ] {
            assert_eq!(other.parse::<OperationId>().unwrap_err().code, Code::BadName, "{other}");
        }
    }

    #[test]
    fn a_name_is_letters_digits_and_three_marks() {
        for good in ["a", "before-migration", "v1.2_final", &"x".repeat(63)] {
            assert!(good.parse::<PointName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".a", "a/b", "a b", "a\nb", "ü", &"x".repeat(64)] {
            assert_eq!(bad.parse::<PointName>().unwrap_err().code, Code::BadName, "{bad:?}");
        }
    }

    #[test]
    fn a_hash_reads_back_as_it_is_printed() {
        let hash = ContentHash::of(b"sheet anchor");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!(hash.to_string().to_uppercase().parse::<ContentHash>(), Err(()));
        assert_eq!("00".parse::<ContentHash>(), Err(()));
    }
}
