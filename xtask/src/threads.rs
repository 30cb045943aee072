//! The threads that kernels run on.

use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::thread::available_parallelism;

use anyhow::Context;

/// What Candle and rayon read.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// The user's own value of the variable.
static WISH: OnceLock<Option<usize>> = OnceLock::new();

/// Keeps Candle from starting threads of its own, which wait for work by spinning: beside the kernels', they cost a narrow
/// network a tenth of its speed. To be called before anything else runs.
pub fn leave_to_kernels() {
    let wish = std::env::var(VARIABLE).ok().and_then(|value| value.parse().ok()).filter(|&threads| threads > 0);
    if WISH.set(wish).is_ok() {
        // SAFETY: `main` calls this first; no other thread can read the environment meanwhile.
        unsafe { std::env::set_var(VARIABLE, "1") };
    }
}

/// Starts the kernels' threads: as many as asked for, else as `RAYON_NUM_THREADS` says, else one a core.
pub fn start(threads: Option<u16>) -> anyhow::Result<()> {
    let cores = || available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = threads.map(usize::from).or(WISH.get().copied().flatten()).unwrap_or_else(cores);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("starting threads")
}
