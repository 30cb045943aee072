//! Checkpoints of quantized models: the integers with scales and the GGUF files that `publish` writes.

use std::path::Path;

use lmr_plugin::quantization::{BlockFormat, Granularity, Scheme, StoredForm};
use lmr_plugin::ranges::Bits;
use serde::{Deserialize, Serialize};

use super::Checkpoint;
use crate::model_config::{parse, read};
use crate::{Error, Result};

/// The file beside stored integers that says how they are put together.
pub const DESCRIPTION: &str = "quantization.json";
/// How the names of scales end.
pub const SCALE: &str = ".weight_scale";

/// What [`DESCRIPTION`] holds. Keys that are not known here are left alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Description {
    /// Bits of a weight.
    pub bits: Bits,
    /// Scales of a weight tensor.
    pub granularity: Granularity,
    /// Whether activations are rounded too.
    pub activations: bool,
    /// For people: what is stored.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub weights: String,
    /// For people: what the ranges are of.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub activation_ranges: String,
}

/// How the layers of a checkpoint at `path` are rounded; `None` if it is in full precision.
pub fn form(path: &Path, checkpoint: &Checkpoint) -> Result<Option<StoredForm>> {
    if let Some(gguf) = &checkpoint.gguf {
        let name = gguf.format.clone().ok_or_else(|| {
            Error::input(
                path,
                "has no key `lmr.format`; a pipeline loads the GGUF files that `publish` writes, no others",
            )
        })?;
        let format = BlockFormat::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
            let known: Vec<&str> = BlockFormat::ALL.iter().map(|format| format.name()).collect();
            Error::input(path, format!("lmr.format: expected {}, found {name:?}", known.join(", ")))
        })?;
        return Ok(Some(StoredForm::Blocks(format, gguf.dtypes.clone())));
    }
    let Some(scale) = checkpoint.state.keys().find(|name| name.ends_with(SCALE)) else { return Ok(None) };
    let beside = path.with_file_name(DESCRIPTION);
    if !beside.is_file() {
        let message =
            format!("has integers with scales (`{scale}`), but beside it is no {DESCRIPTION} to tell their bits");
        return Err(Error::input(path, message));
    }
    let Description { bits, granularity, activations, .. } = describe(&beside)?;
    Ok(Some(StoredForm::Integers(Scheme { bits, granularity, activations })))
}

fn describe(path: &Path) -> Result<Description> {
    parse(&read(path)?).map_err(|message| Error::input(path, message))
}

/// A few words for the form: `int8`, `q4_0`.
pub fn label(form: &StoredForm) -> String {
    match form {
        StoredForm::Integers(scheme) => format!("int{}", scheme.bits),
        StoredForm::Blocks(format, _) => format.name().into(),
    }
}
