//! The seeds of a budget, some at a time.

use std::time::Instant;

use anyhow::{Result, bail};

use super::Budget;

/// Seeds from a first one on, in batches, until the budget is used up.
#[derive(Debug)]
pub struct Batches {
    first: u64,
    next: u64,
    budget: Budget,
    /// Seeds that are begun before the clock is looked at.
    size: u64,
    started: Instant,
}

impl Batches {
    /// Time runs from here on. Where it does not count, batches are larger: nobody waits for the slowest so often.
    pub fn of(first: u64, budget: Budget, size: u64) -> Self {
        Self { first, next: first, budget, size, started: Instant::now() }
    }

    /// How many seeds were begun, and how many seconds that has taken. To have run none is an error: nothing was shown.
    pub fn done(&self) -> Result<(u64, f64)> {
        match self.next.saturating_sub(self.first) {
            0 => bail!("no seed was run: the budget has room for none, or {} is the last there is", self.first),
            begun => Ok((begun, self.started.elapsed().as_secs_f64())),
        }
    }
}

impl Iterator for Batches {
    type Item = Vec<u64>;

    fn next(&mut self) -> Option<Vec<u64>> {
        let end = match self.budget {
            Budget::Seeds(seeds) => {
                self.first.saturating_add(seeds).min(self.next.saturating_add(self.size.saturating_mul(8)))
            }
            Budget::Time(time) if self.started.elapsed() < time => self.next.saturating_add(self.size),
            Budget::Time(_) => self.next,
        };
        let seeds: Vec<u64> = (self.next..end).collect();
        self.next = end;
        (!seeds.is_empty()).then_some(seeds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_seed_of_a_budget_comes_once_and_none_beyond_the_last() {
        let mut batches = Batches::of(5, Budget::Seeds(20), 1);
        assert_eq!(batches.by_ref().map(|seeds| seeds.len()).collect::<Vec<_>>(), [8, 8, 4]);
        assert_eq!(batches.done().unwrap().0, 20);
        let last: Vec<u64> = Batches::of(u64::MAX - 2, Budget::Seeds(9), 4).flatten().collect();
        assert_eq!(last, [u64::MAX - 2, u64::MAX - 1]);
        let mut none = Batches::of(0, Budget::Time(Duration::ZERO), 4);
        assert!(none.next().is_none() && none.done().is_err());
        assert_eq!(Batches::of(7, Budget::Time(Duration::MAX), 2).next(), Some(vec![7, 8]));
    }
}
