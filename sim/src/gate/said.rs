//! What passes the gate, as values: hashed as they are, and turned into words only for a run that is recorded.

use std::fmt;
use std::io;

use sheetanchor_core::error::FaultKind;
use sheetanchor_engine::env::OpenMode;

/// What an operation does, in words that are put together only if somebody reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Said<'a> {
    /// What is done, with the part of the world that does it: `disk rename`.
    pub verb: &'static str,
    /// What it is done to: a path, a key, an address.
    pub subject: &'a str,
    /// The rest.
    pub object: Object<'a>,
}

/// What else there is to say of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Object<'a> {
    /// Nothing.
    Nothing,
    /// Another name.
    Name(&'a str),
    /// A number of bytes, or a length.
    Count(u64),
    /// A place, and a number of bytes from there on.
    Range(u64, u64),
    /// Permission bits.
    Mode(u32),
    /// A way of opening.
    Open(Opened),
}

/// A way of opening a file: [`OpenMode`], which has no hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Opened {
    /// To read.
    Read,
    /// To write, too.
    Write,
    /// To write; it must not be there.
    CreateNew,
}

impl From<OpenMode> for Opened {
    fn from(mode: OpenMode) -> Self {
        match mode {
            OpenMode::Read => Self::Read,
            OpenMode::Write => Self::Write,
            OpenMode::CreateNew => Self::CreateNew,
        }
    }
}

impl<'a> Said<'a> {
    /// `verb subject`.
    pub const fn of(verb: &'static str, subject: &'a str) -> Self {
        Self { verb, subject, object: Object::Nothing }
    }

    /// `verb subject name`.
    #[must_use]
    pub const fn name(self, name: &'a str) -> Self {
        Self { object: Object::Name(name), ..self }
    }

    /// `verb subject count`.
    #[must_use]
    pub fn count(self, count: usize) -> Self {
        Self { object: Object::Count(wide(count)), ..self }
    }

    /// `verb subject from+length`.
    #[must_use]
    pub fn range(self, from: u64, length: usize) -> Self {
        Self { object: Object::Range(from, wide(length)), ..self }
    }

    /// `verb subject 644`.
    #[must_use]
    pub const fn mode(self, mode: u32) -> Self {
        Self { object: Object::Mode(mode), ..self }
    }

    /// `verb subject CreateNew`.
    #[must_use]
    pub fn opened(self, mode: OpenMode) -> Self {
        Self { object: Object::Open(mode.into()), ..self }
    }
}

fn wide(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

impl fmt::Display for Said<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.verb, self.subject)?;
        match self.object {
            Object::Nothing => Ok(()),
            Object::Name(name) => write!(out, " {name}"),
            Object::Count(count) => write!(out, " {count}"),
            Object::Range(from, length) => write!(out, " {from}+{length}"),
            Object::Mode(mode) => write!(out, " {mode:o}"),
            Object::Open(mode) => write!(out, " {mode:?}"),
        }
    }
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Well.
    Done,
    /// With so many bytes.
    Bytes(u64),
    /// With a fault.
    Failed(FaultKind),
    /// With an error of a stream.
    Broke(io::ErrorKind),
}

impl Outcome {
    /// How a port's operation ended.
    pub fn of<T>(result: &Result<T, sheetanchor_core::error::Fault>) -> Self {
        result.as_ref().map_or_else(|fault| Self::Failed(fault.kind), |_| Self::Done)
    }

    /// How a read of a stream ended that brought so many bytes.
    pub fn of_read(result: &io::Result<()>, bytes: usize) -> Self {
        result.as_ref().map_or_else(|error| Self::Broke(error.kind()), |()| Self::Bytes(wide(bytes)))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => write!(out, "done"),
            Self::Bytes(count) => write!(out, "{count}"),
            Self::Failed(kind) => write!(out, "failed: {kind:?}"),
            Self::Broke(kind) => write!(out, "failed: {kind:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_put_together_in_the_order_in_which_they_are_typed() {
        let said = Said::of("disk read", "/a");
        assert_eq!(said.to_string(), "disk read /a");
        assert_eq!(said.range(4, 5).to_string(), "disk read /a 4+5");
        assert_eq!(said.name("/b").to_string(), "disk read /a /b");
        assert_eq!(said.mode(0o640).to_string(), "disk read /a 640");
        assert_eq!(said.opened(OpenMode::CreateNew).to_string(), "disk read /a CreateNew");
        assert_eq!(Outcome::Failed(FaultKind::NoSpace).to_string(), "failed: NoSpace");
        assert_eq!(
            Outcome::of_read(&Err(io::ErrorKind::ConnectionReset.into()), 0).to_string(),
            "failed: ConnectionReset"
        );
        assert_eq!(Outcome::of_read(&Ok(()), 7).to_string(), "7");
    }
}
