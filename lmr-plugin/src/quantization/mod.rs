//! Integer arithmetic: values are rounded to a grid of integers times a scale. On the CPU the integers themselves are
//! multiplied (`integer`); elsewhere they are simulated, kept in f32.
//!
//! Weights: batch norm is folded into the convolution first, then `q = clip(round(W/s), −2^(b−1), 2^(b−1)−1)` with
//! `s = max|W| / (2^(b−1) − ½)`, symmetric, ties to even. Activations: 8-bit affine, one range a tensor, at the input,
//! after every folded convolution and every linear layer (with what follows: ReLU, GELU), after batch norm and layer norm
//! of their own, after attention, after every residual sum (and its ReLU). Softmax inside of attention stays in f32, as do
//! the class token and the positions.

mod blocks;
mod calibration;
mod cells;
mod integer;
mod stored;

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::CleanSet;
use crate::model::{Classifier, Model};
use crate::nn;
use crate::nn::int8::Kernel;
use crate::nn::{
    Activation, BatchNorm2d, ConvConfig, Convolution, Forward, Grid, LayerNorm, Linear, PatchEmbedding, Path, Weighted,
};
use crate::ranges::Bits;
use crate::run::Run;
use crate::{Error, Result};

pub use blocks::{BlockFormat, BlockLayer, BlockQuantized, Rounding, blocks, dtype_name};
pub use calibration::{Calibration, Ranges};
pub use cells::cells;
pub use stored::{RANGES, StoredForm, restore, unrounded};

use integer::{Engine, Layer};

/// How many scales a weight tensor has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Granularity {
    /// One for the whole tensor.
    #[default]
    PerTensor,
    /// One for every output channel.
    PerChannel,
}

/// How a model is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    /// Bits of a weight.
    pub bits: Bits,
    /// Scales of a weight tensor.
    pub granularity: Granularity,
    /// Whether activations are rounded too.
    pub activations: bool,
}

/// A network's integer form: rounded weights by layer name, and activation ranges.
pub struct Quantized {
    layers: BTreeMap<String, (Tensor, Option<Tensor>)>,
    /// Those that there are integer kernels for.
    packed: BTreeMap<String, Layer>,
    ranges: Ranges,
    scheme: Scheme,
}

impl Quantized {
    /// Measures activation ranges on the clean images and rounds the weights.
    pub fn calibrate(
        model: &Model,
        scheme: Scheme,
        calibration: Calibration,
        clean: &CleanSet,
        run: &Run<'_>,
    ) -> Result<Self> {
        Self::new(model.full_precision()?, scheme, calibration.measure(model, clean, run)?)
    }

    /// Rounds the weights of `model` for ranges measured before.
    pub fn new(model: &dyn Classifier, scheme: Scheme, ranges: Ranges) -> Result<Self> {
        if let Some((at, (low, high))) =
            ranges.0.iter().enumerate().find(|(_, (l, h))| !(l.is_finite() && h.is_finite()))
        {
            return Err(Error::invalid(format!(
                "activation point {at} ranges from {low} to {high}; expected finite values"
            )));
        }
        let collected = collect(model, |layer, weight| Ok((integer_weight(weight, scheme)?, layer.config())))?;
        let layer = |(name, (((weight, scale), config), bias))| (name, (IntegerLayer { weight, scale, bias }, config));
        Self::of(collected.into_iter().map(layer).collect(), ranges, scheme)
    }

    /// From the integers of every layer, and how its kernel moves.
    fn of(integers: BTreeMap<String, (IntegerLayer, ConvConfig)>, ranges: Ranges, scheme: Scheme) -> Result<Self> {
        let (mut layers, mut packed) = (BTreeMap::new(), BTreeMap::new());
        for (name, (IntegerLayer { weight, scale, bias }, config)) in integers {
            if scheme.activations
                && let Some(layer) = Layer::pack((&weight, &scale), bias.as_ref(), config)?
            {
                packed.insert(name.clone(), layer);
            }
            layers.insert(name, (weight.broadcast_mul(&scale)?, bias));
        }
        Ok(Self { layers, packed, ranges, scheme })
    }

