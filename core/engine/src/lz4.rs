//! Frames of LZ4, of the one kind that is written here: blocks that do not depend on each other, and the size of what is
//! inside. They have no checksums of LZ4's own, since a list of files says what each chunk hashes to; tools that know the
//! frame format unpack them. The source of the layout is LZ4's frame format, version 1.6 (`lz4_Frame_format.md`).

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use sheetanchor_core::refusal::{Code, Refusal};

/// The number 0x184D2204, little-endian.
const MAGIC: [u8; 4] = [0x04, 0x22, 0x4D, 0x18];

/// Version 1, blocks that do not depend on each other, and the size of the content; no checksums, no dictionary.
const FLAGS: u8 = 0b0110_1000;

/// Magic, flags, size of blocks, size of the content, checksum of what lies between magic and it.
const HEADER_BYTES: usize = 15;

/// The sizes that blocks may have, with the byte that names each.
const BLOCKS: [(u8, usize); 4] = [(0x40, 64 << 10), (0x50, 256 << 10), (0x60, 1 << 20), LARGEST];
const LARGEST: (u8, usize) = (0x70, 4 << 20);

/// Set in the length of a block that is stored as it is.
const AS_IT_IS: u32 = 1 << 31;

/// In the place of a block's length: there are no more.
const END: [u8; 4] = [0; 4];

/// Whatever is packed: a byte of LZ4 stands for no more than so many.
const RATIO_MAX: u64 = 256;

/// Whether a frame is one of LZ4.
pub fn is_frame(frame: &[u8]) -> bool {
    frame.starts_with(&MAGIC)
}

/// One frame that holds `bytes` and their number.
pub fn compress(bytes: &[u8]) -> Vec<u8> {
    // The smallest that holds them all: who unpacks reserves a block.
    let (name, size) = BLOCKS.into_iter().find(|(_, size)| bytes.len() <= *size).unwrap_or(LARGEST);
    let mut frame = header(name, u64::try_from(bytes.len()).unwrap_or(u64::MAX)).to_vec();
    for block in bytes.chunks(size) {
        add_block(&mut frame, block);
    }
    frame.extend_from_slice(&END);
    frame
}

/// The bytes in `frame`, of which there must be exactly `length`. `name` and `code` are for the refusal.
///
/// # Errors
/// `code` if the frame does not hold just that, or is of another kind than those that are written here.
pub fn decompress(name: &str, frame: &[u8], length: u64, code: Code) -> Result<Vec<u8>, Refusal> {
    let damaged = || Refusal::new(code, format!("{name} is not a frame of {length} bytes"));
    let (size, stated, mut rest) = read_header(frame).ok_or_else(damaged)?;
    // Before anything is reserved: what is stated must be what is wanted, and no more than can be in there.
    let most = u64::try_from(frame.len()).unwrap_or(u64::MAX).saturating_mul(RATIO_MAX);
    if stated != length || length > most {
        return Err(damaged());
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(|_| damaged())?];
    for block in bytes.chunks_mut(size) {
        rest = read_block(rest, block).ok_or_else(damaged)?;
    }
    if rest == END { Ok(bytes) } else { Err(damaged()) }
}

fn header(block: u8, length: u64) -> [u8; HEADER_BYTES] {
    let [m0, m1, m2, m3] = MAGIC;
    let [l0, l1, l2, l3, l4, l5, l6, l7] = length.to_le_bytes();
    let [_, check, _, _] = xxh32(block, length).to_le_bytes();
    [m0, m1, m2, m3, FLAGS, block, l0, l1, l2, l3, l4, l5, l6, l7, check]
}

/// How large the blocks of a frame are, how many bytes it says that it holds, and what follows its header.
fn read_header(frame: &[u8]) -> Option<(usize, u64, &[u8])> {
    let (head, rest) = frame.split_first_chunk::<HEADER_BYTES>()?;
    let [_, _, _, _, _, block, l0, l1, l2, l3, l4, l5, l6, l7, _] = *head;
    let length = u64::from_le_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
    let (_, size) = BLOCKS.into_iter().find(|(name, _)| *name == block)?;
    // One spelling: what we would write for these two, checksum included.
    (header(block, length) == *head).then_some((size, length, rest))
}

/// The hash XXH32, with seed 0, of the ten bytes of a header that it is taken over. Fewer than 16 bytes need none of its
/// lanes (xxHash's specification, "special case: input is less than 16 bytes").
fn xxh32(block: u8, length: u64) -> u32 {
    const PRIMES: [u32; 5] = [0x9E37_79B1, 0x85EB_CA77, 0xC2B2_AE3D, 0x27D4_EB2F, 0x1656_67B1];
    let [prime1, prime2, prime3, prime4, prime5] = PRIMES;
    let [l0, l1, l2, l3, l4, l5, l6, l7] = length.to_le_bytes();
    let mut hash = prime5.wrapping_add(10);
    for word in [[FLAGS, block, l0, l1], [l2, l3, l4, l5]] {
        hash = hash.wrapping_add(u32::from_le_bytes(word).wrapping_mul(prime3));
        hash = hash.rotate_left(17).wrapping_mul(prime4);
    }
    for byte in [l6, l7] {
        hash = hash.wrapping_add(u32::from(byte).wrapping_mul(prime5));
        hash = hash.rotate_left(11).wrapping_mul(prime1);
    }
    hash = (hash ^ (hash >> 15)).wrapping_mul(prime2);
    hash = (hash ^ (hash >> 13)).wrapping_mul(prime3);
    hash ^ (hash >> 16)
}

