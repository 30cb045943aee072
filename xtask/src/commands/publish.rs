//! `lmr publish`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::bail;
use comfy_table::CellAlignment;
use lmr_pipeline::config::PublishTable;
use lmr_pipeline::hub::Hub;
use lmr_pipeline::publish::{self, Publication};

use super::table;
use crate::console::{Console, Verbosity};

/// Which run, and where to. What is not given here is taken from the run's `[publish]`, if it has one.
#[derive(clap::Args)]
pub struct Arguments {
    /// The folder of a finished run.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The model repository on the Hugging Face Hub; created if there is none.
    #[arg(long, value_name = "OWNER/NAME")]
    repo: Option<String>,
    /// Makes a repository that is created private.
    #[arg(long)]
    private: bool,
    /// The branch; `main` if absent.
    #[arg(long, value_name = "BRANCH")]
    revision: Option<String>,
    /// The stage whose model is published; the last one that purifies if absent.
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,
    /// A stage whose deployed form is published, too. Repeatable.
    #[arg(long, value_name = "NAME")]
    include: Vec<String>,
    /// The licence as the Hub spells it, such as `mit`.
    #[arg(long, value_name = "ID")]
    license: Option<String>,
    /// Writes the folder that would be sent (`RUN/publish` if no other is named) and sends nothing.
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    dry_run: Option<Option<PathBuf>>,
}

impl Arguments {
    /// Composes the folder, and sends it.
    pub fn run(self) -> anyhow::Result<()> {
        let console = Console::new(Verbosity { verbose: 0, quiet: false });
        console.handle_interrupts()?;
        let (table, folder) = (self.table()?, self.dry_run.flatten());
        publish(&self.run, &table, folder.as_deref(), &console)
    }

    /// The run's own `[publish]` with what was given put over it.
    fn table(&self) -> anyhow::Result<PublishTable> {
        let configured = publish::configured(&self.run)?;
        let mut table = match (configured, &self.repo) {
            (Some(table), _) => table,
            (None, Some(repo)) => PublishTable::to(repo),
            (None, None) => bail!("the run has no [publish]; say where to with --repo OWNER/NAME"),
        };
        table.repo = self.repo.clone().unwrap_or(table.repo);
        table.private |= self.private;
        table.dry_run |= self.dry_run.is_some();
        table.revision = self.revision.clone().unwrap_or(table.revision);
        table.stage = self.stage.clone().or(table.stage);
        table.license = self.license.clone().or(table.license);
        if !self.include.is_empty() {
            table.include = self.include.clone();
        }
        Ok(table)
    }
}

/// Composes a run's publication in `folder`, by default inside the run, and sends it unless that is left for later.
pub fn publish(run: &Path, table: &PublishTable, folder: Option<&Path>, console: &Console) -> anyhow::Result<()> {
    let publication = publish::compose(run, table, console)?;
    let own = Publication::default_folder(run);
    publication.write(folder.unwrap_or(&own), folder.is_none())?;
    let say = |text: String| if console.is_quiet() { Ok(()) } else { writeln!(std::io::stdout(), "{text}") };
    say(listed(&publication))?;
    if table.dry_run {
        return Ok(say(format!("dry run: nothing was sent; the folder is {}", folder.unwrap_or(&own).display()))?);
    }
    console.begin("publishing");
    let sent = publish::send(&publication, &Hub::from_env(), console);
    console.done();
    let sent = sent?;
    let did = if sent.changed { "published as" } else { "nothing to send: all of it is in" };
    say(format!("{did} commit {}\n{}", sent.commit, sent.url))?;
    if !sent.others.is_empty() {
        say(format!(
            "left alone: {}",
            sent.others.iter().map(|path| path.escape_debug().to_string()).collect::<Vec<_>>().join(", ")
        ))?;
    }
    Ok(())
}

/// What is sent, and where to.
fn listed(publication: &Publication) -> String {
    let mut table = table(["file", "bytes", "SHA-256"]);
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for file in &publication.files {
        table.add_row([file.path.clone(), file.bytes.len().to_string(), file.sha256.clone()]);
    }
    let to = &publication.table;
    let visibility = if to.private { "private if it is created" } else { "public if it is created" };
    format!("{table}\nto {}, branch {}, {visibility}", to.repo, to.revision)
}
