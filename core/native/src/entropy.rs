//! Chance, from the operating system.

use sheetanchor_engine::env::Entropy;

/// The operating system's random source.
#[derive(Clone, Copy, Debug)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    fn word(&self) -> u64 {
        match getrandom::u64() {
            Ok(word) => word,
            // Ids and nonces must never repeat; without a random source nothing that follows would be sound.
            Err(error) => panic!("the operating system gives no random numbers: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn words_differ() {
        let words: BTreeSet<u64> = (0..64).map(|_| OsEntropy.word()).collect();
        assert_eq!(words.len(), 64);
    }
}
