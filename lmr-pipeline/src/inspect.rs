//! What a checkpoint holds, as far as that shows without knowing its architecture, and what looks wrong in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use lmr_plugin::deploy::{Rounding, dtype_name};
use lmr_plugin::nn::StateDict;
use lmr_plugin::rng;
use lmr_plugin::zoo::{ModelSpec, Stem, naming};
use rayon::prelude::*;
use serde::Serialize;

use crate::model_config::{ModelConfig, filled};
use crate::tensors;
use crate::weights::{self, Checkpoint, Container};
use crate::{Error, Result};

/// Activations of a trained network vary by less; a variance above says that its statistics ran away.
const HUGE_VARIANCE: f64 = 1e6;

/// As many classes, and as large an image, have photographs and not CIFAR's images.
const PHOTOGRAPH_CLASSES: usize = 1000;
const PHOTOGRAPH_SIDE: usize = 160;
/// What libraries call the head.
const HEADS: &[&str] = &["fc", "linear", "head", "classifier", "heads.head", "classifier.1", "classifier.6"];
const UNTRAINED: &str =
    "every batch norm is as it was initialized, with means of 0 and variances of 1: this network was not trained";

/// What is known about a checkpoint. Serialized, it is what `lmr inspect --json` prints.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Inspection {
    /// What kind of file it is.
    pub format: Container,
    /// Length of the file, or of all its shards.
    pub bytes: u64,
    /// SHA-256 of the file in hexadecimal digits.
    pub sha256: String,
    /// What its weights are rounded to, if they are: `int8`, `q4_0`.
    pub quantized: Option<String>,
    /// Where in the file the state dict is; empty for the file itself.
    pub key: String,
    /// What a wrapper such as `DataParallel` put before every name; left out below.
    pub prefix: String,
    /// The model it is for, if that is one of the architectures there are: the `[model]` table of a pipeline.
    pub model: Option<ModelSpec>,
    /// Whether the file has no head, so that the table draws a new one, for as many classes as one likes.
    pub fresh_head: bool,
    /// Keys of that table that neither the tensors nor a `config.json` tell, which therefore have their defaults.
    pub assumed: Vec<&'static str>,
    /// Whose names the tensors have, if that is known.
    pub naming: Option<&'static str>,
    /// The last linear layer, if one can be told by its name.
    pub head: Option<String>,
    /// Classes: rows of the head.
    pub classes: Option<usize>,
    /// Elements of all floating-point tensors but running statistics.
    pub parameters: usize,
    /// How many tensors there are of each dtype.
    pub dtypes: BTreeMap<String, usize>,
    /// Plain values that the file keeps beside the weights.
    pub notes: BTreeMap<String, String>,
    /// What the `config.json` beside the file says.
    pub config: Option<ModelConfig>,
    /// Every tensor in the order of the file.
    pub tensors: Vec<Looked>,
    /// What looks wrong.
    pub warnings: Vec<String>,
}

/// A tensor and its statistics, over its finite values.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Looked {
    /// Its name.
    pub name: String,
    /// Its dtype in the file.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Smallest value; null if there is none.
    pub min: Option<f64>,
    /// Largest value.
    pub max: Option<f64>,
    /// Mean.
    pub mean: Option<f64>,
    /// Standard deviation (of the population).
    pub std: Option<f64>,
    /// Share of the values that are exactly 0, in [0, 1].
    pub zeros: f64,
    /// How many values are NaN.
    pub nan: usize,
    /// How many values are infinite.
    pub infinite: usize,
}

impl Inspection {
    /// The table with which a pipeline loads this checkpoint from `path`, if one can.
    pub fn model_table(&self, path: &Path) -> Option<String> {
        let mut lines = vec!["[model]".to_string()];
        for line in toml::to_string(self.model.as_ref()?).ok()?.lines() {
            let is = |key: &str| line.split(' ').next() == Some(key);
            let comment = match self.assumed.iter().any(|key| is(key)) {
                true => "  # the default: the file does not tell",
                false if self.fresh_head && is("classes") => "  # as many as the data has: the file has no head",
                false => "",
            };
            lines.push(format!("{line}{comment}"));
        }
        let head = if self.fresh_head { ", head = \"fresh\"" } else { "" };
        lines.push(format!("weights = {{ path = {}{head} }}", toml::Value::from(path.to_string_lossy().as_ref())));
        Some(lines.join("\n"))
    }
}

