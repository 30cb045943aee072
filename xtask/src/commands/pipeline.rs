//! `lmr pipeline`.

use std::io::Write;
use std::path::PathBuf;

use lmr_pipeline::hub::Hub;
use lmr_pipeline::plan::RemoteInput;
use lmr_pipeline::report::{Measurement, Report};
use lmr_pipeline::{Options, Overrides, Plan, run};

use super::measured::Measured;
use super::publish::publish;
use super::table;
use crate::console::{Console, Verbosity};
use crate::threads;

/// Which pipeline, and how it runs.
#[derive(clap::Args)]
pub struct Arguments {
    /// The pipeline file.
    #[arg(value_name = "CONFIG")]
    config: PathBuf,
    /// Takes the values of the file's `[profile.NAME]`.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Overrides a value: `run.seed=1`, `stage.recover.training.epochs=3` (a stage by name, kind or index). Repeatable.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The run folder, `runs/<name>` if absent.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Runs every stage, even one that a former run has finished.
    #[arg(long)]
    fresh: bool,
    /// Prints what would run, and what would be reused, and runs nothing.
    #[arg(long)]
    plan: bool,
    /// Threads to compute with; all cores if absent. Results do not depend on it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Says more: once for what is loaded and reused, twice for details.
    #[arg(short, long, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
    /// Says nothing but warnings and errors.
    #[arg(short, long)]
    quiet: bool,
}

impl Arguments {
    /// Plans and runs.
    pub fn run(self) -> anyhow::Result<()> {
        let console = Console::new(Verbosity { verbose: self.verbose, quiet: self.quiet });
        threads::start(self.threads)?;
        let mut plan = Plan::load(&self.config, &Overrides::from_process(self.profile, self.set))?;
        let mut options = Options::default().with_fresh(self.fresh);
        options.out = self.out;
        if self.plan {
            let reused = run::reusable(&plan, &options)?;
            return print(&[vec![planned(&plan, &reused)], from_hub(&plan)?].concat().join("\n"));
        }
        console.handle_interrupts()?;
        if let Some(table) = plan.publish.as_ref().filter(|table| !table.dry_run) {
            lmr_pipeline::publish::check_access(table, &Hub::from_env(), &console)?;
        }
        let report = run::run(&mut plan, &options, &console);
        console.done();
        let report = report?;
        let folder = options.folder(&plan);
        if !self.quiet {
            print(&summary(&plan, &report))?;
            print(&format!("{:.1} s; report: {}", report.run.seconds, folder.join("report.md").display()))?;
        }
        // What missed an expectation stays here.
        report.check()?;
        match &plan.publish {
            Some(table) => publish(&folder, table, None, &console),
            None => Ok(()),
        }
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

fn planned(plan: &Plan, reused: &[bool]) -> String {
    let mut table = table(["#", "name", "kind", "from", "needs", "gives", ""]);
    for (step, reused) in plan.steps.iter().zip(reused) {
        table.add_row([
            step.index.to_string(),
            step.name.clone(),
            step.kind.kind.to_string(),
            step.from.map_or_else(|| "(as received)".into(), |from| plan.steps[from].name.clone()),
            (step.kind.needs)().join(", "),
            (step.kind.gives)().join(", "),
            if *reused { "finished, would be reused".into() } else { "would run".to_string() },
        ]);
    }
    if let Some(to) = &plan.publish {
        let what = if to.dry_run { "would be written, not sent" } else { "would be sent" };
        let target = format!("{}, branch {}", to.repo, to.revision);
        let from = to.stage.clone().unwrap_or_default();
        table.add_row([String::new(), target, "publish".into(), from, String::new(), String::new(), what.into()]);
    }
    table.to_string()
}

/// What comes from the Hub, a line each.
fn from_hub(plan: &Plan) -> anyhow::Result<Vec<String>> {
    let line = |input: RemoteInput| {
        let state = match (input.cached, Hub::from_env().is_offline()) {
            (true, _) => "in the cache",
            (false, false) => "would be downloaded",
            (false, true) => "not in the cache, and HF_HUB_OFFLINE forbids downloads",
        };
        format!("{} from {}: {state}", input.what, input.source)
    };
    Ok(plan.remote()?.into_iter().map(line).collect())
}

fn summary(plan: &Plan, report: &Report) -> String {
    let mut lines: Vec<String> = report.stages.iter().filter_map(Measurement::worst).collect();
    let measured = Measured::short(report);
    if !measured.rows.is_empty() {
        lines.push(measured.table().to_string());
    }
    if let Some(estimated) = report.estimated() {
        let class = estimated.class as usize;
        let name = plan.dataset.descriptor().classes.get(class).map_or("?", String::as_str);
        lines.push(format!("estimated backdoor class: {class} ({name}). {}", estimated.verdict()));
    }
    lines.extend(expected(report));
    lines.join("\n")
}

/// What the pipeline expected, and whether it came out.
fn expected(report: &Report) -> Option<String> {
    let mut table = table(["number", "expected", "found", ""]);
    for checked in &report.expect {
        let met = if checked.met { "met" } else { "missed" };
        table.add_row([checked.place(), checked.expected.to_string(), checked.found(), met.into()]);
    }
    (!report.expect.is_empty()).then(|| table.to_string())
}
