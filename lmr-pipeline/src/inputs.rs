//! Everything a run starts from: the model as it was received, the clean set, and what is known of the attack.

use std::collections::BTreeMap;

use candle_core::Device;
use lmr_plugin::data::{CleanSet, Images, Normalization, stratified_split};
use lmr_plugin::deploy::Rounding;
use lmr_plugin::model::{Classifier, Model};
use lmr_plugin::nn::StateDict;
use lmr_plugin::rng;
use lmr_plugin::run::Observer;
use lmr_plugin::stage::{CleanUse, Examination, Material, ModelUse, Planted, RoleKind, Target};
use lmr_plugin::zoo::ModelSpec;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::Head;
use crate::datasets::{DataError, Provenance, Split, digest};
use crate::hub::{HubCheckpoint, HubError};
use crate::model_config::ModelConfig;
use crate::plan::{LocalCheckpoint, Plan, Step};
use crate::problem::quoted;
use crate::triggers::Built;
use crate::weights::{self, Checkpoint, Layout, gguf, stored};
use crate::{Error, Result};

/// A clean set of at most so many bytes is decoded once, since purifying stages look at it in every epoch; 500 photographs
/// of 224×224 take 75 MB. A larger one is decoded when it is looked at.
const CLEAN_IN_MEMORY: usize = 1 << 30;

/// What a run starts from.
pub struct Inputs {
    /// Where the model computes.
    pub device: Device,
    /// Where the model's weights come from, and the SHA-256 of that file.
    pub source: ReceivedWeights,
    /// The defender's clean images.
    pub clean: CleanSet,
    /// What the images are, for the run folder.
    pub data: DataRecord,
    /// For stages that examine: the test images and the trigger.
    pub examination: Option<Examination>,
    /// For stages that implant a given trigger: the training images and the trigger, and no test image.
    pub material: Option<Material>,
    /// For stages that learn the trigger: the training images and its class, and no test image.
    pub learning: Option<Material<Target>>,
    /// What the model was trained to expect of pixels.
    normalization: Normalization,
}

/// Where the received weights come from.
#[derive(Clone, Debug)]
pub struct ReceivedWeights {
    /// The file as the pipeline names it, `owner/name@commit/file`, or the seed that the weights were drawn from.
    pub source: String,
    /// Where on the Hub they are from.
    pub origin: Option<HubCheckpoint>,
    /// SHA-256 of the file; absent for drawn weights.
    pub sha256: Option<String>,
    /// How to write a model as the file was.
    pub layout: Option<Layout>,
}

/// Which images a run worked with; `data.json` in the run folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DataRecord {
    /// The dataset.
    pub name: String,
    /// The clean set.
    pub clean: SetRecord,
    /// Indices of the clean images in their split, ascending.
    pub clean_indices: Vec<usize>,
    /// The test images, if a stage measures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<SetRecord>,
    /// The training images, if a stage implants a backdoor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<SetRecord>,
    /// The trigger with all its settings and the target class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger: Option<Value>,
    /// The files that were read.
    pub files: Vec<Provenance>,
}

/// A set of images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetRecord {
    /// The split it is from.
    pub split: Split,
    /// How many images.
    pub count: usize,
    /// SHA-256 over shape, labels and pixels, or what they are decoded from.
    pub digest: String,
}

impl SetRecord {
    fn of(split: Split, images: &Images) -> Result<Self> {
        Ok(Self { split, count: images.len(), digest: digest(images)? })
    }
}

impl Inputs {
    /// Reads the checkpoint and the images: the model as it was received, and the rest. Nothing is written but what comes
    /// from the Hub into its cache, which the observer sees and may stop. A checkpoint from there must be
    /// [fetched](Plan::fetch) before.
    pub fn load(plan: &Plan, observer: &dyn Observer) -> Result<(Model, Self)> {
        let device = plan.device.open()?;
        let (model, source) = match &plan.weights {
            Some(checkpoint) => {
                let fetched = || Error::Internal("the checkpoint was not fetched".into());
                let local = checkpoint.local.as_ref().ok_or_else(fetched)?;
                let loaded = weights::load(&local.file, checkpoint.table.key.as_deref())?;
                if let Some(expected) = &checkpoint.table.sha256
                    && !expected.eq_ignore_ascii_case(&loaded.sha256)
                {
                    let message = format!("its SHA-256 is {}, the pipeline expects {expected}", loaded.sha256);
                    return Err(Error::input(&local.file, message));
                }
                let mut source = checkpoint.source();
                let model = match stored::rounding(&local.file, &loaded)? {
                    Some(rounding) => {
                        source.push_str(&format!(", {}", rounding.label()));
                        quantized(plan, local, &loaded, checkpoint.table.head, rounding, &device)?
                    }
                    None => {
                        if checkpoint.table.head.is_some() {
                            source.push_str(", with a fresh head");
                        }
                        let network = full_precision(plan, local, &loaded, checkpoint.table.head, &device)?;
                        Model::new(network, plan.normalization())?
                    }
                };
                let (sha256, layout) = (Some(loaded.sha256), Some(loaded.layout));
                (model, ReceivedWeights { source, origin: local.origin.clone(), sha256, layout })
            }
            None => {
                let network = plan.model.fresh(rng::stream(plan.run.seed, "model/init"), &device)?;
                let source = format!("drawn from seed {}", plan.run.seed);
                let model = Model::new(network, plan.normalization())?;
                (model, ReceivedWeights { source, origin: None, sha256: None, layout: None })
            }
        };
        Ok((model, Self::load_data(plan, observer, device, source)?))
    }

