//! `lmr zoo list`.

use std::io::Write;

use comfy_table::CellAlignment;
use lmr_pipeline::report::percent;

use super::Place;
use crate::commands::table;

/// Which zoo.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    place: Place,
}

impl Arguments {
    /// Prints a row a member.
    pub fn run(self) -> anyhow::Result<()> {
        let mut table = table(["model", "ACC %", "ASR %", "TA %", "decoy ACC %", "minutes", "folder"]);
        for column in table.column_iter_mut().skip(1).take(5) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for member in self.place.zoo().members()? {
            let Some(report) = member.report() else {
                let nothing = [""; 5].map(String::from);
                let row = [vec![member.name], nothing.to_vec(), vec!["not built".into()]].concat();
                table.add_row(row);
                continue;
            };
            let seconds: f64 = report.stages.iter().map(|stage| stage.seconds).sum();
            let measured = member.measured(&report);
            let [acc, asr, ta, decoy] = match &measured {
                Some(m) => [Some(m.acc), m.asr, m.ta, m.decoy_acc],
                None => [None; 4],
            }
            .map(percent);
            let folder = member.folder.display().to_string();
            table.add_row([member.name.clone(), acc, asr, ta, decoy, format!("{:.1}", seconds / 60.0), folder]);
        }
        Ok(writeln!(std::io::stdout(), "{table}")?)
    }
}
