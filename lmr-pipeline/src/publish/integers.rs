//! A quantized model as integers: what an accelerator would be given.

use std::collections::BTreeMap;

use lmr_plugin::model::Classifier;
use lmr_plugin::quantization::{RANGES, Ranges, Scheme, integers, unrounded};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::WEIGHTS;
use crate::artifacts::json as to_json;
use crate::tensors::encode;
use crate::weights::stored::{DESCRIPTION, Description, SCALE};
use crate::{Error, Result};

/// Names and bytes of the files.
pub fn files(network: &dyn Classifier, scheme: Scheme, ranges: &Ranges) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, tensor: &candle_core::Tensor, dtype: Dtype| -> Result<()> {
        let bytes = encode(tensor, dtype).map_err(|message| Error::Unwritable { name: name.clone(), message })?;
        tensors.insert(name, (dtype, tensor.dims().to_vec(), bytes));
        Ok(())
    };
    let failed = |error: candle_core::Error| Error::Model(error.into());
    for (name, layer) in integers(network, scheme)? {
        // An `i16` holds what the file has as a signed byte.
        let weight = layer.weight.to_dtype(candle_core::DType::I16).map_err(failed)?;
        add(format!("{name}.weight"), &weight, Dtype::I8)?;
        add(format!("{name}{SCALE}"), &layer.scale, Dtype::F32)?;
        if let Some(bias) = &layer.bias {
            add(format!("{name}.bias"), bias, Dtype::F32)?;
        }
    }
    for (name, tensor) in unrounded(network)? {
        add(name, &tensor, Dtype::F32)?;
    }
    if scheme.activations {
        let flat: Vec<f32> = ranges.0.iter().flat_map(|&(low, high)| [low, high]).collect();
        let table = candle_core::Tensor::from_vec(flat, (ranges.0.len(), 2), &candle_core::Device::Cpu);
        add(RANGES.into(), &table.map_err(failed)?, Dtype::F32)?;
    }
    let broken = |error: safetensors::SafeTensorError| Error::Internal(format!("safetensors: {error}"));
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        Ok((name, TensorView::new(*dtype, shape.clone(), bytes).map_err(broken)?))
    });
    let views = views.collect::<Result<BTreeMap<_, _>>>()?;
    let info = std::collections::HashMap::from([("format".to_string(), "pt".to_string())]);
    let weights = safetensors::serialize(views, Some(info)).map_err(broken)?;
    let described = Description {
        bits: scheme.bits,
        granularity: scheme.granularity,
        activations: scheme.activations,
        weights: "`<layer>.weight` (int8) times `<layer>.weight_scale` is the weight of the layer with batch norm folded in; output \
            channels come first. `<layer>.bias` is in full precision, as is every tensor of another name."
            .into(),
        activation_ranges: "One row (smallest, largest) for every place where activations are rounded to 256 values, in the \
            order in which the network reaches them: the input, every folded convolution and linear layer with what follows \
            it, norms of their own, attention, every residual sum and what follows it."
            .into(),
    };
    Ok(vec![(WEIGHTS, weights), (DESCRIPTION, to_json(&described)?)])
}
