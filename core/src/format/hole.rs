//! A declared hole: WAL that a node has let go of before it was archived. It lies in the archive where the missing piece
//! would, so that whoever lists a thread's WAL meets it.

use alloc::format;
use alloc::string::String;
use core::fmt;

use serde::{Deserialize, Serialize};

use super::Object;
use crate::identity::{Incarnation, Nonce, ThreadId, TimelineId};
use crate::position::Lsn;
use crate::refusal::{Code, Refusal};
use crate::time::WallMillis;

/// WAL of one thread that will never be archived, and why.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hole {
    /// When it was declared, by the node's clock; one that grew, when it was declared first.
    pub declared_ms: WallMillis,
    /// The first byte that is missing: the archive ends here.
    pub from: Lsn,
    /// The incarnation that wrote it.
    pub incarnation: Incarnation,
    /// What was seen.
    pub message: String,
    /// Who wrote this.
    pub nonce: Nonce,
    /// What kind of reason there was.
    pub reason: HoleReason,
    /// Its thread.
    pub thread: ThreadId,
    /// Its thread's log branch.
    pub timeline: TimelineId,
    /// The end, exclusive: the archive goes on here.
    pub until: Lsn,
}

/// Why WAL was let go of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HoleReason {
    /// More of it waited for the archive than the cluster file allows.
    Bound,
    /// The database had lost what its pin kept.
    Lost,
}

impl Object for Hole {
    const KIND: &'static str = "hole";
}

impl Hole {
    /// What was read from `name`, if it is one.
    ///
    /// # Errors
    /// `SA002` if it has no length.
    pub fn checked(self, name: &str) -> Result<Self, Refusal> {
        if self.from < self.until {
            return Ok(self);
        }
        Err(Refusal::new(Code::Damaged, format!("{name} is a hole from {} to {}", self.from, self.until)))
    }
}

/// In words: which WAL is missing, since when, and why.
impl fmt::Display for Hole {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { declared_ms, from, message, thread, timeline, until, .. } = self;
        write!(
            out,
            "WAL of thread {thread} (timeline {timeline}) from {from} to {until} is a hole, declared at {declared_ms}: \
             {message}"
        )
    }
}
