//! Publishes a purified model: a folder with the weights under the names they came in, a `config.json` for the library that
//! has those names, the report and a model card; and that folder as one commit on the Hugging Face Hub.
//!
//! The same run gives the same bytes. Nothing is sent but the files of the folder.

mod card;
mod config;
mod folder;
mod gguf;
mod integers;
#[cfg(not(feature = "hub-upload"))]
mod no_upload;
mod source;
#[cfg(feature = "hub-upload")]
mod upload;

use std::path::Path;

use lmr_plugin::model::Model;
use lmr_plugin::models::Network;
use lmr_plugin::nn::StateDict;
use lmr_plugin::quantization::{Ranges, Rounding};
use lmr_plugin::rng;
use lmr_plugin::run::Observer;
use lmr_plugin::stage::{Finding, Stage};
use lmr_plugin::stages::Quantize;
use serde_json::Value;

pub(crate) use card::{Metadata, markdown, plain};
pub use folder::{Publication, PublishedFile};
#[cfg(not(feature = "hub-upload"))]
pub use no_upload::{check_access, send};
#[cfg(feature = "hub-upload")]
pub use upload::{check_access, send};

use crate::artifacts::{CONFIG_FILE, json as to_json};
use crate::config::{Overrides, PublishTable};
use crate::hub::names::check_license;
use crate::plan::{Plan, Selection, published_folder};
use crate::tensors::dtype_name;
use crate::weights::{Export, Layout};
use crate::{Error, Result};
use card::{Card, license_of};
use config::{ConfigFile, Described};
use source::{Received, Source};

/// The weights, at the top and in the folder of every form.
pub const WEIGHTS: &str = "model.safetensors";

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
pub(crate) struct Form {
    /// The stage that made it.
    pub stage: usize,
    /// Its folder.
    pub folder: String,
    /// A sentence on what the folder holds.
    pub note: &'static str,
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
    let source = Source::open(run, observer)?;
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
    source: Source,
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
        let mut files = vec![PublishedFile::new(WEIGHTS, layout.write_model(&state, Export::Safetensors)?)];
        files.extend(configs.iter().map(|file| PublishedFile::new(file.name, file.bytes.clone())));
        let mut forms = Vec::new();
        for &stage in &self.selection.forms {
            let (form, of_form) = self.form(stage, &layout, &configs)?;
            files.extend(of_form);
            forms.push(form);
        }
        files.push(PublishedFile::new("report.json", to_json(&source.report)?));
        files.push(PublishedFile::new("lmr.toml", self.pipeline()?.into_bytes()));
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
    fn pipeline(&self) -> Result<String> {
        let text = self.source.plan.to_toml()?;
        let internal = |error: &dyn std::fmt::Display| Error::Internal(format!("lmr.toml: {error}"));
        let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| internal(&error))?;
        table.remove("publish");
        let mut table = toml::Value::Table(table);
        shorten_paths(&mut table);
        toml::to_string(&table).map_err(|error| internal(&error))
    }

    /// The `config.json` of a model that lost channels, which only this program has a class for; none if it lost none.
    fn smaller(&self, state: StateDict) -> Result<Option<Vec<u8>>> {
        let plan = &self.source.plan;
        let network = plan.model.fresh(rng::stream(0, "publish"), &candle_core::Device::Cpu)?;
        let mut model = Model::new(network, plan.normalization())?;
        model.load_state(state)?;
        let spec = Network::of(model.network()).map(Network::spec);
        let Some(spec) = spec.filter(|spec| spec.widths != plan.model.widths) else { return Ok(None) };
        Ok(Some(to_json(&serde_json::json!({ "lmr": plan.own_config(spec) }))?))
    }

    /// A deployed form, and the files in its folder.
    fn form(&self, index: usize, layout: &Layout, configs: &[ConfigFile]) -> Result<(Form, Vec<PublishedFile>)> {
        let step = &self.source.plan.steps[index];
        let (record, state) = self.source.stage(index)?;
        let folder = published_folder(&step.name);
        if step.kind.kind != Quantize::KIND {
            let weights = layout.write_model(&state, Export::Safetensors)?;
            let mut files = vec![(WEIGHTS, weights)];
            let smaller = self.smaller(state)?;
            let note = if smaller.is_some() { REMOVED } else { ZEROED };
            match smaller {
                Some(config) => files.push((CONFIG_FILE, config)),
                None => files.extend(configs.iter().map(|file| (file.name, file.bytes.clone()))),
            }
            let files = files.into_iter().map(|(name, bytes)| PublishedFile::new(&format!("{folder}/{name}"), bytes));
            return Ok((Form { stage: index, note, folder: folder.clone() }, files.collect()));
        }
        let damaged = |error: serde_json::Error| Error::Internal(format!("stage[{index}]: {error}"));
        let quantize: Quantize = serde_json::from_value(step.stage.config()?).map_err(damaged)?;
        let ranges = record.findings.get(Ranges::NAME).cloned().unwrap_or_default();
        let ranges: Ranges = serde_json::from_value(ranges).map_err(damaged)?;
        let network = self.source.plan.model.load(state, &candle_core::Device::Cpu)?;
        let config = self.source.plan.own_config(&self.source.plan.model);
        let (mut files, note) = match quantize.rounding() {
            Rounding::Integers(scheme) => (integers::files(network.as_ref(), scheme, &ranges)?, INTEGERS),
            Rounding::Blocks(format) => (vec![gguf::file(network.as_ref(), format, &config)?], BLOCKS),
        };
        files.push((CONFIG_FILE, to_json(&serde_json::json!({ "lmr": config }))?));
        let files = files.into_iter().map(|(name, bytes)| PublishedFile::new(&format!("{folder}/{name}"), bytes));
        Ok((Form { stage: index, note, folder: folder.clone() }, files.collect()))
    }
}

const ZEROED: &str = "the same names and shapes, with zeros for what was pruned; loads as the model itself does.";
const REMOVED: &str = "a smaller network under the same names; `config.json` has its widths. LMR loads it, other libraries have no \
    class for it.";
const INTEGERS: &str = "integers, scales and activation ranges under torchvision's names; `quantization.json` says how they \
    are put together. LMR loads it, other libraries have no class for it.";
const BLOCKS: &str = "weights in blocks and the rest in f32 under torchvision's names, batch norm folded in; a convolution is a matrix with \
    a row for every output channel. Whatever reads GGUF reads the tensors; LMR loads the model.";

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