    fn load_data(plan: &Plan, observer: &dyn Observer, device: Device, source: ReceivedWeights) -> Result<Self> {
        let name = &plan.data.name;
        let refuse = |error: lmr_plugin::Error| Error::Data { name: name.clone(), message: error.to_string() };
        let mut splits = Splits { plan, observer, loaded: BTreeMap::new(), files: Vec::new() };

        let descriptor = plan.dataset.descriptor();
        let (clean, clean_record, clean_indices, rest) = match plan.data.clean {
            Some(table) => {
                let from = splits.get(table.split)?;
                let (indices, rest) =
                    stratified_split(from.labels(), from.classes(), table.count, plan.run.seed).map_err(refuse)?;
                let images = from.select(&indices)?;
                let record = SetRecord::of(table.split, &images)?;
                let bytes = images.shape().into_iter().product::<usize>().saturating_mul(images.len());
                let images = if bytes <= CLEAN_IN_MEMORY { images.in_memory()? } else { images };
                let clean = CleanSet::new(images).map_err(refuse)?;
                check_classes(plan, &clean)?;
                (clean, record, indices, Some((table.split, rest)))
            }
            None => {
                let clean = CleanSet::none(descriptor.image.chw(), descriptor.classes.len()).map_err(refuse)?;
                let record = SetRecord::of(Split::Test, &clean.images)?;
                (clean, record, Vec::new(), None)
            }
        };

        let built = match &plan.trigger {
            Some(table) => {
                let built =
                    table.trigger.build(plan.dataset.descriptor().image.chw(), &|path| plan.search.find(path))?;
                Some((built, table.target))
            }
            None => None,
        };
        let trigger = plan.trigger.as_ref().map(|table| {
            let (kind, config) = (table.trigger.kind(), table.trigger.config());
            let mut trigger = json!({ "kind": kind, "target": table.target, "config": config });
            if let Some((Built::Read { sha256, .. }, _)) = &built {
                trigger["sha256"] = json!(sha256);
            }
            trigger
        });
        let mut images = |split: Split, count: Option<usize>, what: &str| -> Result<(Images, SetRecord)> {
            let images = splits.get(split)?;
            let mut indices = match &rest {
                Some((of, rest)) if *of == split => rest.clone(),
                _ => (0..images.len()).collect(),
            };
            indices.truncate(count.unwrap_or(usize::MAX));
            if indices.is_empty() {
                let message = format!("no image is left for {what}: the clean set has the whole {split} split");
                return Err(Error::Data { name: name.clone(), message });
            }
            let images = if indices.len() == images.len() { images } else { images.select(&indices)? };
            let record = SetRecord::of(split, &images)?;
            Ok((images, record))
        };
        let (test, test_record) = match plan.measures() {
            true => Some(images(plan.data.test.split, plan.data.test.count, "the test set")?).unzip(),
            false => (None, None),
        };
        let (train, train_record) = match plan.implants() {
            true => Some(images(plan.data.train.split, plan.data.train.count, "training")?).unzip(),
            false => (None, None),
        };
        let (mut planted, mut target) = (None, None);
        match built {
            Some((Built::Made(trigger) | Built::Read { trigger, .. }, target)) => {
                planted = Some(Planted { trigger, target });
            }
            Some((Built::Learned, class)) => target = Some(Target(class)),
            None => {}
        }
        let data = DataRecord {
            name: name.clone(),
            clean: clean_record,
            clean_indices,
            test: test_record,
            train: train_record,
            trigger,
            files: splits.files,
        };
        let material = train.clone().zip(planted.clone()).map(|(train, backdoor)| Material { train, backdoor });
        let learning = train.zip(target).map(|(train, backdoor)| Material { train, backdoor });
        let examination = test.map(|test| Examination { test, planted });
        let normalization = plan.normalization();
        Ok(Self { device, source, clean, data, examination, material, learning, normalization })
    }

    /// What identifies the images, their normalization and the trigger that a stage is shown.
    pub fn identity(&self, step: &Step) -> Value {
        let clean = json!({ "images": self.data.clean.digest, "normalization": self.normalization });
        let digest = |set: &Option<SetRecord>| set.as_ref().map(|set| set.digest.clone());
        match step.kind.role {
            RoleKind::Implants | RoleKind::Learns => {
                json!({ "clean": clean, "train": digest(&self.data.train), "trigger": self.data.trigger })
            }
            RoleKind::Examines => {
                json!({ "clean": clean, "test": digest(&self.data.test), "trigger": self.data.trigger })
            }
            _ => json!({ "clean": clean }),
        }
    }
}

