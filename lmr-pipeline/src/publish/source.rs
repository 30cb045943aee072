//! A finished run as its folder has it, checked before anything of it is handed on.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use lmr_plugin::nn::StateDict;
use lmr_plugin::run::Observer;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::artifacts::{Record, RunFolder};
use crate::config::Overrides;
use crate::files::MODEL_FILE;
use crate::hub::{Hub, RemoteFile, RemoteFiles, RepoKind};
use crate::inputs::DataRecord;
use crate::model_config::object_beside;
use crate::plan::{Link, Plan, maker};
use crate::report::{Measurement, Report};
use crate::tensors::sha256;
use crate::weights::{self, Layout};
use crate::{Error, Result};

/// A report, a record of the images or an outcome; those of a thousand classes stay below a megabyte.
const MAX_TEXT: u64 = 64 << 20;
/// A longer card is cut off; what is looked for stands at its beginning.
const MAX_CARD: u64 = 1 << 20;
/// As much as a checkpoint may have.
const MAX_WEIGHTS: u64 = 4 << 30;

/// A run that has ended, and that nobody else writes to meanwhile.
pub struct FinishedRun {
    /// Its pipeline.
    pub plan: Plan,
    /// What it found.
    pub report: Report,
    /// Which images it worked with.
    pub data: DataRecord,
    inside: Inside,
    /// Held, so that nothing changes meanwhile.
    _folder: RunFolder,
}

/// Where the received model came from on the Hub.
#[derive(Clone, Copy, Debug)]
pub struct Base<'a> {
    /// The repository.
    pub repo: &'a str,
    /// The commit.
    pub commit: &'a str,
}

/// The checkpoint that the run started from, without its numbers.
#[derive(Default)]
pub struct Received {
    /// How its tensors were stored; absent for weights that were drawn.
    pub layout: Option<Layout>,
    /// Its `config.json`; empty if it had none.
    pub config: Map<String, Value>,
    /// Its `preprocessor_config.json`.
    pub processor: Map<String, Value>,
    /// The text of its `README.md`, if there was one.
    pub card: Option<String>,
}

impl FinishedRun {
    /// Opens a run folder with a report.
    pub fn open(path: &Path, observer: &dyn Observer) -> Result<Self> {
        if !path.join("report.json").is_file() {
            let message = "has no report.json; run `lmr pipeline` with `--out` of this folder to the end first";
            return Err(Error::input(path, message));
        }
        let folder = RunFolder::open(path)?;
        let inside = Inside { path: path.to_owned(), real: path.canonicalize().map_err(Error::io("open", path))? };
        let mut plan = Plan::load(&path.join("config.toml"), &Overrides::default())?;
        plan.fetch(observer)?;
        let (report, data): (Report, DataRecord) = (inside.json("report.json")?, inside.json("data.json")?);
        let steps = plan.steps.iter().map(|step| (step.kind.kind, step.name.as_str()));
        if !steps.eq(report.stages.iter().map(|stage| (stage.kind.as_str(), stage.name.as_str()))) {
            let message = "has other stages than config.toml beside it; run the pipeline again";
            return Err(Error::input(&path.join("report.json"), message));
        }
        Ok(Self { plan, report, data, inside, _folder: folder })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.inside.path
    }

