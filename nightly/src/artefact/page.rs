//! `timeline.html`: the drawing and all that belongs to it, in one page that needs no network.

use std::collections::BTreeMap;

use sheetanchor_sim::disk::FileView;
use sheetanchor_sim::recording::{CrashView, FileFate};

use super::board::{self, Board};
use super::drawing::{Window, escaped, svg};
use super::nearest::Difference;
use super::{Recorded, judged};

/// The window that is shown first: the end of the run.
const LAST_MICROS: u64 = 1_500_000;

const LEGEND: [(&str, &str); 15] = [
    ("bar backup", "phase of a backup"),
    ("bar point", "phase of a restore point"),
    ("bar restore", "phase of a restore"),
    ("bar fence", "fence closed"),
    ("bar down", "host down"),
    ("message", "message, from its sending to its arrival"),
    ("message lost", "message that never arrived"),
    ("mark sync", "fsync"),
    ("mark sync-failed", "fsync that failed"),
    ("mark crash", "crash"),
    ("mark restart", "start or restart"),
    ("mark fault", "another fault of the world"),
    ("mark alarm", "refusal, expiry, end"),
    ("mark note", "milestone"),
    ("cut", "cut: every node had drained"),
];

/// The page of a run.
pub fn render(run: &Recorded, difference: Option<&Difference>) -> String {
    let board = board::of(&run.recording);
    let (invariant, detail, judge) = judged(&run.report.verdict);
    let window = Window { from: board.end.saturating_sub(LAST_MICROS), until: (board.end + 10_000).max(1) };
    let case = &run.case;
    let failed = if run.report.verdict.is_ok() { "passed" } else { "failed" };
    let planted = case.planted.as_deref().map_or_else(String::new, |bug| format!(" · planted <b>{}</b>", escaped(bug)));
    let head = format!(
        "<header><h1 class=\"{failed}\">{}</h1><p class=\"detail\">{}</p><p>{} · seed <b>{}</b> on {}{planted} · judged by {} · trace {} · {} events · commit {}</p></header>",
        escaped(&invariant),
        escaped(&detail),
        escaped(&case.story),
        case.seed,
        escaped(&case.backend),
        escaped(judge),
        escaped(&run.report.trace_hash),
        run.report.events,
        escaped(case.commit.as_deref().unwrap_or("unknown")),
    );
    let body = [
        head,
        controls(&board, window),
        format!(
            "<div id=\"stage\">{}</div><p id=\"hover\">Hover over anything to read it here. Wheel: zoom. Drag: move.</p>",
            svg(&board, window)
        ),
        legend(),
        disks(&run.recording.crashes),
        parting(difference),
    ];
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{} seed {}</title>\n<style>\n{}</style></head>\n<body>\n{}\n<script>\n{}</script></body></html>\n",
        escaped(&case.story),
        case.seed,
        include_str!("page.css"),
        body.join("\n"),
        include_str!("page.js"),
    )
}

fn button(label: &str, from: u64, until: u64) -> String {
    format!("<button data-from=\"{from}\" data-until=\"{until}\">{}</button>", escaped(label))
}

fn controls(board: &Board, window: Window) -> String {
    let around = |at: u64| (at.saturating_sub(40_000), at + 40_000);
    let mut buttons = vec![
        button("whole run", 0, window.until),
        button("last 1500 ms", window.from, window.until),
        button("last 200 ms", board.end.saturating_sub(200_000), window.until),
    ];
    for (number, cut) in (1..).zip(&board.cuts) {
        let (from, until) = around(cut.at);
        buttons.push(button(&format!("cut {number}"), from, until));
    }
    let marks = board.lanes.iter().flat_map(|lane| lane.marks.iter().map(move |mark| (mark, &lane.name)));
    let mut crashed: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for (mark, name) in marks.filter(|(mark, _)| mark.kind == "crash") {
        crashed.entry(mark.at).or_default().push(name);
    }
    for (at, mut names) in crashed {
        names.dedup();
        let (from, until) = around(at);
        buttons.push(button(&format!("crash of {} at {} ms", names.join(", "), at / 1_000), from, until));
    }
    let mut ports: Vec<&str> = board.messages.iter().map(|message| message.port.as_str()).collect();
    ports.sort_unstable();
    ports.dedup();
    let check = |kind: &str, label: &str| {
        format!("<label><input type=\"checkbox\" checked data-kind=\"{}\"> {}</label>", escaped(kind), escaped(label))
    };
    let mut checks: Vec<String> =
        ports.iter().map(|port| check(&format!("p{port}"), &format!("messages on :{port}"))).collect();
    checks.extend([("sync", "fsyncs"), ("note", "milestones")].map(|(kind, label)| check(kind, label)));
    format!("<nav>{}<span class=\"checks\">{}</span></nav>", buttons.join(""), checks.join(" "))
}

