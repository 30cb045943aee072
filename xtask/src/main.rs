//! The program behind `lmr`.

use std::process::ExitCode;

use lmr_plugin::nn::runtime;

#[global_allocator]
static ALLOCATOR: runtime::Allocator = runtime::Allocator;

fn main() -> ExitCode {
    // SAFETY: no other thread runs yet.
    unsafe { runtime::keep_freed_pages() };
    xtask::main()
}
