//! Checksums of PostgreSQL's pages.
//!
//! The rule, from the comment at the head of `checksum_impl.h` in PostgreSQL's sources: a page is 64 rows of 32 words; 32
//! FNV-1a hashes, each with a start value of its own and with an extra shift, run down the columns and then over two rows
//! of zeros; their xor is mixed with the page's number in its relation and brought into 1..=65535. The field that holds
//! the checksum counts as zero.

use sheetanchor_core::position::Lsn;
use sheetanchor_engine::database::PageVerdict;

use super::control::CONTROL_FILE;
use super::files::Relation;

/// Bytes of a page, in every usual build.
pub(super) const PAGE_BYTES: usize = 8192;

/// Pages of a relation's segment file, in every usual build: a gigabyte.
pub(super) const SEGMENT_PAGES: u64 = 131_072;

const PRIME: u32 = 16_777_619;

/// The start values of the 32 hashes.
const STARTS: [u32; 32] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// Checks what was read from file `name` at `offset`: the control file by its own checksum, the pages of relations if
/// `checksums` says that they carry any. A piece of a page at the end is left to the WAL, which has all of it.
pub(super) fn check(name: &str, offset: u64, bytes: &[u8], checksums: bool) -> PageVerdict {
    check_all(name, offset, bytes, checksums, page_holds)
}

/// As [`check`], of what a server has read and sent itself, in a backup whose replay begins at `start`. Nobody can read such
/// a page again: one that may be torn is not judged, as the server does not judge it (`verify_page_checksum` in its
/// `basebackup.c`). It was written since, so the WAL has all of it.
pub(super) fn check_sent(name: &str, offset: u64, bytes: &[u8], checksums: bool, start: Lsn) -> PageVerdict {
    check_all(name, offset, bytes, checksums, |page, number| {
        is_unused(page) || written_at(page) >= start || page_holds(page, number)
    })
}

fn check_all(
    name: &str,
    offset: u64,
    bytes: &[u8],
    checksums: bool,
    holds: impl Fn(&[u8; PAGE_BYTES], u32) -> bool,
) -> PageVerdict {
    if name == CONTROL_FILE {
        let whole = offset == 0 && control_file_holds(bytes);
        return if whole { PageVerdict::Sound } else { PageVerdict::Fails(offset) };
    }
    let Some(relation) = Relation::of_path(name).filter(|_| checksums) else { return PageVerdict::Sound };
    let page_bytes = u64::try_from(PAGE_BYTES).unwrap_or(u64::MAX);
    let first = u64::from(relation.segment).wrapping_mul(SEGMENT_PAGES).wrapping_add(offset / page_bytes);
    let (pages, _) = bytes.as_chunks::<PAGE_BYTES>();
    for (index, page) in (0_u64..).zip(pages) {
        // Numbers of pages have 32 bits: a name that says otherwise is no relation's.
        let number = u32::try_from(first.wrapping_add(index)).ok();
        if !number.is_some_and(|number| holds(page, number)) {
            return PageVerdict::Fails(offset.saturating_add(index.saturating_mul(page_bytes)));
        }
    }
    PageVerdict::Sound
}

/// Whether nothing is in a page by its head. One that is in use has its upper end, `pd_upper` at 14, set.
fn is_unused(page: &[u8; PAGE_BYTES]) -> bool {
    let [_, _, _, _, _, _, _, _, _, _, _, _, _, _, upper_low, upper_high, ..] = *page;
    upper_low == 0 && upper_high == 0
}

/// The end of the record that changed the page last: `pd_lsn` at 0, its upper half first.
fn written_at(page: &[u8; PAGE_BYTES]) -> Lsn {
    let half =
        |from: usize| page.get(from..).and_then(<[u8]>::first_chunk::<4>).map_or(0, |half| u32::from_le_bytes(*half));
    Lsn::new((u64::from(half(0)) << 32) | u64::from(half(4)))
}

/// Whether a page is what was written as page `number` of its relation. A page that was never used is all zeros.
fn page_holds(page: &[u8; PAGE_BYTES], number: u32) -> bool {
    if is_unused(page) {
        return page.iter().all(|byte| *byte == 0);
    }
    // `pd_checksum`.
    let [_, _, _, _, _, _, _, _, low, high, ..] = *page;
    checksum(page, number) == u16::from_le_bytes([low, high])
}

fn checksum(page: &[u8; PAGE_BYTES], number: u32) -> u16 {
    let mut sums = STARTS;
    let (words, _) = page.as_chunks::<4>();
    let (rows, _) = words.as_chunks::<32>();
    for (index, row) in rows.iter().enumerate() {
        for (column, (sum, word)) in sums.iter_mut().zip(row).enumerate() {
            let word = u32::from_le_bytes(*word);
            // The checksum is the lower half of the third word.
            *sum = mixed(*sum, if index == 0 && column == 2 { word & 0xFFFF_0000 } else { word });
        }
    }
    for _ in 0..2 {
        for sum in &mut sums {
            *sum = mixed(*sum, 0);
        }
    }
    let folded = sums.into_iter().fold(0, |all, sum| all ^ sum);
    u16::try_from((folded ^ number) % 65_535 + 1).unwrap_or(u16::MAX)
}

