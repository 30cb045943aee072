//! `lmr schema`.

use std::io::Write;
use std::path::PathBuf;

use lmr_pipeline::{artifacts, files, schema};

/// Where the schema goes.
#[derive(clap::Args)]
pub struct Arguments {
    /// File to write; standard output if absent.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Arguments {
    /// Writes the schema.
    pub fn run(self) -> anyhow::Result<()> {
        let bytes = files::json(&schema::pipeline())?;
        match self.out {
            Some(file) => artifacts::write_whole(&file, &bytes)?,
            None => std::io::stdout().write_all(&bytes)?,
        }
        Ok(())
    }
}