/// Reads a checkpoint, or the one in a folder, and looks at every tensor. `key` chooses a state dict where there are several.
pub fn inspect(path: &Path, key: Option<&str>) -> Result<Inspection> {
    let path = &weights::in_folder(path)?;
    let checkpoint = weights::read(path, key)?;
    let rounding = weights::stored::rounding(path, &checkpoint);
    let quantized = rounding.as_ref().ok().copied().flatten().map(Rounding::label);
    let Checkpoint { state, layout, sha256, bytes, notes, gguf } = checkpoint;
    let stored = |entry: &weights::StoredTensor| match gguf.as_ref().and_then(|gguf| gguf.tensors.get(&entry.name)) {
        Some(tensor) => dtype_name(tensor.dtype()).to_string(),
        None => tensors::dtype_name(entry.dtype),
    };
    let entries: Vec<(String, String)> =
        layout.entries.iter().map(|entry| (layout.short(entry), stored(entry))).collect();
    let looked = entries.par_iter().map(|(name, dtype)| look(name, dtype, &state[name]));
    let looked: Vec<(Looked, Vec<String>)> =
        looked.collect::<candle_core::Result<_>>().map_err(|error| Error::Model(error.into()))?;
    let (tensors, warnings): (Vec<Looked>, Vec<Vec<String>>) = looked.into_iter().unzip();
    let mut warnings = warnings.concat();
    warnings.extend(layout.skipped.iter().map(|name| format!("{name}: is no tensor of the model")));
    let names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
    let head = head(&tensors);
    let mut dtypes = BTreeMap::new();
    entries.iter().for_each(|(_, dtype)| *dtypes.entry(dtype.clone()).or_default() += 1);
    let is_parameter = |name: &str| !name.ends_with("running_mean") && !name.ends_with("running_var");
    let floats = state.iter().filter(|(name, tensor)| tensor.dtype().is_float() && is_parameter(name));
    let config = ModelConfig::beside(path)?;
    let own = gguf.as_ref().and_then(|gguf| gguf.config.as_deref()).map(ModelConfig::own).transpose();
    warnings.extend(rounding.err().map(|error| error.to_string()));
    warnings.extend(own.as_ref().err().map(|message| format!("{}: {message}", weights::gguf::CONFIG)));
    let own = own.ok().flatten();
    let own = own.as_ref().or(config.as_ref()).and_then(|config| config.model.clone());
    // Layers that batch norm is folded into are recognized by what was written beside them.
    let recognized = match own.filter(|_| quantized.is_some()) {
        Some(own) => Some(own),
        None => ModelSpec::recognize(&state).map_err(Error::Model)?,
    };
    let (recognized, fresh_head) = match recognized {
        None => (headless(&state)?, true),
        found => (found, false),
    };
    let mut assumed = Vec::new();
    let model = recognized.and_then(|spec| {
        let (model, open) = with_config(spec, config.as_ref());
        assumed = open;
        // Layers that batch norm is folded into are checked when they are put together.
        let fault = if quantized.is_some() { None } else { misfit(&model, &state, fresh_head) };
        match fault {
            Some(fault) => warnings.push(format!("looks like {}, but cannot be loaded: {fault}", arch(&model))),
            None => return Some(model),
        }
        None
    });
    if untrained(&tensors) {
        warnings.push(UNTRAINED.into());
    }
    let fresh_head = fresh_head && model.is_some();
    Ok(Inspection {
        format: layout.container,
        bytes,
        sha256,
        quantized,
        key: layout.key,
        prefix: layout.wrapping.prefix,
        model,
        fresh_head,
        assumed,
        naming: naming::title(names),
        classes: head.map(|head| head.shape[0]),
        head: head.map(|head| head.name.trim_end_matches(".weight").to_string()),
        parameters: floats.map(|(_, tensor)| tensor.elem_count()).sum(),
        dtypes,
        notes: notes.into_iter().collect(),
        config,
        tensors,
        warnings,
    })
}

/// What a checkpoint's shapes leave open, filled in from its `config.json` or with defaults; the keys with defaults.
fn with_config(mut spec: ModelSpec, config: Option<&ModelConfig>) -> (ModelSpec, Vec<&'static str>) {
    if let Some(written) = config.and_then(|config| config.model.as_ref()) {
        spec.stem = spec.stem.or(written.stem);
        spec.padding = spec.padding.or(written.padding);
        spec.heads = spec.heads.or(written.heads);
        spec.activation = spec.activation.or(written.activation);
        spec.pooling = spec.pooling.or(written.pooling);
        spec.norm_eps = spec.norm_eps.or(written.norm_eps);
    }
    if let Some(config) = config {
        spec = filled(&spec, &config.stated).unwrap_or(spec);
    }
    if spec.resolved().stem.is_some() && spec.stem.is_none() {
        // Nobody tells a thousand classes apart in 32 pixels, or resizes to 224 for a network that is made for them.
        let side = config.and_then(|config| config.preprocessing.as_ref()).map_or(0, |images| images.size[0]);
        if spec.classes >= PHOTOGRAPH_CLASSES || side >= PHOTOGRAPH_SIDE {
            spec.stem = Some(Stem::Imagenet);
        }
    }
    let resolved = spec.resolved();
    let assumed = [
        ("stem", resolved.stem.is_some() && spec.stem.is_none()),
        ("padding", resolved.padding.is_some() && spec.padding.is_none()),
        ("heads", resolved.heads.is_some() && spec.heads.is_none()),
        ("activation", resolved.activation.is_some() && spec.activation.is_none()),
        ("pooling", resolved.pooling.is_some() && spec.pooling.is_none()),
        ("norm-eps", resolved.norm_eps.is_some() && spec.norm_eps.is_none()),
    ];
    (resolved, assumed.into_iter().filter(|(_, assumed)| *assumed).map(|(key, _)| key).collect())
}

