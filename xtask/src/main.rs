//! The program behind `cargo xtask`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// mimalloc's `mi_option_purge_delay`, for which its bindings have no name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

fn main() -> ExitCode {
    // Every training step frees large tensors and asks for the like again. The allocator would have given the pages back
    // to the system by then, which clears them anew: a fifth of the time of a wide network.
    // SAFETY: the option exists in every mimalloc 2, and no other thread runs yet.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, 10_000) };
    xtask::main()
}
