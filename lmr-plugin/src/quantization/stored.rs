//! The way back from a file: what tensors the file of a quantized network has, and the deployed form they make.

use std::collections::{BTreeMap, HashSet};

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor, TensorId, Var};

use super::blocks::Decoded;
use super::{BlockFormat, BlockQuantized, Granularity, IntegerLayer, Quantized, Ranges, Scheme, Tap, run_once};
use crate::model::Classifier;
use crate::model::Deployed;
use crate::nn::{self, BatchNorm2d, ConvConfig, Eval, Forward, Slot, StateDict, Weighted, WeightsError};
use crate::{Error, Result};

/// The table of activation ranges among stored integers: `f32[points,2]`.
pub const RANGES: &str = "activation_ranges";

/// How the layers of a stored network are rounded.
pub enum StoredForm {
    /// `<layer>.weight` are integers as `i16`, `<layer>.weight_scale` what they are multiplied by.
    Integers(Scheme),
    /// `<layer>.weight` are blocks, decoded, in rows; with how the file has every tensor.
    Blocks(BlockFormat, BTreeMap<String, GgmlDType>),
}

/// Every parameter of a network that no rounding concerns, in full precision under its own name: norms behind no
/// convolution, the class token, positions. The others are in its layers.
pub fn unrounded(model: &dyn Classifier) -> Result<StateDict> {
    let survey = Survey::of(model)?;
    Ok(survey.others(model).map(|(name, var)| (name.to_string(), var.as_detached_tensor())).collect())
}

/// The deployed form that the tensors of a file make of `network`, which takes over their values: its batch norms behind
/// convolutions do nothing any more. Computes what the form that was stored did, bit for bit.
///
/// Every name, shape and dtype must be as expected, integers within their bits, scales positive, and everything finite.
pub fn restore(network: &dyn Classifier, state: &StateDict, form: &StoredForm) -> Result<Deployed> {
    let survey = Survey::of(network)?;
    let reader = Reader { network, survey: &survey, state };
    reader.check_names(form)?;
    let device = network.device();
    let (layers, deployed): (BTreeMap<_, _>, _) = match form {
        StoredForm::Integers(scheme) => {
            let integers = reader.layers(|layer| Ok((reader.integers(layer, *scheme)?, layer.config)))?;
            let ranges = if scheme.activations { reader.ranges()? } else { Ranges::default() };
            let layer =
                |(name, (((weight, scale), config), bias))| (name, (IntegerLayer { weight, scale, bias }, config));
            let form = Quantized::of(integers.into_iter().map(layer).collect(), ranges, *scheme)?;
            (form.layers.clone(), Deployed::Quantized(form))
        }
        StoredForm::Blocks(format, dtypes) => {
            let layers = reader.layers(|layer| {
                Ok(reader.finite(&layer.name, "weight")?.reshape(layer.weight.shape())?.to_device(device)?)
            })?;
            let decoded = layers.iter().map(|(name, (weight, bias))| {
                let dtype = dtypes.get(&format!("{name}.weight")).copied().unwrap_or(GgmlDType::F32);
                (name.clone(), Decoded { weight: weight.clone(), bias: bias.clone(), dtype })
            });
            let form = BlockQuantized::of(*format, decoded.collect());
            (layers, Deployed::Blocks(form))
        }
    };
    for layer in &survey.layers {
        if let Some((weight, bias)) = layers.get(&layer.name) {
            layer.set(weight, bias.as_ref())?;
        }
    }
    for (name, var) in survey.others(network) {
        var.set(&reader.finite_tensor(name)?.to_device(device)?)?;
    }
    Ok(deployed)
}

/// A layer and what is folded into it.
struct Layer {
    name: String,
    weight: Var,
    bias: Option<Var>,
    batch_norm: Option<BatchNorm2d>,
    config: ConvConfig,
}

impl Layer {
    fn has_bias(&self) -> bool {
        self.bias.is_some() || self.batch_norm.is_some()
    }

