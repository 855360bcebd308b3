//! Frames of compressed bytes. One level: 1 is faster *and* no larger than 3 on heap pages.

use alloc::format;
use alloc::vec::Vec;

use sheetanchor_core::refusal::{Code, Refusal};

/// The compression level.
const LEVEL: i32 = 1;

/// One zstd frame that holds `bytes` and their number.
pub fn compress(bytes: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(zstd_safe::compress_bound(bytes.len()));
    let written = zstd_safe::compress(&mut frame, bytes, LEVEL);
    assert!(written.is_ok(), "a buffer of compress_bound bytes always suffices");
    frame
}

/// The bytes in `frame`, of which there must be exactly `length`. `name` and `code` are for the refusal.
///
/// # Errors
/// `code` if the frame does not hold just that.
pub fn decompress(name: &str, frame: &[u8], length: u64, code: Code) -> Result<Vec<u8>, Refusal> {
    let damaged = || Refusal::new(code, format!("{name} is not a frame of {length} bytes"));
    // The frame states its size, so that a damaged length cannot make us reserve more than there is.
    if zstd_safe::get_frame_content_size(frame).ok().flatten() != Some(length) {
        return Err(damaged());
    }
    let length = usize::try_from(length).map_err(|_| damaged())?;
    let mut bytes = Vec::with_capacity(length);
    match zstd_safe::decompress(&mut bytes, frame) {
        Ok(written) if written == length => Ok(bytes),
        Ok(_) | Err(_) => Err(damaged()),
    }
}

/// The bytes in `frame`, of which there may be at most `length_max`.
///
/// # Errors
/// `code` if the frame is damaged or holds more.
pub fn decompress_up_to(name: &str, frame: &[u8], length_max: u64, code: Code) -> Result<Vec<u8>, Refusal> {
    match zstd_safe::get_frame_content_size(frame).ok().flatten() {
        Some(length) if length <= length_max => decompress(name, frame, length, code),
        Some(_) | None => Err(Refusal::new(code, format!("{name} is no frame of at most {length_max} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back() {
        for bytes in [&b""[..], b"a", &[7; 10_000]] {
            let length = u64::try_from(bytes.len()).unwrap();
            let frame = compress(bytes);
            assert_eq!(decompress("x", &frame, length, Code::ChunkDamaged).unwrap(), bytes);
            assert_eq!(decompress("x", &frame, length + 1, Code::ChunkDamaged).unwrap_err().code, Code::ChunkDamaged);
            assert!(decompress_up_to("x", &frame, length, Code::Damaged).is_ok());
        }
        assert!(decompress_up_to("x", &compress(&[0; 9]), 8, Code::Damaged).is_err());
        assert!(decompress_up_to("x", b"no frame", 8, Code::Damaged).is_err());
    }
}
