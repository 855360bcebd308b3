//! Many runs, as many at once as there are cores.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use indicatif::{ProgressBar, ProgressStyle};

/// What to do with the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Go on.
    More,
    /// Begin nothing new.
    Stop,
}

/// Does `work` for each item and returns the results in the order of the items. What was begun before a [`Next::Stop`]
/// is finished.
pub fn each<I: Sync, R: Send>(items: &[I], work: impl Fn(&I) -> (R, Next) + Sync) -> Vec<R> {
    let bar = ProgressBar::new(u64::try_from(items.len()).unwrap_or(0));
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} runs, {per_sec}, {eta} left") {
        bar.set_style(style);
    }
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::new());
    let workers = thread::available_parallelism().map_or(1, usize::from).min(items.len().max(1));
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::SeqCst);
                    let Some(item) = items.get(place) else { return };
                    let (result, then) = work(item);
                    if then == Next::Stop {
                        next.store(items.len(), Ordering::SeqCst);
                    }
                    bar.inc(1);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((place, result));
                }
            });
        }
    });
    bar.finish_and_clear();
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_a_stop_begins_nothing_new() {
        let items: Vec<u32> = (0..100).collect();
        assert_eq!(each(&items, |item| (*item, Next::More)), items);
        assert!(each(&items, |item| (*item, Next::Stop)).len() < 100);
    }
}