    /// Takes over a weight and a bias that batch norm is folded into: from then on it multiplies by exactly 1.
    fn set(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<()> {
        self.weight.set(weight)?;
        let Some(bn) = &self.batch_norm else {
            return match (&self.bias, bias) {
                (Some(var), Some(bias)) => Ok(var.set(bias)?),
                _ => Ok(()),
            };
        };
        if let Some(var) = &self.bias {
            var.set(&var.zeros_like()?)?;
        }
        let ones = bn.running_var().ones_like()?;
        bn.running_mean().set(&bn.running_mean().zeros_like()?)?;
        bn.running_var().set(&ones)?;
        bn.weight().set(&(ones + BatchNorm2d::EPS)?.sqrt()?)?;
        if let Some(bias) = bias {
            bn.bias().set(bias)?;
        }
        Ok(())
    }
}

/// The layers of a network, in the order it runs them.
#[derive(Default)]
struct Survey {
    layers: Vec<Layer>,
    inside: HashSet<TensorId>,
}

impl Survey {
    fn of(model: &dyn Classifier) -> Result<Self> {
        let mut survey = Self::default();
        run_once(model, &mut survey)?;
        Ok(survey)
    }

    /// The parameters that are in no layer.
    fn others<'a>(&'a self, model: &'a dyn Classifier) -> impl Iterator<Item = (&'a str, &'a Var)> {
        model.params().iter().filter_map(|(name, slot)| match slot {
            Slot::Parameter(var) | Slot::Buffer(var) if !self.inside.contains(&var.id()) => Some((name, var)),
            _ => None,
        })
    }
}

impl Forward for Survey {
    fn weights(&mut self, layer: Weighted<'_>) -> nn::Result<(Tensor, Option<Tensor>)> {
        let (bias, batch_norm) = match layer {
            Weighted::ConvBn(layer) => (layer.conv().bias(), Some(layer.bn().clone())),
            Weighted::Conv(layer) => (layer.bias(), None),
            Weighted::Linear(layer) => (layer.bias(), None),
        };
        let (name, config) = (layer.name().into(), layer.config());
        let found = Layer { name, weight: layer.weight().clone(), bias: bias.cloned(), batch_norm, config };
        self.inside.extend(found.bias.iter().chain([&found.weight]).map(|var| var.id()));
        if let Some(bn) = &found.batch_norm {
            self.inside.extend([bn.weight(), bn.bias(), bn.running_mean(), bn.running_var()].map(|var| var.id()));
        }
        self.layers.push(found);
        layer.folded()
    }
}

/// The tensors of a file next to the network they are for.
struct Reader<'a> {
    network: &'a dyn Classifier,
    survey: &'a Survey,
    state: &'a StateDict,
}

