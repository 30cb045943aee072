//! The pipeline file: its tables, their defaults, and how they are read.
//!
//! Layers, weakest first: defaults, the file, one of its profiles, `LMR_…` environment variables, `--set`. A relative path
//! is looked up from the pipeline file's folder and each folder above it, then from the working directory.

mod expect;
mod layers;
mod paths;
mod publish;

use std::path::{Path, PathBuf};

use lmr_plugin::stage::AnyStage;
use lmr_plugin::zoo::ModelSpec;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::Result;
use crate::datasets::{ClassChoice, Split};
use crate::device::ComputeDtype;
use crate::model_config::Convention;
use crate::place::{Faults, Place, read, show};
use crate::problem::hint;
use crate::registry::{AnyTrigger, STAGES, StageKind, TRIGGERS, TriggerKind};
use crate::weights::Export;
pub use expect::{Bound, ExpectTable, Expectation, Range};
pub(crate) use paths::{PATH_KEYS, SearchPath};
pub(crate) use publish::NO_UPLOADS;
pub use publish::PublishTable;

/// The sections of a pipeline file.
const SECTIONS: &[&str] = &["run", "model", "data", "trigger", "stage", "expect", "publish", layers::PROFILES];

/// `[run]`: what is not about the model or the data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct RunTable {
    /// The run folder's name under `runs/`; the pipeline file's name if empty. Letters, digits, `_`, `-` and `.`.
    pub name: String,
    /// Seed of every random choice: the clean set, shuffling, augmentation, fresh weights.
    pub seed: u64,
    /// `cpu`, `cuda:N`, `metal:N`, or `auto`: a GPU if the program was built for one and finds it.
    pub device: String,
    /// What products are computed in: `f32`, or on a GPU `bf16` or `f16`. Weights, statistics and everything else stay in f32.
    #[serde(skip_serializing_if = "ComputeDtype::is_f32")]
    pub dtype: ComputeDtype,
    /// Folders from which relative paths are looked up before this file's own; `config.toml` in a run folder names those of
    /// the pipeline it is from, where that lies elsewhere.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths_from: Vec<PathBuf>,
}

impl Default for RunTable {
    fn default() -> Self {
        Self { name: String::new(), seed: 0, device: "auto".into(), dtype: ComputeDtype::F32, paths_from: Vec::new() }
    }
}

/// `[model]` `weights`: a checkpoint with PyTorch names, as safetensors (one file, or an index and its shards) or as
/// `torch.save` writes it. Nothing in the file is run. Either `path` or `hub` says where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct WeightsTable {
    /// The file, or a folder with one `model.safetensors`, `pytorch_model.bin` or the like. A `config.json` in the same folder
    /// must agree with this pipeline, and its mean and standard deviation take the place of the dataset's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// A model repository on the Hugging Face Hub, `owner/name`, in place of `path`. Its `config.json` counts as one beside
    /// a file does. What is in the cache already is used without asking the Hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<String>,
    /// For `hub`: a commit (40 hexadecimal digits), a branch or a tag; `main` if absent. The run folder's `config.toml`
    /// names the commit that a branch was at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// For `hub`: the path of the checkpoint in the repository; if absent, the one that would be taken from a folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// For `hub`: accepts a file that is a pickle (`.pth`, `.pt`, `.bin`). It is read without running anything in it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_pickle: bool,
    /// SHA-256 that the file must have, in hexadecimal digits; of an index followed by its shards, if it has shards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Which state dict of a `.pth` file, where there are several: keys joined by dots, such as `state_dict_ema`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Writes every changed model also under the names and in the dtypes of this file: `export.safetensors` or, as a state
    /// dict for `torch.load`, `export.pth` in the stage's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export: Option<Export>,
    /// Leaves the checkpoint's head out: `fresh` draws a new one, for other classes. Without this, another number of
    /// classes is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Head>,
    /// Whose names of classes count where a `config.json` has others than the dataset, or in another order: `dataset` says that
    /// class i of the model is class i of the dataset. Without this, that is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
}

/// Whose names of classes count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Labels {
    /// The dataset's.
    Dataset,
}

/// What takes the place of a checkpoint's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Head {
    /// A head drawn from the seed.
    Fresh,
}

/// `[data]`: which images the stages see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct DataTable {
    /// A dataset that `datasets/<name>.toml` describes.
    pub name: String,
    /// A local folder with the dataset's files, instead of the Hub's cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
    /// Only images of these classes, which get new numbers in this order: `["n02422106", "tench", 7]`, by id, name or index. The
    /// model has as many classes. All classes if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<ClassChoice>>,
    /// Whether classes may be without a folder of images, as `partial` in the descriptor says.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// How images of any size are brought to the model's input, in place of what the dataset's descriptor says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preprocessing: Option<Convention>,
    /// The defender's clean images, drawn by the seed with all classes in proportion; 500 of the test split if absent. A
    /// pipeline that only evaluates needs none, and has none unless they are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean: Option<Clean>,
    /// The images that `evaluate` measures on; what is in `clean` is left out.
    #[serde(default)]
    pub test: TestImages,
    /// The images that attacks train on; loaded only if such a stage is planned.
    #[serde(default)]
    pub train: TrainImages,
}

