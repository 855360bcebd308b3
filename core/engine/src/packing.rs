//! Chunks and patches in frames. The writer is told which kind to make; the reader looks at how a frame begins.

use alloc::vec::Vec;

use sheetanchor_core::compression::Compression;
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::refusal::{Code, Refusal};

use crate::{lz4, zstd};

/// One frame that holds `bytes` and their number.
pub fn pack(how: Compression, bytes: &[u8]) -> Vec<u8> {
    match how {
        Compression::Zstd => zstd::compress(bytes),
        Compression::Lz4 => lz4::compress(bytes),
    }
}

/// The bytes in `frame`, of which there must be exactly `length`. `name` and `code` are for the refusal.
///
/// # Errors
/// `code` if the frame is of neither kind, or does not hold just that.
pub fn unpack(name: &str, frame: &[u8], length: u64, code: Code) -> Result<Vec<u8>, Refusal> {
    if lz4::is_frame(frame) && !planted::is(Bug::MagicIgnored) {
        lz4::decompress(name, frame, length, code)
    } else {
        zstd::decompress(name, frame, length, code)
    }
}

#[cfg(test)]
mod tests {
    use std::string::String;

    use super::*;

    /// Pages of a table, roughly: much repeats, and some does not.
    fn pages() -> Vec<u8> {
        let rows = (0..9_000_u32).map(|row| alloc::format!("{row:08}|{:08x}|", row.wrapping_mul(2_654_435_761)));
        rows.collect::<String>().into_bytes()
    }

    #[test]
    fn whoever_reads_needs_no_setting() {
        let bytes = pages();
        let length = u64::try_from(bytes.len()).unwrap();
        let [zstd, lz4] = Compression::ALL.map(|how| pack(how, &bytes));
        // Frames of the two kinds begin differently, each with the magic number of its own specification.
        assert_eq!((&zstd[..4], &lz4[..4]), (&[0x28, 0xB5, 0x2F, 0xFD][..], &[0x04, 0x22, 0x4D, 0x18][..]));
        for frame in [zstd, lz4] {
            assert!(frame.len() < bytes.len());
            assert_eq!(unpack("x", &frame, length, Code::ChunkDamaged).unwrap(), bytes);
        }
    }

    #[test]
    fn a_frame_of_neither_kind_is_refused() {
        let lz4 = pack(Compression::Lz4, b"page");
        for frame in [&b""[..], b"page", &lz4[1..], &lz4[..3], &0x184D_2A50_u32.to_le_bytes()] {
            assert_eq!(unpack("x", frame, 4, Code::ChunkDamaged).unwrap_err().code, Code::ChunkDamaged);
        }
    }
}
