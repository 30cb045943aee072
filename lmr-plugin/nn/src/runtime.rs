//! What the measured speeds rest on besides the kernels: who has threads, and an allocator that keeps what training frees.
//!
//! Nothing here is needed for right results, which do not depend on either. A program that wants the speeds begins like this,
//! with the crate's feature `allocator`:
//!
//! ```
//! # #[cfg(feature = "allocator")]
//! # mod program {
//! use lmr_nn::runtime;
//!
//! #[global_allocator]
//! static ALLOCATOR: runtime::Allocator = runtime::Allocator;
//!
//! fn main() {
//!     // SAFETY: nothing runs yet.
//!     unsafe {
//!         runtime::keep_freed_pages();
//!         runtime::leave_threads_to_kernels();
//!     }
//!     if let Err(error) = runtime::start_threads(None) {
//!         eprintln!("the kernels have other threads already: {error}");
//!     }
//!     // ...
//! }
//! # pub fn run() { main() }
//! # }
//! # #[cfg(feature = "allocator")]
//! # program::run();
//! ```

use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::thread::available_parallelism;

use rayon::{ThreadPoolBuildError, ThreadPoolBuilder};

/// mimalloc, to be a program's global allocator.
#[cfg(feature = "allocator")]
pub use mimalloc::MiMalloc as Allocator;

/// What Candle and rayon read.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// The user's own value of the variable.
static WISH: OnceLock<Option<NonZeroUsize>> = OnceLock::new();

/// Has [`Allocator`] keep freed pages for ten seconds.
///
/// Every training step frees large tensors and asks for the like again. The allocator would have given the pages back to the
/// system by then, which clears them anew: a fifth of the time of a wide network.
///
/// # Safety
/// No other thread may run yet: the allocator reads its options without a lock.
#[cfg(feature = "allocator")]
pub unsafe fn keep_freed_pages() {
    /// `mi_option_purge_delay`, for which the bindings have no name.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: the option exists in every mimalloc 2; the rest is the caller's promise.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, 10_000) };
}

/// Keeps Candle from starting threads of its own, which wait for work by spinning: beside the kernels', they cost a narrow
/// network a tenth of its speed. For that it sets `RAYON_NUM_THREADS`, having remembered for [`start_threads`] what the user
/// asks for with it. To be called before anything else.
///
/// # Safety
/// No other thread may run yet: the environment changes.
pub unsafe fn leave_threads_to_kernels() {
    let wish = std::env::var(VARIABLE).ok().and_then(|value| value.parse().ok());
    if WISH.set(wish).is_ok() {
        // SAFETY: the caller's promise.
        unsafe { std::env::set_var(VARIABLE, "1") };
    }
}

/// Starts the kernels' threads, which are those of rayon's global pool: as many as asked for, else as `RAYON_NUM_THREADS` said
/// when [`leave_threads_to_kernels`] was called, else one a core.
pub fn start_threads(threads: Option<NonZeroUsize>) -> Result<(), ThreadPoolBuildError> {
    let cores = || available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let threads = threads.or(WISH.get().copied().flatten()).unwrap_or_else(cores);
    ThreadPoolBuilder::new().num_threads(threads.get()).build_global()
}
