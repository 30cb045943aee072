//! Named tensors as bytes: safetensors with the same bytes for the same tensors, and a digest that no file format enters.

mod dtype;

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};
use lmr_plugin::nn::StateDict;
use safetensors::tensor::View;
use sha2::{Digest, Sha256};

use crate::{Error, Result};
pub use dtype::{decode, encode, name as dtype_name, not_finite, size as dtype_size};

/// The metadata key under which a file's own string pairs are kept, as one JSON object. safetensors writes several keys
/// in random order, which would make equal files differ.
const METADATA: &str = "lmr";

/// A safetensors file of these tensors. PyTorch's loaders want `format`, which is the only other metadata.
pub fn to_safetensors(tensors: &StateDict, metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let tensors = on_cpu(tensors)?;
    let info = if metadata.is_empty() {
        HashMap::from([("format".to_string(), "pt".to_string())])
    } else {
        let json = serde_json::to_string(metadata).map_err(|error| Error::Internal(error.to_string()))?;
        HashMap::from([(METADATA.to_string(), json)])
    };
    safetensors::serialize(&tensors, Some(info)).map_err(|error| Error::Internal(format!("safetensors: {error}")))
}

/// The string pairs that [`to_safetensors`] wrote into a file; none if another program wrote it.
pub fn metadata(bytes: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let (_, header) = safetensors::SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
    match header.metadata().as_ref().and_then(|pairs| pairs.get(METADATA)) {
        Some(json) => serde_json::from_str(json).map_err(|error| format!("its metadata is damaged: {error}")),
        None => Ok(BTreeMap::new()),
    }
}

/// SHA-256 over names, dtypes, shapes and values: equal for equal tensors wherever they came from.
pub fn digest(tensors: &StateDict) -> Result<String> {
    let mut hasher = Sha256::new();
    for (name, tensor) in on_cpu(tensors)? {
        // Lengths in front keep two lists apart that differ only in where one name ends and the next begins.
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(tensor.dtype().as_str().as_bytes());
        hasher.update((tensor.rank() as u64).to_le_bytes());
        tensor.dims().iter().for_each(|dim| hasher.update((*dim as u64).to_le_bytes()));
        hasher.update(View::data(&&tensor));
    }
    Ok(hex(hasher))
}

/// Digits of a finished SHA-256.
pub fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of bytes in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::new_with_prefix(bytes))
}

/// Converts a view of a file into a tensor; see [`decode`].
pub fn from_view(view: &safetensors::tensor::TensorView<'_>) -> Result<Tensor, String> {
    decode(view.dtype(), view.shape(), view.data())
}

fn on_cpu(tensors: &StateDict) -> Result<StateDict> {
    let copy = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), tensor.to_device(&Device::Cpu)?.contiguous()?));
    let copied: candle_core::Result<StateDict> = tensors.iter().map(copy).collect();
    copied.map_err(|error| Error::Model(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(value: f32) -> StateDict {
        let weight = Tensor::new(&[[value, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        [("b".to_string(), weight.t().unwrap()), ("a".to_string(), Tensor::new(7i64, &Device::Cpu).unwrap())].into()
    }

    #[test]
    fn bytes_are_the_same_every_time() {
        let metadata: BTreeMap<String, String> = (0..20).map(|i| (format!("key{i}"), i.to_string())).collect();
        let first = to_safetensors(&tensors(1.0), &metadata).unwrap();
        assert!((0..20).all(|_| to_safetensors(&tensors(1.0), &metadata).unwrap() == first));
        assert_eq!(super::metadata(&first).unwrap(), metadata);
        let plain = to_safetensors(&tensors(1.0), &BTreeMap::new()).unwrap();
        assert_eq!(super::metadata(&plain).unwrap(), BTreeMap::new());
    }

    #[test]
    fn the_digest_sees_values_and_names() {
        let digest_of = |tensors: StateDict| digest(&tensors).unwrap();
        let reference = digest_of(tensors(1.0));
        assert_eq!(reference, digest_of(tensors(1.0)));
        assert_ne!(reference, digest_of(tensors(1.5)));
        let renamed = tensors(1.0).into_iter().map(|(name, tensor)| (format!("{name}x"), tensor)).collect();
        assert_ne!(reference, digest_of(renamed));
    }

    #[test]
    fn a_transposed_tensor_is_written_in_its_own_order() {
        let bytes = to_safetensors(&tensors(1.0), &BTreeMap::new()).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let back = from_view(&file.tensor("b").unwrap()).unwrap();
        assert_eq!(back.to_vec2::<f32>().unwrap(), [[1.0, 3.0], [2.0, 4.0]]);
        assert_eq!(from_view(&file.tensor("a").unwrap()).unwrap().to_scalar::<i64>().unwrap(), 7);
    }
}
