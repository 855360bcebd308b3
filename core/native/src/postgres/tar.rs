//! Archives in the tar format, read as they come, in pieces of any size: what POSIX calls "ustar Interchange Format", as far
//! as a server's `BASE_BACKUP` writes it. Whatever else a header may hold is refused: a name that is misunderstood would be
//! a file in the wrong place.

use std::mem;

use sheetanchor_core::refusal::{Code, Refusal};

/// Bytes of a header, and what contents are filled up to.
const BLOCK_BYTES: usize = 512;
const BLOCK_LENGTH: u64 = 512;

/// Where in a header what stands, from and until.
const NAME: (usize, usize) = (0, 100);
const MODE: (usize, usize) = (100, 108);
const SIZE: (usize, usize) = (124, 136);
const SUM: (usize, usize) = (148, 156);
const KIND: usize = 156;
const MAGIC: (usize, usize) = (257, 262);
const PREFIX: (usize, usize) = (345, 500);

/// What the archive brings next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// A name, and what lies there. The bytes of a file follow.
    Entry(TarEntry),
    /// Bytes of the file whose entry came last.
    Bytes(&'a [u8]),
    /// That file is whole.
    End,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TarEntry {
    /// Its name, without `./` in front and `/` at its end.
    pub name: String,
    /// What it is.
    pub kind: TarKind,
    /// Permission bits.
    pub mode: u32,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TarKind {
    /// A file of so many bytes.
    File(u64),
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
}

/// Reads one archive.
#[derive(Clone, Debug, Default)]
pub(super) struct TarReader {
    /// The part of a header that has come.
    header: Vec<u8>,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// A header comes next.
    #[default]
    Between,
    /// So many bytes of a file come next, and then so many that fill its last block up.
    In(u64, u64),
    /// So many bytes that fill a block up.
    Filling(u64),
    /// A block of zeros has come: nothing but zeros follows.
    Over,
}

impl TarReader {
    /// Reads on. What is found goes to `take`, whose refusal ends the reading.
    ///
    /// # Errors
    /// `SA004` for what is no such archive, and what `take` refuses. Nothing can be read after that.
    pub(super) fn feed<'a, E: From<Refusal>>(
        &mut self,
        bytes: &'a [u8],
        take: &mut impl FnMut(Part<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = match self.state {
                State::Between => self.feed_header(rest, take)?,
                State::In(left, fill) => {
                    let (now, after) = split_up_to(rest, left);
                    take(Part::Bytes(now))?;
                    self.state = State::In(left.saturating_sub(length(now)), fill);
                    self.pass_end(take)?;
                    after
                }
                State::Filling(left) => {
                    let (now, after) = split_up_to(rest, left);
                    let left = left.saturating_sub(length(now));
                    self.state = if left == 0 { State::Between } else { State::Filling(left) };
                    after
                }
                State::Over if rest.iter().any(|byte| *byte != 0) => {
                    return Err(damaged("something follows its end").into());
                }
                State::Over => &[],
            };
        }
        Ok(())
    }

    /// Whether the archive may end here.
    pub(super) fn is_whole(&self) -> bool {
        self.header.is_empty() && matches!(self.state, State::Between | State::Over)
    }

    fn feed_header<'a, E: From<Refusal>>(
        &mut self,
        bytes: &'a [u8],
        take: &mut impl FnMut(Part<'a>) -> Result<(), E>,
    ) -> Result<&'a [u8], E> {
        let (now, after) = split_up_to(bytes, BLOCK_LENGTH.saturating_sub(length(&self.header)));
        self.header.extend_from_slice(now);
        if self.header.len() < BLOCK_BYTES {
            return Ok(after);
        }
        let header = mem::take(&mut self.header);
        if header.iter().all(|byte| *byte == 0) {
            self.state = State::Over;
            return Ok(after);
        }
        let entry = entry(&header)?;
        let kind = entry.kind;
        take(Part::Entry(entry))?;
        if let TarKind::File(size) = kind {
            self.state = State::In(size, size.next_multiple_of(BLOCK_LENGTH).saturating_sub(size));
            self.pass_end(take)?;
        }
        Ok(after)
    }

    /// A file all of whose bytes have come is whole.
    fn pass_end<'a, E>(&mut self, take: &mut impl FnMut(Part<'a>) -> Result<(), E>) -> Result<(), E> {
        if let State::In(0, fill) = self.state {
            self.state = if fill == 0 { State::Between } else { State::Filling(fill) };
            take(Part::End)?;
        }
        Ok(())
    }
}

