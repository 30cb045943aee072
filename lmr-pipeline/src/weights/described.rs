//! Tensors that need a description to be put together: a safetensors file, and a JSON file beside it.

use std::path::Path;

use candle_core::DType;
use lmr_plugin::deploy::{Description, Scheme};
use lmr_plugin::nn::StateDict;
use safetensors::Dtype;
use serde_json::Value;

use super::encoded::Encoded;
use super::layout::safetensors;
use crate::files::{MODEL_FILE, json};
use crate::model_config::{parse, read as read_text};
use crate::tensors::encode;
use crate::{Error, Result};

/// The file beside the tensors.
const DESCRIPTION: &str = "quantization.json";

/// Names and bytes of the files. Tensors of `i16` are written as signed bytes.
pub fn write(tensors: &StateDict, description: &Value) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let encoded = tensors.iter().map(|(name, tensor)| {
        let dtype = if tensor.dtype() == DType::I16 { Dtype::I8 } else { Dtype::F32 };
        let bytes = encode(tensor, dtype).map_err(|message| Error::Unwritable { name: name.clone(), message })?;
        Ok(Encoded { name, dtype, shape: tensor.dims(), bytes })
    });
    let weights = safetensors(&encoded.collect::<Result<Vec<_>>>()?)?;
    Ok(vec![(MODEL_FILE, weights), (DESCRIPTION, json(description)?)])
}

/// How the integers of a checkpoint at `path` are put together; `None` if it has none.
pub fn read(path: &Path, state: &StateDict) -> Result<Option<Scheme>> {
    let Some(scale) = Description::recognize(state.keys().map(String::as_str)) else { return Ok(None) };
    let beside = path.with_file_name(DESCRIPTION);
    if !beside.is_file() {
        let message =
            format!("has integers with scales (`{scale}`), but beside it is no {DESCRIPTION} to tell their bits");
        return Err(Error::input(path, message));
    }
    let described: Description = parse(&read_text(&beside)?).map_err(|message| Error::input(&beside, message))?;
    Ok(Some(described.scheme()))
}
