//! One file a command.

mod bench;
mod inspect;
mod measured;
mod pipeline;
mod publish;
mod repeat;
mod results;
mod schema;
mod stages;
mod zoo;

use clap::Subcommand;
use comfy_table::{Table, presets};

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Runs a pipeline, or continues one that was stopped.
    Pipeline(pipeline::Arguments),
    /// Publishes the purified model of a finished run on the Hugging Face Hub.
    Publish(publish::Arguments),
    /// Shows what a checkpoint holds, and what looks wrong in it.
    Inspect(inspect::Arguments),
    /// Runs a pipeline with several seeds and prints median and worst of what it measures.
    Repeat(repeat::Arguments),
    /// Writes the tables of results in a Markdown page from the reports of runs.
    Results(results::Arguments),
    /// Trains models with known backdoors, to measure defenses on.
    #[command(subcommand)]
    Zoo(zoo::Command),
    /// Measures speed.
    #[command(subcommand)]
    Bench(bench::Arguments),
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
            Self::Publish(arguments) => arguments.run(),
            Self::Inspect(arguments) => arguments.run(),
            Self::Repeat(arguments) => arguments.run(),
            Self::Results(arguments) => arguments.run(),
            Self::Zoo(command) => command.run(),
            Self::Bench(arguments) => arguments.run(),
            Self::Schema(arguments) => arguments.run(),
            Self::Stages => stages::run(),
        }
    }
}

/// An empty table in the style of all commands.
fn table<'a>(header: impl IntoIterator<Item = &'a str>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(header);
    table
}