fn entry(header: &[u8]) -> Result<TarEntry, Refusal> {
    let sum = number(field(header, SUM)).ok_or_else(|| damaged("a header without a checksum"))?;
    let blank = field(header, SUM).iter().map(|byte| u64::from(*byte)).sum::<u64>();
    let all = header.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    // The field that holds the sum counts as spaces.
    let spaces = u64::from(b' ').saturating_mul(length(field(header, SUM)));
    if all.saturating_sub(blank).saturating_add(spaces) != sum {
        return Err(damaged("a header does not hold by its checksum"));
    }
    if field(header, MAGIC) != b"ustar" {
        return Err(damaged("a header of another format"));
    }
    let (name, prefix) = (text(field(header, NAME))?, text(field(header, PREFIX))?);
    let name = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
    let name = name.strip_prefix("./").unwrap_or(&name);
    let name = name.strip_suffix('/').unwrap_or(name).to_owned();
    let size = number(field(header, SIZE)).filter(|size| *size <= u64::MAX / 2);
    let size = size.ok_or_else(|| damaged("a size that is no number"))?;
    let kind = match header.get(KIND) {
        Some(b'0' | 0) => TarKind::File(size),
        Some(b'5') if size == 0 => TarKind::Folder,
        Some(b'2') if size == 0 => TarKind::Link,
        Some(_) | None => return Err(damaged(&format!("`{}` is neither file, folder nor link", name.escape_debug()))),
    };
    let mode = number(field(header, MODE)).and_then(|mode| u32::try_from(mode).ok());
    let mode = mode.ok_or_else(|| damaged("permissions that are no number"))? & 0o7777;
    Ok(TarEntry { name, kind, mode })
}

fn field(header: &[u8], (from, until): (usize, usize)) -> &[u8] {
    header.get(from..until).unwrap_or_default()
}

/// What stands before the first zero.
fn text(field: &[u8]) -> Result<&str, Refusal> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    let text = field.get(..end).and_then(|bytes| std::str::from_utf8(bytes).ok());
    text.ok_or_else(|| damaged("a name that is not UTF-8"))
}

/// A number in octal digits; one too large for them is in bytes after one that says so.
fn number(field: &[u8]) -> Option<u64> {
    let (first, others) = field.split_first()?;
    if *first == 0x80 {
        let (high, low) = others.split_last_chunk::<8>()?;
        return high.iter().all(|byte| *byte == 0).then(|| u64::from_be_bytes(*low));
    }
    let digits = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    let plain = !digits.is_empty() && digits.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    u64::from_str_radix(digits, 8).ok().filter(|_| plain)
}

