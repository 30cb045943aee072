//! What a file keeps of integers, and the way back.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::super::StoredError;
use super::super::layers::{WeightLayer, unrounded_state, weight_layers};
use super::super::places::Places;
use super::super::points::Points;
use super::super::reader::{Expected, Reader};
use super::super::rounding::{ActivationGrid, Granularity, WeightGrid};
use super::{IntegerLayer, Integers, Ranges, Scheme};
use crate::model::{Classifier, Stored};
use crate::nn::StateDict;
use crate::ranges::Bits;
use crate::{Error, Result};

/// How the name of a scale ends.
const SCALE: &str = ".weight_scale";
/// How the name of an activation range ends, `f32[2]`.
const RANGE: &str = ".activation_range";
/// What held all ranges, in the order of the network, before they had names.
const UNNAMED_RANGES: &str = "activation_ranges";

/// What is said beside the tensors. Keys that are not known here are left alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Description {
    /// Bits of a weight.
    pub bits: Bits,
    /// Scales of a weight tensor.
    pub granularity: Granularity,
    /// The integers of a weight.
    #[serde(default)]
    pub weight_grid: WeightGrid,
    /// Whether batch norm is folded in before rounding. Before it was an option, it always was.
    #[serde(default = "yes")]
    pub fold: bool,
    /// Whether activations are rounded too.
    pub activations: bool,
    /// The values of an activation.
    #[serde(default)]
    pub activation_grid: ActivationGrid,
    /// Where activations are rounded.
    #[serde(default)]
    pub places: Places,
    /// For people: what is stored.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub weights: String,
    /// For people: what the ranges are of.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub activation_ranges: String,
}

impl Description {
    /// Whether tensors of these names are stored integers, as far as names tell: the name of a scale.
    pub fn recognize<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
        names.find(|name| name.ends_with(SCALE))
    }

    /// The scheme that is described.
    pub fn scheme(&self) -> Scheme {
        let Self { bits, granularity, weight_grid, fold, activations, activation_grid, places, .. } = *self;
        Scheme { bits, granularity, weight_grid, fold, activations, activation_grid, places }
    }

    fn of(scheme: Scheme) -> Self {
        let Scheme { bits, granularity, weight_grid, fold, activations, activation_grid, places } = scheme;
        Self {
            bits,
            granularity,
            weight_grid,
            fold,
            activations,
            activation_grid,
            places,
            weights: "`<layer>.weight` (int8) times `<layer>.weight_scale` is the weight of the layer with batch norm folded in; output \
                channels come first. `<layer>.bias` is in full precision, as is every tensor of another name."
                .into(),
            activation_ranges: "`<place>.activation_range` (smallest, largest) is there for every place where activations are \
                rounded to 256 values: `input`; every folded convolution, linear layer and norm of its own under its name, with \
                what follows it; `<place>/attend` for attention and `<place>/sum` for a residual sum with what follows it, named \
                after the place before it."
                .into(),
        }
    }
}

fn yes() -> bool {
    true
}

/// What is stored of a form.
pub(super) fn write(form: &Integers, network: &dyn Classifier) -> Result<Stored> {
    let mut tensors = unrounded_state(network, &weight_layers(network)?);
    for (name, layer) in &form.layers {
        // An `i16` holds what the file has as a signed byte.
        tensors.insert(format!("{name}.weight"), layer.weight.to_dtype(DType::I16)?);
        tensors.insert(format!("{name}{SCALE}"), layer.scale.clone());
        tensors.extend(layer.bias.clone().map(|bias| (format!("{name}.bias"), bias)));
    }
    if form.scheme.activations {
        for (point, &(low, high)) in &form.ranges.0 {
            tensors.insert(format!("{point}{RANGE}"), Tensor::new(&[low, high], network.device())?);
        }
    }
    let description = serde_json::to_value(Description::of(form.scheme));
    let description = description.map_err(|source| Error::Finding { name: "description", source })?;
    Ok(Stored::Described { tensors, description })
}

