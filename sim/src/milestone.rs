//! Milestones: `tracing` events whose target starts with `sheetanchor::`, put into the trace of the run with the host
//! that emitted them. Fields are rendered in the order in which they were written: `phase operation=… phase=drained`.

use std::fmt;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{DefaultGuard, set_default};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::host;

const TARGET: &str = "sheetanchor::";

/// Sends milestones of this thread to the trace, until the returned guard is dropped.
pub fn capture() -> DefaultGuard {
    set_default(Capture)
}

/// A subscriber that knows no spans: whose code runs is told by [`host::running`], on every backend alike.
struct Capture;

impl Subscriber for Capture {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target().starts_with(TARGET) && *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let Some(life) = host::running() else { return };
        let target = event.metadata().target();
        let mut text = Rendered(target.strip_prefix(TARGET).unwrap_or(target).to_string());
        event.record(&mut text);
        life.gate().milestone(&life, &text.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Rendered(String);

impl Rendered {
    fn push(&mut self, field: &Field, value: &str) {
        self.0.push(' ');
        if field.name() != "message" {
            self.0.push_str(field.name());
            self.0.push('=');
        }
        self.0.push_str(value);
    }
}

impl Visit for Rendered {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, &format!("{value:?}"));
    }
}
