//! Whole reads and writes over calls that may do less than they were asked to, as those of an operating system do. Every
//! [`DiskFile`](super::DiskFile) is built on these two, the native and the simulated one alike.

use alloc::vec::Vec;

use sheetanchor_core::planted::{self, Bug};

/// Reads `length` bytes, or what there is before the file ends. `read` is given what was read so far, with room for the rest,
/// and how many bytes are wanted still; it appends some of what follows, nothing only at the end of the file. Of what it
/// appends no more is kept than was wanted.
///
/// # Errors
/// Those of `read`.
pub fn read_full<E>(length: usize, mut read: impl FnMut(&mut Vec<u8>, usize) -> Result<(), E>) -> Result<Vec<u8>, E> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let before = bytes.len();
        read(&mut bytes, length.saturating_sub(before))?;
        if bytes.len() == before || planted::is(Bug::ShortReadIgnored) {
            break;
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// Writes all of `bytes`. `write` is given what is left and how many bytes came before it, and answers how many it has
/// taken: at least one, or it fails.
///
/// # Errors
/// Those of `write`.
pub fn write_full<E>(bytes: &[u8], mut write: impl FnMut(&[u8], u64) -> Result<usize, E>) -> Result<(), E> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        let taken = write(rest, count(written))?;
        assert!(taken > 0 && taken <= rest.len(), "{taken} bytes were taken of {}", rest.len());
        written = written.saturating_add(taken);
        if planted::is(Bug::ShortWriteIgnored) {
            break;
        }
    }
    Ok(())
}

fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_in_pieces_is_read_whole_up_to_the_end() {
        let file = b"ledger";
        for (asked, piece) in [(4, 1), (6, 4), (9, 4), (0, 3), (5, 3)] {
            let read = read_full::<()>(asked, |bytes, wanted| {
                assert_eq!(wanted, asked - bytes.len());
                let rest = &file[bytes.len()..];
                // The last piece of some reaches further than was asked for.
                bytes.extend_from_slice(&rest[..rest.len().min(piece)]);
                Ok(())
            });
            assert_eq!(read.unwrap(), file[..asked.min(6)]);
        }
    }

    #[test]
    fn what_is_taken_in_pieces_is_written_whole_or_fails() {
        let mut taken = Vec::new();
        let outcome = write_full::<()>(b"ledger", |rest, before| {
            assert_eq!(usize::try_from(before), Ok(taken.len()));
            taken.extend_from_slice(&rest[..rest.len().min(4)]);
            Ok(rest.len().min(4))
        });
        assert_eq!((outcome, taken.as_slice()), (Ok(()), &b"ledger"[..]));
        assert_eq!(write_full(b"ledger", |_, before| if before == 0 { Ok(3) } else { Err("full") }), Err("full"));
    }
}