    /// The activation ranges.
    pub fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// Logits `f32[B,K]` for normalized images, through `model`'s architecture with the rounded weights: with integers where
    /// activations are rounded and the model is on the CPU, otherwise as [`Quantized::simulated_logits`].
    pub fn logits(&self, model: &dyn Classifier, x: &Tensor) -> Result<Tensor> {
        if self.packed.is_empty() || Path::of(x) != Path::Cpu {
            return self.simulated_logits(model, x);
        }
        let mut engine = Engine::new(Integer { layers: &self.layers }, &self.packed, &self.ranges, Kernel::best());
        let logits = model.need_layers("computing with integers")?.interpret(&mut engine, x)?;
        Ok(engine.decoded(&logits)?)
    }

    /// The same logits, computed in f32 with values on the integers' grids.
    pub fn simulated_logits(&self, model: &dyn Classifier, x: &Tensor) -> Result<Tensor> {
        let inner = Integer { layers: &self.layers };
        let act = |x: &Tensor, at: usize| {
            if !self.scheme.activations {
                return Ok(x.clone());
            }
            let (low, high) = self.ranges.point(at)?;
            round_activation(x, low, high)
        };
        model.need_layers("rounding")?.interpret(&mut Tap { inner, act, at: 0 }, x)
    }
}

/// Passes every activation point of an inner interpreter through a function.
struct Tap<I, F> {
    inner: I,
    act: F,
    at: usize,
}

impl<I: Forward, F: FnMut(&Tensor, usize) -> Result<Tensor>> Tap<I, F> {
    fn point(&mut self, x: Tensor) -> nn::Result<Tensor> {
        self.at += 1;
        Ok((self.act)(&x, self.at - 1)?)
    }
}

impl<I: Forward, F: FnMut(&Tensor, usize) -> Result<Tensor>> Tap<I, F> {
    /// An activation point for the sum, and one for what follows it.
    fn sum(&mut self, y: Tensor, residual: &Tensor, activation: Activation) -> nn::Result<Tensor> {
        let sum = (self.point(y)? + residual)?;
        let y = activation.apply(&sum)?;
        self.point(y)
    }
}

impl<I: Forward, F: FnMut(&Tensor, usize) -> Result<Tensor>> Forward for Tap<I, F> {
    fn input(&mut self, x: &Tensor) -> nn::Result<Tensor> {
        let x = self.inner.input(x)?;
        self.point(x)
    }

    fn convolution(
        &mut self,
        layer: Convolution<'_>,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
    ) -> nn::Result<Tensor> {
        let alone = if residual.is_some() { Activation::None } else { activation };
        let y = self.inner.convolution(layer, x, None, alone)?;
        match residual {
            Some(residual) => self.sum(y, residual, activation),
            None => self.point(y),
        }
    }

    fn batch_norm(&mut self, layer: &BatchNorm2d, x: &Tensor, activation: Activation) -> nn::Result<Tensor> {
        let y = self.inner.batch_norm(layer, x, activation)?;
        self.point(y)
    }

    fn linear(&mut self, layer: &Linear, x: &Tensor, activation: Activation) -> nn::Result<Tensor> {
        let y = self.inner.linear(layer, x, activation)?;
        self.point(y)
    }

    fn embed(&mut self, layer: &PatchEmbedding, images: &Tensor) -> nn::Result<Tensor> {
        let images = self.point(images.clone())?;
        let y = self.inner.embed(layer, &images)?;
        self.point(y)
    }

    fn layer_norm(&mut self, layer: &LayerNorm, x: &Tensor) -> nn::Result<Tensor> {
        let y = self.inner.layer_norm(layer, x)?;
        self.point(y)
    }

    fn attend(&mut self, qkv: &Tensor, heads: usize) -> nn::Result<Tensor> {
        let y = self.inner.attend(qkv, heads)?;
        self.point(y)
    }

