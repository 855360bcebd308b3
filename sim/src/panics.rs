//! Any panic during a run fails it. Runtimes swallow panics of tasks (turmoil reports a panicked task as success), so a
//! hook records each one that happens on the thread of a run.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

use crate::host;

thread_local! {
    static RECORDED: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// Records the panics of this thread while `run` runs, instead of printing them. `None` if `run` itself ended in one.
pub fn recorded<T>(run: impl FnOnce() -> T) -> (Option<T>, Vec<String>) {
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !record(info) {
                usual(info);
            }
        }));
    });
    let outer = RECORDED.replace(Some(Vec::new()));
    let guard = Restore(outer);
    // A run that panicked is over: nothing looks at what it left half done but to report it.
    let value = panic::catch_unwind(panic::AssertUnwindSafe(run)).ok();
    let panics = RECORDED.with_borrow_mut(|recorded| recorded.take().unwrap_or_default());
    drop(guard);
    (value, panics)
}

struct Restore(Option<Vec<String>>);

impl Drop for Restore {
    fn drop(&mut self) {
        RECORDED.replace(self.0.take());
    }
}

fn record(info: &panic::PanicHookInfo<'_>) -> bool {
    let message = info.payload_as_str().unwrap_or("a panic without a message");
    let place = info.location().map_or_else(String::new, |place| format!(" at {}:{}", place.file(), place.line()));
    let host = host::running().map_or_else(String::new, |life| format!("{}: ", life.gate().name(life.host())));
    RECORDED
        .try_with(|recorded| match recorded.try_borrow_mut() {
            Ok(mut recorded) => {
                recorded.as_mut().map(|panics| panics.push(format!("{host}{message}{place}"))).is_some()
            }
            Err(_) => false,
        })
        .unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_recorded_with_its_message_and_place() {
        let (value, panics) = recorded(|| -> u8 { panic!("the mast broke") });
        assert_eq!(value, None);
        assert_eq!(panics.len(), 1);
        assert!(panics[0].starts_with("the mast broke at "), "{}", panics[0]);
        assert!(panics[0].contains("panics.rs"), "{}", panics[0]);
    }

    #[test]
    fn a_quiet_run_records_nothing() {
        assert_eq!(recorded(|| 7), (Some(7), Vec::new()));
    }
}