fn split_up_to(bytes: &[u8], count: u64) -> (&[u8], &[u8]) {
    let count = usize::try_from(count).unwrap_or(usize::MAX).min(bytes.len());
    bytes.split_at_checked(count).unwrap_or((bytes, &[]))
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

fn damaged(what: &str) -> Refusal {
    Refusal::new(Code::FrameDamaged, format!("an archive of a server's files is not understood: {what}"))
}

/// Archives to read in tests.
#[cfg(test)]
pub(super) mod forge {
    use super::{BLOCK_BYTES, KIND};

    /// A header with the checksum that it should have.
    pub(in super::super) fn header(name: &str, kind: u8, size: &[u8; 12]) -> Vec<u8> {
        let mut header = vec![0; BLOCK_BYTES];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000600 ");
        header[124..136].copy_from_slice(size);
        header[KIND] = kind;
        header[257..263].copy_from_slice(b"ustar\0");
        sealed(header)
    }

    pub(in super::super) fn sealed(mut header: Vec<u8>) -> Vec<u8> {
        header[148..156].copy_from_slice(b"        ");
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    }

    pub(in super::super) fn file(name: &str, bytes: &[u8]) -> Vec<u8> {
        let size = format!("{:011o} ", bytes.len());
        let mut all = header(name, b'0', size.as_bytes().try_into().unwrap());
        all.extend_from_slice(bytes);
        all.resize(all.len().next_multiple_of(BLOCK_BYTES), 0);
        all
    }

    pub(in super::super) fn folder(name: &str) -> Vec<u8> {
        header(name, b'5', b"00000000000 ")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::forge::{file, folder, header, sealed};
    use super::*;

    /// Everything that is read, in words, of an archive that comes in pieces of `piece` bytes; and whether it may end there.
    fn read(bytes: &[u8], piece: usize) -> Result<(Vec<String>, bool), Refusal> {
        let (mut reader, mut seen, mut open) = (TarReader::default(), Vec::new(), Vec::new());
        for bytes in bytes.chunks(piece) {
            reader.feed(bytes, &mut |part| {
                match part {
                    Part::Entry(TarEntry { name, kind, mode }) => seen.push(format!("{name} {kind:?} {mode:o}")),
                    Part::Bytes(bytes) => open.extend_from_slice(bytes),
                    Part::End => seen.push(String::from_utf8_lossy(&mem::take(&mut open)).into_owned()),
                }
                Ok::<(), Refusal>(())
            })?;
        }
        Ok((seen, reader.is_whole()))
    }

    fn archive() -> Vec<u8> {
        let end = vec![0; 2 * BLOCK_BYTES];
        [folder("base/"), file("./base/1", b"one"), file("empty", b""), file("base/2", &[b'x'; 512]), end].concat()
    }

    #[test]
    fn an_archive_is_read_in_pieces_of_any_size() {
        let x = "x".repeat(512);
        let expected =
            ["base Folder 600", "base/1 File(3) 600", "one", "empty File(0) 600", "", "base/2 File(512) 600"];
        let expected: Vec<&str> = expected.into_iter().chain([x.as_str()]).collect();
        for piece in [1, 7, 512, 513, 100_000] {
            let (seen, whole) = read(&archive(), piece).unwrap();
            assert_eq!(seen, expected, "in pieces of {piece}");
            assert!(whole);
        }
    }

    #[test]
    fn an_archive_that_is_cut_short_is_not_whole() {
        let archive = archive();
        let ends = [0, 512, 3 * 512, 4 * 512, 6 * 512];
        for length in 0..7 * 512 {
            let (_, whole) = read(&archive[..length], 100_000).unwrap();
            assert_eq!(whole, ends.contains(&length), "{length}");
        }
    }

    #[test]
    fn long_names_large_sizes_and_links_are_understood() {
        let mut long = header("b", b'0', b"00000000000 ");
        long[345..349].copy_from_slice(b"a/a/");
        assert_eq!(read(&sealed(long), 512).unwrap().0, ["a/a//b File(0) 600", ""], "the reader of names refuses it");
        let mut large = [0; 12];
        large[0] = 0x80;
        large[4..].copy_from_slice(&(9_u64 << 30).to_be_bytes());
        assert_eq!(read(&header("log/x", b'0', &large), 512).unwrap().0, ["log/x File(9663676416) 600"]);
        let link = header("pg_tblspc/16400/", b'2', b"00000000000 ");
        assert_eq!(read(&link, 512).unwrap().0, ["pg_tblspc/16400 Link 600"]);
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let good = file("base/1", b"one");
        for at in 0..BLOCK_BYTES {
            let mut bad = good.clone();
            bad[at] ^= 0x41;
            assert_eq!(read(&bad, 512).unwrap_err().code, Code::FrameDamaged, "byte {at}");
        }
        let mut foreign = good.clone();
        foreign[257..262].copy_from_slice(b"vstar");
        let mut strange_name = good[..BLOCK_BYTES].to_vec();
        strange_name[0] = 0xFF;
        let mut after_end = archive();
        after_end.extend_from_slice(b"more");
        for bad in [
            sealed(foreign[..BLOCK_BYTES].to_vec()),
            sealed(strange_name),
            header("base/1", b'x', b"00000000000 "),
            header("base/1", b'L', b"00000000003 "),
            header("base/1", b'5', b"00000000003 "),
            header("base/1", b'0', b"0000000008x "),
            header("base/1", b'0', b"            "),
            header("base/1", b'0', &[0xFF; 12]),
            header("base/1", b'0', b"\x80\0\0\0\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"),
            after_end,
        ] {
            assert_eq!(read(&bad, 512).unwrap_err().code, Code::FrameDamaged);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000), piece in 1_usize..700) {
            read(&bytes, piece).ok();
        }

        /// Headers that hold by their checksum, with anything in them, and anything after them.
        #[test]
        fn nor_do_headers_that_hold(
            fields in prop::collection::vec(any::<u8>(), BLOCK_BYTES),
            kind in prop::sample::select(vec![b'0', b'2', b'5', b'x']),
            size in 0_u64..2000,
            after in prop::collection::vec(any::<u8>(), 0..3000),
            piece in 1_usize..700,
        ) {
            let mut header = fields;
            header[124..136].copy_from_slice(format!("{size:011o} ").as_bytes());
            header[KIND] = kind;
            header[257..262].copy_from_slice(b"ustar");
            read(&[sealed(header), after].concat(), piece).ok();
        }
    }
}
