//! All chance of a run, drawn from its seed. Each concern has a stream of its own, so that one more draw for the disk
//! changes nothing for the network.

use std::sync::{Arc, Mutex};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sheetanchor_engine::env::Entropy;

use crate::host::{HostId, locked};

/// What is drawn for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concern {
    /// Time that disk operations take.
    Disk,
    /// What of the unsynced bytes survives a crash.
    Crash,
    /// Time that bucket operations take.
    Bucket,
    /// How streams cut what is written to them into pieces.
    Net,
    /// What the workload does.
    Workload,
    /// Where the hosts' clocks stand.
    Clock,
    /// The random words that programs ask for.
    Entropy,
    /// Which of the tasks that are ready goes on: the own executor's.
    Schedule,
    /// How long packets travel: the own executor's.
    Latency,
    /// Which silent damage strikes.
    Damage,
    /// What befalls connections and clocks.
    Links,
    /// How backups are packed.
    Packing,
}

impl Concern {
    const fn number(self) -> u64 {
        match self {
            Self::Disk => 1,
            Self::Crash => 2,
            Self::Bucket => 3,
            Self::Net => 4,
            Self::Workload => 5,
            Self::Clock => 6,
            Self::Entropy => 7,
            Self::Schedule => 8,
            Self::Latency => 9,
            Self::Damage => 10,
            Self::Links => 11,
            Self::Packing => 12,
        }
    }
}

/// One stream of draws. Clones share it.
#[derive(Clone, Debug)]
pub struct Chance(Arc<Mutex<ChaCha8Rng>>);

impl Chance {
    /// The stream of `concern` for the world as a whole.
    pub fn of(seed: u64, concern: Concern) -> Self {
        Self::stream(seed, concern.number())
    }

    /// The stream of `concern` for one life of one host: no other host's draws move it.
    pub fn of_life(seed: u64, concern: Concern, host: HostId, life: u32) -> Self {
        Self::stream(seed, concern.number() | (u64::from(host.number()) + 1) << 8 | u64::from(life) << 32)
    }

    fn stream(seed: u64, stream: u64) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(stream);
        Self(Arc::new(Mutex::new(generator)))
    }

    /// Any word.
    pub fn word(&self) -> u64 {
        locked(&self.0).next_u64()
    }

    /// A number below `bound`; zero if that is zero.
    pub fn below(&self, bound: u64) -> u64 {
        // The bias of the modulus is below 2^-40 for every bound used here.
        self.word().checked_rem(bound).unwrap_or(0)
    }

    /// A number from `from` up to, not including, `until`.
    pub fn between(&self, from: u64, until: u64) -> u64 {
        from.saturating_add(self.below(until.saturating_sub(from)))
    }

    /// One of these; none of none.
    pub fn one_of<T: Clone>(&self, things: &[T]) -> Option<T> {
        let place = self.below(u64::try_from(things.len()).unwrap_or(u64::MAX));
        things.get(usize::try_from(place).unwrap_or(0)).cloned()
    }

    /// True once in `n` draws, on average.
    pub fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }
}

impl Entropy for Chance {
    fn word(&self) -> u64 {
        Self::word(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_depends_on_seed_and_concern_and_on_nothing_else() {
        let draw = |chance: &Chance| (0..4).map(|_| chance.word()).collect::<Vec<_>>();
        let first = Chance::of(7, Concern::Disk);
        let other = Chance::of(7, Concern::Net);
        let _ = draw(&other);
        assert_eq!(draw(&first), draw(&Chance::of(7, Concern::Disk)));
        assert_ne!(draw(&Chance::of(7, Concern::Disk)), draw(&Chance::of(7, Concern::Net)));
        assert_ne!(draw(&Chance::of(7, Concern::Disk)), draw(&Chance::of(8, Concern::Disk)));
    }

    #[test]
    fn two_lives_of_one_host_draw_differently() {
        let host = HostId::new(3);
        let word = |life| Chance::of_life(1, Concern::Entropy, host, life).word();
        assert_ne!(word(1), word(2));
        assert_eq!(word(1), word(1));
    }

    #[test]
    fn a_draw_stays_within_its_bounds() {
        let chance = Chance::of(1, Concern::Workload);
        assert!((0..1_000).all(|_| (5..8).contains(&chance.between(5, 8))));
        assert_eq!(chance.below(0), 0);
    }
}
