//! The command line of LMR: `lmr pipeline configs/quickstart.toml`.
//!
//! Exit codes: 0 done, 1 failure while running, 2 bad input (arguments, pipeline file, checkpoint, data), 3 a number
//! other than the pipeline expects, 130 stopped with Ctrl-C.

mod commands;
mod console;
mod threads;

use std::io::ErrorKind;
use std::process::ExitCode;

use clap::Parser;
use lmr_plugin::nn::runtime;

/// Takes a possibly backdoored image classifier and hands back a purified one, with evidence.
#[derive(Parser)]
#[command(name = "lmr", bin_name = "lmr", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: commands::Command,
}

/// Does what the process's arguments say.
pub fn main() -> ExitCode {
    // SAFETY: a program begins with this; no other thread runs yet.
    unsafe { runtime::leave_threads_to_kernels() };
    let Err(error) = Arguments::parse().command.run() else { return ExitCode::SUCCESS };
    // Whoever closed the pipe has seen enough.
    if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    match error.downcast_ref::<lmr_pipeline::Error>() {
        Some(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
        None => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
