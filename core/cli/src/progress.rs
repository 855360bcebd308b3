//! Shows how an operation gets on: its phase, and of each node how far it is, how fast, and how long the rest may take.

mod pace;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use pace::{Pace, per_second, share, span};
use sheetanchor_core::error::Result as Outcome;
use sheetanchor_core::identity::{ByteCount, NodeId, OperationId};
use sheetanchor_core::request::Progress as Told;
use sheetanchor_engine::coordinator::Coordinator;
use sheetanchor_engine::env::Env;
use sheetanchor_engine::pump::Watcher;

use crate::screen::Screen;

/// How often nodes are asked how far they are, for bars.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// How often they are asked where there is no terminal.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How often a line says how far they are, there.
const SAY_EVERY: Duration = Duration::from_secs(30);

/// Follows operations on the screen: bars on a terminal; elsewhere a line a phase, and now and then one a node.
pub struct Progress {
    screen: Screen,
    quiet: bool,
    begun: Instant,
    shown: Mutex<Shown>,
}

/// What is on the screen now.
#[derive(Default)]
struct Shown {
    phase: Option<ProgressBar>,
    works: BTreeMap<Who, Work>,
    /// The operations that are followed.
    followed: BTreeSet<OperationId>,
    /// When lines were last said.
    said: Duration,
}

/// Who works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Node(NodeId),
    /// This process, which reads what is in the repository.
    Repository,
}

impl fmt::Display for Who {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(out, "node {node}"),
            Self::Repository => out.write_str("repository"),
        }
    }
}

/// How far somebody is with something.
struct Work {
    bar: ProgressBar,
    doing: &'static str,
    done: u64,
    total: u64,
    pace: Pace,
}

impl Work {
    fn rate(&self) -> String {
        self.pace.rate().map_or_else(none, per_second)
    }

    fn left(&self) -> String {
        if self.total > 0 && self.done >= self.total {
            return "done".to_owned();
        }
        self.pace.left(self.total).map_or_else(none, |left| format!("{} left", span(left)))
    }

    fn share(&self) -> String {
        if self.total == 0 { none() } else { share(self.done, self.total) }
    }

    /// What stands beside its bar.
    fn columns(&self) -> String {
        format!("{:>17} {:>12} {:>13}", self.share(), self.rate(), self.left())
    }

    fn line(&self, who: Who) -> String {
        format!("  {who} is {}: {}, {}, {}", self.doing, self.share(), self.rate(), self.left())
    }
}

fn none() -> String {
    "-".to_owned()
}

impl Progress {
    /// Shows on `screen`.
    pub fn new(screen: &Screen) -> Self {
        Self { screen: screen.clone(), quiet: false, begun: Instant::now(), shown: Mutex::default() }
    }

    /// Shows bars only: no lines where there is no terminal.
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

    /// Shows how far this process is with what it does itself.
    pub fn works(&self, doing: &'static str, done: ByteCount, total: ByteCount) {
        let mut shown = self.shown();
        self.see(&mut shown, Who::Repository, doing, done, total);
        self.say(&mut shown);
    }

    /// Takes everything off the screen.
    pub fn clear(&self) {
        let mut shown = self.shown();
        if let Some(bar) = shown.phase.take() {
            bar.finish_and_clear();
        }
        shown.followed.clear();
        clear_works(&mut shown);
    }

    /// Shows how far the nodes are, until it is dropped.
    async fn follow(&self, env: &Env, coordinator: &Coordinator) -> Infallible {
        let interactive = self.screen.is_interactive();
        if !interactive && !self.says() {
            return std::future::pending().await;
        }
        loop {
            env.clock.sleep(if interactive { ASK_EVERY } else { LOOK_EVERY }).await;
            for (node, told) in coordinator.progress().await {
                self.told(Who::Node(node), &told);
            }
            self.say(&mut self.shown());
        }
    }

    /// Whether lines are said.
    fn says(&self) -> bool {
        !self.screen.is_interactive() && !self.quiet && !self.screen.is_json()
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self, who: Who, told: &[Told]) {
        let mut shown = self.shown();
        match told.iter().find(|told| shown.followed.contains(&told.operation)) {
            Some(told) => self.see(&mut shown, who, told.doing.word(), told.done, told.total),
            // It has ended, or its agent has: nothing more is known until the next phase.
            None => {
                if let Some(work) = shown.works.get_mut(&who) {
                    work.pace = Pace::default();
                    work.bar.set_message(work.columns());
                }
            }
        }
    }

