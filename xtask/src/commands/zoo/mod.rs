//! `lmr zoo`.

mod build;
mod list;
mod purify;
mod sheet;

use std::path::PathBuf;

use clap::Subcommand;
use lmr_pipeline::zoo::Zoo;

/// What to do with the zoo.
#[derive(Subcommand)]
pub enum Command {
    /// Trains every model that is not there yet, one after the other.
    Build(build::Arguments),
    /// Shows which models are there, and what was measured of them.
    List(list::Arguments),
    /// Draws what the triggers do, a PNG an attack.
    Sheet(sheet::Arguments),
    /// Purifies every model with several seeds and prints what is left of its backdoor.
    Purify(purify::Arguments),
}

impl Command {
    /// Does it.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Build(arguments) => arguments.run(),
            Self::List(arguments) => arguments.run(),
            Self::Sheet(arguments) => arguments.run(),
            Self::Purify(arguments) => arguments.run(),
        }
    }
}

/// Which zoo.
#[derive(clap::Args)]
struct Place {
    /// The profile of the attacks' pipelines: `cpu` is made for a few hours on a CPU, `paper` for an accelerator.
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    profile: String,
    /// The folder with a pipeline for each attack.
    #[arg(long, value_name = "DIR", default_value = "configs/attacks")]
    configs: PathBuf,
    /// The folder that gets the models, a folder for each profile in it.
    #[arg(long, value_name = "DIR", default_value = "runs/zoo")]
    out: PathBuf,
}

impl Place {
    fn zoo(self) -> Zoo {
        Zoo { configs: self.configs, root: self.out, profile: self.profile }
    }
}

/// Which of its members.
#[derive(clap::Args)]
struct Chosen {
    /// Only this attack. Repeatable.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}
