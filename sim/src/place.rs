//! Where a fault strikes, said such that it carries over to another backend. The number of a gate pass does not: on another
//! backend other passes lie before it. What carries over is *which* operation of the host it was, told by its kind and its
//! path without what differs from run to run, and which one of those since an operation of the cluster last came to a new
//! phase.

use crate::plan::{Fault, Plan, Since, Trigger};
use crate::recording::Recording;
use crate::trace::{Detail, Event};

/// What an operation is, before its effect or after it: its words without numbers, its path without the parts that only
/// this run has (ids, positions).
pub fn place(what: &str, after: bool) -> String {
    let words =
        what.split(' ').filter(|word| word.contains(|letter: char| letter.is_ascii_alphabetic() || letter == '/'));
    let words: Vec<String> = words.map(|word| if word.contains('/') { path(word) } else { word.into() }).collect();
    format!("{} {}", if after { "after" } else { "before" }, words.join(" "))
}

/// A part of a path that has digits and more than two letters belongs to one run: `wal` and `2` stay, `00000001` does not.
fn path(word: &str) -> String {
    let part = |part: &str| {
        let ours = part.len() > 2 && part.contains(|letter: char| letter.is_ascii_digit());
        if ours { "#".to_string() } else { part.to_string() }
    };
    word.split('/').map(part).collect::<Vec<_>>().join("/")
}

/// The word of a milestone that says which phase an operation of the cluster has reached.
fn phase(what: &str) -> Option<&str> {
    what.split(' ').find(|word| word.starts_with("phase="))
}

/// The plan of a run, told by places instead of pass numbers: the same run again on its own backend, and as near to it as
/// can be on another. Faults whose pass the run never came to are left out.
pub fn portable(plan: &Plan, run: &Recording) -> Plan {
    let carried = |fault: &Fault| {
        let mut fault = fault.clone();
        let at = fault.at_mut();
        if let Trigger::Pass(number) = at.event {
            at.event = place_of(&at.host, number, run)?;
        }
        Some(fault)
    };
    Plan { faults: plan.faults.iter().filter_map(carried).collect() }
}

/// The place of a host's pass of that number, if the run came to it.
fn place_of(host: &str, number: u64, run: &Recording) -> Option<Trigger> {
    let name =
        |event: &Event| event.host.and_then(|id| run.hosts.get(usize::from(id.number()))).map_or("", String::as_str);
    let of_host = |event: &&Event| name(event) == host;
    let end =
        run.events.iter().position(|event| of_host(&event) && pass(event).is_some_and(|(told, _)| told == number))?;
    let (before, struck) = (run.events.get(..end)?, run.events.get(end)?);
    let what = pass(struck)?.1;
    let reached = |event: &&Event| event.host.is_some() && event.detail == Detail::Milestone;
    let anchor = before.iter().rposition(|event| reached(&event) && phase(&event.what).is_some());
    let since = anchor.and_then(|place| before.get(place)).and_then(|event| {
        let words = phase(&event.what)?;
        let same = |other: &&Event| reached(other) && name(other) == name(event) && phase(&other.what) == Some(words);
        let nth = before.iter().filter(same).count();
        Some(Since { host: name(event).into(), words: words.into(), nth: u32::try_from(nth).ok()? })
    });
    let between = before.get(anchor.map_or(0, |place| place + 1)..)?;
    let same = between.iter().filter(of_host).filter_map(pass).filter(|(_, other)| *other == what).count();
    Some(Trigger::Place { what, nth: u32::try_from(same + 1).ok()?, since })
}

/// The number and the place of a pass of the gate; `None` for other events.
fn pass(event: &Event) -> Option<(u64, String)> {
    let Detail::Pass { outcome, .. } = &event.detail else { return None };
    let (number, what) = event.what.split_once(' ')?;
    let what = match outcome {
        Some(outcome) => what.strip_suffix(outcome.as_str())?.trim_end(),
        None => what,
    };
    Some((number.parse().ok()?, place(what, outcome.is_some())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_says_what_every_run_has() {
        assert_eq!(
            place("disk write /shared/db/nodes/2/wal/00000001/000000000000A30A 5268+920", false),
            "before disk write /shared/db/nodes/2/wal/#/#"
        );
        assert_eq!(place("send at n3:7100 25", true), "after send at n3:7100");
        assert_eq!(place("disk rename /a/pins.new /a/pins", false), "before disk rename /a/pins.new /a/pins");
    }
}
