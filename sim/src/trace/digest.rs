//! A hash that tells two runs apart: fast, and the same in every process and every build. It withstands accidents, not
//! malice: nobody forges runs.

use std::hash::Hasher;

/// Everything that was written to it so far, in 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digest(u64);

/// Fractional parts of the golden ratio and of pi: odd, their bits spread evenly.
const BEGIN: u64 = 0x9e37_79b9_7f4a_7c15;
const FACTOR: u64 = 0x243f_6a88_85a3_08d3;

impl Digest {
    pub(super) const fn new() -> Self {
        Self(BEGIN)
    }

    /// Folds the product of what there is and the word with a constant.
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * u128::from(FACTOR);
        let [low, high] = [product, product >> 64].map(|half| u64::try_from(half & u128::from(u64::MAX)).unwrap_or(0));
        // The sum keeps a product of zero from being where the next word begins, the rotation keeps bits moving.
        self.0 = (low ^ high).wrapping_add(BEGIN).rotate_left(23);
    }
}

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut word = [0; 8];
            for (place, byte) in word.iter_mut().zip(rest) {
                *place = *byte;
            }
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.mix(number.into());
    }

    fn write_u16(&mut self, number: u16) {
        self.mix(number.into());
    }

    fn write_u32(&mut self, number: u32) {
        self.mix(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.mix(number);
    }

    fn write_usize(&mut self, number: usize) {
        self.mix(u64::try_from(number).unwrap_or(u64::MAX));
    }

    fn finish(&self) -> u64 {
        let mut last = *self;
        last.mix(BEGIN);
        last.mix(FACTOR);
        last.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn of(bytes: &[u8]) -> u64 {
        let mut digest = Digest::new();
        digest.write_usize(bytes.len());
        digest.write(bytes);
        digest.finish()
    }

    #[test]
    fn every_single_bit_changes_about_half_of_it() {
        let base = [0_u8; 64];
        let mut seen = BTreeSet::from([of(&base)]);
        let mut flipped = 0;
        for bit in 0..512_usize {
            let mut other = base;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(seen.insert(of(&other)), "bit {bit}");
            flipped += (of(&other) ^ of(&base)).count_ones();
        }
        assert!((28..36).contains(&(flipped / 512)), "{flipped}");
    }

    #[test]
    fn order_length_and_zeros_count_and_nothing_of_the_process_does() {
        let all = [of(b""), of(b"\0"), of(b"\0\0"), of(&[0; 8]), of(&[0; 16]), of(b"ab"), of(b"ba")];
        assert_eq!(BTreeSet::from(all).len(), all.len());
        let words = |words: &[u64]| {
            let mut digest = Digest::new();
            for word in words {
                digest.write_u64(*word);
            }
            digest.finish()
        };
        assert_ne!(words(&[1, 2]), words(&[2, 1]));
        assert_ne!(words(&[1]), words(&[1, 0]));
        assert_eq!(format!("{:016x}", words(&[1, 2, 3])), "ff8ef9a9c469278c");
    }
}
