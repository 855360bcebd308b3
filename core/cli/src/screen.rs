//! What the operator sees: results on standard output, bars and logs on standard error.

mod table;

use std::io::{IsTerminal, Write};

use indicatif::{HumanBytes, MultiProgress, ProgressDrawTarget};
use jiff::Timestamp;
use serde_json::Value;
use sheetanchor_core::error::{Fault, FaultKind};
use sheetanchor_core::identity::ByteCount;
use sheetanchor_core::time::WallMillis;

pub use table::Table;

use crate::report::Result;

/// Where everything is shown.
#[derive(Clone, Debug)]
pub struct Screen {
    json: bool,
    interactive: bool,
    bars: MultiProgress,
}

impl Screen {
    /// The process's own output.
    pub fn new(json: bool) -> Self {
        let interactive = !json && std::io::stderr().is_terminal();
        let bars = MultiProgress::new();
        if !interactive {
            bars.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self { json, interactive, bars }
    }

    /// Whether somebody is watching bars move.
    pub fn is_interactive(&self) -> bool {
        self.interactive
    }

    /// Whether results are JSON, and nothing else is said.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// The bars.
    pub fn bars(&self) -> &MultiProgress {
        &self.bars
    }

    /// Prints text, which ends its own lines, as a result.
    ///
    /// # Errors
    /// A fault if standard output is gone.
    pub fn print(&self, text: &str) -> Result<()> {
        let written = self.bars.suspend(|| {
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        });
        Ok(written.map_err(|error| Fault::new(FaultKind::Other, "write to standard output", error.to_string()))?)
    }

    /// Prints `value` if results are JSON, else `text`.
    ///
    /// # Errors
    /// Those of [`Screen::print`].
    pub fn result(&self, text: &str, value: &Value) -> Result<()> {
        if self.json { self.print(&format!("{value:#}\n")) } else { self.print(text) }
    }

    /// Says how things go, on standard error. Not shown where results are JSON.
    pub fn note(&self, line: &str) {
        if !self.json {
            self.log(format!("{line}\n").as_bytes());
        }
    }

    /// Writes whole lines to standard error, above the bars.
    pub fn log(&self, lines: &[u8]) {
        // Nobody is left to be told that standard error is gone.
        self.bars.suspend(|| drop(std::io::stderr().lock().write_all(lines)));
    }
}

/// Each text on a line of its own.
pub fn lines(texts: impl IntoIterator<Item = String>) -> String {
    texts.into_iter().flat_map(|text| [text, "\n".to_owned()]).collect()
}

/// Wall time as people write it, in UTC.
pub fn time(wall: WallMillis) -> String {
    let moment = i64::try_from(wall.get()).ok().and_then(|millis| Timestamp::from_millisecond(millis).ok());
    moment.map_or_else(|| format!("{} ms", wall.get()), |moment| moment.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
}

/// An amount of bytes as people read it.
pub fn bytes(count: ByteCount) -> String {
    HumanBytes(count.get()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_readable() {
        assert_eq!(time(WallMillis::new(1_577_836_800_123)), "2020-01-01 00:00:00Z");
        assert_eq!(time(WallMillis::new(u64::MAX)), format!("{} ms", u64::MAX));
        assert_eq!(bytes(ByteCount::new(1_572_864)), "1.50 MiB");
    }
}
