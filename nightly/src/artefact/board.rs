//! What the timeline shows of a run: lanes, and on them bars, marks, messages and cuts. Nothing here knows about pixels.

use std::collections::BTreeMap;
use std::time::Duration;

use sheetanchor_sim::gate::Kind;
use sheetanchor_sim::recording::Recording;
use sheetanchor_sim::trace::{Detail, Event};

use super::messages::{self, Message};

/// A moment, in microseconds of simulated time.
pub type Micros = u64;

/// One lane: one host, or all operators if there are many.
#[derive(Clone, Debug, Default)]
pub struct Lane {
    /// What stands beside it.
    pub name: String,
    /// Bars that overlap stand in rows of their own.
    pub bars: Vec<Bar>,
    /// Points in time.
    pub marks: Vec<Mark>,
    /// How many rows the bars need.
    pub rows: usize,
}

/// Something that lasts.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What it is: a class of the drawing.
    pub kind: &'static str,
    /// When it begins.
    pub from: Micros,
    /// When it ends.
    pub until: Micros,
    /// What stands in it.
    pub label: String,
    /// What hovering shows.
    pub detail: String,
    /// Which row, from 0.
    pub row: usize,
}

/// Something that happens.
#[derive(Clone, Debug)]
pub struct Mark {
    /// What it is: a class of the drawing.
    pub kind: &'static str,
    /// When.
    pub at: Micros,
    /// What hovering shows.
    pub detail: String,
}

/// A cut: through all lanes.
#[derive(Clone, Debug)]
pub struct Cut {
    /// When every node had drained.
    pub at: Micros,
    /// What it is called.
    pub label: String,
}

/// The whole picture.
#[derive(Clone, Debug, Default)]
pub struct Board {
    /// From top to bottom: operators, clients, nodes.
    pub lanes: Vec<Lane>,
    /// In the order of their sending.
    pub messages: Vec<Message>,
    /// In order.
    pub cuts: Vec<Cut>,
    /// What the world does.
    pub world: Vec<Mark>,
    /// When the run ended.
    pub end: Micros,
}

/// Hosts of one name that differ in their number share a lane if there are more.
const OWN_LANES_MAX: usize = 4;

/// Simulated time in microseconds.
pub fn micros(at: Duration) -> Micros {
    u64::try_from(at.as_micros()).unwrap_or(u64::MAX)
}

/// The picture of a run.
pub fn of(recording: &Recording) -> Board {
    let (names, lane_of) = lanes(&recording.hosts);
    let mut lanes: Vec<Lane> = names.into_iter().map(|name| Lane { name, ..Lane::default() }).collect();
    let end = recording.events.last().map_or(0, |event| micros(event.at));
    let mut telling = Telling::default();
    for event in &recording.events {
        let lane = event.host.and_then(|host| lane_of.get(usize::from(host.number()))).copied();
        telling.hear(event, lane, recording);
    }
    let cuts = telling.end(end);
    for (lane, bar) in telling.bars {
        if let Some(lane) = lanes.get_mut(lane) {
            lane.bars.push(bar);
        }
    }
    for (lane, mark) in telling.marks {
        if let Some(lane) = lanes.get_mut(lane) {
            lane.marks.push(mark);
        }
    }
    lanes.iter_mut().for_each(stack);
    Board { lanes, messages: messages::of(recording, &lane_of), cuts, world: telling.world, end }
}

/// The names of the lanes from top to bottom, and the lane of each host.
fn lanes(hosts: &[String]) -> (Vec<String>, Vec<usize>) {
    let stem = |host: &str| host.trim_end_matches(|letter: char| letter.is_ascii_digit()).to_string();
    let alike = |of: &str| hosts.iter().filter(|host| stem(host) == of).count();
    let lane_name = |host: &String| {
        let stem = stem(host);
        if stem != "n" && alike(&stem) > OWN_LANES_MAX { format!("{stem} 1–{}", alike(&stem)) } else { host.clone() }
    };
    let rank = |name: &str| match stem(name).as_str() {
        "n" => 2,
        stem if stem.starts_with("operator") => 0,
        _ => 1,
    };
    let mut names: Vec<String> = hosts.iter().map(lane_name).collect();
    names.sort_by_key(|name| (rank(name), name.clone()));
    names.dedup();
    let place = |host: &String| {
        let name = lane_name(host);
        names.iter().position(|other| *other == name).unwrap_or_default()
    };
    let lane_of = hosts.iter().map(place).collect();
    (names, lane_of)
}