/// The model whose trunk alone a checkpoint has, for two classes.
fn headless(state: &StateDict) -> Result<Option<ModelSpec>> {
    let widths: BTreeSet<usize> = state.values().filter(|it| it.rank() == 1).map(|it| it.dims()[0]).collect();
    for (name, features) in HEADS.iter().flat_map(|name| widths.iter().rev().map(move |features| (name, *features))) {
        let mut whole = state.clone();
        for (part, shape) in [("weight", &[2, features][..]), ("bias", &[2])] {
            let zeros = Tensor::zeros(shape, DType::F32, &Device::Cpu).map_err(|error| Error::Model(error.into()))?;
            whole.insert(format!("{name}.{part}"), zeros);
        }
        let found = ModelSpec::recognize(&whole).map_err(Error::Model)?;
        if let Some(spec) = found.filter(|spec| misfit(spec, state, true).is_none()) {
            return Ok(Some(spec));
        }
    }
    Ok(None)
}

/// Which tensors are missing or left over for a model, if any.
fn misfit(spec: &ModelSpec, state: &StateDict, fresh_head: bool) -> Option<String> {
    let loaded = match fresh_head {
        true => spec.load_with_fresh_head(state.clone(), rng::stream(0, "inspect"), &Device::Cpu),
        false => spec.load(state.clone(), &Device::Cpu),
    };
    loaded.err().map(|error| error.to_string())
}

/// What a pipeline calls an architecture.
fn arch(spec: &ModelSpec) -> String {
    serde_json::to_value(spec.arch).ok().and_then(|name| Some(name.as_str()?.to_owned())).unwrap_or_default()
}

/// Whether every batch norm, and there is one, is as it was before training.
fn untrained(tensors: &[Looked]) -> bool {
    let all = |name: &str, value: f64| {
        let mut found = tensors.iter().filter(|tensor| tensor.name.ends_with(name)).peekable();
        found.peek().is_some() && found.all(|it| (it.min, it.max, it.nan) == (Some(value), Some(value), 0))
    };
    all("running_mean", 0.0) && all("running_var", 1.0)
}

/// Statistics of a tensor, and what looks wrong in it.
fn look(name: &str, dtype: &str, tensor: &Tensor) -> candle_core::Result<(Looked, Vec<String>)> {
    let values: Vec<f64> = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
    let (nan, finite) = (values.iter().filter(|v| v.is_nan()).count(), values.iter().filter(|v| v.is_finite()));
    let count = finite.clone().count();
    let infinite = values.len() - nan - count;
    let mean = (count > 0).then(|| finite.clone().sum::<f64>() / count as f64);
    let variance = |mean: f64| finite.clone().map(|v| (v - mean).powi(2)).sum::<f64>() / count as f64;
    let zeros = values.iter().filter(|v| **v == 0.0).count() as f64 / values.len().max(1) as f64;
    let layer = Looked {
        name: name.to_string(),
        dtype: dtype.to_string(),
        shape: tensor.dims().to_vec(),
        min: finite.clone().copied().reduce(f64::min),
        max: finite.clone().copied().reduce(f64::max),
        mean,
        std: mean.map(|mean| variance(mean).sqrt()),
        zeros,
        nan,
        infinite,
    };
    let mut warnings = Vec::new();
    for (count, what) in [(nan, "NaN"), (infinite, "infinite")] {
        if count > 0 {
            warnings.push(format!("{name}: {count} of {} values are {what}", values.len()));
        }
    }
    // Rows of a matrix and filters of a convolution: an output that does not depend on its input.
    if tensor.rank() >= 2 && name.ends_with("weight") && !values.is_empty() {
        let filters: Vec<&[f64]> = values.chunks(values.len() / tensor.dims()[0]).collect();
        let dead = |filter: &&&[f64]| filter.iter().all(|v| *v == 0.0);
        let constant =
            |filter: &&&[f64]| filter.len() > 1 && filter[0] != 0.0 && filter.iter().all(|v| *v == filter[0]);
        for (count, what) in
            [(filters.iter().filter(dead).count(), "all zero"), (filters.iter().filter(constant).count(), "constant")]
        {
            if count > 0 {
                warnings.push(format!("{name}: {count} of {} channels are {what}", filters.len()));
            }
        }
    }
    if name.ends_with("running_var") {
        for (count, what) in [
            (values.iter().filter(|v| **v <= 0.0).count(), "not positive".to_string()),
            (values.iter().filter(|v| **v > HUGE_VARIANCE).count(), format!("above {HUGE_VARIANCE:e}")),
        ] {
            if count > 0 {
                warnings.push(format!("{name}: {count} of {} variances are {what}", values.len()));
            }
        }
    }
    Ok((layer, warnings))
}

