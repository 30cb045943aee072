//! One file a command.

mod pipeline;
mod schema;
mod stages;

use clap::Subcommand;

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Runs a pipeline, or continues one that was stopped.
    Pipeline(pipeline::Arguments),
    /// Writes the JSON Schema of pipeline files, with which editors complete and check them.
    Schema(schema::Arguments),
    /// Lists every kind of stage and trigger with its options and their defaults.
    Stages,
}

impl Command {
    /// Does it.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Pipeline(arguments) => arguments.run(),
            Self::Schema(arguments) => arguments.run(),
            Self::Stages => stages::run(),
        }
    }
}
