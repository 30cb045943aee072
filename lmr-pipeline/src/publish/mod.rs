//! Publishes a purified model: a folder with the weights under the names they came in, a `config.json` for the library that
//! has those names, the report and a model card; and that folder as one commit on the Hugging Face Hub.
//!
//! The same run gives the same bytes. Nothing is sent but the files of the folder.

mod card;
mod config;
mod folder;
#[cfg(not(feature = "hub-upload"))]
mod no_upload;
mod source;
#[cfg(feature = "hub-upload")]
mod upload;

use std::path::Path;

use lmr_plugin::model::{Model, Stored};
use lmr_plugin::rng;
use lmr_plugin::run::Observer;
use lmr_plugin::zoo::Network;
use serde_json::Value;

pub(crate) use card::{Metadata, markdown, plain};
pub use folder::{Publication, PublishedFile};
#[cfg(not(feature = "hub-upload"))]
pub use no_upload::{check_access, send};
#[cfg(feature = "hub-upload")]
pub use upload::{check_access, send};

use crate::artifacts::CONFIG_FILE;
use crate::config::{Overrides, PublishTable};
use crate::files::{MODEL_FILE, json as to_json};
use crate::hub::names::check_license;
use crate::plan::{Plan, Selection, published_folder};
use crate::run::fact_store;
use crate::tensors::dtype_name;
use crate::weights::{Export, Layout, described, gguf};
use crate::{Error, Result};
use card::{Card, license_of};
use config::{ConfigFile, Described};
use source::{FinishedRun, Received};

/// What became of a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sent {
    /// The commit that has all of it.
    pub commit: String,
    /// Where people see it.
    pub url: String,
    /// Whether the commit was made just now; otherwise the repository had everything already.
    pub changed: bool,
    /// Other files of the repository, which were left alone.
    pub others: Vec<String>,
}

/// A deployed form that is published beside the model.
pub(crate) struct PublishedForm {
    /// The stage that made it.
    pub stage: usize,
    /// Its folder.
    pub folder: String,
    /// A sentence on what the folder holds.
    pub note: String,
}

/// The `[publish]` of the pipeline that a run folder is from.
pub fn configured(run: &Path) -> Result<Option<PublishTable>> {
    let file = run.join("config.toml");
    if !file.is_file() {
        return Err(Error::input(run, "has no config.toml; expected the folder of a finished run"));
    }
    Ok(Plan::load(&file, &Overrides::default())?.publish)
}

/// The folder that `lmr publish` sends, from a finished run. Nothing is written but what is missing of a received
/// checkpoint from the Hub, into its cache.
pub fn compose(run: &Path, table: &PublishTable, observer: &dyn Observer) -> Result<Publication> {
    table.check().map_err(|(key, message)| Error::Unpublishable(format!("{key}: {message}")))?;
    let source = FinishedRun::open(run, observer)?;
    let selection = Selection::of(&source.links(), table.stage.as_deref(), &table.include);
    let selection = selection.map_err(|faults| {
        let faults: Vec<String> = faults.into_iter().map(|(key, message)| format!("{key}: {message}")).collect();
        Error::Unpublishable(faults.join("; "))
    })?;
    Composer { source, table, selection }.compose(observer)
}

/// A path as it is published: of one that only holds on this machine, the last part.
pub(crate) fn shown_path(path: &str) -> &str {
    if Path::new(path).is_absolute() { path.rsplit(['/', '\\']).next().unwrap_or_default() } else { path }
}

struct Composer<'a> {
    source: FinishedRun,
    table: &'a PublishTable,
    selection: Selection,
}

