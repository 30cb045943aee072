//! How a checkpoint came, and how other numbers are written in the same way.

use std::collections::{BTreeMap, HashMap, HashSet};

use ::safetensors::Dtype;
use ::safetensors::tensor::TensorView;
use candle_core::Tensor;
use lmr_plugin::nn::StateDict;
use lmr_plugin::zoo::naming::{Scheme, from_torchvision};
use lmr_plugin::zoo::neutral;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::encoded::Encoded;
use super::names::Wrapping;
use super::torch;
use crate::tensors::encode;
use crate::{Error, Result};

/// What kind of file a checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Container {
    /// One safetensors file.
    Safetensors,
    /// Several safetensors files and an index.
    ShardedSafetensors,
    /// `torch.save` since PyTorch 1.6.
    TorchZip,
    /// `torch.save` before.
    TorchLegacy,
    /// A GGUF file.
    Gguf,
}

/// What kind of file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Export {
    /// A safetensors file.
    Safetensors,
    /// A state dict that `torch.load(path, weights_only=True)` reads.
    Pth,
}

/// A tensor as the file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// Its whole name.
    pub name: String,
    /// Its dtype in the file, which Candle may not have.
    pub dtype: Dtype,
}

/// Names, dtypes and order of a checkpoint's tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What kind of file it was.
    pub container: Container,
    /// Where in the file the state dict was, keys joined by dots; empty for the file itself.
    pub key: String,
    /// What wrappers such as `DataParallel` made of the names.
    pub wrapping: Wrapping,
    /// The tensors in the order of the file.
    pub entries: Vec<StoredTensor>,
    /// Names of entries that are no tensors. They are not written back.
    pub skipped: Vec<String>,
}

impl Export {
    /// The ending of such files.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Pth => "pth",
        }
    }
}

impl Layout {
    /// One safetensors file with the names and dtypes of `state`.
    pub fn of(state: &StateDict) -> Self {
        let stored =
            |(name, tensor): (&String, &Tensor)| StoredTensor { name: name.clone(), dtype: tensor.dtype().into() };
        Self {
            container: Container::Safetensors,
            key: String::new(),
            wrapping: Wrapping::default(),
            entries: state.iter().map(stored).collect(),
            skipped: Vec::new(),
        }
    }

    /// The same tensors without what a wrapper put before their names.
    pub fn unwrapped(&self) -> Self {
        let entry = |entry: &StoredTensor| StoredTensor { name: self.short(entry), dtype: entry.dtype };
        Self { wrapping: Wrapping::default(), entries: self.entries.iter().map(entry).collect(), ..self.clone() }
    }

    /// Whose names its tensors have; `None` for names that are not translated.
    pub fn scheme(&self) -> Option<Scheme> {
        let names: Vec<String> = self.entries.iter().map(|entry| self.short(entry)).collect();
        Scheme::detect(names.iter().map(String::as_str))
    }

    /// As [`Layout::write`], for tensors under the names that models here have: those that were translated become the
    /// checkpoint's again.
    pub fn write_model(&self, state: &StateDict, export: Export) -> Result<Vec<u8>> {
        match self.scheme() {
            Some(scheme) => {
                let mut state = from_torchvision(state, scheme)?;
                // What loading folded into other tensors is there again, and changes nothing.
                for name in self.entries.iter().map(|entry| self.short(entry)) {
                    if !state.contains_key(&name)
                        && let Some(tensor) = neutral(&name, &state)?
                    {
                        state.insert(name, tensor);
                    }
                }
                self.write(&state, export)
            }
            None => self.write(state, export),
        }
    }

    /// A file with the numbers of `state` under the names and in the dtypes of the checkpoint, the same bytes for the same
    /// numbers. `state` has the names that [`Checkpoint::state`](super::Checkpoint::state) has. Numbers are rounded to the nearest; an error if one is too large for the dtype.
    ///
    /// A counter (`num_batches_tracked`) that the checkpoint did not have is left out; every other difference in names is
    /// an error. What the file had beside the state dict is not written.
    pub fn write(&self, state: &StateDict, export: Export) -> Result<Vec<u8>> {
        let known: HashSet<String> = self.entries.iter().map(|entry| self.short(entry)).collect();
        let unknown = |name: &&String| !known.contains(name.as_str()) && !name.ends_with("num_batches_tracked");
        if let Some(name) = state.keys().find(unknown) {
            return Err(Error::Internal(format!("the checkpoint had no tensor `{name}` to write")));
        }
        let mut tensors = Vec::new();
        for entry in &self.entries {
            let name = self.short(entry);
            let tensor =
                state.get(&name).ok_or_else(|| Error::Internal(format!("there is no tensor `{name}` to write")))?;
            let bytes = encode(tensor, entry.dtype).map_err(|message| Error::Unwritable { name, message })?;
            tensors.push(Encoded { name: &entry.name, dtype: entry.dtype, shape: tensor.dims(), bytes });
        }
        match export {
            Export::Safetensors => safetensors(&tensors),
            Export::Pth => torch::write(&tensors).map_err(Error::Internal),
        }
    }

    /// The name of a tensor without what wrappers made of it.
    pub fn short(&self, entry: &StoredTensor) -> String {
        self.wrapping.short(&entry.name)
    }
}

/// The bytes of a file.
pub fn safetensors(tensors: &[Encoded]) -> Result<Vec<u8>> {
    let failed = |error: ::safetensors::SafeTensorError| Error::Internal(format!("safetensors: {error}"));
    let views = tensors.iter().map(|tensor| {
        Ok((tensor.name, TensorView::new(tensor.dtype, tensor.shape.to_vec(), &tensor.bytes).map_err(failed)?))
    });
    let views = views.collect::<Result<BTreeMap<_, _>>>()?;
    let info = HashMap::from([("format".to_string(), "pt".to_string())]);
    ::safetensors::serialize(views, Some(info)).map_err(failed)
}