fn mixed(sum: u32, word: u32) -> u32 {
    let both = sum ^ word;
    both.wrapping_mul(PRIME) ^ (both >> 17)
}

/// Whether some prefix of the control file is followed by its CRC-32C. Where the structure ends differs from version to
/// version; it is within the first 512 bytes on all, so that one sector holds it, and zeros fill the rest.
fn control_file_holds(bytes: &[u8]) -> bool {
    let ends = (200..=508).step_by(4);
    ends.into_iter().any(|end| match (bytes.get(..end), bytes.get(end..).and_then(<[u8]>::first_chunk::<4>)) {
        (Some(body), Some(crc)) => crc32c::crc32c(body) == u32::from_le_bytes(*crc),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed_page(number: u32) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        for (index, byte) in page.iter_mut().enumerate() {
            *byte = u8::try_from(index * 7 % 251).unwrap();
        }
        let sum = checksum(&page, number).to_le_bytes();
        page[8..10].copy_from_slice(&sum);
        page
    }

    #[test]
    fn a_page_holds_at_its_own_place_only() {
        let page = sealed_page(131_072 + 3);
        assert_eq!(check("base/5/16384.1", 3 * 8192, &page, true), PageVerdict::Sound);
        assert_eq!(check("base/5/16384.1", 4 * 8192, &page, true), PageVerdict::Fails(4 * 8192), "misdirected");
        assert_eq!(check("base/5/16384", 3 * 8192, &page, true), PageVerdict::Fails(3 * 8192), "another segment");
        assert_eq!(check("base/5/16384", 3 * 8192, &page, false), PageVerdict::Sound, "no checksums to hold");
        assert_eq!(check("base/5/pg_filenode.map", 0, &page, true), PageVerdict::Sound, "no pages");
    }

    #[test]
    fn any_flipped_bit_fails_the_page() {
        let page = sealed_page(0);
        for index in 0..PAGE_BYTES {
            let mut damaged = page;
            damaged[index] ^= 1 << (index % 8);
            assert_eq!(check("global/1262", 0, &damaged, true), PageVerdict::Fails(0), "byte {index}");
        }
    }

    #[test]
    fn a_page_never_used_holds_unless_something_is_in_it() {
        let mut pages = vec![0; 2 * PAGE_BYTES];
        assert_eq!(check("base/5/1259_fsm", 65_536, &pages, true), PageVerdict::Sound);
        pages[PAGE_BYTES + 100] = 1;
        assert_eq!(check("base/5/1259_fsm", 65_536, &pages, true), PageVerdict::Fails(65_536 + 8192));
    }

    #[test]
    fn a_page_that_was_written_since_the_start_is_not_judged_where_it_cannot_be_read_again() {
        let mut torn = sealed_page(0);
        torn[..8].copy_from_slice(&[1, 0, 0, 0, 0x28, 0, 0, 2]);
        let start = Lsn::new(0x1_0200_0028);
        let checked = |page: &[u8], start| check_sent("global/1262", 0, page, true, start);
        assert_eq!(check("global/1262", 0, &torn, true), PageVerdict::Fails(0));
        assert_eq!(checked(&torn, start), PageVerdict::Sound);
        assert_eq!(checked(&torn, Lsn::new(start.get() + 1)), PageVerdict::Fails(0), "written before it");
        let mut page = [0; PAGE_BYTES];
        page[4000] = 1;
        assert_eq!(checked(&page, start), PageVerdict::Sound, "its first write may be torn");
        assert_eq!(check_sent(CONTROL_FILE, 0, &torn, true, Lsn::new(0)), PageVerdict::Fails(0));
    }

    #[test]
    fn a_piece_of_a_page_at_the_end_is_not_judged() {
        assert_eq!(check("base/5/1259", 0, &[1; 100], true), PageVerdict::Sound);
    }

    #[test]
    fn a_control_file_holds_by_its_crc() {
        let mut file = vec![7; 292];
        file.extend(crc32c::crc32c(&file).to_le_bytes());
        file.resize(PAGE_BYTES, 0);
        assert_eq!(check(CONTROL_FILE, 0, &file, false), PageVerdict::Sound);
        file[17] ^= 1;
        assert_eq!(check(CONTROL_FILE, 0, &file, false), PageVerdict::Fails(0));
        assert_eq!(check(CONTROL_FILE, 0, &file[..100], false), PageVerdict::Fails(0), "cut short");
    }
}
