//! The timeline as SVG: lanes from top to bottom, time from left to right. Every element that stands in time carries it in
//! microseconds as `data-a` and `data-b`, so that the page can move it; without a script the drawing shows the window that it
//! was made for.

use super::board::{Board, Lane, Micros};
use super::messages::clock;

/// Where the lanes begin, in pixels: names stand to the left.
pub const LEFT: u64 = 130;
/// How wide the lanes are.
pub const WIDTH: u64 = 1_400;
const TOP: u64 = 60;
const ROW: u64 = 15;
/// The line of a lane on which marks stand and messages begin and end.
const TRACK: u64 = 26;
const GAP: u64 = 14;

/// A part of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// From its first microsecond.
    pub from: Micros,
    /// Until after its last.
    pub until: Micros,
}

impl Window {
    fn x(self, at: Micros) -> f64 {
        let length = to_f64(self.until.saturating_sub(self.from).max(1));
        let offset = to_f64(at) - to_f64(self.from);
        to_f64(LEFT) + offset / length * to_f64(WIDTH)
    }
}

/// Exact up to 2^32, far above any pixel or microsecond of a run.
fn to_f64(value: u64) -> f64 {
    let (high, low) = (u32::try_from(value >> 32).unwrap_or(u32::MAX), u32::try_from(value & 0xffff_ffff).unwrap_or(0));
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

/// Text that stands between tags or in an attribute.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

struct Drawing {
    text: String,
    window: Window,
    /// The top of each lane, and the line on which things happen.
    tops: Vec<(u64, u64)>,
    bottom: u64,
}

/// Draws the board.
pub fn svg(board: &Board, window: Window) -> String {
    let mut tops = Vec::new();
    let mut bottom = TOP;
    for lane in &board.lanes {
        let rows = u64::try_from(lane.rows).unwrap_or(0);
        tops.push((bottom, bottom + rows * ROW + TRACK / 2));
        bottom += rows * ROW + TRACK + GAP;
    }
    let mut drawing = Drawing { text: String::new(), window, tops, bottom };
    drawing.frame();
    for (place, lane) in board.lanes.iter().enumerate() {
        drawing.lane(place, lane);
    }
    drawing.messages(board);
    // Above the messages: there are many of those, and what lasts must stay readable.
    for (place, lane) in board.lanes.iter().enumerate() {
        drawing.bars(place, lane);
        drawing.marks(place, lane);
    }
    drawing.across(board);
    drawing.text + "</g></svg>\n"
}

impl Drawing {
    fn put(&mut self, text: &str) {
        self.text.push_str(text);
        self.text.push('\n');
    }

    fn frame(&mut self) {
        let (width, height) = (LEFT + WIDTH + 10, self.bottom + 8);
        let clip = format!(
            "<clipPath id=\"lanes\"><rect x=\"{LEFT}\" y=\"0\" width=\"{WIDTH}\" height=\"{height}\"/></clipPath>"
        );
        let arrow = "<marker id=\"tip\" viewBox=\"0 0 6 6\" refX=\"6\" refY=\"3\" markerWidth=\"5\" markerHeight=\"5\" orient=\"auto\"><path d=\"M0 0L6 3L0 6z\" class=\"tip\"/></marker>";
        self.put(&format!(
            "<svg id=\"timeline\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" data-left=\"{LEFT}\" data-width=\"{WIDTH}\" data-from=\"{}\" data-until=\"{}\">",
            self.window.from, self.window.until
        ));
        self.put(&format!("<defs>{clip}{arrow}</defs><g id=\"axis\" data-height=\"{height}\">"));
        for tenth in 0..=10 {
            let at = self.window.from + (self.window.until - self.window.from) * tenth / 10;
            let x = self.window.x(at);
            self.put(&format!("<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"36\" y2=\"{height}\"/><text class=\"time\" x=\"{x:.1}\" y=\"12\">{}</text>", clock(at)));
        }
        self.put("</g>");
    }

    fn lane(&mut self, place: usize, lane: &Lane) {
        let Some((top, track)) = self.tops.get(place).copied() else { return };
        let height = track - top + TRACK / 2;
        self.put(&format!(
            "<rect class=\"lane\" x=\"0\" y=\"{}\" width=\"{}\" height=\"{}\"/><text class=\"name\" x=\"8\" y=\"{}\">{}</text>",
            top.saturating_sub(4), LEFT + WIDTH, height + 8, track + 4, escaped(&lane.name)
        ));
        self.put(&format!(
            "<line class=\"track\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{track}\" y2=\"{track}\"/>",
            LEFT + WIDTH
        ));
    }

    fn bars(&mut self, place: usize, lane: &Lane) {
        let Some((top, track)) = self.tops.get(place).copied() else { return };
        self.put("<g clip-path=\"url(#lanes)\">");
        for bar in &lane.bars {
            let row = u64::try_from(bar.row).unwrap_or(0);
            let (y, tall) = if bar.kind == "down" { (track - 6, 12) } else { (top + row * ROW, ROW - 2) };
            let (x, end) = (self.window.x(bar.from), self.window.x(bar.until));
            let (kind, from, until) = (bar.kind, bar.from, bar.until);
            let wide = (end - x).max(1.5);
            self.put(&format!("<rect class=\"bar {kind}\" data-a=\"{from}\" data-b=\"{until}\" x=\"{x:.1}\" y=\"{y}\" width=\"{wide:.1}\" height=\"{tall}\"><title>{}</title></rect>", escaped(&bar.detail)));
            let letters = u32::try_from(bar.label.chars().count()).unwrap_or(0);
            let hidden = if wide < f64::from(letters * 6 + 4) { " style=\"display:none\"" } else { "" };
            self.put(&format!(
                "<text class=\"label\" data-a=\"{from}\" data-b=\"{until}\" x=\"{:.1}\" y=\"{}\"{hidden}>{}</text>",
                x + 3.0,
                y + 10,
                escaped(&bar.label)
            ));
        }
        self.put("</g>");
    }

    fn messages(&mut self, board: &Board) {
        self.put("<g clip-path=\"url(#lanes)\">");
        for message in &board.messages {
            let Some((_, from)) = self.tops.get(message.from).copied() else { continue };
            let to = message.to.and_then(|to| self.tops.get(to)).map_or(from, |(_, to)| *to);
            let until = message.arrived.unwrap_or(message.sent + 400);
            let (x1, x2) = (self.window.x(message.sent), self.window.x(until));
            let (lost, y2) = match message.arrived {
                Some(_) => ("", to),
                // A stub towards where it should have gone.
                None => (" lost", if to >= from { from + 10 } else { from - 10 }),
            };
            let own = if from == to { " own" } else { "" };
            self.put(&format!("<line class=\"message p{}{lost}{own}\" data-a=\"{}\" data-b=\"{until}\" x1=\"{x1:.1}\" y1=\"{from}\" x2=\"{x2:.1}\" y2=\"{y2}\"><title>{}</title></line>", escaped(&message.port), message.sent, escaped(&message.detail)));
        }
        self.put("</g>");
    }

    fn marks(&mut self, place: usize, lane: &Lane) {
        let Some((_, track)) = self.tops.get(place).copied() else { return };
        self.put("<g clip-path=\"url(#lanes)\">");
        for mark in &lane.marks {
            self.mark(mark.kind, mark.at, track, &mark.detail);
        }
        self.put("</g>");
    }

    fn mark(&mut self, kind: &str, at: Micros, y: u64, detail: &str) {
        let x = self.window.x(at);
        let shape = match kind {
            "sync" | "sync-failed" => "<path d=\"M0 -4V4\"/>",
            "crash" => "<path d=\"M-6 -6L6 6M-6 6L6 -6\"/>",
            "restart" | "start" => "<path d=\"M-4 -5L5 0L-4 5z\"/>",
            "fault" => "<path d=\"M0 -6L6 5H-6z\"/>",
            "step" => "<path d=\"M0 -4L4 0L0 4L-4 0z\"/>",
            "alarm" => "<rect x=\"-4\" y=\"-4\" width=\"8\" height=\"8\"/>",
            _ => "<circle r=\"3\"/>",
        };
        let (title, time) = (escaped(detail), clock(at));
        self.put(&format!("<g class=\"mark {kind}\" data-a=\"{at}\" data-y=\"{y}\" transform=\"translate({x:.1} {y})\">{shape}<title>{time} {title}</title></g>"));
    }

    fn across(&mut self, board: &Board) {
        let bottom = self.bottom;
        self.put("<g clip-path=\"url(#lanes)\">");
        for mark in &board.world {
            self.mark(mark.kind, mark.at, 28, &mark.detail);
        }
        for cut in &board.cuts {
            let x = self.window.x(cut.at);
            self.put(&format!("<line class=\"cut\" data-a=\"{at}\" data-b=\"{at}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"42\" y2=\"{bottom}\"><title>{label}</title></line><text class=\"cut-label\" data-a=\"{at}\" x=\"{x:.1}\" y=\"50\">{label}</text>", at = cut.at, label = escaped(&cut.label)));
        }
        let (end, x) = (board.end, self.window.x(board.end));
        self.put(&format!("<line class=\"end\" data-a=\"{end}\" data-b=\"{end}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"20\" y2=\"{bottom}\"><title>the run ends</title></line>"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artefact::{board, sample};

    #[test]
    fn the_drawing_of_a_small_run() {
        let board = board::of(&sample::run().1);
        let drawn = svg(&board, Window { from: 0, until: 20_000 });
        sheetanchor_snapshots::assert_snapshot!("artefacts", "timeline-svg", drawn);
        // Every tag that opens closes, in order: a browser forgives more than a viewer of the drawing alone.
        let mut open = Vec::new();
        for tag in drawn.split('<').skip(1) {
            let name = tag.split([' ', '>']).next().unwrap();
            match name.strip_prefix('/') {
                Some(closed) => assert_eq!(open.pop(), Some(closed)),
                None if tag.split('>').next().unwrap().ends_with('/') => {}
                None => open.push(name),
            }
        }
        assert_eq!(open, [""; 0]);
    }
}
