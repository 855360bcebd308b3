//! What the requests of hosts to the repository meet.

use std::collections::BTreeMap;
use std::time::Duration;

use super::PutTrouble;
use crate::plan::BucketTrouble;

/// The least time between two answers to a host that is throttled.
const THROTTLE: Duration = Duration::from_millis(30);

/// A request to the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Writes an object.
    Put,
    /// Reads of one.
    Get,
    /// Lists, looks, removes.
    Other,
}

/// What is in store for the requests of all hosts.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// By host, in the order in which they were armed: each meets one request.
    once: Vec<(String, BucketTrouble)>,
    /// What a story has said of the next write of a host. It comes before what the plan says.
    puts: BTreeMap<String, PutTrouble>,
    unavailable_until: BTreeMap<String, Duration>,
    /// Until when, and when the next request is answered.
    throttled: BTreeMap<String, (Duration, Duration)>,
}

/// What a request meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestMet {
    /// It is refused, and nothing is done.
    Refused,
    /// It is a read, and breaks off.
    BreaksOff,
    /// It is a write, and meets this.
    Put(PutTrouble),
}

impl Requests {
    pub(super) fn arm(&mut self, host: String, at: Duration, trouble: BucketTrouble) {
        match trouble {
            BucketTrouble::Unavailable { for_ms } => {
                self.unavailable_until.insert(host, at + Duration::from_millis(for_ms));
            }
            BucketTrouble::Throttled { for_ms } => {
                self.throttled.insert(host, (at + Duration::from_millis(for_ms), at));
            }
            BucketTrouble::TimesOutBefore
            | BucketTrouble::TimesOutAfter
            | BucketTrouble::LandsLater
            | BucketTrouble::Echoes
            | BucketTrouble::BreaksOff => self.once.push((host, trouble)),
        }
    }

    pub(super) fn trouble_next_put(&mut self, host: String, trouble: PutTrouble) {
        self.puts.insert(host, trouble);
    }

    pub(super) fn meets(&mut self, host: &str, request: Request, at: Duration) -> Option<RequestMet> {
        if request == Request::Put
            && let Some(trouble) = self.puts.remove(host)
        {
            return Some(RequestMet::Put(trouble));
        }
        if self.unavailable_until.get(host).is_some_and(|until| at < *until) {
            return Some(RequestMet::Refused);
        }
        if let Some((until, next)) = self.throttled.get_mut(host)
            && at < *until
        {
            if at < *next {
                return Some(RequestMet::Refused);
            }
            *next = at + THROTTLE;
        }
        let place = self.once.iter().position(|(whose, trouble)| whose == host && meant_for(*trouble) == request)?;
        Some(match self.once.remove(place).1 {
            BucketTrouble::TimesOutBefore => RequestMet::Put(PutTrouble::TimesOutBefore),
            BucketTrouble::TimesOutAfter => RequestMet::Put(PutTrouble::TimesOutAfter),
            BucketTrouble::LandsLater => RequestMet::Put(PutTrouble::LandsLater),
            BucketTrouble::Echoes => RequestMet::Put(PutTrouble::Echoes),
            BucketTrouble::BreaksOff => RequestMet::BreaksOff,
            BucketTrouble::Unavailable { .. } | BucketTrouble::Throttled { .. } => RequestMet::Refused,
        })
    }
}

fn meant_for(trouble: BucketTrouble) -> Request {
    match trouble {
        BucketTrouble::TimesOutBefore
        | BucketTrouble::TimesOutAfter
        | BucketTrouble::LandsLater
        | BucketTrouble::Echoes => Request::Put,
        BucketTrouble::BreaksOff => Request::Get,
        BucketTrouble::Unavailable { .. } | BucketTrouble::Throttled { .. } => Request::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn trouble_meets_one_request_of_its_host_and_kind() {
        let mut requests = Requests::default();
        requests.arm("n1".into(), ms(0), BucketTrouble::Echoes);
        requests.arm("n1".into(), ms(0), BucketTrouble::BreaksOff);
        let mut meets = |host: &str, request| requests.meets(host, request, ms(1));
        assert_eq!((meets("n2", Request::Put), meets("n1", Request::Other)), (None, None));
        assert_eq!(meets("n1", Request::Put), Some(RequestMet::Put(PutTrouble::Echoes)));
        assert_eq!(meets("n1", Request::Get), Some(RequestMet::BreaksOff));
        assert_eq!((meets("n1", Request::Put), meets("n1", Request::Get)), (None, None));
    }

    #[test]
    fn a_repository_in_trouble_refuses_everything_and_a_throttled_one_what_comes_too_soon() {
        let mut requests = Requests::default();
        requests.arm("n1".into(), ms(0), BucketTrouble::Unavailable { for_ms: 10 });
        requests.arm("n2".into(), ms(0), BucketTrouble::Throttled { for_ms: 100 });
        let mut refused = |host: &str, at| requests.meets(host, Request::Other, ms(at)) == Some(RequestMet::Refused);
        assert_eq!([9, 10].map(|at| refused("n1", at)), [true, false]);
        assert_eq!([5, 34, 35, 64, 65, 100].map(|at| refused("n2", at)), [false, true, false, true, false, false]);
    }
}