/// Gives overlapping bars rows of their own; the first row belongs to what is no phase.
fn stack(lane: &mut Lane) {
    lane.bars.sort_by_key(|bar| (bar.from, bar.until));
    let mut busy_until: Vec<Micros> = Vec::new();
    for bar in lane.bars.iter_mut().filter(|bar| bar.kind != "down") {
        let free = busy_until.iter().position(|until| *until <= bar.from);
        bar.row = free.unwrap_or(busy_until.len());
        match busy_until.get_mut(bar.row) {
            Some(until) => *until = bar.until,
            None => busy_until.push(bar.until),
        }
    }
    lane.rows = busy_until.len();
}

/// The value of `key=value` in a milestone.
pub fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// What has begun and not ended while events are told.
#[derive(Default)]
struct Telling {
    bars: Vec<(usize, Bar)>,
    marks: Vec<(usize, Mark)>,
    world: Vec<Mark>,
    /// By lane and operation: the phase it is in.
    phases: BTreeMap<(usize, String), (Micros, String)>,
    /// By lane: since when its fence is closed, and the hold.
    fences: BTreeMap<usize, (Micros, String)>,
    /// By lane: since when its host is down.
    down: BTreeMap<usize, Micros>,
    /// By operation: when all had drained, and what became of it.
    drained: BTreeMap<String, (Micros, Option<String>)>,
}

impl Telling {
    fn hear(&mut self, event: &Event, lane: Option<usize>, recording: &Recording) {
        let at = micros(event.at);
        match (&event.detail, lane) {
            (Detail::Pass { kind: Kind::Sync, outcome: Some(outcome), .. }, Some(lane)) => {
                let kind = if outcome == "done" { "sync" } else { "sync-failed" };
                self.mark(lane, kind, at, event);
            }
            (Detail::Pass { .. }, _) => {}
            (Detail::Milestone, Some(lane)) => self.milestone(at, lane, event),
            (Detail::Milestone, None) => self.world(at, event, recording),
        }
    }

    fn mark(&mut self, lane: usize, kind: &'static str, at: Micros, event: &Event) {
        let detail = format!("{} · event {}", event.what, event.number);
        self.marks.push((lane, Mark { kind, at, detail }));
    }

    fn milestone(&mut self, at: Micros, lane: usize, event: &Event) {
        let text = event.what.as_str();
        if let (true, Some(phase)) = (text.starts_with("phase "), field(text, "phase")) {
            let operation = field(text, "operation").or(field(text, "cluster")).unwrap_or_default().to_string();
            self.phase(at, lane, operation, phase, field(text, "scn"));
            self.mark(lane, "step", at, event);
        } else if text.contains("fence closed") {
            let hold = field(text, "hold").unwrap_or_default().to_string();
            self.fences.entry(lane).or_insert((at, hold));
        } else if text.contains("fence released") || text.contains("fence freed") {
            self.open_fence(lane, at);
            if text.contains("freed") {
                self.mark(lane, "alarm", at, event);
            }
        } else {
            let alarming = ["refused", "expired", "stopped", "ended"].iter().any(|word| text.contains(word));
            self.mark(lane, if alarming { "alarm" } else { "note" }, at, event);
        }
    }

    fn phase(&mut self, at: Micros, lane: usize, operation: String, phase: &str, scn: Option<&str>) {
        if phase == "drained" {
            self.drained.insert(operation.clone(), (at, None));
        }
        if let (Some(scn), Some((_, became))) = (scn, self.drained.get_mut(&operation)) {
            *became = Some(scn.to_string());
        }
        let before = self.phases.insert((lane, operation.clone()), (at, phase.to_string()));
        if let Some((from, phase)) = before {
            self.end_phase(lane, &operation, &phase, from, at);
        }
        if LAST_PHASES.contains(&phase) {
            self.phases.remove(&(lane, operation));
        }
    }

    fn end_phase(&mut self, lane: usize, operation: &str, phase: &str, from: Micros, until: Micros) {
        let kind = match operation.split('-').next() {
            Some("backup") => "backup",
            Some("restore") => "restore",
            _ => "point",
        };
        let detail = format!("{operation}: {phase}, {}", span(from, until));
        self.bars.push((lane, Bar { kind, from, until, label: phase.into(), detail, row: 0 }));
    }

    fn open_fence(&mut self, lane: usize, at: Micros) {
        if let Some((from, hold)) = self.fences.remove(&lane) {
            let detail = format!("fence closed, hold {hold}, {}", span(from, at));
            let bar = Bar { kind: "fence", from, until: at, label: "fence".into(), detail, row: 0 };
            self.bars.push((lane, bar));
        }
    }

