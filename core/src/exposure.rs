//! What a node would lose with its disk, in time: how long ago all of its WAL was in the archive. A bound from what an agent
//! sees in passing, on its own monotonic clock; no record has to carry a time.

use core::time::Duration;

use crate::position::Position;
use crate::time::Moment;

/// When the archive last held all that the database had written. Bounded: of all looks at the database it keeps two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Exposure {
    /// What was written until then is archived.
    whole_at: Option<Moment>,
    /// An earlier look at the end of WAL, which the archive has yet to reach.
    ahead: Option<(Moment, Position)>,
}

impl Exposure {
    /// The database's WAL ended at `end`, and its archive at `archived`.
    pub fn looked(&mut self, now: Moment, end: Position, archived: Position) {
        if reaches(archived, end) {
            *self = Self { whole_at: Some(now), ahead: None };
            return;
        }
        self.archived(archived);
        self.ahead = self.ahead.or(Some((now, end)));
    }

    /// The archive has come to `until`.
    pub fn archived(&mut self, until: Position) {
        if let Some((seen, end)) = self.ahead
            && reaches(until, end)
        {
            *self = Self { whole_at: Some(seen), ahead: None };
        }
    }

    /// How long ago the oldest WAL was written, at most, that is not archived. `None` while nothing is known: the archive has
    /// not caught up since the agent began to look.
    pub fn age(&self, now: Moment) -> Option<Duration> {
        self.whole_at.map(|whole| now.since(whole))
    }
}

/// Whether an archive that ends at `until` holds all before `end`: of a later timeline, it goes on from there.
fn reaches(until: Position, end: Position) -> bool {
    until.thread == end.thread && (until.timeline, until.lsn) >= (end.timeline, end.lsn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{ThreadId, TimelineId};
    use crate::position::Lsn;

    fn at(seconds: u64) -> Moment {
        Moment::default().after(Duration::from_secs(seconds))
    }

    fn place(timeline: u32, lsn: u64) -> Position {
        Position { thread: ThreadId::new(1), timeline: TimelineId::new(timeline), lsn: Lsn::new(lsn) }
    }

    #[test]
    fn what_waits_is_at_most_as_old_as_the_last_moment_when_nothing_waited() {
        let mut exposure = Exposure::default();
        exposure.looked(at(1), place(1, 100), place(1, 40));
        assert_eq!(exposure.age(at(2)), None, "it began behind");
        exposure.archived(place(1, 99));
        assert_eq!(exposure.age(at(2)), None);
        exposure.looked(at(3), place(1, 200), place(1, 99));
        exposure.archived(place(1, 100));
        assert_eq!(exposure.age(at(3)), Some(Duration::from_secs(2)), "what was there at 1 s is archived");
        // It stands still while the database goes on: the age grows, whatever is looked at.
        for second in 4..9 {
            exposure.looked(at(second), place(1, second * 1000), place(1, 100));
            assert_eq!(exposure.age(at(second)), Some(Duration::from_secs(second - 1)));
        }
        // The newest look counts as soon as it is reached.
        exposure.looked(at(9), place(1, 9000), place(1, 9000));
        assert_eq!(exposure.age(at(9)), Some(Duration::ZERO));
        assert_eq!(exposure.age(at(12)), Some(Duration::from_secs(3)));
    }

    #[test]
    fn an_archive_of_a_timeline_that_was_left_does_not_reach_its_follower() {
        let mut exposure = Exposure::default();
        exposure.looked(at(1), place(1, 100), place(1, 100));
        exposure.looked(at(2), place(2, 90), place(1, 100));
        assert_eq!(exposure.age(at(5)), Some(Duration::from_secs(4)));
        exposure.archived(place(2, 90));
        assert_eq!(exposure.age(at(5)), Some(Duration::from_secs(3)));
    }
}
