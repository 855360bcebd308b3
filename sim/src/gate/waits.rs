//! Who is in the middle of what: for those who ask why nothing comes.

use std::time::Duration;

use crate::gate::Kind;
use crate::host::HostId;
use crate::trace::{Detail, Event};

/// How many of the last events are looked at.
const EVENTS: usize = 4_000;

/// What a host is at, from the last events of the run if they were kept, else from what it said last. `None`: it was not
/// seen in them.
pub(super) fn of(host: HostId, kept: &[Event], milestones: &[Event]) -> Option<String> {
    if kept.is_empty() {
        let last = milestones.iter().rev().find(|event| event.host == Some(host))?;
        return Some(format!("said last `{}` at {:?}", last.what, last.at));
    }
    let events = kept.iter().skip(kept.len().saturating_sub(EVENTS));
    let mut begun: Vec<(&str, Duration)> = Vec::new();
    let mut last = None;
    for event in events.filter(|event| event.host == Some(host)) {
        let Detail::Pass { kind, outcome, .. } = &event.detail else { continue };
        // After the number of the pass: the operation, and how it ended.
        let what = event.what.split_once(' ').map_or("", |(_, what)| what);
        last = Some((what, event.at));
        match outcome {
            Some(outcome) => {
                let ended = what.strip_suffix(outcome.as_str()).map_or(what, str::trim_end);
                if let Some(place) = begun.iter().position(|(what, _)| *what == ended) {
                    begun.remove(place);
                }
            }
            // What is sent is gone, and has no end of its own.
            None if *kind == Kind::Net && !what.starts_with("connect") => {}
            None => begun.push((what, event.at)),
        }
    }
    match (begun.first(), last) {
        (Some((what, since)), _) => Some(format!("is at `{what}` since {since:?}")),
        (None, Some((what, at))) => Some(format!("rests since `{what}` at {at:?}")),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u64, what: &str, kind: Kind, outcome: Option<&str>) -> Event {
        let detail = Detail::Pass { kind, outcome: outcome.map(Into::into), flow: None };
        let what = format!("{number} {what}{}", outcome.map(|outcome| format!(" {outcome}")).unwrap_or_default());
        Event { number, at: Duration::from_secs(number), host: Some(HostId::new(0)), what, detail }
    }

    #[test]
    fn what_was_begun_and_has_not_ended_is_what_a_host_is_at() {
        let mut events = vec![
            event(1, "disk list /a", Kind::Read, None),
            event(2, "disk sync /b", Kind::Sync, None),
            event(3, "disk list /a", Kind::Read, Some("failed: NotFound")),
            event(4, "send to n2:1 9", Kind::Net, None),
        ];
        let told = |events: &[Event]| of(HostId::new(0), events, &[]);
        assert_eq!(told(&events).unwrap(), "is at `disk sync /b` since 2s");
        events.push(event(5, "disk sync /b", Kind::Sync, Some("done")));
        assert_eq!(told(&events).unwrap(), "rests since `disk sync /b done` at 5s");
        assert_eq!(told(&[]), None);
        let said = Event { detail: Detail::Milestone, ..event(7, "phase=cut", Kind::Net, None) };
        assert_eq!(of(HostId::new(0), &[], &[said]).unwrap(), "said last `7 phase=cut` at 7s");
    }
}
