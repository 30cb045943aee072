//! Weights in blocks, as GGUF files have them: a row of weights is cut into blocks of 32 or 256, and every block has scales of
//! its own. Candle's implementation is the only one; it rounds on the CPU, so that every device gets the same bytes.
//!
//! Batch norm is folded first, as for integers. A row is what one output channel is computed with: the weight without its
//! first dimension, flattened. Activations are not rounded, nor is what no layer multiplies by: norms, the class token,
//! positions.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use serde::Serialize;
use serde_json::Value;

use super::FormError;
use super::StoredError;
use super::block_format::{self, BlockFormat, dtype_name};
use super::layers::{WeightLayer, rebuilt, unrounded_state, weight_layers};
use super::reader::Reader;
use crate::model::{Classifier, Form, Stored};
use crate::nn::{self, Forward, StateDict, Weighted};
use crate::{Error, Result};

/// A network's form with weights in blocks.
pub struct Blocks {
    format: BlockFormat,
    layers: BTreeMap<String, BlockLayer>,
    /// What computes for a network that no interpreter runs.
    rebuilt: Option<Box<dyn Classifier>>,
}

/// A layer in blocks.
struct BlockLayer {
    /// `[O, row]`: one row an output channel.
    encoded: Arc<QTensor>,
    /// What the blocks stand for, in f32 and the layer's own shape.
    weight: Tensor,
    /// In full precision.
    bias: Option<Tensor>,
}

impl BlockLayer {
    fn new(layer: &WeightLayer, encoded: Arc<QTensor>, bias: Option<Tensor>) -> Result<Self> {
        let weight = block_format::decode(&encoded, layer.weight.shape(), layer.weight.device())?;
        Ok(Self { encoded, weight, bias })
    }
}

impl Blocks {
    /// Rounds the weights of `network`, which itself stays as it is.
    pub fn new(network: &dyn Classifier, format: BlockFormat) -> Result<Self> {
        let mut layers = BTreeMap::new();
        for layer in weight_layers(network)? {
            let (weight, bias) = layer.folded()?;
            // A deep copy: the network may train on, its rounded form stays.
            let bias = bias.as_ref().map(Tensor::copy).transpose()?;
            let encoded = Arc::new(format.encode(&weight)?);
            layers.insert(layer.name.clone(), BlockLayer::new(&layer, encoded, bias)?);
        }
        Self::of(network, format, layers)
    }

    /// The form that the tensors of a file make of `network`, which takes over their values: its batch norms behind
    /// convolutions do nothing any more. Computes what the form that was [stored](Form::stored) did, bit for bit.
    ///
    /// Every name and shape must be as expected, and everything finite.
    pub fn read(
        network: &dyn Classifier,
        tensors: &BTreeMap<String, Arc<QTensor>>,
        format: BlockFormat,
    ) -> Result<Self> {
        let decoded = tensors.iter().map(|(name, tensor)| Ok((name.clone(), tensor.dequantize(&Device::Cpu)?)));
        let (decoded, found) = (decoded.collect::<Result<StateDict>>()?, weight_layers(network)?);
        let reader = Reader { network, layers: &found, state: &decoded };
        let rows = |layer: &WeightLayer| {
            let dims = layer.weight.dims();
            vec![(format!("{}.weight", layer.name), vec![dims[0], dims[1..].iter().product()], DType::F32)]
        };
        reader.check(rows, Vec::new())?;
        let mut layers = BTreeMap::new();
        for layer in &found {
            let name = format!("{}.weight", layer.name);
            reader.finite(&name)?;
            let encoded = tensors.get(&name).ok_or_else(|| StoredError::Missing { name: name.clone() })?.clone();
            layers.insert(layer.name.clone(), BlockLayer::new(layer, encoded, reader.bias(layer)?)?);
        }
        let others = reader.others()?;
        for layer in &found {
            if let Some(BlockLayer { weight, bias, .. }) = layers.get(&layer.name) {
                layer.set(weight, bias.as_ref())?;
            }
        }
        others.into_iter().try_for_each(|(var, value)| var.set(&value))?;
        Self::of(network, format, layers)
    }

    fn of(network: &dyn Classifier, format: BlockFormat, layers: BTreeMap<String, BlockLayer>) -> Result<Self> {
        let rebuilt = rebuilt(network, |name| weights(&layers, name))?;
        Ok(Self { format, layers, rebuilt })
    }

    /// How many layers have which format; `f16` are those whose rows no block divides.
    fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        let dtypes = self.layers.values().map(|layer| layer.encoded.dtype());
        dtypes.for_each(|dtype| *counts.entry(dtype_name(dtype)).or_default() += 1);
        counts
    }

    /// Bytes of all weights as they are stored, without biases.
    fn bytes(&self) -> usize {
        self.layers.values().map(|layer| layer.encoded.storage_size_in_bytes()).sum()
    }
}

#[derive(Serialize)]
struct Report {
    format: BlockFormat,
    layers: BTreeMap<&'static str, usize>,
    bytes: usize,
}

impl Form for Blocks {
    fn word(&self) -> &'static str {
        "quantized"
    }

    fn summary(&self) -> &'static str {
        "weights in blocks and the rest in f32 under torchvision's names, batch norm folded in; a convolution is a matrix with \
         a row for every output channel"
    }

    fn logits(&self, network: &dyn Classifier, images: &Tensor) -> Result<Tensor> {
        match &self.rebuilt {
            Some(rebuilt) => rebuilt.logits(images),
            None => network.need_layers("rounding by block")?.interpret(&mut Decoded(&self.layers), images),
        }
    }

    fn stored(&self, network: &dyn Classifier) -> Result<Stored> {
        let whole = |tensor: &Tensor| {
            Ok::<_, Error>(Arc::new(QTensor::quantize(&tensor.to_device(&Device::Cpu)?, GgmlDType::F32)?))
        };
        let mut tensors = BTreeMap::new();
        for (name, layer) in &self.layers {
            tensors.insert(format!("{name}.weight"), layer.encoded.clone());
            if let Some(bias) = &layer.bias {
                tensors.insert(format!("{name}.bias"), whole(bias)?);
            }
        }
        for (name, tensor) in unrounded_state(network, &weight_layers(network)?) {
            tensors.insert(name, whole(&tensor)?);
        }
        Ok(Stored::Blocks { tensors, format: self.format.name() })
    }

    fn report(&self) -> Result<Value> {
        let report = Report { format: self.format, layers: self.counts(), bytes: self.bytes() };
        serde_json::to_value(report).map_err(|source| Error::Finding { name: "report", source })
    }
}

/// The weight and the bias that a layer computes with.
fn weights(layers: &BTreeMap<String, BlockLayer>, name: &str) -> Result<(Tensor, Option<Tensor>)> {
    let layer = layers.get(name).map(|layer| (layer.weight.clone(), layer.bias.clone()));
    Ok(layer.ok_or_else(|| FormError::NoBlocks { layer: name.into() })?)
}

/// Runs layers with what their blocks stand for.
struct Decoded<'a>(&'a BTreeMap<String, BlockLayer>);

impl Forward for Decoded<'_> {
    fn weights(&mut self, layer: Weighted<'_>) -> nn::Result<(Tensor, Option<Tensor>)> {
        Ok(weights(self.0, layer.name())?)
    }
}
