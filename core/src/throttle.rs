//! How fast a backup may read, or a restore put files in place. Nothing is saved up: whoever was idle reads no faster afterwards.

use alloc::format;
use alloc::string::String;
use core::fmt;
use core::num::NonZeroU64;
use core::str::FromStr;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::identity::ByteCount;
use crate::time::Moment;

const NANOS_IN_A_SECOND: u128 = 1_000_000_000;

/// Units of a rate, and the bytes in each.
const UNITS: [(&str, u64); 7] = [
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("B", 1),
];

/// Bytes per second, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rate(NonZeroU64);

impl Rate {
    /// So many bytes per second; none if that is zero.
    pub fn new(bytes_per_second: u64) -> Option<Self> {
        NonZeroU64::new(bytes_per_second).map(Self)
    }

    /// Bytes per second.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// How long `bytes` take.
    pub fn time_for(self, bytes: ByteCount) -> Duration {
        let nanos = u128::from(bytes.get()).saturating_mul(NANOS_IN_A_SECOND).div_ceil(u128::from(self.get()));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}B/s", self.get())
    }
}

/// As operators write it: `50MB/s`, `800KiB/s`; the `/s` may be missing, the unit may not.
impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{}` is no rate such as `50MB/s` or `800KiB/s`", text.escape_debug());
        let amount = text.strip_suffix("/s").unwrap_or(text);
        let (number, unit) =
            UNITS.iter().find_map(|(unit, bytes)| Some((amount.strip_suffix(unit)?, *bytes))).ok_or_else(bad)?;
        let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let number: u64 = number.parse().ok().filter(|_| plain).ok_or_else(bad)?;
        number.checked_mul(unit).and_then(Self::new).ok_or_else(bad)
    }
}

/// Tells whoever reads how long to wait first, so that at any moment no more was read than the rate allows since it began.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Throttle {
    rate: Rate,
    /// When all that was asked for so far has been paid for.
    paid: Moment,
}

impl Throttle {
    /// One that lets `rate` through.
    pub fn new(rate: Rate) -> Self {
        Self { rate, paid: Moment::default() }
    }

    /// Lets another rate through, for what is asked for from now on. What was asked for before is still paid for.
    pub fn change(&mut self, rate: Rate) {
        self.rate = rate;
    }

    /// How long to wait before `bytes` are read. Those who ask are served in turn.
    pub fn turn(&mut self, now: Moment, bytes: ByteCount) -> Duration {
        self.paid = self.paid.max(now).after(self.rate.time_for(bytes));
        self.paid.since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn a_rate_is_read_as_operators_write_it_and_nothing_else_is() {
        for (text, bytes) in
            [("50MB/s", 50_000_000), ("1GiB", 1 << 30), ("800KiB/s", 800 << 10), ("7B/s", 7), ("3kB", 3_000)]
        {
            assert_eq!(text.parse::<Rate>().map(Rate::get), Ok(bytes), "{text}");
        }
        for text in ["", "0MB/s", "0", "50", "MB/s", "-1MB/s", "+1MB/s", "1.5MB/s", "50 MB/s", "50mb/s", "50MB/m"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
        assert!("99999999999GB/s".parse::<Rate>().is_err(), "more than can be counted");
    }

    #[test]
    fn at_no_moment_was_more_read_than_the_rate_allows() {
        let rate = Rate::new(1_000_000).unwrap();
        let (mut throttle, mut read, mut late) = (Throttle::new(rate), 0, ms(0));
        // Three who ask at once, then one by one, each before the last is served.
        for (asked, bytes) in [(0, 300_000), (0, 1), (0, 699_999), (700, 500_000), (1_400, 100_000), (1_450, 1_000_000)]
        {
            let served = ms(asked).after(throttle.turn(ms(asked), ByteCount::new(bytes)));
            read += bytes;
            assert!(served >= late, "in turn");
            assert!(u128::from(served.nanos()) >= u128::from(read) * 1_000, "{read} bytes at {served}");
            late = served;
        }
        assert_eq!(late, ms(2_600), "and no less than that");
    }

    #[test]
    fn a_rate_that_is_told_again_forgives_nothing() {
        let mut throttle = Throttle::new(Rate::new(1_000).unwrap());
        throttle.turn(ms(0), ByteCount::new(3_000));
        throttle.change(Rate::new(1_000).unwrap());
        assert_eq!(throttle.turn(ms(1_000), ByteCount::new(500)), Duration::from_millis(2_500));
        throttle.change(Rate::new(10_000).unwrap());
        assert_eq!(throttle.turn(ms(1_000), ByteCount::new(5_000)), Duration::from_secs(3));
    }

    #[test]
    fn nothing_is_saved_up_while_nobody_reads() {
        let mut throttle = Throttle::new(Rate::new(1_000).unwrap());
        assert_eq!(throttle.turn(ms(0), ByteCount::new(500)), Duration::from_millis(500));
        assert_eq!(throttle.turn(ms(60_000), ByteCount::new(2_000)), Duration::from_secs(2));
        // Whatever is asked for, time does not wrap.
        throttle.turn(ms(60_000), ByteCount::new(u64::MAX));
        assert!(throttle.turn(ms(60_000), ByteCount::new(u64::MAX)) > Duration::from_hours(24));
    }
}
