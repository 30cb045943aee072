//! `lmr zoo purify`.

use std::io::Write;
use std::path::PathBuf;

use comfy_table::{CellAlignment, Table};
use lmr_pipeline::Error;
use lmr_pipeline::report::{Measurement, Report, percent};
use lmr_pipeline::zoo::Member;

use super::{Chosen, Place};
use crate::commands::measured::median;
use crate::commands::repeat::{Repeated, Seeds, missed};
use crate::commands::table;
use crate::console::{Console, Verbosity};
use crate::threads;

/// Which models, with which settings.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    chosen: Chosen,
    /// The pipeline that purifies. Its model, data and trigger are replaced by those of each attack; it measures first what
    /// it received and last what it made of it.
    #[arg(long, value_name = "CONFIG", default_value = "configs/purify.toml")]
    pipeline: PathBuf,
    /// A profile of that pipeline: other settings of the defense.
    #[arg(long, value_name = "NAME")]
    settings: Option<String>,
    /// The seeds, first and last. The seed draws the clean set and decides every random choice.
    #[arg(long, value_name = "A-B", default_value = "0-2")]
    seeds: Seeds,
    /// Overrides a value of the pipeline, as for `pipeline`. Repeatable. Such runs need `--label`.
    #[arg(long, value_name = "KEY=VALUE", requires = "label")]
    set: Vec<String>,
    /// The folder of the runs in each attack's folder; the name of `--settings`, or `purify`, if absent.
    #[arg(long, value_name = "NAME")]
    label: Option<String>,
    /// Threads to compute with; all cores if absent. Results do not depend on it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

impl Arguments {
    /// Purifies one member after the other; runs that are finished are reused.
    pub fn run(self) -> anyhow::Result<()> {
        threads::start(self.threads)?;
        let console = Console::new(Verbosity { verbose: 0, quiet: true });
        console.handle_interrupts()?;
        let label = self.label.or_else(|| self.settings.clone()).unwrap_or_else(|| "purify".into());
        let mut table = table([
            "attack",
            "class",
            "received ACC / ASR / TA",
            "ACC % median (lowest)",
            "ASR % median (highest)",
            "TA % median (lowest)",
            "seconds",
        ]);
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut all_missed = Vec::new();
        for member in self.place.zoo().select(&self.chosen.only)? {
            if member.report().is_none() {
                writeln!(std::io::stdout(), "{}: not built", member.name)?;
                continue;
            }
            let repeated = Repeated {
                config: self.pipeline.clone(),
                profile: self.settings.clone(),
                set: [member.as_received()?, self.set.clone()].concat(),
                parent: member.folder.join(&label),
                seeds: self.seeds,
            };
            writeln!(std::io::stdout(), "{}:", member.name)?;
            let reports = repeated.run(&console)?;
            row(&mut table, &member, &reports);
            all_missed.extend(missed(&reports).into_iter().map(|missed| format!("{}, {missed}", member.name)));
        }
        writeln!(std::io::stdout(), "{table}")?;
        Ok(Error::unless_missed(all_missed)?)
    }
}

/// What the seeds gave.
fn row(table: &mut Table, member: &Member, reports: &[Report]) {
    let values = |measurement: fn(&Report) -> Option<Measurement<'_>>, pick: fn(Measurement<'_>) -> Option<f64>| {
        let mut values: Vec<f64> = reports.iter().filter_map(|report| pick(measurement(report)?)).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let first = |pick| percent(median(&values(|report| report.measurements().into_iter().next(), pick)));
    let last = |pick, worst: fn(&[f64]) -> Option<&f64>| {
        let values = values(|report| report.measurements().into_iter().next_back(), pick);
        format!("{} ({})", percent(median(&values)), percent(worst(&values).copied()))
    };
    let classes = reports.iter().filter_map(Report::estimated).map(|found| found.class.to_string());
    let mut seconds: Vec<f64> = reports.iter().map(purifying).collect();
    seconds.sort_by(f64::total_cmp);
    table.add_row([
        member.name.clone(),
        classes.collect::<Vec<_>>().join(" "),
        [first(|m| Some(m.acc)), first(|m| m.asr), first(|m| m.ta)].join(" / "),
        last(|m| Some(m.acc), <[f64]>::first),
        last(|m| m.asr, <[f64]>::last),
        last(|m| m.ta, <[f64]>::first),
        format!("{:.0}", median(&seconds).unwrap_or_default()),
    ]);
}

/// The seconds of the stages that do not measure.
fn purifying(report: &Report) -> f64 {
    report.stages.iter().filter(|stage| Measurement::of(stage).is_none()).map(|stage| stage.seconds).sum()
}
