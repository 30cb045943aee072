//! Rounding of numbers: weights to integers times a scale or to blocks, activations to a grid.
//!
//! Weights: `q = round(W/s)`, symmetric, ties to even, on one of two grids ([`WeightGrid`]). Activations: at most 256 values, one
//! range a tensor ([`ActivationGrid`]). Blocks: see [`BlockFormat`].

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::BlockFormat;
use super::places::Places;
use crate::Result;
use crate::nn::{Grid, Weighted};
use crate::ranges::Bits;

/// How many scales a weight tensor has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Granularity {
    /// One for the whole tensor.
    #[default]
    PerTensor,
    /// One for every output channel.
    PerChannel,
}

/// The integers of a weight of b bits, and which of them the largest weight becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum WeightGrid {
    /// `−2^(b−1)` to `2^(b−1)−1`; `s = max|W| / (2^(b−1) − ½)`, for 8 bits `max|W|/127.5`: PyTorch's observers.
    #[default]
    Full,
    /// As many on both sides of 0, `−(2^(b−1)−1)` to `2^(b−1)−1`; `s = max|W| / (2^(b−1) − 1)`, for 8 bits `max|W|/127`:
    /// ONNX Runtime, LiteRT, OpenVINO, TensorRT.
    Narrow,
}

impl WeightGrid {
    /// The smallest and the largest integer of `bits` bits.
    pub(super) fn ends(self, bits: Bits) -> (f64, f64) {
        let half = f64::from(1u32 << (bits.get() - 1));
        match self {
            Self::Full => (-half, half - 1.0),
            Self::Narrow => (1.0 - half, half - 1.0),
        }
    }

    /// What the largest weight is divided by to give the scale.
    fn divisor(self, bits: Bits) -> f64 {
        let half = f64::from(1u32 << (bits.get() - 1));
        match self {
            Self::Full => half - 0.5,
            Self::Narrow => half - 1.0,
        }
    }
}

/// The values that an activation of a range is rounded to. 0 is one of them, on every grid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ActivationGrid {
    /// 256 that span the range, widened to contain 0.
    #[default]
    Affine,
    /// 128 that do: the reduced range of PyTorch's `x86` and `fbgemm`, whose sums of products are 16 bits wide in between.
    Reduced,
    /// −128 to 127 times `max|x|/127`.
    Symmetric,
    /// 0 to 255 times `max/255` where nothing is negative, elsewhere as symmetric.
    Unsigned,
}

impl ActivationGrid {
    /// The values for a range.
    pub(super) fn of(self, low: f32, high: f32) -> Grid {
        let (low, high) = (f64::from(low.min(0.0)), f64::from(high.max(0.0)));
        let step = |width: f64, steps: f64| if width > 0.0 { width / steps } else { 1.0 };
        let affine = |steps: f64| {
            let scale = step(high - low, steps);
            let zero = (-low / scale).round_ties_even();
            Grid { scale, low: -zero, high: steps - zero }
        };
        match self {
            Self::Affine => affine(255.0),
            Self::Reduced => affine(127.0),
            Self::Unsigned if low == 0.0 => Grid { scale: step(high, 255.0), low: 0.0, high: 255.0 },
            Self::Symmetric | Self::Unsigned => Grid { scale: step(high.max(-low), 127.0), low: -128.0, high: 127.0 },
        }
    }

    /// Rounds activations to the values for a range.
    pub fn round(self, x: &Tensor, low: f32, high: f32) -> Result<Tensor> {
        Ok(self.of(low, high).round(x)?)
    }
}

/// What is rounded to integers, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Scheme {
    /// Bits of a weight.
    pub bits: Bits,
    /// Scales of a weight tensor.
    pub granularity: Granularity,
    /// The integers of a weight.
    pub weight_grid: WeightGrid,
    /// Whether batch norm is folded into the convolution before it is rounded, or stays behind it.
    pub fold: bool,
    /// Whether activations are rounded too.
    pub activations: bool,
    /// The values of an activation.
    pub activation_grid: ActivationGrid,
    /// Where activations are rounded.
    pub places: Places,
}

impl Default for Scheme {
    /// Eight bits with one scale a tensor, and activations.
    fn default() -> Self {
        Self {
            bits: const { Bits::literal(8) },
            granularity: Granularity::PerTensor,
            weight_grid: WeightGrid::Full,
            fold: true,
            activations: true,
            activation_grid: ActivationGrid::Affine,
            places: Places::default(),
        }
    }
}