    fn see(&self, shown: &mut Shown, who: Who, doing: &'static str, done: ByteCount, total: ByteCount) {
        let work = shown.works.entry(who).or_insert_with(|| {
            let bar = self.screen.bars().add(ProgressBar::new(1));
            bar.set_style(work_style());
            Work { bar, doing, done: 0, total: 0, pace: Pace::default() }
        });
        if work.doing != doing {
            work.pace = Pace::default();
        }
        (work.doing, work.done, work.total) = (doing, done.get(), total.get());
        work.pace.see(self.begun.elapsed(), work.done);
        work.bar.set_prefix(format!("{:<10} {doing:<10}", who.to_string()));
        // A bar of nothing would be full.
        work.bar.set_length(work.total.max(1));
        work.bar.set_position(work.done);
        work.bar.set_message(work.columns());
    }

    /// Says now and then how far everybody is, where there are no bars.
    fn say(&self, shown: &mut Shown) {
        let now = self.begun.elapsed();
        if !self.says() || now.saturating_sub(shown.said) < SAY_EVERY {
            return;
        }
        shown.said = now;
        for (who, work) in &shown.works {
            self.screen.note(&work.line(*who));
        }
    }
}

impl Watcher for Progress {
    fn phase(&self, operation: OperationId, phase: &'static str) {
        let kind = operation.kind().word();
        if self.says() {
            self.screen.note(&format!("{kind}: {phase}"));
        }
        let mut shown = self.shown();
        shown.followed.insert(operation);
        // What was done in the phase before is done.
        clear_works(&mut shown);
        if !self.screen.is_interactive() {
            return;
        }
        let bar = shown.phase.get_or_insert_with(|| {
            let bar = self.screen.bars().insert(0, ProgressBar::new_spinner());
            bar.set_style(phase_style());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        bar.set_prefix(kind);
        bar.set_message(phase);
    }

    fn reading(&self, _operation: OperationId, done: ByteCount, total: ByteCount) {
        self.works("reading", done, total);
    }
}

fn clear_works(shown: &mut Shown) {
    for work in std::mem::take(&mut shown.works).into_values() {
        work.bar.finish_and_clear();
    }
}

fn phase_style() -> ProgressStyle {
    ProgressStyle::with_template("  {spinner} {prefix}: {msg}  {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// In 80 columns there is room for all but a short bar, which takes what is left.
fn work_style() -> ProgressStyle {
    ProgressStyle::with_template("  {prefix} {wide_bar} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use sheetanchor_core::identity::OperationKind;
    use sheetanchor_core::request::Doing;

    use super::*;

    fn told(operation: OperationId, done: u64, total: u64) -> Vec<Told> {
        vec![Told { operation, doing: Doing::Recovering, done: ByteCount::new(done), total: ByteCount::new(total) }]
    }

    #[test]
    fn beside_what_is_said_there_is_room_for_a_bar_in_80_columns() {
        let work = |done, total, seconds: u32| {
            let mut pace = Pace::default();
            pace.see(Duration::ZERO, 0);
            pace.see(Duration::from_secs(1) * seconds, done);
            Work { bar: ProgressBar::hidden(), doing: "recovering", done, total, pace }
        };
        let mebi = 1 << 20;
        let columns = [
            work(0, 0, 0),
            work(10 * mebi, 4_000 * mebi, 1),
            work(1_023 * mebi, 1_023 * 1_024 * mebi, 10),
            work(1_000 * mebi, 1_024 * 1_024 * mebi, 3_000),
            work(7, 7, 1),
        ]
        .map(|work| work.columns());
        assert_eq!(
            columns,
            [
                "                -            -             -",
                "    0.00/3.90 GiB            -             -",
                "   0.9/1023.0 GiB  102.2 MiB/s  2:50:31 left",
                "    0.00/1.00 TiB  341.3 KiB/s 36 d 8 h left",
                "            7/7 B            -          done",
            ]
        );
    }

    #[test]
    fn only_what_is_followed_is_shown_and_a_phase_ends_what_was() {
        let [own, other] = [1, 2].map(|word| OperationId::new(OperationKind::Restore, 1, word));
        let (progress, node) = (Progress::new(&Screen::new(true)), Who::Node(NodeId::new(1)));
        progress.phase(own, "recovering");
        progress.told(node, &told(other, 1, 10));
        assert!(progress.shown().works.is_empty());
        progress.told(node, &told(own, 4, 10));
        progress.told(node, &[]);
        let line = progress.shown().works.get(&node).map(|work| work.line(node));
        assert_eq!(line.as_deref(), Some("  node 1 is recovering: 4/10 B, -, -"));
        progress.phase(own, "proving");
        assert!(progress.shown().works.is_empty());
    }
}