    fn add(&mut self, x: &Tensor, y: &Tensor) -> nn::Result<Tensor> {
        let y = self.inner.add(x, y)?;
        self.point(y)
    }
}

/// Runs layers with rounded weights.
struct Integer<'a> {
    layers: &'a BTreeMap<String, (Tensor, Option<Tensor>)>,
}

impl Forward for Integer<'_> {
    fn weights(&mut self, layer: Weighted<'_>) -> nn::Result<(Tensor, Option<Tensor>)> {
        let rounded = self.layers.get(layer.name());
        let missing = || Error::invalid(format!("layer `{}` was not quantized", layer.name()));
        Ok(rounded.cloned().ok_or_else(missing)?)
    }
}

/// A layer of a model as integers.
pub struct IntegerLayer {
    /// `f32` integers in `[−2^(bits−1), 2^(bits−1)−1]`; output channels come first.
    pub weight: Tensor,
    /// What they are multiplied by: one number, or one an output channel, of the weight's rank.
    pub scale: Tensor,
    /// The bias, in full precision.
    pub bias: Option<Tensor>,
}

/// The integers that `model` is rounded to, by layer name, batch norm folded in.
pub fn integers(model: &dyn Classifier, scheme: Scheme) -> Result<BTreeMap<String, IntegerLayer>> {
    let layers = collect(model, |_, weight| integer_weight(weight, scheme))?;
    Ok(layers.into_iter().map(|(name, ((weight, scale), bias))| (name, IntegerLayer { weight, scale, bias })).collect())
}

