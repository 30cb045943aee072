//! `config.json` in the form of the library whose names the weights have.

mod images;
mod timm;
mod transformers;

use candle_core::DType;
use lmr_plugin::zoo::ModelSpec;
use lmr_plugin::zoo::naming::Scheme;
use safetensors::Dtype;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::Result;
use crate::files::json as to_json;
use crate::model_config::{Library, OwnConfig};
use crate::preprocess::Preprocessing;

/// A stranger's key with a longer value is not carried over.
const MAX_CARRIED: usize = 64 << 10;
/// Keys that would load code or other weights, or that only held where the received file lay.
const DROPPED: &[&str] = &[
    "auto_map",
    "custom_pipelines",
    "quantization_config",
    "_name_or_path",
    "_commit_hash",
    "url",
    "file",
    "hf_hub_id",
    "hf_hub_filename",
    "hf_hub_revision",
    "state_dict",
    "custom_load",
    "source",
    "trust_remote_code",
    "dtype",
    "transformers_version",
];

/// A model as its `config.json` describes it.
pub struct Described<'a> {
    /// What it is built from.
    pub model: &'a ModelSpec,
    /// Whose names its tensors have, of those that are translated.
    pub scheme: Option<Scheme>,
    /// The dtype of its head.
    pub dtype: Dtype,
    /// Names of the classes in their order.
    pub labels: &'a [String],
    /// What is done to an image before the model sees it.
    pub images: &'a Preprocessing,
    /// The received model's `config.json`; empty if it had none.
    pub received: &'a Map<String, Value>,
    /// Its `preprocessor_config.json`.
    pub received_processor: &'a Map<String, Value>,
}

/// A file that describes a model.
#[derive(Debug)]
pub struct ConfigFile {
    /// Its name.
    pub name: &'static str,
    /// What it says.
    pub bytes: Vec<u8>,
}

impl Described<'_> {
    /// The library that loads the model under these names: the one that has a class for it, or else this program.
    pub fn library(&self) -> Library {
        match self.scheme {
            Some(Scheme::Transformers | Scheme::Transformers5) if self.model.transformers().is_some() => {
                Library::Transformers
            }
            _ if timm::architecture(self).is_some() => Library::Timm,
            _ => Library::Lmr,
        }
    }

    /// The files.
    pub fn files(&self) -> Result<Vec<ConfigFile>> {
        let own = || -> Result<Vec<(&'static str, Value)>> {
            let own = OwnConfig {
                model: self.model.resolved(),
                labels: self.labels.to_vec(),
                preprocessing: self.images.clone(),
            };
            let mut received = self.received.clone();
            // By these a library would take the file for its own.
            received.retain(|key, _| !["architecture", "architectures", "model_type"].contains(&key.as_str()));
            Ok(vec![("config.json", over(&received, json!({ "lmr": value(&own)? })))])
        };
        let files = match self.library() {
            Library::Transformers => match transformers::config(self) {
                Some(config) => vec![
                    ("config.json", over(self.received, config)),
                    ("preprocessor_config.json", over(self.received_processor, images::transformers(self.images))),
                ],
                None => own()?,
            },
            Library::Timm => match timm::config(self) {
                Some(config) => vec![("config.json", config)],
                None => own()?,
            },
            Library::Lmr => own()?,
        };
        files.into_iter().map(|(name, value)| Ok(ConfigFile { name, bytes: to_json(&value)? })).collect()
    }
}

/// `written`, followed by the keys of a received file that it does not have. They are a stranger's: plain data of bounded
/// size, and none that would load anything.
fn over(received: &Map<String, Value>, written: Value) -> Value {
    let Value::Object(mut object) = written else { return written };
    for (key, value) in received {
        let size = key.len() + value.to_string().len();
        let dropped = DROPPED.contains(&key.as_str()) || object.contains_key(key);
        if !dropped && size <= MAX_CARRIED {
            object.insert(key.clone(), value.clone());
        }
    }
    Value::Object(object)
}

/// The object under a key of a received file.
fn inner(received: &Map<String, Value>, key: &str) -> Map<String, Value> {
    received.get(key).and_then(Value::as_object).cloned().unwrap_or_default()
}

fn value(value: &impl Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|error| crate::Error::Internal(error.to_string()))
}

/// PyTorch's name of a dtype.
fn torch_dtype(dtype: Dtype) -> &'static str {
    match DType::try_from(dtype) {
        Ok(DType::F16) => "float16",
        Ok(DType::BF16) => "bfloat16",
        Ok(DType::F64) => "float64",
        _ => "float32",
    }
}

#[cfg(test)]
mod tests;
