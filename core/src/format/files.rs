//! Captured files: the list of names, and where in which packs their bytes lie.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::Object;
use crate::identity::{ByteCount, ContentHash};
use crate::refusal::{Code, Refusal};

/// Everything one capture took, sorted by name, folders before what lies in them. Stored as one zstd frame.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileList {
    /// The files, folders and links.
    pub entries: Vec<FileEntry>,
    /// Keys of the packs that chunks refer to by place.
    pub packs: Vec<String>,
}

impl Object for FileList {
    const KIND: &'static str = "files";
}

/// One captured name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// What it is.
    pub content: FileContent,
    /// Permission bits.
    pub mode: u32,
    /// Relative to the data folder.
    pub name: String,
}

/// What lies under a captured name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum FileContent {
    /// A file: its chunks in order.
    File(Vec<Chunk>),
    /// A folder.
    Folder,
    /// A symbolic link, and where it leads.
    Link(String),
}

/// A piece of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunk {
    /// What its bytes hash to, uncompressed.
    pub hash: ContentHash,
    /// How many bytes it is.
    pub length: ByteCount,
    /// Where it starts in its pack.
    pub offset: u64,
    /// Its pack, as a place in [`FileList::packs`].
    pub pack: u32,
    /// How many bytes it takes there: one zstd frame.
    pub stored: ByteCount,
}

/// Checks that a name stays within the folder that it is relative to.
///
/// # Errors
/// `SA407` for an absolute name, an empty part, `.` or `..`, or a NUL.
pub fn check_name(name: &str) -> Result<(), Refusal> {
    let sound = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    if name.split('/').all(sound) {
        return Ok(());
    }
    Err(Refusal::new(Code::UnsafePath, alloc::format!("`{}` is not a plain relative name", name.escape_debug())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_within_their_folder() {
        for good in ["a", "a/b", "base/1/1259_fsm", "with space"] {
            assert_eq!(check_name(good), Ok(()));
        }
        for bad in ["", "/", "/a", "a/", "a//b", ".", "a/..", "../a", "a/./b", "a\0b"] {
            assert_eq!(check_name(bad).unwrap_err().code, Code::UnsafePath, "{bad:?}");
        }
    }
}
