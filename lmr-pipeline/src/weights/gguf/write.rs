//! Writes a model in blocks.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::quantized::gguf_file::{self, Value};

use super::{ARCHITECTURE, CONFIG, FORMAT};
use crate::model_config::OwnConfig;
use crate::{Error, Result};

/// The name of the file.
const NAME: &str = "model.gguf";
/// How blocks are laid out, a number of ggml's that files with blocks must have.
const QUANTIZATION_VERSION: u32 = 2;

/// Name and bytes of the file, the same for the same model: tensors are sorted by name.
pub fn write(
    tensors: &BTreeMap<String, Arc<QTensor>>,
    format: &str,
    config: &OwnConfig,
) -> Result<(&'static str, Vec<u8>)> {
    let json = |value: serde_json::Result<String>| value.map_err(|error| Error::Internal(format!("GGUF: {error}")));
    let arch = json(serde_json::to_string(&config.model.arch))?.trim_matches('"').to_string();
    let metadata = [
        (ARCHITECTURE, Value::String(arch)),
        ("general.quantization_version", Value::U32(QUANTIZATION_VERSION)),
        (FORMAT, Value::String(format.into())),
        (CONFIG, Value::String(json(serde_json::to_string(config))?)),
    ];
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.as_ref())).collect();
    let mut bytes = Cursor::new(Vec::new());
    let written = gguf_file::write(&mut bytes, &metadata, &tensors);
    written.map_err(|error| Error::Model(error.into()))?;
    Ok((NAME, bytes.into_inner()))
}
