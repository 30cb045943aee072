//! The threads that kernels run on.

use std::num::NonZeroUsize;

use anyhow::Context;
use lmr_plugin::nn::runtime;

/// Starts the kernels' threads: as many as asked for, else as `RAYON_NUM_THREADS` says, else one a core.
pub fn start(threads: Option<u16>) -> anyhow::Result<()> {
    let threads = threads.and_then(|threads| NonZeroUsize::new(threads.into()));
    runtime::start_threads(threads).context("starting threads")
}