impl Scheme {
    /// A few words: `int8`, `int4 per tensor`, `weights int8`.
    pub fn label(&self) -> String {
        let what = if self.activations { "" } else { "weights " };
        let per = if self.granularity == Granularity::PerTensor { " per tensor" } else { "" };
        format!("{what}int{}{per}", self.bits)
    }
}

/// What the weights of a network are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Integers times a scale a tensor or a channel.
    Integers(Scheme),
    /// Blocks with scales of their own.
    Blocks(BlockFormat),
}

impl Rounding {
    /// The rounded weight tensor; output channels come first.
    pub fn round(self, weight: &Tensor) -> Result<Tensor> {
        match self {
            Self::Integers(scheme) => round_weight(weight, scheme),
            Self::Blocks(format) => format.round(weight),
        }
    }

    /// Whether batch norm is folded into a convolution before it is rounded.
    pub(super) fn folds(self) -> bool {
        match self {
            Self::Integers(scheme) => scheme.fold,
            Self::Blocks(_) => true,
        }
    }

    /// A few words: `int8`, `q4_0`.
    pub fn label(self) -> String {
        match self {
            Self::Integers(scheme) => scheme.label(),
            Self::Blocks(format) => format.name().into(),
        }
    }
}

impl From<Scheme> for Rounding {
    fn from(scheme: Scheme) -> Self {
        Self::Integers(scheme)
    }
}

impl From<BlockFormat> for Rounding {
    fn from(format: BlockFormat) -> Self {
        Self::Blocks(format)
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
    match layer {
        Weighted::ConvBn(layer) if rounding.folds() => {
            let scale = layer.scale()?.reshape(((), 1, 1, 1))?;
            // A channel that batch norm all but erases rounds to 0, whatever it is divided by.
            let tiny = scale.detach().abs()?.lt(1e-6)?;
            let divisor = tiny.where_cond(&scale.ones_like()?, &scale)?;
            let folded = layer.conv().weight().broadcast_mul(&scale)?;
            Ok(passed_through(&folded, rounding)?.broadcast_div(&divisor)?)
        }
        _ => passed_through(layer.weight(), rounding),
    }
}

/// The rounded weight; gradients are those of the weight itself.
pub(super) fn passed_through(weight: &Tensor, rounding: Rounding) -> Result<Tensor> {
    Ok((weight + (rounding.round(&weight.detach())? - weight.detach())?)?)
}

/// The integers and their scale, which broadcasts to the weight's shape.
pub(super) fn integer_weight(weight: &Tensor, scheme: Scheme) -> Result<(Tensor, Tensor)> {
    let flat = weight.flatten_from(1)?;
    let largest = match scheme.granularity {
        Granularity::PerTensor => flat.abs()?.max_all()?.reshape((1, 1))?,
        Granularity::PerChannel => flat.abs()?.max_keepdim(1)?,
    };
    // An all-zero tensor keeps a scale of 1, so that 0/0 does not arise.
    let scale = largest.affine(1.0 / scheme.weight_grid.divisor(scheme.bits), 0.0)?;
    let scale = scale.eq(0f64)?.where_cond(&scale.ones_like()?, &scale)?;
    let (low, high) = scheme.weight_grid.ends(scheme.bits);
    let q = Grid { scale: 1.0, low, high }.round(&flat.broadcast_div(&scale)?)?;
    let mut dims = vec![1; weight.rank()];
    dims[0] = scale.dim(0)?;
    Ok((q.reshape(weight.shape())?, scale.reshape(dims)?))
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
        let scheme = Scheme { bits: Bits::literal(4), activations: false, ..Scheme::default() };
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
            let scheme = Scheme { bits: Bits::new(bits).unwrap(), granularity, ..Scheme::default() };
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
            let q = ActivationGrid::Affine.round(&x, -2.0, 6.0).unwrap().to_vec1::<f32>().unwrap();
            let step = 8.0 / 255.0;
            for (q, v) in q.iter().zip(&values) {
                prop_assert!((q - v).abs() <= step * 1.001);
            }
            let zero = ActivationGrid::Affine.round(&x.zeros_like().unwrap(), -2.0, 6.0).unwrap();
            prop_assert!(zero.to_vec1::<f32>().unwrap().iter().all(|v| *v == 0.0));
        }
    }
}
