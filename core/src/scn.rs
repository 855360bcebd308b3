//! The cluster's logical clock.

use core::fmt;
use core::str::FromStr;
use core::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::refusal::{Code, Refusal};
use crate::time::WallMillis;

/// System change number: a hybrid logical clock in one word, milliseconds in the upper 48 bits and a counter in the
/// lower 16, so that a full counter carries into the milliseconds. The node is *not* in it: there is one total order,
/// by construction (the hybrid clock of Kulkarni et al., 2014). Printed as `milliseconds.counter`, which is also how
/// operators type it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scn(u64);

impl Scn {
    /// Below every stamp.
    pub const ZERO: Self = Self(0);

    /// Wraps the bare word.
    pub const fn new(word: u64) -> Self {
        Self(word)
    }

    /// The first SCN of a millisecond.
    pub const fn at(wall: WallMillis) -> Self {
        Self(wall.get() << 16)
    }

    /// The bare word.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The millisecond that this SCN falls in.
    pub const fn millis(self) -> u64 {
        self.0 >> 16
    }

    /// The SCN right above this one. Saturates at the end of the clock, where [`ScnClock::stamp`] refuses.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Scn {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.0 >> 16, self.0 & 0xFFFF)
    }
}

impl FromStr for Scn {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (millis, counter) = text.split_once('.').ok_or(())?;
        let millis: u64 = millis.parse().map_err(|_| ())?;
        let counter: u16 = counter.parse().map_err(|_| ())?;
        if millis >> 48 != 0 {
            return Err(());
        }
        Ok(Self(millis << 16 | u64::from(counter)))
    }
}

impl Serialize for Scn {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        if out.is_human_readable() { out.collect_str(self) } else { self.0.serialize(out) }
    }
}

impl<'de> Deserialize<'de> for Scn {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        if input.is_human_readable() {
            let text = alloc::string::String::deserialize(input)?;
            text.parse().map_err(|()| serde::de::Error::custom(alloc::format!("`{text}` is no SCN")))
        } else {
            u64::deserialize(input).map(Self)
        }
    }
}

/// One node's view of the cluster's clock. Stamping and WAL insertion share one lock, so stamps never fall within a
/// thread. A stamp may only be used while it is at or below the durable ceiling: after a restart the clock starts above
/// the ceiling that the node reserved, so it never issues a stamp twice, whatever its wall clock says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ScnClock {
    last: Scn,
    ceiling: Scn,
    offset_ms: u64,
    drift_max: Duration,
}

impl ScnClock {
    /// How far ahead of its wall clock a node reserves, so that one write of its control file serves many stamps.
    pub const RESERVE: Duration = Duration::from_secs(10);

    /// A clock that starts above `floor`, the highest SCN that this node or its history may have used. It issues
    /// nothing until [`ScnClock::reserved`] has raised the ceiling. `offset_ms` is what the incarnation adds to wall time.
    pub fn above(floor: Scn, offset_ms: u64, drift_max: Duration) -> Self {
        Self { last: floor, ceiling: floor, offset_ms, drift_max }
    }

    /// The highest SCN that was issued or observed.
    pub fn last(&self) -> Scn {
        self.last
    }

    /// The SCN up to which stamps may be issued before the next reservation.
    pub fn ceiling(&self) -> Scn {
        self.ceiling
    }

    /// The ceiling to make durable next, seen from the wall clock's `wall`.
    pub fn ceiling_wanted(&self, wall: WallMillis) -> Scn {
        let reserve_ms = u64::try_from(Self::RESERVE.as_millis()).unwrap_or(u64::MAX);
        let ahead = self.base(wall).max(self.last).millis().saturating_add(reserve_ms);
        Scn::at(WallMillis::new(ahead.min((1 << 48) - 1))).max(self.ceiling)
    }

    /// Whether less than half of the reserve is left.
    pub fn is_short(&self, wall: WallMillis) -> bool {
        let half = u64::try_from(Self::RESERVE.as_millis() / 2).unwrap_or(u64::MAX);
        self.ceiling.millis() < self.base(wall).max(self.last).millis().saturating_add(half)
    }

    /// Records that `ceiling` is durable.
    pub fn reserved(&mut self, ceiling: Scn) {
        self.ceiling = self.ceiling.max(ceiling);
    }