/// The clean set: a few images of a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Clean {
    /// The split they are drawn from.
    pub split: Split,
    /// How many, at least 1. 500 is 1% of CIFAR-10's training set, as in the paper.
    pub count: usize,
}

impl Default for Clean {
    fn default() -> Self {
        Self { split: Split::Test, count: 500 }
    }
}

/// The images that a model is measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TestImages {
    /// The split they are from.
    pub split: Split,
    /// At most so many images, the first ones; all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
}

impl Default for TestImages {
    fn default() -> Self {
        Self { split: Split::Test, count: None }
    }
}

/// The images that an attack trains on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TrainImages {
    /// The split they are from.
    pub split: Split,
    /// At most so many images, the first ones; all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
}

impl Default for TrainImages {
    fn default() -> Self {
        Self { split: Split::Train, count: None }
    }
}

/// `[trigger]`: what the attacker does to an image, and the class it is meant to cause.
pub struct TriggerTable {
    /// The attacker's class.
    pub target: u32,
    /// The trigger's own configuration.
    pub trigger: Box<dyn AnyTrigger>,
}

/// A `[[stage]]`, as far as it could be read.
pub(crate) struct StageTable {
    pub kind: Option<&'static StageKind>,
    pub name: String,
    pub from: Option<String>,
    pub stage: Option<Box<dyn AnyStage>>,
}

impl StageTable {
    pub fn place(&self, index: usize) -> Place {
        Place::stage(index, self.kind.map(|kind| kind.kind))
    }
}

/// A pipeline file as far as it could be read; what could not is in the faults.
pub(crate) struct Draft {
    pub file: PathBuf,
    pub search: SearchPath,
    pub run: Option<RunTable>,
    pub model: Option<ModelSpec>,
    pub weights: Option<WeightsTable>,
    pub data: Option<DataTable>,
    pub trigger: Option<TriggerTable>,
    /// Whether there is a `[trigger]`, readable or not.
    pub has_trigger: bool,
    pub stages: Vec<StageTable>,
    pub expect: ExpectTable,
    pub publish: Option<PublishTable>,
    pub faults: Faults,
}

/// What is put on top of a pipeline file.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Overrides {
    /// The profile of the file (`[profile.<name>]`) whose values are taken, if any.
    pub profile: Option<String>,
    /// `key=value` pairs of `--set`, strongest last.
    pub set: Vec<String>,
    /// Environment variables; only those that begin with `LMR_` count.
    pub env: Vec<(String, String)>,
}

impl Overrides {
    /// The process's environment variables, a profile and these `--set` values.
    pub fn from_process(profile: Option<String>, set: Vec<String>) -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self { profile, set, env: std::env::vars_os().filter_map(text).collect() }
    }
}

impl Draft {
    /// Reads every table, noting every fault. An error only where nothing at all can be read.
    pub fn load(file: &Path, overrides: &Overrides) -> Result<Self> {
        let layered = layers::load(file, overrides)?;
        let mut faults = Faults::new(file.display().to_string(), layered.overridden);
        let mut table = layered.table;
        for key in table.keys().filter(|key| !SECTIONS.contains(&key.as_str())) {
            faults.add(&Place::section(key), format!("unknown section{}", hint(key, SECTIONS)));
        }
        let run = section(&mut table, "run", true, &mut faults);
        let run: Option<RunTable> = run.and_then(|run| read(run, &Place::section("run"), &mut faults));
        let search = SearchPath::new(file, run.as_ref().map_or(&[], |run| run.paths_from.as_slice()));
        paths::spell_out_typed(&mut table, &layered.typed, &search);
        let (model, weights) = match section(&mut table, "model", false, &mut faults) {
            Some(model) => read_model(model, &mut faults),
            None => (None, None),
        };
        let data = section(&mut table, "data", false, &mut faults);
        let data = data.and_then(|data| read(data, &Place::section("data"), &mut faults));
        let has_trigger = table.contains_key("trigger");
        let trigger = if has_trigger { section(&mut table, "trigger", true, &mut faults) } else { None };
        let trigger = trigger.and_then(|trigger| read_trigger(trigger, &mut faults));
        let stages = match table.remove("stage") {
            Some(Value::Array(stages)) => {
                stages.into_iter().enumerate().map(|(index, stage)| read_stage(index, stage, &mut faults)).collect()
            }
            Some(other) => {
                let message = format!("expected a list of stages, written as [[stage]], found {}", show(&other));
                faults.add(&Place::section("stage"), message);
                Vec::new()
            }
            None => Vec::new(),
        };
        let expect = section(&mut table, "expect", true, &mut faults).unwrap_or_default();
        let expect = ExpectTable::read(expect, &mut faults);
        let publish = match table.contains_key("publish") {
            true => section(&mut table, "publish", true, &mut faults),
            false => None,
        };
        let publish = publish.and_then(|publish| read(publish, &Place::section("publish"), &mut faults));
        let file = file.to_path_buf();
        Ok(Self { file, search, run, model, weights, data, trigger, has_trigger, stages, expect, publish, faults })
    }
}