/// What `round` makes of every layer with its folded weight, and the bias. Layers are found by running the network once: no list
/// of them to keep in step with the architecture.
fn collect<T>(
    model: &dyn Classifier,
    round: impl Fn(Weighted<'_>, &Tensor) -> Result<T>,
) -> Result<BTreeMap<String, (T, Option<Tensor>)>> {
    let mut collect = Collect { round, layers: BTreeMap::new() };
    run_once(model, &mut collect)?;
    Ok(collect.layers)
}

/// Shows an interpreter every layer of a network.
fn run_once(model: &dyn Classifier, how: &mut dyn Forward) -> Result<()> {
    let [c, h, w] = model.input_shape();
    let probe = Tensor::zeros((1, c, h, w), candle_core::DType::F32, model.device())?;
    model.need_layers("rounding layer by layer")?.interpret(how, &probe)?;
    Ok(())
}

/// Runs in full precision and keeps what `round` makes of the weights of every layer it meets.
struct Collect<T, F> {
    round: F,
    layers: BTreeMap<String, (T, Option<Tensor>)>,
}

impl<T, F: Fn(Weighted<'_>, &Tensor) -> Result<T>> Forward for Collect<T, F> {
    fn weights(&mut self, layer: Weighted<'_>) -> nn::Result<(Tensor, Option<Tensor>)> {
        let (weight, bias) = layer.folded()?;
        // A deep copy: the model may train on, its quantized form stays.
        let kept = ((self.round)(layer, &weight)?, bias.as_ref().map(Tensor::copy).transpose()?);
        self.layers.insert(layer.name().to_string(), kept);
        Ok((weight, bias))
    }
}

/// Rounds a weight tensor, output channels first, onto its grid of `2^bits` integers times a scale.
pub fn round_weight(weight: &Tensor, scheme: Scheme) -> Result<Tensor> {
    let (integers, scale) = integer_weight(weight, scheme)?;
    Ok(integers.broadcast_mul(&scale)?)
}

/// The weights before folding with which a layer computes what its rounded form does, as training sees them: gradients pass
/// the rounding as if it were not there (straight through). The scale counts as a constant. Since it is taken from the largest
/// weight of the moment, nothing lies outside the grid, where the gradient would be 0.
pub fn straight_through(layer: Weighted<'_>, rounding: impl Into<Rounding>) -> Result<Tensor> {
    let rounding = rounding.into();
    let rounded = |weight: &Tensor| Ok::<_, Error>((weight + (rounding.round(&weight.detach())? - weight.detach())?)?);
    match layer {
        Weighted::ConvBn(layer) => {
            let scale = layer.scale()?.reshape(((), 1, 1, 1))?;
            // A channel that batch norm all but erases rounds to 0, whatever it is divided by.
            let tiny = scale.detach().abs()?.lt(1e-6)?;
            let divisor = tiny.where_cond(&scale.ones_like()?, &scale)?;
            Ok(rounded(&layer.conv().weight().broadcast_mul(&scale)?)?.broadcast_div(&divisor)?)
        }
        Weighted::Conv(_) | Weighted::Linear(_) => rounded(layer.weight()),
    }
}

/// A full-precision network that computes with the rounded weights of `model`: batch norm is unfolded again, activations are
/// not rounded.
pub fn dequantized(model: &dyn Classifier, rounding: impl Into<Rounding>) -> Result<Box<dyn Classifier>> {
    let copy = model.copy()?;
    let mut unfold = Unfold { rounding: rounding.into(), weights: Vec::new() };
    run_once(copy.as_ref(), &mut unfold)?;
    for (weight, rounded) in unfold.weights {
        weight.set(&rounded)?;
    }
    Ok(copy)
}

/// Runs in full precision and keeps the rounded weight of every layer it meets, before folding.
struct Unfold {
    rounding: Rounding,
    weights: Vec<(Var, Tensor)>,
}

impl Forward for Unfold {
    fn weights(&mut self, layer: Weighted<'_>) -> nn::Result<(Tensor, Option<Tensor>)> {
        self.weights.push((layer.weight().clone(), straight_through(layer, self.rounding)?.detach()));
        layer.folded()
    }
}

/// The integers and their scale, which broadcasts to the weight's shape.
fn integer_weight(weight: &Tensor, scheme: Scheme) -> Result<(Tensor, Tensor)> {
    let half = f64::from(1u32 << (scheme.bits.get() - 1));
    let flat = weight.flatten_from(1)?;
    let largest = match scheme.granularity {
        Granularity::PerTensor => flat.abs()?.max_all()?.reshape((1, 1))?,
        Granularity::PerChannel => flat.abs()?.max_keepdim(1)?,
    };
    // An all-zero tensor keeps a scale of 1, so that 0/0 does not arise.
    let scale = largest.affine(1.0 / (half - 0.5), 0.0)?;
    let scale = scale.eq(0f64)?.where_cond(&scale.ones_like()?, &scale)?;
    let q = Grid { scale: 1.0, low: -half, high: half - 1.0 }.round(&flat.broadcast_div(&scale)?)?;
    let mut dims = vec![1; weight.rank()];
    dims[0] = scale.dim(0)?;
    Ok((q.reshape(weight.shape())?, scale.reshape(dims)?))
}

/// Rounds activations onto 256 values that span `[low, high]` and contain 0.
pub fn round_activation(x: &Tensor, low: f32, high: f32) -> Result<Tensor> {
    Ok(grid(low, high).round(x)?)
}

/// The 256 values.
fn grid(low: f32, high: f32) -> Grid {
    let (low, high) = (f64::from(low.min(0.0)), f64::from(high.max(0.0)));
    let scale = if high > low { (high - low) / 255.0 } else { 1.0 };
    let zero = (-low / scale).round_ties_even();
    Grid { scale, low: -zero, high: 255.0 - zero }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{BatchNorm2d, Builder, Conv2d, ConvBn, Init};
    use crate::rng;
    use candle_core::Device;
    use proptest::prelude::*;

    /// A convolution with batch norm whose scales differ, one of them 0.
    fn conv_bn(b: &Builder) -> ConvBn {
        let spec = crate::nn::ConvSpec {
            in_channels: 2,
            out_channels: 3,
            kernel: (3, 3),
            bias: false,
            config: crate::nn::ConvConfig::default(),
        };
        let layer = ConvBn::new(Conv2d::new(&spec, &b.pp("conv")).unwrap(), BatchNorm2d::new(3, &b.pp("bn")).unwrap());
        let layer = layer.unwrap();
        layer.bn().weight().set(&Tensor::new(&[0.5f32, -2.0, 0.0], &Device::Cpu).unwrap()).unwrap();
        layer.bn().running_var().set(&Tensor::new(&[0.25f32, 4.0, 1.0], &Device::Cpu).unwrap()).unwrap();
        layer
    }

    /// Folded, the weights that training sees are the rounded ones; gradients pass them as if nothing was rounded.
    #[test]
    fn straight_through_weights_fold_to_the_rounded_ones() {
        let b = Builder::fresh(rng::stream(0, "weights"), &Device::Cpu);
        let layer = conv_bn(&b);
        let scheme = Scheme { bits: Bits::literal(4), granularity: Granularity::PerTensor, activations: false };
        let weight = straight_through(Weighted::ConvBn(&layer), scheme).unwrap();
        let refolded = weight.broadcast_mul(&layer.scale().unwrap().reshape(((), 1, 1, 1)).unwrap()).unwrap();
        let expected = round_weight(&layer.folded().unwrap().0, scheme).unwrap();
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (found, expected) in values(&refolded).iter().zip(values(&expected)) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        let gradients = weight.sum_all().unwrap().backward().unwrap();
        let gradient = values(gradients.get(layer.conv().weight()).unwrap());
        // The erased channel is divided by 1 instead of by 0, and multiplied by 0.
        let expected = [[1f32; 18], [1.0; 18], [0.0; 18]].concat();
        assert!(gradient.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{gradient:?}");
        let var = b.parameter("plain", (2, 3), Init::Uniform { bound: 1.0 }).unwrap();
        let linear = crate::nn::Linear::of(var.clone(), None, "plain");
        let gradients =
            straight_through(Weighted::Linear(&linear), scheme).unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!(values(gradients.get(&var).unwrap()), [1.0; 6]);
    }

    proptest! {
        /// Quantized weights lie on at most 2^bits values and within half a step of the original.
        #[test]
        fn weights_stay_within_half_a_step(
            values in prop::collection::vec(-3.0f32..3.0, 24),
            bits in 2u32..=8,
            per_channel: bool,
        ) {
            let granularity = if per_channel { Granularity::PerChannel } else { Granularity::PerTensor };
            let scheme = Scheme { bits: Bits::new(bits).unwrap(), granularity, activations: true };
            let w = Tensor::from_vec(values.clone(), (4, 6), &Device::Cpu).unwrap();
            let q: Vec<f32> = round_weight(&w, scheme).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let rows = if per_channel { 6 } else { 24 };
            for (q, v) in q.chunks(rows).zip(values.chunks(rows)) {
                let largest = v.iter().fold(0f32, |m, x| m.max(x.abs()));
                let step = largest / ((1u32 << (bits - 1)) as f32 - 0.5);
                for (q, v) in q.iter().zip(v) {
                    prop_assert!((q - v).abs() <= step * 0.5001 + 1e-6);
                }
                let mut levels: Vec<i64> = q.iter().map(|q| (q / step).round() as i64).collect();
                levels.sort_unstable();
                levels.dedup();
                prop_assert!(levels.len() <= 1 << bits);
            }
        }

        /// Activations inside the range move by at most half a step, and 0 stays 0.
        #[test]
        fn activations_stay_within_half_a_step(values in prop::collection::vec(-2.0f32..6.0, 1..40)) {
            let x = Tensor::new(values.as_slice(), &Device::Cpu).unwrap();
            let q = round_activation(&x, -2.0, 6.0).unwrap().to_vec1::<f32>().unwrap();
            let step = 8.0 / 255.0;
            for (q, v) in q.iter().zip(&values) {
                prop_assert!((q - v).abs() <= step * 1.001);
            }
            let zero = round_activation(&x.zeros_like().unwrap(), -2.0, 6.0).unwrap();
            prop_assert!(zero.to_vec1::<f32>().unwrap().iter().all(|v| *v == 0.0));
        }
    }
}