impl Integers {
    /// The form that the tensors of a file make of `network`, which takes over their values: its batch norms behind
    /// convolutions do nothing any more. Computes what the form that was stored did, bit for bit.
    ///
    /// Every name, shape and dtype must be as expected, integers within their bits, scales positive, and everything finite.
    pub fn read(network: &dyn Classifier, tensors: &StateDict, scheme: Scheme) -> Result<Self> {
        if scheme.activations && tensors.contains_key(UNNAMED_RANGES) {
            return Err(StoredError::UnnamedRanges { name: UNNAMED_RANGES }.into());
        }
        let found = weight_layers(network)?;
        let reader = Reader { network, layers: &found, state: tensors };
        let points = if scheme.activations { Points::of(network, scheme.places)? } else { Default::default() };
        let ranges = points.iter().map(|point| (format!("{point}{RANGE}"), vec![2], DType::F32)).collect();
        reader.check(|layer| expected(layer, scheme), ranges)?;
        let (mut layers, mut ranges) = (BTreeMap::new(), Ranges::default());
        for layer in &found {
            layers.insert(layer.name.clone(), integer_layer(&reader, layer, scheme)?);
        }
        for point in points {
            let range = range(&reader, &format!("{point}{RANGE}"))?;
            ranges.0.insert(point, range);
        }
        let others = reader.others()?;
        for layer in &found {
            let (weight, bias) = super::weights(&layers, &layer.name)?;
            layer.set(&weight, bias.as_ref())?;
        }
        others.into_iter().try_for_each(|(var, value)| var.set(&value))?;
        Self::of(network, layers, ranges, scheme)
    }
}

/// The tensors of a layer.
fn expected(layer: &WeightLayer, scheme: Scheme) -> Vec<Expected> {
    let (name, dims) = (&layer.name, layer.weight.dims());
    let mut scale = vec![1; dims.len()];
    if scheme.granularity == Granularity::PerChannel || layer.apart(scheme).is_some() {
        scale[0] = dims[0];
    }
    vec![(format!("{name}.weight"), dims.to_vec(), DType::I16), (format!("{name}{SCALE}"), scale, DType::F32)]
}

/// Integers with their scale and the bias, on the network's device.
fn integer_layer(reader: &Reader<'_>, layer: &WeightLayer, scheme: Scheme) -> Result<IntegerLayer> {
    let (name, device) = (&layer.name, layer.weight.device());
    let weight = reader.tensor(&format!("{name}.weight"))?.to_dtype(DType::F32)?;
    let (low, high) = extremes(&weight)?;
    let (smallest, largest) = scheme.weight_grid.ends(scheme.bits);
    if f64::from(low) < smallest || f64::from(high) > largest {
        return Err(StoredError::Integers { name: format!("{name}.weight"), smallest, largest, low, high }.into());
    }
    let scale = reader.finite(&format!("{name}{SCALE}"))?;
    let (found, _) = extremes(&scale)?;
    if found <= 0.0 && layer.apart(scheme).is_none() {
        return Err(StoredError::Scale { name: format!("{name}{SCALE}"), found }.into());
    }
    let (weight, scale) = (weight.to_device(device)?, scale.to_device(device)?);
    Ok(IntegerLayer { weight, scale, bias: reader.bias(layer)?, config: layer.config })
}

fn range(reader: &Reader<'_>, name: &str) -> Result<(f32, f32)> {
    match reader.finite(name)?.to_vec1::<f32>()?[..] {
        [low, high] if low <= high => Ok((low, high)),
        [low, high] => Err(StoredError::Descending { name: name.into(), low, high }.into()),
        _ => Err(StoredError::NotTwo { name: name.into() }.into()),
    }
}

/// Smallest and largest value; (0, 0) of an empty tensor.
fn extremes(values: &Tensor) -> Result<(f32, f32)> {
    let values = values.flatten_all()?.to_vec1::<f32>()?;
    let ends = values.iter().fold(None, |ends: Option<(f32, f32)>, v| {
        let (low, high) = ends.unwrap_or((*v, *v));
        Some((low.min(*v), high.max(*v)))
    });
    Ok(ends.unwrap_or_default())
}