impl Composer<'_> {
    fn compose(mut self, observer: &dyn Observer) -> Result<Publication> {
        let source = &mut self.source;
        source.report.model.source = shown_path(&source.report.model.source).to_owned();
        let before = source.path().join(folder::NAME);
        folder::keep_times(&mut source.report, &before);
        let (source, received) = (&self.source, self.source.received(observer)?);
        let (_, state) = source.stage(self.selection.stage)?;
        let layout = received.layout.as_ref().map_or_else(|| Layout::of(&state), Layout::unwrapped);
        let images = source.plan.images();
        let labels = self.labels();
        let described = Described {
            model: &source.plan.model,
            scheme: layout.scheme(),
            dtype: head_dtype(&layout),
            labels: &labels,
            images: &images,
            received: &received.config,
            received_processor: &received.processor,
        };
        let configs = described.files()?;
        let mut files = vec![PublishedFile::new(MODEL_FILE, layout.write_model(&state, Export::Safetensors)?)];
        files.extend(configs.iter().map(|file| PublishedFile::new(file.name, file.bytes.clone())));
        let mut forms = Vec::new();
        for &stage in &self.selection.forms {
            let (form, of_form) = self.form(stage, &layout, &configs)?;
            files.extend(of_form);
            forms.push(form);
        }
        files.push(PublishedFile::new("report.json", to_json(&source.report)?));
        let pipeline = self.pipeline(&files)?.into_bytes();
        files.push(PublishedFile::new("lmr.toml", pipeline));
        files.extend(source.plots()?.into_iter().map(|(name, bytes)| PublishedFile::new(&name, bytes)));
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let license = self.license(&received);
        let card = Card {
            repo: &self.table.repo,
            source,
            selection: &self.selection,
            forms: &forms,
            library: described.library(),
            scheme: described.scheme,
            dtype: dtype_name(described.dtype),
            labels: &labels,
            license: license.as_deref(),
            files: &files,
        };
        let card = card.write()?.into_bytes();
        files.insert(0, PublishedFile::new("README.md", card));
        Ok(Publication { table: self.table.clone(), title: plain(&source.plan.run.name), files })
    }

    /// Names of the classes: the received model's own, unless it got another head.
    fn labels(&self) -> Vec<String> {
        let received = self.source.plan.weights.as_ref().filter(|weights| weights.table.head.is_none());
        let local = received.and_then(|weights| weights.local.as_ref());
        let own = local.and_then(|local| local.config.as_ref()).map(|config| config.labels.clone());
        own.filter(|labels| !labels.is_empty()).unwrap_or_else(|| self.source.plan.dataset.descriptor().classes.clone())
    }

    /// The licence: the one that was given, or the one that the received model says it has.
    fn license(&self, received: &Received) -> Option<String> {
        let text = |value: Option<&Value>| Some(value?.as_str()?.to_owned()).filter(|id| check_license(id).is_ok());
        let config = &received.config;
        let pretrained = config.get("pretrained_cfg").and_then(|pretrained| pretrained.get("license"));
        self.table
            .license
            .clone()
            .or_else(|| license_of(received.card.as_deref()?))
            .or_else(|| text(config.get("license")))
            .or_else(|| text(pretrained))
    }

    /// The whole pipeline without what only holds on this machine, and without where it was published.
    fn pipeline(&self, beside: &[PublishedFile]) -> Result<String> {
        let text = self.source.plan.to_toml(self.source.path())?;
        let internal = |error: &dyn std::fmt::Display| Error::Internal(format!("lmr.toml: {error}"));
        let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| internal(&error))?;
        table.remove("publish");
        if let Some(toml::Value::Table(run)) = table.get_mut("run") {
            run.remove("paths-from");
        }
        let mut table = toml::Value::Table(table);
        shorten_paths(&mut table);
        if let Some(weights) = table.get_mut("model").and_then(|model| model.get_mut("weights")?.as_table_mut())
            && let Some(toml::Value::String(path)) = weights.get_mut("path")
        {
            // A path is looked up beside the file first, and there the purified model may have this name.
            if beside.iter().any(|file| Path::new(&file.path).starts_with(&*path)) {
                *path = format!("{RECEIVED}/{path}");
            }
            if let Some(sha256) = &self.source.report.model.sha256 {
                weights.insert("sha256".into(), sha256.clone().into());
            }
        }
        toml::to_string(&table).map_err(|error| internal(&error))
    }

    /// The model that a stage put into a deployed form.
    fn deployed(&self, index: usize) -> Result<Model> {
        let (plan, (record, state)) = (&self.source.plan, self.source.stage(index)?);
        let network = plan.model.fresh(rng::stream(0, "publish"), &candle_core::Device::Cpu)?;
        let mut model = Model::new(network, plan.normalization())?;
        model.load_state(state)?;
        plan.steps[index].stage.restore(&mut model, &fact_store(&record.findings)?)?;
        Ok(model)
    }

    /// A deployed form, and the files in its folder.
    fn form(
        &self,
        index: usize,
        layout: &Layout,
        configs: &[ConfigFile],
    ) -> Result<(PublishedForm, Vec<PublishedFile>)> {
        let (plan, model) = (&self.source.plan, self.deployed(index)?);
        let name = &plan.steps[index].name;
        let form = model.form().ok_or_else(|| Error::Internal(format!("stage[{index}]: `{name}` left no form")))?;
        let spec = Network::of(model.network()).map_or(&plan.model, Network::spec);
        let config = plan.own_config(spec);
        let own = || Ok::<_, Error>((CONFIG_FILE, to_json(&serde_json::json!({ "lmr": config }))?));
        let (files, container) = match form.stored(model.network())? {
            Stored::Weights(state) => {
                let mut files = vec![(MODEL_FILE, layout.write_model(&state, Export::Safetensors)?)];
                let as_it_was = spec.widths == plan.model.widths;
                match as_it_was {
                    true => files.extend(configs.iter().map(|file| (file.name, file.bytes.clone()))),
                    false => files.push(own()?),
                }
                (files, if as_it_was { WHOLE } else { SMALLER })
            }
            Stored::Described { tensors, description } => {
                let mut files = described::write(&tensors, &description)?;
                files.push(own()?);
                (files, DESCRIBED)
            }
            Stored::Blocks { tensors, format } => (vec![gguf::write(&tensors, format, &config)?, own()?], GGUF),
        };
        let folder = published_folder(name);
        let files = files.into_iter().map(|(name, bytes)| PublishedFile::new(&format!("{folder}/{name}"), bytes));
        let files = files.collect();
        Ok((PublishedForm { stage: index, note: format!("{}{container}", form.summary()), folder }, files))
    }
}

/// The folder in which the published pipeline looks for a received model that was a local file.
const RECEIVED: &str = "received";

const WHOLE: &str = "; loads as the model itself does.";
const SMALLER: &str = "; `config.json` has its widths. LMR loads it, other libraries have no class for it.";
const DESCRIBED: &str =
    "; `quantization.json` says how they are put together. LMR loads it, other libraries have no class for it.";
const GGUF: &str = ". Whatever reads GGUF reads the tensors; LMR loads the model.";

/// The dtype of the last matrix.
fn head_dtype(layout: &Layout) -> safetensors::Dtype {
    let weights = layout.entries.iter().rev().filter(|entry| entry.name.ends_with("weight"));
    let mut dtypes = weights.map(|entry| entry.dtype);
    dtypes.next().unwrap_or(safetensors::Dtype::F32)
}

fn shorten_paths(value: &mut toml::Value) {
    match value {
        toml::Value::String(text) => *text = shown_path(text).to_owned(),
        toml::Value::Array(list) => list.iter_mut().for_each(shorten_paths),
        toml::Value::Table(table) => table.iter_mut().for_each(|(_, value)| shorten_paths(value)),
        _ => {}
    }
}