    /// Where the received model came from, if it came from the Hub.
    pub fn base(&self) -> Option<Base<'_>> {
        let model = &self.report.model;
        Some(Base { repo: model.repo.as_deref()?, commit: model.commit.as_deref()? })
    }

    /// The stages as [`Selection`](crate::plan::Selection) wants them.
    pub fn links(&self) -> Vec<Link<'_>> {
        let steps = self.plan.steps.iter();
        steps.map(|step| Link { kind: step.kind, name: &step.name, from: step.from }).collect()
    }

    /// What was last measured of the model that a stage left, `None` for the model as it was received.
    pub fn measured(&self, stage: Option<usize>) -> Option<Measurement<'_>> {
        let links = self.links();
        let of = |report: &&crate::report::StageReport| maker(&links, report.index) == stage;
        self.report.stages.iter().rev().filter(of).find_map(Measurement::of)
    }

    /// A stage's record, and the weights it left, under the names that models here have.
    pub fn stage(&self, index: usize) -> Result<(Record, StateDict)> {
        let (step, report) = (&self.plan.steps[index], &self.report.stages[index]);
        let record: Record = self.inside.json(&format!("{}/outcome.json", step.folder()))?;
        let name = format!("{}/{MODEL_FILE}", step.folder());
        let bytes = self.inside.read(&name, MAX_WEIGHTS)?;
        let found = sha256(&bytes);
        let expected = report.files.get(MODEL_FILE);
        if expected != Some(&found) || record.files.get(MODEL_FILE) != expected {
            let message = format!("its SHA-256 is {found}, report.json has another; run the pipeline again");
            return Err(Error::input(&self.path().join(&name), message));
        }
        let state = weights::parse(&bytes).map_err(|message| Error::input(&self.path().join(&name), message))?;
        Ok((record, state))
    }

    /// The checkpoint that the run started from; it must still be what it was.
    pub fn received(&self, observer: &dyn Observer) -> Result<Received> {
        let Some(checkpoint) = &self.plan.weights else { return Ok(Received::default()) };
        let fetched = || Error::Internal("the checkpoint was not fetched".into());
        let file = &checkpoint.local.as_ref().ok_or_else(fetched)?.file;
        let loaded = weights::read(file, checkpoint.table.key.as_deref())?;
        if Some(&loaded.sha256) != self.report.model.sha256.as_ref() {
            let message = "is another file than the one this run started from; put that one back, or run again";
            return Err(Error::input(file, message));
        }
        Ok(Received {
            layout: Some(loaded.layout),
            config: object_beside(file, "config.json")?.unwrap_or_default(),
            processor: object_beside(file, "preprocessor_config.json")?.unwrap_or_default(),
            card: self.card(file, observer),
        })
    }

    /// The received model's card: from beside the checkpoint, or from where that came from.
    fn card(&self, checkpoint: &Path, observer: &dyn Observer) -> Option<String> {
        let beside = checkpoint.with_file_name("README.md");
        let path = match self.base() {
            Some(base) if !beside.is_file() => {
                let file = RemoteFile { path: "README.md", sha256: None, max_bytes: MAX_CARD };
                let wanted =
                    RemoteFiles { kind: RepoKind::Model, repo: base.repo, revision: base.commit, files: &[file] };
                let found = Hub::from_env().files(&wanted, observer);
                found
                    .inspect_err(|error| tracing::debug!("no card of the received model: {error}"))
                    .ok()?
                    .files
                    .pop()?
                    .path
            }
            _ => beside,
        };
        let mut bytes = Vec::new();
        fs::File::open(path).ok()?.take(MAX_CARD).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Names and bytes of the plots at the top of the folder, sorted.
    pub fn plots(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path()).map_err(Error::io("list", self.path()))?.flatten() {
            // Of the entry itself: a link is none, wherever it leads.
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            let name = entry.file_name().to_string_lossy().into_owned();
            let plot = [".png", ".svg"].iter().any(|ending| name.ends_with(ending)) && !name.starts_with('.');
            if is_file && plot && crate::hub::names::check_path(&name).is_ok() {
                names.push(name);
            }
        }
        names.sort();
        names.into_iter().map(|name| Ok((name.clone(), self.inside.read(&name, MAX_TEXT)?))).collect()
    }
}

/// A folder out of which nothing is read, wherever links lead.
struct Inside {
    path: PathBuf,
    /// The folder without links.
    real: PathBuf,
}

impl Inside {
    fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let bytes = self.read(name, MAX_TEXT)?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Error::input(&self.path.join(name), format!("cannot be read: {error}; run the pipeline again"))
        })
    }

    /// The bytes of a file that is in the folder, also where links lead to it.
    fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let path = self.path.join(name);
        let unreadable = |error: std::io::Error| Error::input(&path, format!("cannot be read: {error}"));
        let real = path.canonicalize().map_err(unreadable)?;
        if !real.starts_with(&self.real) {
            return Err(Error::input(&path, "is a link out of the run folder; only what is in it is published"));
        }
        let mut bytes = Vec::new();
        fs::File::open(&real).map_err(unreadable)?.take(limit + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > limit {
            return Err(Error::input(&path, format!("has more than {limit} bytes")));
        }
        Ok(bytes)
    }
}
