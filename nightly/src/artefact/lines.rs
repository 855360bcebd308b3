//! `trace.jsonl`: every event of a run, one JSON object a line. Documented in `docs/format/trace.md`.

use anyhow::Result;
use serde::Serialize;
use sheetanchor_sim::disk::FileView;
use sheetanchor_sim::recording::{CrashView, Recording};
use sheetanchor_sim::trace::{Detail, Event, Flow};

use crate::case::Case;

/// The version of the format, in the first line.
pub const TRACE_VERSION: u64 = 0;

#[derive(Serialize)]
struct Header<'a> {
    kind: &'static str,
    trace_version: u64,
    story: &'a str,
    seed: u64,
    backend: &'a str,
    planted: Option<&'a str>,
    hosts: &'a [String],
    events: usize,
    trace_hash: Option<&'a str>,
}

#[derive(Serialize)]
struct Line<'a> {
    kind: &'static str,
    number: u64,
    at_ns: u64,
    host: Option<&'a str>,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    way: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
}

#[derive(Serialize)]
struct CrashLine<'a> {
    kind: &'static str,
    after: u64,
    at_ns: u64,
    host: &'a str,
    policy: &'static str,
    files: Vec<FateLine<'a>>,
    untouched: usize,
}

#[derive(Serialize)]
struct FateLine<'a> {
    path: &'a str,
    before: Option<ViewLine>,
    after: Option<ViewLine>,
}

#[derive(Serialize)]
struct ViewLine {
    seen_bytes: Option<u64>,
    durable_bytes: u64,
    unsynced_bytes: u64,
    name_durable: bool,
}

/// The whole file.
pub fn render(case: &Case, recording: &Recording) -> Result<String> {
    let header = Header {
        kind: "run",
        trace_version: TRACE_VERSION,
        story: &case.story,
        seed: case.seed,
        backend: &case.backend,
        planted: case.planted.as_deref(),
        hosts: &recording.hosts,
        events: recording.events.len(),
        trace_hash: case.trace_hash.as_deref(),
    };
    let mut text = serde_json::to_string(&header)? + "\n";
    let mut crashes = recording.crashes.iter().peekable();
    for event in &recording.events {
        while let Some(crash) = crashes.next_if(|crash| crash.event < event.number) {
            text += &(serde_json::to_string(&crash_line(crash))? + "\n");
        }
        text += &(serde_json::to_string(&line(event, recording))? + "\n");
    }
    for crash in crashes {
        text += &(serde_json::to_string(&crash_line(crash))? + "\n");
    }
    Ok(text)
}

fn nanos(at: std::time::Duration) -> u64 {
    u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)
}

fn line<'a>(event: &'a Event, recording: &'a Recording) -> Line<'a> {
    let (kind, operation, outcome, flow) = match &event.detail {
        Detail::Milestone if event.host.is_some() => ("milestone", None, None, None),
        Detail::Milestone => ("world", None, None, None),
        Detail::Pass { kind, outcome, flow } => {
            let word = match (flow, outcome) {
                (Some(_), None) => "send",
                (Some(_), Some(_)) => "receive",
                (None, None) => "before",
                (None, Some(_)) => "after",
            };
            (word, Some(kind.word()), outcome.as_deref(), *flow)
        }
    };
    let way = |flow: Flow| if flow.forth { "forth" } else { "back" };
    Line {
        kind,
        number: event.number,
        at_ns: nanos(event.at),
        host: event.host.and_then(|host| recording.hosts.get(usize::from(host.number()))).map(String::as_str),
        text: &event.what,
        operation,
        outcome,
        link: flow.map(|flow| flow.link),
        way: flow.map(way),
        from: flow.map(|flow| flow.from),
        until: flow.map(|flow| flow.until),
    }
}

fn crash_line(crash: &CrashView) -> CrashLine<'_> {
    let view = |view: &FileView| ViewLine {
        seen_bytes: view.seen_bytes,
        durable_bytes: view.durable_bytes,
        unsynced_bytes: view.unsynced_bytes,
        name_durable: view.name_durable,
    };
    let files = crash.files.iter().map(|fate| FateLine {
        path: fate.path(),
        before: fate.before.as_ref().map(view),
        after: fate.after.as_ref().map(view),
    });
    CrashLine {
        kind: "crash",
        after: crash.event,
        at_ns: nanos(crash.at),
        host: &crash.host,
        policy: crash.policy.word(),
        files: files.collect(),
        untouched: crash.untouched,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artefact::sample;

    #[test]
    fn every_kind_of_line() {
        let (case, recording) = sample::run();
        let text = render(&case, &recording).unwrap();
        sheetanchor_snapshots::assert_snapshot!("artefacts", "v0-trace", text);
    }
}
