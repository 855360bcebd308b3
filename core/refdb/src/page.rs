//! Pages: fixed size, checksummed, each knowing its place and the SCN of its last change.

use sheetanchor_core::scn::Scn;

use crate::fields;
use crate::layout::PageNo;

/// Bytes of a page in the file.
pub(crate) const PAGE_BYTES: usize = 4096;

/// Checksum (4), unused (4), page number (8), version (8).
const HEADER_BYTES: usize = 24;

/// Bytes of a page that hold rows or slots.
pub(crate) const BODY_BYTES: usize = PAGE_BYTES - HEADER_BYTES;

/// A page in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// The SCN of its last change; zero if it was never changed.
    pub(crate) version: Scn,
    /// Always [`BODY_BYTES`].
    pub(crate) body: Vec<u8>,
}

/// The bytes are no page that was written whole at this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Torn;

impl Page {
    /// A page that was never written.
    pub(crate) fn fresh() -> Self {
        Self { version: Scn::ZERO, body: vec![0; BODY_BYTES] }
    }

    /// The bytes that go to the file at `number`.
    pub(crate) fn encode(&self, number: PageNo) -> Vec<u8> {
        assert_eq!(self.body.len(), BODY_BYTES, "a body has one size");
        let mut bytes = vec![0; HEADER_BYTES];
        fields::put(&mut bytes, 8, &number.get().to_le_bytes());
        fields::put(&mut bytes, 16, &self.version.get().to_le_bytes());
        bytes.extend_from_slice(&self.body);
        let sum = crc32c::crc32c(bytes.get(4..).unwrap_or_default());
        fields::put(&mut bytes, 0, &sum.to_le_bytes());
        bytes
    }

    /// Reads the page at `number`. Nothing, or zeros only, is a page that was never written.
    pub(crate) fn decode(number: PageNo, bytes: &[u8]) -> Result<Self, Torn> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(Self::fresh());
        }
        if bytes.len() != PAGE_BYTES {
            return Err(Torn);
        }
        let read = || {
            let sum = fields::u32_at(bytes, 0)?;
            let place = fields::u64_at(bytes, 8)?;
            let version = Scn::new(fields::u64_at(bytes, 16)?);
            let sound = sum == crc32c::crc32c(bytes.get(4..)?) && place == number.get() && version > Scn::ZERO;
            sound.then_some(Self { version, body: bytes.get(HEADER_BYTES..)?.to_vec() })
        };
        read().ok_or(Torn)
    }

    /// What the bytes say, sound or not: for a planted bug.
    pub(crate) fn unchecked(bytes: &[u8]) -> Option<Self> {
        let body = bytes.get(HEADER_BYTES..PAGE_BYTES)?.to_vec();
        Some(Self { version: Scn::new(fields::u64_at(bytes, 16)?), body })
    }

    /// Where a page lies in the file.
    pub(crate) fn offset(number: PageNo) -> u64 {
        number.get().saturating_mul(fields::count(PAGE_BYTES))
    }

    /// The body without the zeros at its end: what a whole image logs.
    pub(crate) fn image(&self) -> Vec<u8> {
        let used = self.body.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        self.body.get(..used).unwrap_or_default().to_vec()
    }

    /// Replaces the body by a logged image; `None` for one that no page has.
    #[must_use]
    pub(crate) fn from_image(version: Scn, image: &[u8]) -> Option<Self> {
        if image.len() > BODY_BYTES {
            return None;
        }
        let mut body = image.to_vec();
        body.resize(BODY_BYTES, 0);
        Some(Self { version, body })
    }

    /// Changes bytes of the body; `None` if they do not lie in it.
    #[must_use]
    pub(crate) fn patch(&mut self, version: Scn, offset: usize, bytes: &[u8]) -> Option<()> {
        let until = offset.checked_add(bytes.len())?;
        self.body.get_mut(offset..until)?.copy_from_slice(bytes);
        self.version = version;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Page {
        let mut page = Page::fresh();
        page.patch(Scn::new(77), 100, b"ledger").unwrap();
        page
    }

    #[test]
    fn a_page_reads_back_and_any_flipped_bit_is_found() {
        let number = PageNo::new(3);
        let bytes = page().encode(number);
        assert_eq!(Page::decode(number, &bytes), Ok(page()));
        for at in 0..bytes.len() {
            for bit in [1, 0x80] {
                let mut damaged = bytes.clone();
                damaged[at] ^= bit;
                assert_eq!(Page::decode(number, &damaged), Err(Torn), "byte {at}");
            }
        }
    }

    #[test]
    fn a_page_of_another_place_or_a_piece_of_one_is_torn() {
        let bytes = page().encode(PageNo::new(3));
        assert_eq!(Page::decode(PageNo::new(4), &bytes), Err(Torn));
        for length in [1, 512, 4095] {
            assert_eq!(Page::decode(PageNo::new(3), &bytes[..length]), Err(Torn));
        }
    }

    #[test]
    fn a_tear_at_any_sector_is_found() {
        let number = PageNo::new(3);
        let old = page().encode(number);
        let mut page = page();
        page.patch(Scn::new(78), 0, &[5; BODY_BYTES]).unwrap();
        let new = page.encode(number);
        for sector in 1..8 {
            let torn = [&new[..sector * 512], &old[sector * 512..]].concat();
            assert_eq!(Page::decode(number, &torn), Err(Torn), "sector {sector}");
        }
    }

    #[test]
    fn what_was_never_written_is_a_fresh_page() {
        for bytes in [Vec::new(), vec![0; 100], vec![0; PAGE_BYTES]] {
            assert_eq!(Page::decode(PageNo::new(9), &bytes), Ok(Page::fresh()));
        }
    }

    #[test]
    fn an_image_makes_the_same_page() {
        assert_eq!(Page::from_image(Scn::new(77), &page().image()), Some(page()));
        assert_eq!(page().image().len(), 106);
        assert_eq!(Page::from_image(Scn::new(1), &[0; BODY_BYTES + 1]), None);
        assert_eq!(Page::fresh().patch(Scn::new(1), BODY_BYTES - 1, b"ab"), None);
    }
}