/// The last linear layer by the names that libraries give it; `classifier.6` is after `classifier.3`.
fn head(tensors: &[Looked]) -> Option<&Looked> {
    let rank = |layer: &&Looked| {
        let name = layer.name.strip_suffix(".weight").filter(|_| layer.shape.len() == 2)?;
        match name.split('.').collect::<Vec<_>>().as_slice() {
            ["fc" | "linear" | "head" | "classifier"] | ["heads", "head"] | ["head", "fc"] => Some(0),
            ["classifier" | "heads", index] => index.parse::<usize>().ok(),
            _ => None,
        }
    };
    tensors.iter().filter(|layer| rank(layer).is_some()).max_by_key(rank)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use rstest::rstest;

    use super::*;

    fn looked(name: &str, values: &[f32], shape: &[usize]) -> (Looked, Vec<String>) {
        look(name, "f32", &Tensor::from_slice(values, shape, &Device::Cpu).unwrap()).unwrap()
    }

    #[test]
    fn statistics_are_over_finite_values() {
        let (layer, warnings) = looked("x", &[1.0, 0.0, f32::NAN, 3.0, 0.0, f32::INFINITY], &[6]);
        assert_eq!((layer.min, layer.max, layer.mean), (Some(0.0), Some(3.0), Some(1.0)));
        assert_eq!((layer.std, layer.zeros), (Some(1.5f64.sqrt()), 2.0 / 6.0));
        assert_eq!(warnings, ["x: 1 of 6 values are NaN", "x: 1 of 6 values are infinite"]);
        assert_eq!(looked("x", &[], &[0, 3]).0.mean, None);
    }

    #[rstest]
    #[case("c.weight", &[0.0, 0.0, 1.0, 2.0], &[2, 2], &["c.weight: 1 of 2 channels are all zero"])]
    #[case("c.weight", &[0.5, 0.5, 1.0, 2.0], &[2, 2], &["c.weight: 1 of 2 channels are constant"])]
    #[case("c.weight", &[0.5, 0.5], &[2, 1], &[])]
    #[case("bn.weight", &[0.0, 1.0], &[2], &[])]
    #[case("bn.running_var", &[0.0, -1.0, 1.0, 1e7], &[4], &["bn.running_var: 2 of 4 variances are not positive", "bn.running_var: 1 of 4 variances are above 1e6"])]
    fn what_looks_wrong(
        #[case] name: &str,
        #[case] values: &[f32],
        #[case] shape: &[usize],
        #[case] expected: &[&str],
    ) {
        assert_eq!(looked(name, values, shape).1, expected);
    }

    /// MobileNetV2 is the network whose stem no tensor tells.
    #[rstest]
    #[case::cifar(10, None, Stem::Cifar, true)]
    #[case::thousand_classes(1000, None, Stem::Imagenet, false)]
    #[case::resized_to_224(10, Some(224), Stem::Imagenet, false)]
    #[case::resized_to_32(10, Some(32), Stem::Cifar, true)]
    fn the_stem_is_chosen_by_evidence(
        #[case] classes: usize,
        #[case] side: Option<usize>,
        #[case] stem: Stem,
        #[case] assumed: bool,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let config = side.map(|side| {
            let text = format!(
                r#"{{"architecture": "mobilenetv2_100", "pretrained_cfg": {{"input_size": [3, {side}, {side}],
                "interpolation": "bicubic", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}}}"#
            );
            std::fs::write(dir.path().join("config.json"), text).unwrap();
            ModelConfig::beside(&dir.path().join("model.safetensors")).unwrap().unwrap()
        });
        let spec = ModelSpec::new(lmr_plugin::zoo::Arch::MobilenetV2, classes);
        let (found, open) = with_config(spec, config.as_ref());
        assert_eq!((found.stem, open.contains(&"stem")), (Some(stem), assumed));
    }
}
