//! `lmr repeat`.

use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;

use lmr_pipeline::report::{Report, percent};
use lmr_pipeline::{Error, Options, Overrides, Plan, run};

use super::measured::Measured;
use crate::console::{Console, Verbosity};
use crate::threads;

/// Which pipeline, and which seeds.
#[derive(clap::Args)]
pub struct Arguments {
    /// The pipeline file.
    #[arg(value_name = "CONFIG")]
    config: PathBuf,
    /// The seeds, first and last. The seed draws the clean set and decides every random choice.
    #[arg(long, value_name = "A-B", default_value = "0-9")]
    seeds: Seeds,
    /// Takes the values of the file's `[profile.NAME]`.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Overrides a value, as for `pipeline`. Repeatable.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The folder that gets one run folder a seed, `runs/<name>-seeds` if absent.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Consecutive seeds.
#[derive(Clone, Copy)]
pub struct Seeds {
    first: u64,
    last: u64,
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |part: &str| part.trim().parse::<u64>().map_err(|_| format!("expected A-B, found `{text}`"));
        let seeds = Self { first: number(first)?, last: number(last)? };
        if seeds.first > seeds.last || seeds.last - seeds.first >= 1000 {
            return Err(format!("expected A-B with A at most B and at most 1000 seeds, found `{text}`"));
        }
        Ok(seeds)
    }
}

impl Arguments {
    /// Runs the pipeline once a seed and prints the median and the worst of every measurement. A seed that misses what the
    /// pipeline expects does not keep the others from running.
    pub fn run(self) -> anyhow::Result<()> {
        threads::start(None)?;
        let console = Console::new(Verbosity { verbose: 0, quiet: true });
        console.handle_interrupts()?;
        let parent = match self.out {
            Some(out) => out,
            None => {
                let plan = Plan::load(&self.config, &Overrides::from_process(self.profile.clone(), self.set.clone()))?;
                PathBuf::from("runs").join(format!("{}-seeds", plan.run.name))
            }
        };
        let repeated =
            Repeated { config: self.config, profile: self.profile, set: self.set, parent, seeds: self.seeds };
        let reports = repeated.run(&console)?;
        print(&summary(&reports)?)?;
        Ok(Error::unless_missed(missed(&reports))?)
    }
}

/// A pipeline that runs once for each of several seeds.
pub struct Repeated {
    /// The pipeline file.
    pub config: PathBuf,
    /// Its profile.
    pub profile: Option<String>,
    /// `--set` values.
    pub set: Vec<String>,
    /// The folder that gets one run folder a seed.
    pub parent: PathBuf,
    /// The seeds.
    pub seeds: Seeds,
}

impl Repeated {
    /// Runs it and prints a line a seed. Finished stages are reused.
    pub fn run(&self, console: &Console) -> anyhow::Result<Vec<Report>> {
        let mut reports = Vec::new();
        for seed in self.seeds.first..=self.seeds.last {
            let mut set = self.set.clone();
            set.push(format!("run.seed={seed}"));
            let mut plan = Plan::load(&self.config, &Overrides::from_process(self.profile.clone(), set))?;
            let options = Options::default().with_out(self.parent.join(format!("seed-{seed}")));
            let report = run::run(&mut plan, &options, console)?;
            print(&line(&report))?;
            reports.push(report);
        }
        Ok(reports)
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

/// What the pipeline expected and some seed missed, in a sentence each.
pub fn missed(reports: &[Report]) -> Vec<String> {
    let all = reports.iter().flat_map(|report| {
        let seed = report.run.seed;
        report.missed().into_iter().map(move |missed| format!("seed {seed}, {missed}"))
    });
    all.collect()
}

/// One run in one line.
fn line(report: &Report) -> String {
    let class = report.estimated().map_or("-".into(), |found| format!("{} ({:.2})", found.class, found.collapse));
    let measured: Vec<String> = report
        .measurements()
        .iter()
        .map(|m| format!("{} {}/{}/{}", m.name, percent(Some(m.acc)), percent(m.asr), percent(m.ta)))
        .collect();
    format!("seed {}: class {class}; {}; {:.1} s", report.run.seed, measured.join("; "), report.run.seconds)
}

/// Median and worst over the seeds of every measurement, and the classes that were named.
fn summary(reports: &[Report]) -> anyhow::Result<String> {
    let table = Measured::over(reports)?.table();
    let classes: Vec<String> = reports
        .iter()
        .filter_map(Report::estimated)
        .map(|found| format!("{} ({:.2})", found.class, found.collapse))
        .collect();
    Ok(format!("{table}\nestimated classes (collapse): {}", classes.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_a_range() {
        let seeds: Seeds = "3-5".parse().unwrap();
        assert_eq!((seeds.first, seeds.last), (3, 5));
        assert!("5-3".parse::<Seeds>().is_err() && "x".parse::<Seeds>().is_err());
    }
}