/// Takes a top-level table out; an absent one is empty if it may be absent.
fn section(table: &mut Table, name: &str, optional: bool, faults: &mut Faults) -> Option<Table> {
    match table.remove(name) {
        Some(Value::Table(found)) => Some(found),
        Some(other) => {
            faults.add(&Place::section(name), format!("expected a table, found {}", show(&other)));
            None
        }
        None if optional => Some(Table::new()),
        None => {
            faults.add(&Place::section(name), format!("missing; add a [{name}] table"));
            None
        }
    }
}

fn read_model(mut table: Table, faults: &mut Faults) -> (Option<ModelSpec>, Option<WeightsTable>) {
    let place = Place::section("model");
    let weights = match table.remove("weights") {
        Some(Value::Table(weights)) => read(weights, &place.key("weights"), faults),
        Some(other) => {
            faults.add(
                &place.key("weights"),
                format!("expected {{ path = \"…\" }} or {{ hub = \"owner/name\" }}, found {}", show(&other)),
            );
            None
        }
        None => None,
    };
    let spec: Option<ModelSpec> = read(table, &place, faults);
    let spec = spec.filter(|spec| {
        let found = spec.faults();
        found.iter().for_each(|fault| faults.add_keyed(&place, fault));
        found.is_empty()
    });
    // Defaults are filled in once it is known what the checkpoint's configuration says.
    (spec, weights)
}

fn read_trigger(mut table: Table, faults: &mut Faults) -> Option<TriggerTable> {
    let place = Place::section("trigger");
    let kinds: Vec<&str> = TRIGGERS.iter().map(|kind| kind.kind).collect();
    let target: Option<u32> = take(&mut table, "target", &place, faults, true);
    let kind: Option<String> = take(&mut table, "kind", &place, faults, true);
    let kind = kind?;
    let Some(known) = TriggerKind::find(&kind) else {
        faults.add(&place.key("kind"), format!("unknown trigger \"{kind}\"{}", hint(&kind, &kinds)));
        return None;
    };
    let trigger = known.parse(table, &place, faults)?;
    Some(TriggerTable { target: target?, trigger })
}

fn read_stage(index: usize, stage: Value, faults: &mut Faults) -> StageTable {
    let Value::Table(mut table) = stage else {
        faults.add(&Place::stage(index, None), format!("expected a table, found {}", show(&stage)));
        return StageTable { kind: None, name: String::new(), from: None, stage: None };
    };
    let place = Place::stage(index, None);
    let kinds: Vec<&str> = STAGES.iter().map(|kind| kind.kind).collect();
    let kind: Option<String> = take(&mut table, "kind", &place, faults, true);
    let known = kind.as_deref().and_then(StageKind::find);
    if let (Some(kind), None) = (&kind, known) {
        faults.add(&place.key("kind"), format!("unknown stage \"{kind}\"{}", hint(kind, &kinds)));
    }
    let place = Place::stage(index, known.map(|known| known.kind));
    let name: Option<String> = take(&mut table, "name", &place, faults, false);
    let from = take(&mut table, "from", &place, faults, false);
    let name = name.or(kind).unwrap_or_default();
    if known.is_some() && (name.trim().is_empty() || name.chars().count() > 100 || name.contains(char::is_control)) {
        faults.add(&place.key("name"), format!("expected 1 to 100 printable characters, found {name:?}"));
    }
    StageTable { kind: known, name, from, stage: known.and_then(|known| known.parse(table, &place, faults)) }
}

/// Takes one key out of a table.
fn take<T: DeserializeOwned>(
    table: &mut Table,
    key: &str,
    place: &Place,
    faults: &mut Faults,
    required: bool,
) -> Option<T> {
    match table.remove(key) {
        Some(value) => {
            let found = show(&value);
            let expected = if key == "target" { "a class number, 0 or more" } else { "a name in quotes" };
            let read = value.try_into().ok();
            if read.is_none() {
                faults.add(&place.key(key), format!("expected {expected}, found {found}"));
            }
            read
        }
        None => {
            if required {
                faults.add(&place.key(key), "missing; it has no default");
            }
            None
        }
    }
}

/// Whether this can be a folder's name on every system.
pub(crate) fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    (1..=100).contains(&name.len()) && name.chars().all(fits) && !name.starts_with('.')
}
