//! Reads a safetensors checkpoint that nobody vouches for.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::{DType, Tensor};
use lmr_plugin::nn::StateDict;
use safetensors::{SafeTensorError, SafeTensors};
use serde_json::{Map, Value};

use crate::tensors::{from_view, sha256};
use crate::{Error, Result};

/// Room for names, shapes and metadata. A ResNet's header takes 15 KB.
const MAX_HEADER: u64 = 16 << 20;
/// No image classifier here comes near; a ViT-Large takes 1.2 GB.
const MAX_FILE: u64 = 4 << 30;

/// A checkpoint and the SHA-256 of the file it came from.
pub struct Loaded {
    /// The tensors under the names of the file.
    pub state: StateDict,
    /// SHA-256 of the file in hexadecimal digits.
    pub sha256: String,
}

/// Reads a checkpoint.
pub fn load(path: &Path) -> Result<Loaded> {
    let bytes = read(path)?;
    let sha256 = sha256(&bytes);
    let state = parse(&bytes).map_err(|message| Error::input(path, message))?;
    Ok(Loaded { state, sha256 })
}

/// Reads the header, and the rest only if the file is as long as the header says.
fn read(path: &Path) -> Result<Vec<u8>> {
    let unreadable = |error: std::io::Error| Error::input(path, format!("cannot be read: {error}"));
    let mut file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Error::input(path, "expected a safetensors file, found a folder or a device"));
    }
    let length = metadata.len();
    if length > MAX_FILE {
        return Err(Error::input(path, format!("has {length} bytes; expected at most {MAX_FILE}")));
    }
    let mut bytes = Vec::new();
    file.by_ref().take(8).read_to_end(&mut bytes).map_err(unreadable)?;
    let header = header_length(&bytes, length).map_err(|message| Error::input(path, message))?;
    file.by_ref().take(header).read_to_end(&mut bytes).map_err(unreadable)?;
    check_length(&bytes, length).map_err(|message| Error::input(path, message))?;
    // A file may grow while it is read.
    file.take(length).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

/// How long the JSON is that follows the first 8 bytes.
fn header_length(bytes: &[u8], file: u64) -> Result<u64, String> {
    let Some(header) = bytes.first_chunk::<8>().map(|length| u64::from_le_bytes(*length)) else {
        return Err(format!("has {file} bytes; a safetensors file has at least 8"));
    };
    if header > file - 8 {
        return Err(format!(
            "is cut off or no safetensors file: the header should have {header} bytes, the whole file has {file}"
        ));
    }
    if header > MAX_HEADER {
        return Err(format!("the header has {header} bytes; expected at most {MAX_HEADER}"));
    }
    Ok(header)
}

/// Compares where the last tensor ends, according to the header, with the end of the file.
fn check_length(bytes: &[u8], file: u64) -> Result<(), String> {
    let header = header_length(bytes, file)?;
    let damaged = |what: &str| format!("is no safetensors file, or its header is damaged: {what}");
    let json = bytes.get(8..8 + header as usize).ok_or_else(|| damaged("it ends early"))?;
    let json: Map<String, Value> = serde_json::from_slice(json).map_err(|error| damaged(&error.to_string()))?;
    let declared = json.values().filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64()).max().unwrap_or(0);
    match file - 8 - header {
        found if found == declared => Ok(()),
        found => Err(format!("is cut off or damaged: {found} bytes of tensors, the header says {declared}")),
    }
}

/// Every tensor of a safetensors file, checked.
pub fn parse(bytes: &[u8]) -> Result<StateDict, String> {
    check_length(bytes, bytes.len() as u64)?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| explain(&error))?;
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

/// What the library means.
fn explain(error: &SafeTensorError) -> String {
    match error {
        SafeTensorError::TensorInvalidInfo => "the header gives a tensor a shape that does not fit its bytes".into(),
        SafeTensorError::InvalidOffset(name) => format!("tensor `{name}`: its bytes overlap another's or leave a gap"),
        other => format!("is no usable safetensors file: {other}"),
    }
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
