//! Reads a safetensors checkpoint that nobody vouches for.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::{DType, Tensor};
use lmr_plugin::models::ModelSpec;
use lmr_plugin::nn::{Slot, StateDict};
use lmr_plugin::rng;
use safetensors::{SafeTensorError, SafeTensors};

use crate::tensors::{from_view, sha256};
use crate::{Error, Result};

/// Room for names, shapes and metadata. A ResNet's header takes 15 KB.
const MAX_HEADER: u64 = 16 << 20;

/// A checkpoint and the SHA-256 of the file it came from.
pub struct Loaded {
    /// The tensors under the names of the file.
    pub state: StateDict,
    /// SHA-256 of the file in hexadecimal digits.
    pub sha256: String,
}

/// Reads the checkpoint of a model. Nothing is read into memory that is larger than such a model can be.
pub fn load(path: &Path, spec: &ModelSpec) -> Result<Loaded> {
    let limit = MAX_HEADER + 2 * size_of(spec)?;
    let bytes = read(path, limit)?;
    let sha256 = sha256(&bytes);
    let state = parse(&bytes).map_err(|message| Error::input(path, message))?;
    Ok(Loaded { state, sha256 })
}

/// Bytes of the model's parameters in f32, counters included.
fn size_of(spec: &ModelSpec) -> Result<u64> {
    let template = spec.fresh(rng::stream(0, "weights/size"), &candle_core::Device::Cpu)?;
    let bytes = template.params().iter().map(|(_, slot)| match slot {
        Slot::Parameter(var) | Slot::Buffer(var) => 4 * var.elem_count() as u64,
        Slot::Counter(_) => 8,
    });
    Ok(bytes.sum())
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let unreadable = |error: std::io::Error| Error::input(path, format!("cannot be read: {error}"));
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Error::input(path, "expected a safetensors file, found a folder or a device"));
    }
    let mut bytes = Vec::new();
    if metadata.len() <= limit {
        // A file may grow while it is read.
        file.take(limit + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    }
    if metadata.len() > limit || bytes.len() as u64 > limit {
        let message = format!("has {} bytes; a checkpoint of this model has at most {limit}", metadata.len());
        return Err(Error::input(path, message));
    }
    Ok(bytes)
}

/// Every tensor of a safetensors file, checked.
pub fn parse(bytes: &[u8]) -> Result<StateDict, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| explain(bytes, &error))?;
    let mut faults = Vec::new();
    let mut state = StateDict::new();
    for (name, view) in file.iter() {
        match from_view(&view).and_then(|tensor| check(&tensor).map(|()| tensor)) {
            Ok(tensor) => {
                state.insert(name.to_string(), tensor);
            }
            Err(message) => faults.push(format!("tensor `{name}`: {message}")),
        }
    }
    faults.sort();
    match faults.as_slice() {
        [] => Ok(state),
        [shown @ .., _] if faults.len() > 6 => {
            Err(format!("{}; and {} more tensors like that", shown[..5].join("; "), faults.len() - 5))
        }
        all => Err(all.join("; ")),
    }
}

/// A dtype that a model can hold, and finite numbers.
fn check(tensor: &Tensor) -> Result<(), String> {
    match tensor.dtype() {
        DType::F32 | DType::F16 | DType::BF16 => {}
        DType::I64 if tensor.elem_count() == 1 => return Ok(()),
        other => return Err(format!("expected f32, f16 or bf16 (or one i64 counter), found {}", other.as_str())),
    }
    let values = tensor.to_dtype(DType::F32).and_then(|tensor| tensor.flatten_all()?.to_vec1::<f32>());
    let values = values.map_err(|error| error.to_string())?;
    match values.iter().filter(|value| !value.is_finite()).count() {
        0 => Ok(()),
        count => Err(format!("{count} of {} values are NaN or infinite", values.len())),
    }
}

/// What the library means, with the sizes that a reader can compare.
fn explain(bytes: &[u8], error: &SafeTensorError) -> String {
    let Some(header) = bytes.first_chunk::<8>().map(|length| u64::from_le_bytes(*length)) else {
        return format!("has {} bytes; a safetensors file has at least 8", bytes.len());
    };
    if header > bytes.len() as u64 - 8 {
        return format!(
            "is cut off or no safetensors file: the header should have {header} bytes, the whole file has {}",
            bytes.len()
        );
    }
    match error {
        SafeTensorError::MetadataIncompleteBuffer => {
            let found = bytes.len() as u64 - 8 - header;
            match declared(&bytes[8..8 + header as usize]) {
                Some(declared) => format!("is cut off or damaged: {found} bytes of tensors, the header says {declared}"),
                None => "is cut off or damaged: the sizes in its header do not add up to the file's".into(),
            }
        }
        SafeTensorError::TensorInvalidInfo => "the header gives a tensor a shape that does not fit its bytes".into(),
        SafeTensorError::InvalidOffset(name) => format!("tensor `{name}`: its bytes overlap another's or leave a gap"),
        SafeTensorError::InvalidHeader(_) | SafeTensorError::InvalidHeaderDeserialization(_) => {
            format!("is no safetensors file, or its header is damaged: {error}")
        }
        other => format!("is no usable safetensors file: {other}"),
    }
}

/// Where the last tensor ends according to the header.
fn declared(header: &[u8]) -> Option<u64> {
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    header.values().filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64()).max()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use candle_core::Device;
    use rstest::rstest;

    use super::*;
    use crate::tensors::to_safetensors;

    fn file(tensor: Tensor) -> Vec<u8> {
        to_safetensors(&[("fc.weight".to_string(), tensor)].into(), &BTreeMap::new()).unwrap()
    }

    fn floats() -> Vec<u8> {
        file(Tensor::ones((3, 4), DType::F32, &Device::Cpu).unwrap())
    }

    #[rstest]
    #[case::empty(vec![], "has 0 bytes")]
    #[case::text(b"not a checkpoint, but a text".to_vec(), "is cut off or no safetensors file")]
    #[case::short(floats()[..floats().len() - 5].to_vec(), "is cut off or damaged: 43 bytes of tensors, the header says 48")]
    #[case::no_json([&4u64.to_le_bytes()[..], b"oops"].concat(), "header is damaged")]
    #[case::huge_header([&u64::MAX.to_le_bytes()[..], b"{}"].concat(), "the header should have")]
    #[case::dtype(file(Tensor::ones(3, DType::F64, &Device::Cpu).unwrap()), "`fc.weight`: expected f32, f16 or bf16")]
    #[case::nan(file(Tensor::new(&[1f32, f32::NAN], &Device::Cpu).unwrap()), "1 of 2 values are NaN")]
    fn damaged_files_are_explained(#[case] bytes: Vec<u8>, #[case] expected: &str) {
        let message = parse(&bytes).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }

    #[rstest]
    #[case(DType::F32)]
    #[case(DType::F16)]
    #[case(DType::BF16)]
    fn float_types_are_read(#[case] dtype: DType) {
        let tensor = Tensor::new(&[1f32, -0.5], &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let state = parse(&file(tensor)).unwrap();
        assert_eq!(state["fc.weight"].to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap(), [1.0, -0.5]);
    }
}
