//! Shows how an operation gets on: its phase, and how much each node has copied.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use sheetanchor_core::error::Result as Outcome;
use sheetanchor_core::identity::{NodeId, OperationId};
use sheetanchor_core::request::Progress as Copied;
use sheetanchor_engine::coordinator::Coordinator;
use sheetanchor_engine::env::Env;
use sheetanchor_engine::pump::Watcher;

use crate::screen::Screen;

/// How often nodes are asked how far they are.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// Follows operations on the screen: bars on a terminal, a line a phase elsewhere.
pub struct Progress {
    screen: Screen,
    quiet: bool,
    shown: Mutex<Shown>,
}

/// What is on the screen now.
#[derive(Default)]
struct Shown {
    phase: Option<ProgressBar>,
    nodes: BTreeMap<NodeId, ProgressBar>,
}

impl Progress {
    /// Shows on `screen`.
    pub fn new(screen: &Screen) -> Self {
        Self { screen: screen.clone(), quiet: false, shown: Mutex::default() }
    }

    /// Shows bars only: no line a phase where there is no terminal.
    #[must_use]
    pub fn quietly(self) -> Self {
        Self { quiet: true, ..self }
    }

    /// Shows how `operation` gets on, until it has ended.
    ///
    /// # Errors
    /// The operation's own.
    pub async fn during<T>(
        &self,
        env: &Env,
        coordinator: &Coordinator,
        operation: impl Future<Output = Outcome<T>>,
    ) -> Outcome<T> {
        let outcome = tokio::select! {
            biased;
            outcome = operation => outcome,
            never = self.follow(env, coordinator) => match never {},
        };
        self.clear();
        outcome
    }

    /// Shows what the nodes copy, until it is dropped.
    async fn follow(&self, env: &Env, coordinator: &Coordinator) -> Infallible {
        if !self.screen.is_interactive() {
            return std::future::pending().await;
        }
        loop {
            env.clock.sleep(ASK_EVERY).await;
            for (node, copied) in coordinator.progress().await {
                self.copied(node, copied);
            }
        }
    }

    /// Takes everything off the screen.
    fn clear(&self) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        for bar in shown.phase.take().into_iter().chain(std::mem::take(&mut shown.nodes).into_values()) {
            bar.finish_and_clear();
        }
    }

    fn copied(&self, node: NodeId, copied: Option<Copied>) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(copied) = copied else {
            if let Some(bar) = shown.nodes.remove(&node) {
                bar.finish_and_clear();
            }
            return;
        };
        let bar = shown.nodes.entry(node).or_insert_with(|| {
            let bar = self.screen.bars().add(ProgressBar::new(copied.total.get()));
            bar.set_style(node_style());
            bar.set_prefix(format!("node {node}"));
            bar
        });
        bar.set_length(copied.total.get());
        bar.set_position(copied.done.get());
    }
}

impl Watcher for Progress {
    fn phase(&self, operation: OperationId, phase: &'static str) {
        let kind = operation.kind().word();
        if !self.screen.is_interactive() {
            if !self.quiet {
                self.screen.note(&format!("{kind}: {phase}"));
            }
            return;
        }
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = shown.phase.get_or_insert_with(|| {
            let bar = self.screen.bars().add(ProgressBar::new_spinner());
            bar.set_style(phase_style());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        bar.set_prefix(kind);
        bar.set_message(phase);
    }
}

fn phase_style() -> ProgressStyle {
    ProgressStyle::with_template("  {spinner} {prefix}: {msg}  {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn node_style() -> ProgressStyle {
    ProgressStyle::with_template("    {prefix} {bar:30} {bytes} of {total_bytes}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
