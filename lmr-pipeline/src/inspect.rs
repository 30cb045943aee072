//! What a checkpoint holds, as far as that shows without knowing its architecture, and what looks wrong in it.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use lmr_plugin::deploy::{Rounding, dtype_name};
use lmr_plugin::zoo::{ModelSpec, naming};
use rayon::prelude::*;
use serde::Serialize;

use crate::model_config::{ModelConfig, filled};
use crate::tensors;
use crate::weights::{self, Checkpoint, Container};
use crate::{Error, Result};

/// Activations of a trained network vary by less; a variance above says that its statistics ran away.
const HUGE_VARIANCE: f64 = 1e6;

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
            let assumed = self.assumed.iter().any(|key| line.split(' ').next() == Some(key));
            lines.push(format!("{line}{}", if assumed { "  # the default: the file does not tell" } else { "" }));
        }
        lines.push(format!("weights = {{ path = {} }}", toml::Value::from(path.to_string_lossy().as_ref())));
        Some(lines.join("\n"))
    }
}

/// Reads a checkpoint and looks at every tensor. `key` chooses a state dict where there are several.
pub fn inspect(path: &Path, key: Option<&str>) -> Result<Inspection> {
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
    let (model, assumed) = match recognized {
        Some(spec) => {
            let (model, assumed) = with_config(spec, config.as_ref());
            (Some(model), assumed)
        }
        None => (None, Vec::new()),
    };
    Ok(Inspection {
        format: layout.container,
        bytes,
        sha256,
        quantized,
        key: layout.key,
        prefix: layout.wrapping.prefix,
        model,
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
}
