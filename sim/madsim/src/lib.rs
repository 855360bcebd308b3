//! The simulated world on madsim: one executor that picks the next task at random, with a network of its own. It exists
//! in builds with `--cfg madsim` only, which cover every crate and so need a target folder of their own:
//!
//! ```text
//! RUSTFLAGS="--cfg madsim" CARGO_TARGET_DIR=target-madsim cargo test -p sheetanchor-sim-madsim
//! ```
//!
//! What madsim does that one has to know: a stream delivers nothing before it is flushed, has no half-close, and no
//! back-pressure; links that it clogs refuse calls and deliver late, so traffic is held by streams of ours; a panic of a task
//! unwinds through the executor; it replaces libc's clock and entropy.
#![forbid(unsafe_code)]

use sheetanchor_sim::backend::Backend;

#[cfg(madsim)]
mod net;
#[cfg(madsim)]
mod runtime;

/// A world on madsim, all of whose chance comes from `seed`; `None` in a build without `--cfg madsim`.
#[cfg(madsim)]
pub fn backend(seed: u64) -> Option<Box<dyn Backend>> {
    Some(Box::new(runtime::Madsim::new(seed)))
}

/// A world on madsim, all of whose chance comes from `seed`; `None` in a build without `--cfg madsim`.
#[cfg(not(madsim))]
pub fn backend(_seed: u64) -> Option<Box<dyn Backend>> {
    None
}

#[cfg(all(test, not(madsim)))]
mod tests {
    #[test]
    fn without_the_cfg_there_is_no_backend() {
        assert!(super::backend(1).is_none());
    }
}