impl Reader<'_> {
    /// Compares names, shapes and dtypes, and reports all faults at once.
    fn check_names(&self, form: &StoredForm) -> Result<()> {
        let mut expected: BTreeMap<String, (Vec<usize>, DType)> = BTreeMap::new();
        let mut add = |name: String, dims: Vec<usize>, dtype| drop(expected.insert(name, (dims, dtype)));
        for layer in &self.survey.layers {
            let (name, dims) = (&layer.name, layer.weight.dims());
            match form {
                StoredForm::Integers(scheme) => {
                    add(format!("{name}.weight"), dims.to_vec(), DType::I16);
                    let mut scale = vec![1; dims.len()];
                    if scheme.granularity == Granularity::PerChannel {
                        scale[0] = dims[0];
                    }
                    add(format!("{name}.weight_scale"), scale, DType::F32);
                }
                StoredForm::Blocks(..) => {
                    add(format!("{name}.weight"), vec![dims[0], dims[1..].iter().product()], DType::F32)
                }
            }
            if layer.has_bias() {
                add(format!("{name}.bias"), vec![dims[0]], DType::F32);
            }
        }
        for (name, var) in self.survey.others(self.network) {
            add(name.into(), var.dims().to_vec(), DType::F32);
        }
        if matches!(form, StoredForm::Integers(scheme) if scheme.activations) {
            add(RANGES.into(), vec![points(self.network)?, 2], DType::F32);
        }
        let mut faults = WeightsError::default();
        for (name, (dims, dtype)) in &expected {
            match self.state.get(name) {
                None => faults.missing.push(name.clone()),
                Some(tensor) if tensor.dims() != dims => {
                    faults.mismatched.push(format!("{name}: expected {dims:?}, found {:?}", tensor.dims()));
                }
                Some(tensor) if tensor.dtype() != *dtype => {
                    let called = |dtype: DType| if dtype == DType::I16 { "i8" } else { dtype.as_str() };
                    let (expected, found) = (called(*dtype), called(tensor.dtype()));
                    faults.mismatched.push(format!("{name}: expected {expected}, found {found}"));
                }
                Some(_) => {}
            }
        }
        faults.unexpected = self.state.keys().filter(|name| !expected.contains_key(*name)).cloned().collect();
        if faults == WeightsError::default() { Ok(()) } else { Err(faults.into()) }
    }

    /// Of every layer what `weight` reads, and the bias on the network's device.
    fn layers<T>(&self, weight: impl Fn(&Layer) -> Result<T>) -> Result<BTreeMap<String, (T, Option<Tensor>)>> {
        let device = self.network.device();
        let layer = |layer: &Layer| {
            let bias = if layer.has_bias() { Some(self.finite(&layer.name, "bias")?.to_device(device)?) } else { None };
            Ok((layer.name.clone(), (weight(layer)?, bias)))
        };
        self.survey.layers.iter().map(layer).collect()
    }

    /// Integers and their scale, on the network's device.
    fn integers(&self, layer: &Layer, scheme: Scheme) -> Result<(Tensor, Tensor)> {
        let (name, device) = (&layer.name, layer.weight.device());
        let integers = self.tensor(&format!("{name}.weight"))?.to_dtype(DType::F32)?;
        let (low, high) = extremes(&integers)?;
        let half = (1u32 << (scheme.bits.get() - 1)) as f32;
        if low < -half || high > half - 1.0 {
            return Err(Error::invalid(format!(
                "`{name}.weight`: expected integers from {} to {}, as {} bits hold, found {low} to {high}",
                -half,
                half - 1.0,
                scheme.bits
            )));
        }
        let scale = self.finite(name, "weight_scale")?;
        match extremes(&scale)? {
            (low, _) if low > 0.0 => Ok((integers.to_device(device)?, scale.to_device(device)?)),
            (low, _) => Err(Error::invalid(format!("`{name}.weight_scale`: expected positive numbers, found {low}"))),
        }
    }

    fn ranges(&self) -> Result<Ranges> {
        let table = self.finite_tensor(RANGES)?.to_vec2::<f32>()?;
        let ranges: Vec<(f32, f32)> = table.iter().map(|row| (row[0], row[1])).collect();
        match ranges.iter().enumerate().find(|(_, (low, high))| low > high) {
            Some((at, (low, high))) => {
                Err(Error::invalid(format!("`{RANGES}`: row {at} ranges from {low} down to {high}")))
            }
            None => Ok(Ranges(ranges)),
        }
    }

    fn finite(&self, layer: &str, what: &str) -> Result<Tensor> {
        self.finite_tensor(&format!("{layer}.{what}"))
    }

    fn finite_tensor(&self, name: &str) -> Result<Tensor> {
        let tensor = self.tensor(name)?;
        let finite = tensor.flatten_all()?.to_vec1::<f32>()?.iter().all(|value| value.is_finite());
        if finite { Ok(tensor) } else { Err(Error::invalid(format!("`{name}`: NaN or infinite values"))) }
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let found =
            self.state.get(name).ok_or_else(|| WeightsError { missing: vec![name.into()], ..Default::default() });
        Ok(found?.to_device(&Device::Cpu)?)
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

/// At how many places a network's activations are rounded.
fn points(network: &dyn Classifier) -> Result<usize> {
    let mut tap = Tap { inner: Eval, act: |x: &Tensor, _| Ok(x.clone()), at: 0 };
    run_once(network, &mut tap)?;
    Ok(tap.at)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::models::{Arch, ModelSpec};
    use crate::quantization::{blocks, integers};
    use crate::ranges::Bits;
    use crate::rng;

    fn spec(arch: Arch) -> ModelSpec {
        let spec = ModelSpec { channels: 1, ..ModelSpec::new(arch, 5) };
        match arch {
            Arch::VitTiny => ModelSpec { image_size: Some(16), patch_size: Some(4), depth: Some(2), ..spec },
            Arch::MobilenetV2 => ModelSpec { width_multiplier: Some(0.25), ..spec },
            _ => ModelSpec { width: Some(8), ..spec },
        }
    }

    /// A network in which nothing is as it was drawn, batch norm's statistics least of all.
    fn network(arch: Arch) -> Box<dyn Classifier> {
        let network = spec(arch).fresh(rng::stream(4, "weights"), &Device::Cpu).unwrap();
        for (name, slot) in network.params().iter() {
            if let Slot::Parameter(var) | Slot::Buffer(var) = slot {
                let noise = var.rand_like(0.5, 1.5).unwrap();
                let moved = match name.rsplit('.').next() {
                    Some("running_mean" | "bias") => noise.affine(0.4, -0.4),
                    // Below 1, so that what goes through many layers does not die away.
                    Some("running_var") => noise * 0.3,
                    _ => var.as_tensor() * noise,
                };
                let moved = moved.unwrap();
                var.set(&moved).unwrap();
            }
        }
        network
    }

    fn images(network: &dyn Classifier) -> Tensor {
        let [_, side, _] = network.input_shape();
        Tensor::rand(-1f32, 1.0, (3, 1, side, side), &Device::Cpu).unwrap()
    }

    /// Ranges as a calibration might measure them.
    fn ranges(network: &dyn Classifier) -> Ranges {
        Ranges((0..points(network).unwrap()).map(|at| (-1.0 - at as f32 / 8.0, 2.0 + at as f32 / 4.0)).collect())
    }

    /// The tensors of a file with integers.
    fn stored_integers(network: &dyn Classifier, scheme: Scheme) -> StateDict {
        let mut state = unrounded(network).unwrap();
        for (name, layer) in integers(network, scheme).unwrap() {
            state.insert(format!("{name}.weight"), layer.weight.to_dtype(DType::I16).unwrap());
            state.insert(format!("{name}.weight_scale"), layer.scale);
            state.extend(layer.bias.map(|bias| (format!("{name}.bias"), bias)));
        }
        if scheme.activations {
            let table: Vec<f32> = ranges(network).0.iter().flat_map(|range| [range.0, range.1]).collect();
            let table = Tensor::from_vec(table, (points(network).unwrap(), 2), &Device::Cpu).unwrap();
            state.insert(RANGES.into(), table);
        }
        state
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[rstest]
    fn integers_come_back_bit_for_bit(
        #[values(Arch::Resnet18, Arch::PreactResnet18, Arch::Vgg16Bn, Arch::MobilenetV2, Arch::VitTiny)] arch: Arch,
        #[values(Granularity::PerTensor, Granularity::PerChannel)] granularity: Granularity,
        #[values(true, false)] activations: bool,
    ) {
        let scheme = Scheme { bits: Bits::literal(5), granularity, activations };
        let made = network(arch);
        let form = Quantized::new(made.as_ref(), scheme, ranges(made.as_ref())).unwrap();
        let x = images(made.as_ref());
        let expected = values(&form.logits(made.as_ref(), &x).unwrap());
        let fresh = spec(arch).fresh(rng::stream(9, "other"), &Device::Cpu).unwrap();
        let state = stored_integers(made.as_ref(), scheme);
        let restored = restore(fresh.as_ref(), &state, &StoredForm::Integers(scheme)).unwrap();
        assert_eq!(values(&restored.logits(fresh.as_ref(), &x).unwrap()), expected);
        assert!(expected.iter().all(|v| v.is_finite()) && expected != values(&made.logits(&x).unwrap()));
    }

    #[rstest]
    fn blocks_come_back_bit_for_bit(
        #[values(Arch::Resnet18, Arch::PreactResnet18, Arch::MobilenetV2, Arch::VitTiny)] arch: Arch,
        #[values(BlockFormat::Q4_0, BlockFormat::Q3K)] format: BlockFormat,
    ) {
        let made = network(arch);
        let form = BlockQuantized::new(made.as_ref(), format).unwrap();
        let (mut state, mut dtypes) = (unrounded(made.as_ref()).unwrap(), BTreeMap::new());
        for (name, layer) in blocks(made.as_ref(), format).unwrap() {
            dtypes.insert(format!("{name}.weight"), layer.weight.dtype());
            state.insert(format!("{name}.weight"), layer.weight.dequantize(&Device::Cpu).unwrap());
            state.extend(layer.bias.map(|bias| (format!("{name}.bias"), bias)));
        }
        let x = images(made.as_ref());
        let expected = values(&form.logits(made.as_ref(), &x).unwrap());
        let fresh = spec(arch).fresh(rng::stream(9, "other"), &Device::Cpu).unwrap();
        let restored = restore(fresh.as_ref(), &state, &StoredForm::Blocks(format, dtypes)).unwrap();
        assert_eq!(values(&restored.logits(fresh.as_ref(), &x).unwrap()), expected);
        // The network itself has those weights now, and batch norm multiplies them by 1.
        assert_eq!(values(&fresh.logits(&x).unwrap()), expected);
        let Deployed::Blocks(restored) = restored else { panic!("blocks") };
        assert_eq!((restored.counts(), restored.bytes()), (form.counts(), form.bytes()));
    }

    fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
        Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
    }

    #[rstest]
    #[case::missing("fc.bias", None, "1 missing: fc.bias")]
    #[case::misspelt("fc.biss", Some(tensor(&[0.0; 5], &[5])), "unexpected: fc.biss")]
    #[case::shape("fc.bias", Some(tensor(&[0.0; 4], &[4])), "fc.bias: expected [5], found [4]")]
    #[case::dtype("fc.weight", Some(tensor(&[0.0; 320], &[5, 64])), "fc.weight: expected i8, found f32")]
    #[case::integer("fc.weight", Some((tensor(&[0.0; 320], &[5, 64]) - 17.0).unwrap().to_dtype(DType::I16).unwrap()), "`fc.weight`: expected integers from -16 to 15, as 5 bits hold, found -17 to -17")]
    #[case::large("fc.weight", Some((tensor(&[0.0; 320], &[5, 64]) + 16.0).unwrap().to_dtype(DType::I16).unwrap()), "found 16 to 16")]
    #[case::scale_shape("fc.weight_scale", Some(tensor(&[1.0; 5], &[5, 1])), "fc.weight_scale: expected [1, 1], found [5, 1]")]
    #[case::zero_scale("fc.weight_scale", Some(tensor(&[0.0], &[1, 1])), "`fc.weight_scale`: expected positive numbers, found 0")]
    #[case::endless_scale("fc.weight_scale", Some(tensor(&[f32::INFINITY], &[1, 1])), "`fc.weight_scale`: NaN or infinite")]
    #[case::bias("fc.bias", Some(tensor(&[f32::NAN; 5], &[5])), "`fc.bias`: NaN or infinite")]
    #[case::ranges(RANGES, None, "1 missing: activation_ranges")]
    #[case::few_ranges(RANGES, Some(tensor(&[0.0, 1.0], &[1, 2])), "activation_ranges: expected [30, 2], found [1, 2]")]
    #[case::upside_down(RANGES, Some(tensor(&[1.0, -1.0].repeat(30), &[30, 2])), "row 0 ranges from 1 down to -1")]
    #[case::endless(RANGES, Some(tensor(&[0.0, f32::INFINITY].repeat(30), &[30, 2])), "`activation_ranges`: NaN or infinite")]
    fn what_does_not_fit_is_refused(#[case] name: &str, #[case] tensor: Option<Tensor>, #[case] expected: &str) {
        let scheme = Scheme { bits: Bits::literal(5), granularity: Granularity::PerTensor, activations: true };
        let mut state = stored_integers(network(Arch::Resnet18).as_ref(), scheme);
        state.remove(name);
        state.extend(tensor.map(|tensor| (name.to_string(), tensor)));
        let fresh = spec(Arch::Resnet18).fresh(rng::stream(9, "other"), &Device::Cpu).unwrap();
        let before = values(&fresh.params().state_dict().unwrap()["fc.weight"]);
        let message = restore(fresh.as_ref(), &state, &StoredForm::Integers(scheme)).err().unwrap().to_string();
        assert!(message.contains(expected), "{message}");
        assert_eq!(values(&fresh.params().state_dict().unwrap()["fc.weight"]), before, "nothing is taken over");
    }
}