/// Adds a block to a frame: its length, and what it takes packed; or its bytes as they are, if that is not less.
fn add_block(frame: &mut Vec<u8>, block: &[u8]) {
    let start = frame.len();
    let body = start + END.len();
    // Packed in its place, and not copied.
    frame.resize(body + lz4_flex::block::get_maximum_output_size(block.len()), 0);
    let packed = lz4_flex::block::compress_into(block, frame.get_mut(body..).unwrap_or_default());
    let (stored, flag) = if let Some(packed) = packed.ok().filter(|packed| *packed < block.len()) {
        frame.truncate(body + packed);
        (packed, 0)
    } else {
        frame.truncate(body);
        frame.extend_from_slice(block);
        (block.len(), AS_IT_IS)
    };
    let length = u32::try_from(stored).unwrap_or(u32::MAX) | flag;
    if let Some(place) = frame.get_mut(start..body) {
        place.copy_from_slice(&length.to_le_bytes());
    }
}

/// Unpacks the first block in `rest` into all of `block`, and answers what follows it; nothing if it is of another length.
fn read_block<'a>(rest: &'a [u8], block: &mut [u8]) -> Option<&'a [u8]> {
    let (length, rest) = rest.split_first_chunk()?;
    let length = u32::from_le_bytes(*length);
    let (stored, rest) = rest.split_at_checked(usize::try_from(length & !AS_IT_IS).ok()?)?;
    let written = if length & AS_IT_IS == 0 {
        lz4_flex::block::decompress_into(stored, block).ok()?
    } else {
        block.get_mut(..stored.len())?.copy_from_slice(stored);
        stored.len()
    };
    (written == block.len()).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Debian's `lz4` 1.9.4 makes of it: `lz4 -B7 -BI --content-size --no-frame-crc`.
    const TEXT: &[u8] = b"a page, a page, a page, a page, and another page\n";
    const BY_LZ4: &[u8] = b"\x04\x22\x4D\x18\x68\x40\x31\0\0\0\0\0\0\0\x7F\x1E\0\0\0\x8Fa page, \x08\0\x06\xF0\x01nd another page\n\0\0\0\0";

    fn unpacked(frame: &[u8], length: usize) -> Option<Vec<u8>> {
        let length = u64::try_from(length).unwrap();
        match decompress("x", frame, length, Code::ChunkDamaged) {
            Ok(bytes) => Some(bytes),
            Err(refusal) => {
                assert_eq!(refusal.code, Code::ChunkDamaged);
                None
            }
        }
    }

    /// Bytes that nothing can pack.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let next = core::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        next.flatten().take(length).collect()
    }

    #[test]
    fn bytes_come_back_from_frames_of_every_size() {
        for length in [0, 1, 12, 13, 10_000, 64 << 10, (64 << 10) + 1, 1 << 20, (4 << 20) + 1, 9 << 20] {
            for bytes in [vec![7; length], noise(length)] {
                let frame = compress(&bytes);
                assert!(frame.len() <= length + HEADER_BYTES + 4 * (length.div_ceil(4 << 20) + 1), "of {length}");
                assert_eq!(unpacked(&frame, length).as_ref(), Some(&bytes), "of {length}");
                assert_eq!(unpacked(&frame, length + 1), None);
                assert_eq!(unpacked(&frame, length.wrapping_sub(1)), None);
            }
        }
    }

    /// The golden of a frame: a block of each kind, byte by byte, as another program writes them.
    #[test]
    fn frames_are_those_of_the_specification() {
        assert_eq!(unpacked(BY_LZ4, TEXT.len()).unwrap(), TEXT);
        assert_eq!(compress(TEXT), BY_LZ4);
        let noise = noise(40);
        let stored = [&b"\x04\x22\x4D\x18\x68\x40\x28\0\0\0\0\0\0\0\x75\x28\0\0\x80"[..], &noise, &END].concat();
        assert_eq!(compress(&noise), stored);
    }

    #[test]
    fn a_frame_that_was_cut_or_flipped_is_refused_or_of_its_length() {
        for at in 0..BY_LZ4.len() {
            assert_eq!(unpacked(&BY_LZ4[..at], TEXT.len()), None, "the first {at} bytes");
            for bit in 0..8 {
                let mut frame = BY_LZ4.to_vec();
                frame[at] ^= 1 << bit;
                let bytes = unpacked(&frame, TEXT.len());
                // What a flipped block unpacks to is for the hash to tell: here nothing may be read or written beyond.
                assert!(bytes.is_none_or(|bytes| at > HEADER_BYTES + 3 && bytes.len() == TEXT.len()), "{at} {bit}");
            }
        }
        assert_eq!(unpacked(&[BY_LZ4, b"\0"].concat(), TEXT.len()), None, "more than a frame");
    }

    #[test]
    fn nothing_is_reserved_for_what_a_frame_cannot_hold() {
        // Whole headers, and little behind them.
        for length in [1 << 20, 1 << 40, u64::MAX] {
            let frame = [&header(0x70, length)[..], &[1, 0, 0, 0, 0], &END].concat();
            assert_eq!(decompress("x", &frame, length, Code::ChunkDamaged).unwrap_err().code, Code::ChunkDamaged);
        }
        // As little as LZ4 can make of so much is read.
        let (zeros, length) = (vec![0; 4 << 20], 4 << 20);
        assert_eq!(unpacked(&compress(&zeros), length), Some(zeros));
    }

    #[test]
    fn frames_of_other_kinds_are_refused() {
        // Without a size, with checksums of blocks or of all, with blocks that lean on others, of another version.
        for flags in [0x60, 0x78, 0x6C, 0x48, 0x69, 0x6A, 0xA8] {
            let mut frame = BY_LZ4.to_vec();
            frame[4] = flags;
            assert_eq!(unpacked(&frame, TEXT.len()), None, "{flags:#x}");
        }
        assert!(read_header(BY_LZ4).is_some_and(|(size, length, _)| (size, length) == (64 << 10, 49)));
    }
}
