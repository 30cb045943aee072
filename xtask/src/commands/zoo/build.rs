//! `lmr zoo build`.

use std::io::Write;

use lmr_pipeline::Error;
use lmr_pipeline::report::percent;
use lmr_pipeline::zoo::CLEAN;

use super::{Chosen, Place};
use crate::console::{Console, Verbosity};
use crate::threads;

/// What to build.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    chosen: Chosen,
    /// Overrides a value of every pipeline, as for `pipeline`. Repeatable.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Threads to compute with; all cores if absent. Results do not depend on it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

impl Arguments {
    /// Builds one member after the other. Stages that a former build has finished are reused. A member that misses what its
    /// pipeline expects does not keep the others from being built.
    pub fn run(self) -> anyhow::Result<()> {
        let console = Console::new(Verbosity { verbose: 0, quiet: false });
        threads::start(self.threads)?;
        let zoo = self.place.zoo();
        let mut members = zoo.select(&self.chosen.only)?;
        // The others begin with it.
        if members.iter().all(|member| member.name != CLEAN) {
            let clean = zoo.members()?.into_iter().find(|member| member.name == CLEAN && member.report().is_none());
            members.splice(0..0, clean);
        }
        console.handle_interrupts()?;
        let mut missed = Vec::new();
        for member in members {
            let report = member.build(self.set.clone(), &console);
            console.done();
            let report = report?;
            let measured = member.measured(&report).map_or("not measured".into(), |m| {
                format!("ACC {}, ASR {}, TA {}", percent(Some(m.acc)), percent(m.asr), percent(m.ta))
            });
            writeln!(std::io::stdout(), "{}: {measured}; {}", member.name, member.folder.display())?;
            missed.extend(report.missed().into_iter().map(|missed| format!("{}, {missed}", member.name)));
        }
        Ok(Error::unless_missed(missed)?)
    }
}
