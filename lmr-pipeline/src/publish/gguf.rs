//! A quantized model in a block format: a GGUF file.

use std::io::Cursor;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use lmr_plugin::model::Classifier;
use lmr_plugin::quantization::{BlockFormat, blocks, unrounded};

use crate::model_config::OwnConfig;
use crate::weights::gguf::{ARCHITECTURE, CONFIG, FORMAT};
use crate::{Error, Result};

/// The name of the file.
const NAME: &str = "model.gguf";
/// How blocks are laid out, a number of ggml's that files with blocks must have.
const QUANTIZATION_VERSION: u32 = 2;

/// Name and bytes of the file, the same for the same model: tensors are sorted by name.
pub fn file(network: &dyn Classifier, format: BlockFormat, config: &OwnConfig) -> Result<(&'static str, Vec<u8>)> {
    let failed = |error: candle_core::Error| Error::Model(error.into());
    let whole = |tensor| QTensor::quantize(&tensor, GgmlDType::F32).map_err(failed);
    let mut tensors = Vec::new();
    for (name, layer) in blocks(network, format)? {
        tensors.push((format!("{name}.weight"), layer.weight));
        if let Some(bias) = layer.bias {
            tensors.push((format!("{name}.bias"), whole(bias)?));
        }
    }
    for (name, tensor) in unrounded(network)? {
        tensors.push((name, whole(tensor)?));
    }
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let json = |value: serde_json::Result<String>| value.map_err(|error| Error::Internal(format!("GGUF: {error}")));
    let arch = json(serde_json::to_string(&config.model.arch))?.trim_matches('"').to_string();
    let metadata = [
        (ARCHITECTURE, Value::String(arch)),
        ("general.quantization_version", Value::U32(QUANTIZATION_VERSION)),
        (FORMAT, Value::String(format.name().into())),
        (CONFIG, Value::String(json(serde_json::to_string(config))?)),
    ];
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut bytes = Cursor::new(Vec::new());
    gguf_file::write(&mut bytes, &metadata, &tensors).map_err(failed)?;
    Ok((NAME, bytes.into_inner()))
}