    /// Issues the next stamp: the greater of wall time and the last SCN plus one.
    ///
    /// # Errors
    /// `SA110` if it would lie above the durable ceiling.
    pub fn stamp(&mut self, wall: WallMillis) -> Result<Scn, Refusal> {
        let stamp = self.base(wall).max(self.last.next());
        if stamp > self.ceiling || stamp == self.last {
            return Err(Refusal::new(
                Code::ClockUnreserved,
                alloc::format!("SCN {stamp} lies above the reserved ceiling {}", self.ceiling),
            ));
        }
        self.last = stamp;
        Ok(stamp)
    }

    /// Takes note of an SCN from a message that has been verified. The next stamp lies above it.
    ///
    /// # Errors
    /// `SA109` if it is further ahead of this node's wall clock than the drift bound: a damaged frame or a mad clock
    /// must not push the cluster's clock away.
    pub fn observe(&mut self, seen: Scn, wall: WallMillis) -> Result<(), Refusal> {
        let bound_ms =
            self.base(wall).millis().saturating_add(u64::try_from(self.drift_max.as_millis()).unwrap_or(u64::MAX));
        if seen > self.last && seen.millis() > bound_ms {
            return Err(Refusal::new(
                Code::ClockDrift,
                alloc::format!(
                    "SCN {seen} is more than {} ms ahead of this node's clock at {}",
                    self.drift_max.as_millis(),
                    self.base(wall)
                ),
            ));
        }
        self.last = self.last.max(seen);
        Ok(())
    }

    fn base(&self, wall: WallMillis) -> Scn {
        Scn::at(WallMillis::new(wall.get().saturating_add(self.offset_ms).min((1 << 48) - 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    const DRIFT: Duration = Duration::from_secs(5);

    fn clock() -> ScnClock {
        let mut clock = ScnClock::above(Scn::new(7), 0, DRIFT);
        let ceiling = clock.ceiling_wanted(WallMillis::new(1_000));
        clock.reserved(ceiling);
        clock
    }

    #[test]
    fn an_scn_reads_back_as_it_is_printed() {
        for word in [0, 65_535, 65_536, u64::MAX] {
            assert_eq!(Scn::new(word).to_string().parse(), Ok(Scn::new(word)));
        }
        assert_eq!("281474976710656.0".parse::<Scn>(), Err(()));
    }

    #[test]
    fn stamps_rise_while_the_wall_clock_stands_or_falls() {
        let mut clock = clock();
        let mut last = Scn::ZERO;
        for wall in [1_000, 1_000, 900, 1_001, 0] {
            let stamp = clock.stamp(WallMillis::new(wall)).unwrap();
            assert!(stamp > last, "{stamp} after {last}");
            last = stamp;
        }
    }

    #[test]
    fn a_full_counter_carries_into_the_milliseconds() {
        let mut clock = clock();
        let wall = WallMillis::new(1_000);
        let stamps = (0..70_000).map(|_| clock.stamp(wall).unwrap()).last().unwrap();
        assert_eq!(stamps.millis(), 1_001);
    }

    #[test]
    fn the_stamp_after_an_observed_scn_lies_above_it() {
        let mut clock = clock();
        let seen = Scn::at(WallMillis::new(3_000));
        clock.observe(seen, WallMillis::new(1_000)).unwrap();
        assert!(clock.stamp(WallMillis::new(1_000)).unwrap() > seen);
    }

    #[test]
    fn an_scn_beyond_the_drift_bound_changes_nothing() {
        let mut clock = clock();
        let before = clock.clone();
        let mad = Scn::at(WallMillis::new(1_000 + 5_001));
        assert_eq!(clock.observe(mad, WallMillis::new(1_000)).unwrap_err().code, Code::ClockDrift);
        assert_eq!(clock, before);
    }

    #[test]
    fn nothing_is_stamped_above_the_ceiling() {
        let mut clock = clock();
        assert_eq!(clock.stamp(WallMillis::new(1_000 + 10_001)).unwrap_err().code, Code::ClockUnreserved);
        assert!(clock.is_short(WallMillis::new(1_000 + 9_000)));
    }
}
