//! How fast something gets on, and how long the rest of it takes, from what was seen of it lately; and how that is written.

use std::collections::VecDeque;
use std::time::Duration;

/// What was seen longer ago says nothing about now.
const WINDOW: Duration = Duration::from_secs(10);

/// Less than this says nothing yet.
const LEAST: Duration = Duration::from_secs(2);

/// What is seen within this counts once.
const APART: Duration = Duration::from_millis(100);

/// A longer time than this is no estimate.
const LEFT_MAX: Duration = Duration::from_hours(24 * 100);

const UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// What was seen lately of something that goes on: when, and how many bytes were done by then.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    seen: VecDeque<(Duration, u64)>,
}

impl Pace {
    /// So many bytes were done at `now`, which is counted from any beginning.
    pub fn see(&mut self, now: Duration, done: u64) {
        // It was begun anew, or has not begun: what it waits for says nothing about its pace.
        if done == 0 || self.seen.back().is_some_and(|(_, last)| done < *last) {
            self.seen.clear();
        }
        let before = self.seen.len().checked_sub(2).and_then(|place| self.seen.get(place));
        if before.is_some_and(|(at, _)| now.saturating_sub(*at) < APART) {
            self.seen.pop_back();
        }
        self.seen.push_back((now, done));
        while self.seen.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= WINDOW) {
            self.seen.pop_front();
        }
    }

    /// Bytes per second; nothing until that can be said.
    pub fn rate(&self) -> Option<u64> {
        let ((from, before), (until, after)) = self.seen.front().zip(self.seen.back())?;
        let took = until.saturating_sub(*from);
        if took < LEAST {
            return None;
        }
        let rate =
            u128::from(after.saturating_sub(*before)).saturating_mul(1_000_000_000).checked_div(took.as_nanos())?;
        u64::try_from(rate).ok()
    }

    /// How long the rest of `total` bytes takes at that rate; nothing until that can be said.
    pub fn left(&self, total: u64) -> Option<Duration> {
        let rest = total.checked_sub(self.seen.back()?.1)?;
        let seconds = u128::from(rest).checked_add(u128::from(self.rate()?).checked_sub(1)?)?;
        let left = Duration::from_secs(u64::try_from(seconds.checked_div(u128::from(self.rate()?))?).ok()?);
        (left <= LEFT_MAX).then_some(left)
    }
}

/// Bytes of bytes, in the unit of the latter: `0.31/4.00 GiB`.
pub fn share(done: u64, total: u64) -> String {
    let (unit, size) = unit_of(total);
    let places = places_of(total, size);
    format!("{}/{} {unit}", in_units(done, size, places), in_units(total, size, places))
}

/// Bytes per second: `85.31 MiB/s`.
pub fn per_second(rate: u64) -> String {
    let (unit, size) = unit_of(rate);
    format!("{} {unit}/s", in_units(rate, size, places_of(rate, size)))
}

/// A time to come: `0:35`, `1:02:33`, `3 d 4 h`.
pub fn span(left: Duration) -> String {
    let seconds = left.as_secs();
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match hours {
        0 => format!("{minutes}:{:02}", seconds % 60),
        1..24 => format!("{hours}:{:02}:{:02}", minutes % 60, seconds % 60),
        24.. => format!("{} d {} h", hours / 24, hours % 24),
    }
}

fn unit_of(bytes: u64) -> (&'static str, u64) {
    UNITS.into_iter().find(|(_, size)| bytes >= *size).unwrap_or(("B", 1))
}

/// How many decimal places say something.
fn places_of(bytes: u64, size: u64) -> usize {
    match bytes / size {
        _ if size == 1 => 0,
        0..100 => 2,
        100.. => 1,
    }
}

fn in_units(bytes: u64, size: u64, places: usize) -> String {
    let (whole, hundredths) = (bytes / size, u128::from(bytes % size) * 100 / u128::from(size));
    match places {
        0 => whole.to_string(),
        1 => format!("{whole}.{}", hundredths / 10),
        _ => format!("{whole}.{hundredths:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_estimate_is_of_the_last_ten_seconds_and_waits_until_it_can_be_made() {
        let mut pace = Pace::default();
        assert_eq!((pace.rate(), pace.left(100)), (None, None));
        // A start that races through what is there already.
        pace.see(Duration::ZERO, 0);
        pace.see(SECOND, 50_000);
        assert_eq!((pace.rate(), pace.left(60_000)), (None, None), "too short");
        pace.see(2 * SECOND, 50_100);
        assert_eq!(pace.rate(), Some(25_050));
        for second in 3..=30 {
            pace.see(second * SECOND, 49_900 + 100 * u64::from(second));
        }
        assert_eq!(pace.rate(), Some(100), "what was long ago is forgotten");
        assert_eq!(pace.left(52_900 + 3_601), Some(Duration::from_secs(37)), "rounded up");
        assert_eq!(pace.left(52_900), Some(Duration::ZERO));
        assert_eq!(pace.left(1), None, "more than all is done");
        assert_eq!(pace.left(u64::MAX), None, "a hundred days are no estimate");
        // A node that restarted begins anew.
        pace.see(31 * SECOND, 10);
        assert_eq!((pace.rate(), pace.left(60_000)), (None, None));
        // One that stands still never ends.
        pace.see(41 * SECOND, 10);
        assert_eq!((pace.rate(), pace.left(60_000)), (Some(0), None));
    }

    #[test]
    fn however_often_it_is_told_little_is_kept() {
        let mut pace = Pace::default();
        for millis in 0..60_000 {
            pace.see(Duration::from_millis(millis), millis * 7);
        }
        assert_eq!(pace.rate(), Some(7_000));
        assert!(pace.seen.len() <= 110, "{}", pace.seen.len());
    }

    #[test]
    fn amounts_and_times_are_short() {
        assert_eq!(share(0, 7), "0/7 B");
        assert_eq!(share(333_000_000, 4 << 30), "0.31/4.00 GiB");
        assert_eq!(share((123 << 20) + (1 << 19), (1 << 30) - 1), "123.5/1023.9 MiB");
        assert_eq!(share(96 << 20, 246 << 20), "96.0/246.0 MiB");
        assert_eq!(share(u64::MAX, u64::MAX), "16777215.9/16777215.9 TiB");
        assert_eq!(per_second(0), "0 B/s");
        assert_eq!(per_second(89_450_000), "85.30 MiB/s");
        assert_eq!([35, 59 * 60 + 5].map(|left| span(Duration::from_secs(left))), ["0:35", "59:05"]);
        assert_eq!([3_753, 86_399].map(|left| span(Duration::from_secs(left))), ["1:02:33", "23:59:59"]);
        assert_eq!(span(Duration::from_secs(76 * 3_600 + 5)), "3 d 4 h");
    }
}
