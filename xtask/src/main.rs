//! The command line of LMR: `cargo xtask pipeline configs/quickstart.toml`.
//!
//! Exit codes: 0 done, 1 failure while running, 2 bad input (arguments, pipeline file, checkpoint, data), 130 stopped
//! with Ctrl-C.

mod commands;
mod console;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Takes a possibly backdoored image classifier and hands back a purified one, with evidence.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever closed the pipe has seen enough.
            if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
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
    }
}