    fn world(&mut self, at: Micros, event: &Event, recording: &Recording) {
        let mut words = event.what.split(' ');
        let (verb, host) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (_, lane_of) = lanes(&recording.hosts);
        let number = recording.hosts.iter().position(|name| name == host);
        let lane = number.and_then(|number| lane_of.get(number)).copied();
        let kind = match verb {
            "crash" => "crash",
            "restart" => "restart",
            "start" => "start",
            "hold" | "release" | "full" | "clock" => "fault",
            _ => "note",
        };
        let detail = format!("{} · event {}", event.what, event.number);
        match lane.filter(|_| matches!(kind, "crash" | "restart" | "start")) {
            Some(lane) => {
                match kind {
                    "crash" => self.crash(lane, at),
                    _ => self.up(lane, at),
                }
                self.marks.push((lane, Mark { kind, at, detail }));
            }
            None => self.world.push(Mark { kind, at, detail }),
        }
    }

    fn crash(&mut self, lane: usize, at: Micros) {
        self.open_fence(lane, at);
        let running: Vec<_> = self.phases.extract_if(.., |(of, _), _| *of == lane).collect();
        for ((_, operation), (from, phase)) in running {
            self.end_phase(lane, &operation, &format!("{phase} ✕"), from, at);
        }
        self.down.entry(lane).or_insert(at);
    }

    fn up(&mut self, lane: usize, at: Micros) {
        if let Some(from) = self.down.remove(&lane) {
            let detail = format!("down, {}", span(from, at));
            self.bars.push((lane, Bar { kind: "down", from, until: at, label: "down".into(), detail, row: 0 }));
        }
    }

    /// Ends what still lasts, and answers the cuts.
    fn end(&mut self, end: Micros) -> Vec<Cut> {
        for lane in self.fences.keys().copied().collect::<Vec<_>>() {
            self.open_fence(lane, end);
        }
        for lane in self.down.keys().copied().collect::<Vec<_>>() {
            self.up(lane, end);
        }
        for ((lane, operation), (from, phase)) in core::mem::take(&mut self.phases) {
            self.end_phase(lane, &operation, &phase, from, end);
        }
        let mut cuts: Vec<Cut> = Vec::new();
        for (operation, (at, scn)) in core::mem::take(&mut self.drained) {
            let became = scn.map_or("never published".to_string(), |scn| format!("SCN {scn}"));
            cuts.push(Cut { at, label: format!("cut of {operation}: {became}") });
        }
        cuts.sort_by_key(|cut| cut.at);
        cuts
    }
}

/// Phases after which nothing lasts.
const LAST_PHASES: [&str; 9] =
    ["ended", "published", "sealed", "opened", "aborted", "initialised", "failed", "reachable", "lost"];

fn span(from: Micros, until: Micros) -> String {
    let micros = until.saturating_sub(from);
    format!("{}.{:03} ms", micros / 1_000, micros % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artefact::sample;

    #[test]
    fn a_fence_lasts_until_its_release_or_its_hosts_crash() {
        let board = of(&sample::run().1);
        let names: Vec<&str> = board.lanes.iter().map(|lane| lane.name.as_str()).collect();
        assert_eq!(names, ["operator1", "n1", "n2"]);
        let fence = |lane: usize| {
            let bar = board.lanes[lane].bars.iter().find(|bar| bar.kind == "fence").unwrap();
            (bar.from, bar.until)
        };
        assert_eq!((fence(1), fence(2)), ((6_000, 13_000), (6_000, 12_000)));
        let down = board.lanes[1].bars.iter().find(|bar| bar.kind == "down").unwrap();
        assert_eq!((down.from, down.until), (13_000, 18_000));
        let phases: Vec<_> =
            board.lanes[0].bars.iter().map(|bar| (bar.label.as_str(), bar.from, bar.until, bar.row)).collect();
        assert_eq!(
            phases,
            [("closing", 2_000, 9_000, 0), ("drained", 9_000, 14_000, 0), ("released", 14_000, 15_000, 0)]
        );
        assert_eq!(board.cuts.len(), 1);
        assert_eq!(board.cuts[0].label, "cut of point-1-a: SCN 1700000000009.0");
    }

    #[test]
    fn many_operators_share_a_lane() {
        let hosts: Vec<String> = (1..=6).map(|number| format!("operator{number}")).chain(["n1".into()]).collect();
        let (names, lane_of) = lanes(&hosts);
        assert_eq!(names, ["operator 1–6", "n1"]);
        assert_eq!(lane_of, [0, 0, 0, 0, 0, 0, 1]);
    }
}
