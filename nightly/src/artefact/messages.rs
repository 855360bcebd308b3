//! Messages of a run: what left one host, and when it had arrived at another.

use std::collections::BTreeMap;

use sheetanchor_sim::recording::Recording;
use sheetanchor_sim::trace::{Detail, Event};

use super::board::{Micros, micros};

/// One message, as far as bytes that leave together are one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The lane that it leaves.
    pub from: usize,
    /// The lane that it was meant for, if its connection has another end.
    pub to: Option<usize>,
    /// When it left.
    pub sent: Micros,
    /// When all of it had arrived; `None`: it never did.
    pub arrived: Option<Micros>,
    /// Of which address the connection is: the port says what is spoken.
    pub port: String,
    /// What hovering shows.
    pub detail: String,
}

/// One direction of one connection.
#[derive(Default)]
struct Direction<'a> {
    /// Until which byte, and the event.
    sent: Vec<(u64, &'a Event)>,
    received: Vec<(u64, &'a Event)>,
}

/// All messages, in the order of their sending.
pub fn of(recording: &Recording, lane_of: &[usize]) -> Vec<Message> {
    let mut directions: BTreeMap<(u64, bool), Direction<'_>> = BTreeMap::new();
    for event in &recording.events {
        let Detail::Pass { outcome, flow: Some(flow), .. } = &event.detail else { continue };
        let direction = directions.entry((flow.link, flow.forth)).or_default();
        let side = if outcome.is_none() { &mut direction.sent } else { &mut direction.received };
        side.push((flow.until, event));
    }
    let lane = |event: &Event| event.host.and_then(|host| lane_of.get(usize::from(host.number()))).copied();
    let mut messages = Vec::new();
    for ((link, forth), direction) in &directions {
        // The other end is known from whatever it has said or heard.
        let back = directions.get(&(*link, !forth));
        let other = direction.received.first().or(back.and_then(|back| back.sent.first()));
        let to = other.and_then(|(_, event)| lane(event));
        for (until, event) in &direction.sent {
            let Some(from) = lane(event) else { continue };
            let place = direction.received.partition_point(|(received, _)| received < until);
            let arrival = direction.received.get(place).map(|(_, event)| *event);
            let arrived = match arrival {
                Some(arrival) => format!("arrived {}", clock(micros(arrival.at))),
                None => "never arrived".into(),
            };
            let words = event.what.split_once(' ').map_or("", |(_, words)| words);
            let detail = format!(
                "{words} bytes, sent {}, {arrived} · event {}, connection {link}",
                clock(micros(event.at)),
                event.number
            );
            let port = port(&event.what);
            let arrived = arrival.map(|arrival| micros(arrival.at));
            messages.push((event.number, Message { from, to, sent: micros(event.at), arrived, port, detail }));
        }
    }
    messages.sort_by_key(|(number, _)| *number);
    messages.into_iter().map(|(_, message)| message).collect()
}

/// Seconds and milliseconds, as in the timeline.
pub fn clock(at: Micros) -> String {
    format!("{}.{:06}", at / 1_000_000, at % 1_000_000)
}

/// The port in `12 send to n1:7000 40`.
fn port(what: &str) -> String {
    let address = what.split(' ').find(|word| word.contains(':')).unwrap_or_default();
    address.rsplit(':').next().unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artefact::sample;

    #[test]
    fn a_message_arrives_when_its_last_byte_does_or_never() {
        let messages = of(&sample::run().1, &[1, 2, 0]);
        let told: Vec<_> =
            messages.iter().map(|message| (message.from, message.to, message.sent, message.arrived)).collect();
        let expected = [(0, Some(1), 3_000, Some(6_000)), (0, Some(1), 3_000, None), (1, Some(0), 7_000, Some(9_000))];
        assert_eq!(told, expected);
        assert!(messages.iter().all(|message| message.port == "7000"));
    }
}
