//! Shows the story as it goes on: a bar of its steps on a terminal, a line a step everywhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::screen::Screen;

/// The steps of one story.
pub struct Steps {
    screen: Screen,
    bar: ProgressBar,
    begun: Instant,
}

/// One step, until it is done.
pub struct Step<'a> {
    steps: &'a Steps,
    begun: Instant,
}

impl Steps {
    /// Nothing is shown before the first step.
    pub fn new(screen: &Screen) -> Self {
        let bar = screen.bars().add(ProgressBar::new(0));
        let style = ProgressStyle::with_template("  {spinner} {msg}\n  {bar:40} {pos} of {len} steps  {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { screen: screen.clone(), bar, begun: Instant::now() }
    }

    /// How many steps there will be.
    pub fn expect(&self, count: u64) {
        self.bar.set_length(count);
        self.bar.enable_steady_tick(Duration::from_millis(100));
    }

    /// Begins a step.
    pub fn begin(&self, what: &str) -> Step<'_> {
        self.bar.set_message(what.to_owned());
        Step { steps: self, begun: Instant::now() }
    }

    /// How long the story has taken so far.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Takes the bar off the screen.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Step<'_> {
    /// Shows more of what is going on.
    pub fn going(&self, what: &str) {
        self.steps.bar.set_message(what.to_owned());
    }

    /// It is done; `what` says what came of it.
    pub fn done(self, what: &str) {
        self.steps.bar.inc(1);
        let took = self.begun.elapsed();
        self.steps.screen.note(&format!("  {:>5.1} s  {what}", took.as_secs_f64()));
    }
}
