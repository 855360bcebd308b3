//! Captured files: the list of names, and where in which packs their bytes lie.

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use serde::{Deserialize, Serialize};

use super::Object;
use crate::identity::{ByteCount, ContentHash};
use crate::refusal::{Code, Refusal};

/// Everything that was there when one capture was taken, sorted by name, folders before what lies in them: complete, whatever
/// the backup is based on. Stored as one zstd frame.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileList {
    /// The files, folders and links.
    pub entries: Vec<FileEntry>,
    /// Keys of the packs that chunks and patches refer to by place: the backup's own, and of an incremental one those of
    /// earlier backups that it goes on using.
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

/// A piece of a file. In an incremental backup it may lie in a pack of an earlier one, and be patched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunk {
    /// What the bytes in its frame hash to, uncompressed. They are the file's unless there is a patch.
    pub hash: ContentHash,
    /// How many bytes it is.
    pub length: ByteCount,
    /// Where it starts in its pack.
    pub offset: u64,
    /// Its pack, as a place in [`FileList::packs`].
    pub pack: u32,
    /// What has changed in it since its frame was stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch: Option<Patch>,
    /// How many bytes it takes there: one frame, which says itself what packed it.
    pub stored: ByteCount,
}

/// All blocks of a chunk that have changed since its frame was stored, in a frame of their own. Whoever finds more changed
/// replaces the patch by one that has these blocks, too: a patch is never patched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patch {
    /// Bytes in a block. The last block of a file may be shorter.
    pub block: u32,
    /// What the blocks hash to, one after the other and uncompressed.
    pub hash: ContentHash,
    /// Which blocks, counted from the beginning of the chunk, ascending.
    pub numbers: Vec<u32>,
    /// Where the frame starts in its pack.
    pub offset: u64,
    /// Its pack, as a place in [`FileList::packs`].
    pub pack: u32,
    /// How many bytes it takes there: one frame, which says itself what packed it.
    pub stored: ByteCount,
}

impl Chunk {
    /// What the file's own bytes hash to. Nobody has hashed them where there is a patch: then the frame and the patch are
    /// proven each by itself.
    pub fn finished_hash(&self) -> Option<ContentHash> {
        self.patch.is_none().then_some(self.hash)
    }
}

impl Patch {
    /// Where each block lies in a chunk of `length` bytes, in order.
    ///
    /// # Errors
    /// `SA006` if one lies beyond the chunk, or they are out of order.
    pub fn places(&self, length: ByteCount) -> Result<Vec<Range<usize>>, Refusal> {
        let damaged = || {
            let message = alloc::format!("a patch of blocks of {} bytes does not fit {length} bytes", self.block);
            Refusal::new(Code::ChunkDamaged, message)
        };
        let ascending = self.numbers.iter().zip(self.numbers.iter().skip(1)).all(|(one, next)| one < next);
        if self.block == 0 || self.numbers.is_empty() || !ascending {
            return Err(damaged());
        }
        let place = |number: &u32| {
            let start = u64::from(*number).checked_mul(u64::from(self.block)).filter(|start| *start < length.get())?;
            let end = start.saturating_add(u64::from(self.block)).min(length.get());
            Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
        };
        self.numbers.iter().map(|number| place(number).ok_or_else(damaged)).collect()
    }

    /// Puts the blocks into the bytes of their chunk.
    ///
    /// # Errors
    /// `SA006` if they do not fit.
    pub fn apply(&self, bytes: &mut [u8], blocks: &[u8]) -> Result<(), Refusal> {
        let length = ByteCount::new(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        let mut rest = blocks;
        for place in self.places(length)? {
            let (block, after) = rest.split_at_checked(place.len()).ok_or_else(|| short(blocks.len()))?;
            bytes.get_mut(place).ok_or_else(|| short(blocks.len()))?.copy_from_slice(block);
            rest = after;
        }
        if rest.is_empty() { Ok(()) } else { Err(short(blocks.len())) }
    }
}

fn short(length: usize) -> Refusal {
    Refusal::new(Code::ChunkDamaged, alloc::format!("{length} bytes are not the blocks of their patch"))
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

    fn patch(block: u32, numbers: &[u32]) -> Patch {
        let (hash, numbers, stored) = (ContentHash::of(b""), numbers.to_vec(), ByteCount::new(1));
        Patch { block, hash, numbers, offset: 0, pack: 0, stored }
    }

    #[test]
    fn a_patch_replaces_its_blocks_and_a_short_last_one() {
        let mut bytes = *b"0011223";
        patch(2, &[1, 3]).apply(&mut bytes, b"xxy").unwrap();
        assert_eq!(&bytes, b"00xx22y");
    }

    #[test]
    fn a_patch_that_does_not_fit_is_refused() {
        let numbers: [(u32, &[u32], &[u8]); 6] = [
            (0, &[0], b""),
            (2, &[], b""),
            (2, &[1, 1], b"xxxx"),
            (2, &[2, 1], b"xxxx"),
            (2, &[4], b"xx"),
            (u32::MAX, &[u32::MAX], b"x"),
        ];
        for (block, numbers, blocks) in numbers {
            let refused = patch(block, numbers).apply(&mut [0; 7], blocks).unwrap_err();
            assert_eq!(refused.code, Code::ChunkDamaged, "{numbers:?}");
        }
        for blocks in [&b"x"[..], b"xxx"] {
            assert_eq!(patch(2, &[1]).apply(&mut [0; 7], blocks).unwrap_err().code, Code::ChunkDamaged);
        }
    }

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
