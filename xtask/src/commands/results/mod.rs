//! `cargo xtask results`.

mod extract;
mod page;
mod table;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Subcommand;
use lmr_pipeline::Error;
use lmr_pipeline::artifacts::write_whole;

/// Which pages, and where the numbers are.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    pages: Pages,
}

/// What to do instead of writing the tables.
#[derive(Subcommand)]
enum Command {
    /// Keeps what tables show of a finished run, or of all seeds of one that was repeated.
    Add(Add),
}

#[derive(clap::Args)]
struct Pages {
    /// A Markdown page with tables of results. Repeatable.
    #[arg(long, value_name = "FILE", default_value = "configs/README.md")]
    page: Vec<PathBuf>,
    /// The folder with what was kept of the runs.
    #[arg(long, value_name = "DIR", default_value = "configs/results")]
    results: PathBuf,
    /// Writes nothing, and fails if a table is not what the results say.
    #[arg(long)]
    check: bool,
}

#[derive(clap::Args)]
struct Add {
    /// The run folder, or the folder of `cargo xtask repeat` with a run folder a seed.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The name under which tables find it; the folder's name if absent.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The folder with what was kept of other runs.
    #[arg(long, value_name = "DIR", default_value = "configs/results")]
    results: PathBuf,
}

impl Arguments {
    /// Does it.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Some(Command::Add(add)) => add.run(),
            None => self.pages.run(),
        }
    }
}

impl Pages {
    /// Writes every table anew, or says which page is not as it would be.
    fn run(self) -> anyhow::Result<()> {
        let mut stale = Vec::new();
        for path in &self.page {
            let before = read(path)?;
            let after = page::rewrite(&before, |options| table::draw(options, &self.results))
                .map_err(|message| Error::input(path, message))?;
            if after == before {
                continue;
            }
            stale.push(path.display().to_string());
            if !self.check {
                write_whole(path, after.as_bytes())?;
                writeln!(std::io::stdout(), "{}: written", path.display())?;
            }
        }
        if self.check && !stale.is_empty() {
            bail!("{}: other tables than the results give; run `cargo xtask results`", stale.join(", "));
        }
        Ok(())
    }
}

impl Add {
    /// Reads the reports and keeps what tables show of them.
    fn run(self) -> anyhow::Result<()> {
        let own = || self.run.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = self.name.clone().or_else(own).unwrap_or_default();
        let path = extract::path(&self.results, &name).map_err(|message| Error::input(&self.run, message))?;
        let reports = extract::collect(&self.run)?;
        fs::create_dir_all(&self.results).map_err(Error::io("create", &self.results))?;
        extract::write(&path, &reports)?;
        Ok(writeln!(std::io::stdout(), "{}: {} kept", path.display(), extract::seeds(&reports))?)
    }
}

/// A text file.
fn read(path: &Path) -> anyhow::Result<String> {
    Ok(fs::read_to_string(path).map_err(|error| Error::input(path, error.to_string()))?)
}