fn legend() -> String {
    let entry = |(class, words): &(&str, &str)| {
        let shape = match class.split(' ').next() {
            Some("bar") => format!("<rect class=\"{class}\" x=\"1\" y=\"3\" width=\"22\" height=\"10\"/>"),
            Some("message" | "cut") => format!("<line class=\"{class}\" x1=\"1\" y1=\"13\" x2=\"23\" y2=\"3\"/>"),
            _ => {
                let shape = match *class {
                    "mark sync" | "mark sync-failed" => "<path d=\"M0 -4V4\"/>",
                    "mark crash" => "<path d=\"M-6 -6L6 6M-6 6L6 -6\"/>",
                    "mark restart" => "<path d=\"M-4 -5L5 0L-4 5z\"/>",
                    "mark fault" => "<path d=\"M0 -6L6 5H-6z\"/>",
                    "mark alarm" => "<rect x=\"-4\" y=\"-4\" width=\"8\" height=\"8\"/>",
                    _ => "<circle r=\"3\"/>",
                };
                format!("<g class=\"{class}\" transform=\"translate(12 8)\">{shape}</g>")
            }
        };
        format!("<span><svg width=\"24\" height=\"16\">{shape}</svg>{words}</span>")
    };
    format!("<p class=\"legend\">{}</p>", LEGEND.iter().map(entry).collect::<String>())
}

/// What each crash left, the last one open. Those that had nothing to take are only counted.
fn disks(all: &[CrashView]) -> String {
    let crashes: Vec<&CrashView> = all.iter().filter(|crash| !crash.files.is_empty()).collect();
    let harmless = all.len() - crashes.len();
    let last = crashes.len().saturating_sub(1);
    let one = |(place, crash): (usize, &CrashView)| {
        let open = if place == last { " open" } else { "" };
        let rows: Vec<String> = crash.files.iter().map(row).collect();
        format!(
            "<details{open}><summary>{} at {} by <b>{}</b>: {} files touched, {} others settled</summary>\
             <table><tr><th>file</th><th>before</th><th>after</th></tr>{}</table></details>",
            escaped(&crash.host),
            super::messages::clock(board::micros(crash.at)),
            crash.policy.word(),
            crash.files.len(),
            crash.untouched,
            rows.join(""),
        )
    };
    let shown: Vec<String> = crashes.into_iter().enumerate().map(one).collect();
    format!(
        "<section><h2>What the disks held before and after each crash</h2>{}<p>{harmless} stops of a host met no file with anything unsynced.</p></section>",
        shown.join("\n")
    )
}

fn row(fate: &FileFate) -> String {
    let before = fate.before.as_ref().map_or_else(|| "not there".into(), view);
    let after = fate.after.as_ref().map_or_else(|| "gone".into(), view);
    let class = match (&fate.before, &fate.after) {
        (Some(before), Some(after)) if before.seen_bytes == after.seen_bytes => "",
        _ => " class=\"changed\"",
    };
    format!("<tr{class}><td>{}</td><td>{before}</td><td>{after}</td></tr>", escaped(fate.path()))
}

fn view(view: &FileView) -> String {
    let read = view.seen_bytes.map_or_else(|| "removed, unsynced".into(), |bytes| format!("{bytes} B read"));
    let name = if view.name_durable { "" } else { ", <i>name unsynced</i>" };
    let unsynced =
        if view.unsynced_bytes > 0 { format!(", <i>{} B unsynced</i>", view.unsynced_bytes) } else { String::new() };
    format!("{read}, {} B durable{unsynced}{name}", view.durable_bytes)
}

fn parting(difference: Option<&Difference>) -> String {
    let Some(difference) = difference else {
        return "<section><h2>The nearest run that passes</h2><p>None was found that differs.</p></section>".into();
    };
    let same = difference.common.min(4);
    let column = |side: &[String]| {
        let line = |(place, text): (usize, &String)| {
            let class = if place < same { "same" } else { "differs" };
            format!("<span class=\"{class}\">{}</span>", escaped(text))
        };
        side.iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
    };
    format!(
        "<section><h2>Where it parts from the nearest run that passes</h2><p>{}: {} are the same before this.</p>\
         <div class=\"sides\"><div><h3>this run</h3><pre>{}</pre></div><div><h3>the run that passes</h3><pre>{}</pre></div></div></section>",
        escaped(&difference.other),
        difference.common,
        column(&difference.ours),
        column(&difference.theirs),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artefact::sample;
    use sheetanchor_scenarios::Report;

    #[test]
    fn the_page_needs_no_network_and_escapes_what_it_shows() {
        let (case, recording) = sample::run();
        let report = Report {
            plan: sheetanchor_sim::plan::Plan::peaceful(),
            unstruck: 0,
            passes: std::collections::BTreeMap::new(),
            verdict: Ok(()),
            trace_hash: "0123456789abcdef".into(),
            events: 22,
            elapsed: std::time::Duration::from_millis(20),
            timeline: String::new(),
            last_events: String::new(),
        };
        let difference =
            Difference { other: "seed 8".into(), common: 1, ours: vec!["a".into(), "<b>".into()], theirs: vec![] };
        let page = render(&Recorded { case, report, recording }, Some(&difference));
        let fetches = ["src=", "href=", "url(http", "@import", "fetch("];
        assert!(fetches.iter().all(|word| !page.contains(word)), "it loads something");
        assert!(page.replace("http://www.w3.org/2000/svg", "").find("http").is_none(), "it names another site");
        assert!(page.contains("&lt;b&gt;") && page.contains("address=&lt;n1&gt;"));
        assert!(page.contains("900 B read, 512 B durable, <i>388 B unsynced</i>"));
        assert!(page.contains("7 B read, 0 B durable, <i>7 B unsynced</i>, <i>name unsynced</i></td><td>gone"));
    }
}
