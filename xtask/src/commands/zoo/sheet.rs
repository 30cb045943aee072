//! `lmr zoo sheet`.

use std::io::Write;

use super::{Chosen, Place};
use crate::console::{Console, Verbosity};

/// Whose sheets.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    chosen: Chosen,
}

impl Arguments {
    /// Draws the sheet of every member that is built: images, the same with the trigger, ten times the difference.
    pub fn run(self) -> anyhow::Result<()> {
        let console = Console::new(Verbosity { verbose: 0, quiet: true });
        let named = !self.chosen.only.is_empty();
        for member in self.place.zoo().select(&self.chosen.only)? {
            if !named && member.report().is_none() {
                writeln!(std::io::stdout(), "{}: not built", member.name)?;
                continue;
            }
            writeln!(std::io::stdout(), "{}", member.sheet(&console)?.display())?;
        }
        Ok(())
    }
}