/// Refuses a clean set without a class that a stage compares with others, before any stage runs.
fn check_classes(plan: &Plan, clean: &CleanSet) -> Result<()> {
    let compares = |step: &&Step| step.stage.clean() == CleanUse::EveryClass;
    let (Some(step), absent) = (plan.steps.iter().find(compares), clean.absent_classes()) else { return Ok(()) };
    let Some(first) = absent.first() else { return Ok(()) };
    let message = format!(
        "the clean set has no image of {} of {} classes, such as class {first} ({}), and `{}` cannot tell such a class from \
         the backdoor's; take more clean images (data.clean.count), or give it the class, `class = …`",
        absent.len(),
        clean.classes,
        plan.dataset.descriptor().classes[*first],
        step.name
    );
    Err(Error::Data { name: plan.data.name.clone(), message })
}

/// The network of a checkpoint.
fn full_precision(
    plan: &Plan,
    local: &LocalCheckpoint,
    loaded: &Checkpoint,
    head: Option<Head>,
    device: &Device,
) -> Result<Box<dyn Classifier>> {
    let state = loaded.state.clone();
    for said in plan.model.adaptations(&state) {
        tracing::info!("{}: {said}", local.file.display());
    }
    let network = match head {
        None => plan.model.load(state, device),
        Some(Head::Fresh) => plan.model.load_with_fresh_head(state, rng::stream(plan.run.seed, "model/head"), device),
    };
    network.map_err(|error| misfit(plan, local, &loaded.state, error))
}

/// The model of a checkpoint whose layers are rounded: deployed as it is.
fn quantized(
    plan: &Plan,
    local: &LocalCheckpoint,
    loaded: &Checkpoint,
    head: Option<Head>,
    rounding: Rounding,
    device: &Device,
) -> Result<Model> {
    let refuse = |message: String| Error::input(&local.file, message);
    let barred = plan.steps.iter().filter(|step| step.stage.model_use() != ModelUse::Inspects);
    let barred: Vec<&str> = barred.map(|step| step.name.as_str()).collect();
    if !barred.is_empty() {
        return Err(refuse(format!(
            "is quantized ({}), and these stages need the full-precision model: {}; take its checkpoint, or only evaluate",
            rounding.label(),
            quoted(&barred)
        )));
    }
    if head.is_some() {
        return Err(refuse(
            "is quantized, and keeps its head: remove `weights.head`, or take the full-precision model".into(),
        ));
    }
    if let Some(json) = loaded.gguf.as_ref().and_then(|gguf| gguf.config.as_ref()) {
        let config = ModelConfig::own(json).map_err(|message| refuse(format!("{}: {message}", gguf::CONFIG)))?;
        let differing = config.model.map(|written| written.differing(&plan.model)).unwrap_or_default();
        if !differing.is_empty() {
            return Err(refuse(format!("it is for a model with {}", differing.join(", "))));
        }
    }
    let network = plan.model.fresh(rng::stream(plan.run.seed, "model/init"), device)?;
    let form = stored::form(network.as_ref(), loaded, rounding).map_err(|error| match error {
        lmr_plugin::Error::Weights(_) => misfit(plan, local, &loaded.state, error),
        error => refuse(error.to_string()),
    })?;
    let mut model = Model::new(network, plan.normalization())?;
    model.deploy(form);
    Ok(model)
}

/// Why a checkpoint could not become the pipeline's model, and which one it could.
fn misfit(plan: &Plan, checkpoint: &LocalCheckpoint, state: &StateDict, error: lmr_plugin::Error) -> Error {
    let lmr_plugin::Error::Weights(faults) = error else { return error.into() };
    let mut message = faults.to_string();
    if let Ok(Some(found)) = ModelSpec::recognize(state) {
        let differing = found.differing(&plan.model);
        if !differing.is_empty() {
            message += &format!("; it is for a model with {}", differing.join(", "));
        }
        if matches!(differing.as_slice(), [only] if only.starts_with("classes")) {
            message += "; for other classes, set weights.head = \"fresh\"";
        }
    }
    Error::input(&checkpoint.file, message)
}

/// Splits, each read once.
struct Splits<'a> {
    plan: &'a Plan,
    observer: &'a dyn Observer,
    loaded: BTreeMap<&'static str, Images>,
    files: Vec<Provenance>,
}

impl Splits<'_> {
    fn get(&mut self, split: Split) -> Result<Images> {
        if let Some(images) = self.loaded.get(split.name()) {
            return Ok(images.clone());
        }
        let loaded = self.plan.dataset.load_watched(split, self.observer).map_err(|error| match error {
            DataError::Hub(error @ HubError::Interrupted) => error.into(),
            error => Error::Data { name: self.plan.data.name.clone(), message: error.to_string() },
        })?;
        self.files.push(loaded.provenance);
        self.loaded.insert(split.name(), loaded.images.clone());
        Ok(loaded.images)
    }
}
