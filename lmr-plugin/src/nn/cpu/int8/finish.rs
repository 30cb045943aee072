//! From sums of integers to what a layer gives: the one formula that all kernels share, so that they agree to the bit.

use super::super::super::Activation;
use super::super::activation::{gelu, relu6};
use super::{Affine, LANES};

/// What becomes of the sums of a vector of output channels.
pub(crate) trait Finish: Sync {
    /// An element of the output.
    type Out: Copy + Default + Send + Sync;

    /// Writes the results for vector `vector` of the output channels to `out`, as many as it holds. They are elements `at`
    /// and following of the whole output.
    fn write(&self, sums: &[i32; LANES], vector: usize, at: usize, out: &mut [Self::Out]);
}

/// What a sum is multiplied by, and what is added then, per output channel.
pub(crate) struct Channels {
    scale: Vec<[f32; LANES]>,
    bias: Vec<[f32; LANES]>,
}

impl Channels {
    /// From one scale, or one a channel, times `factor`, and the bias of every channel.
    pub fn new(scale: &[f32], factor: f32, bias: &[f32]) -> Self {
        let product = |channel: usize| {
            let scale = if scale.len() == 1 { scale[0] } else { scale[channel] };
            (f64::from(scale) * f64::from(factor)) as f32
        };
        let vectors = |of: &dyn Fn(usize) -> f32| {
            let vector =
                |v: usize| std::array::from_fn(|i| if v * LANES + i < bias.len() { of(v * LANES + i) } else { 0.0 });
            (0..bias.len().div_ceil(LANES)).map(vector).collect()
        };
        Self { scale: vectors(&product), bias: vectors(&|channel| bias[channel]) }
    }

    #[inline(always)]
    fn apply(&self, sums: &[i32; LANES], vector: usize) -> [f32; LANES] {
        let (scale, bias) = (&self.scale[vector], &self.bias[vector]);
        std::array::from_fn(|i| sums[i] as f32 * scale[i] + bias[i])
    }
}

/// Real numbers: nothing is rounded.
pub(crate) struct Real(pub Channels);

impl Finish for Real {
    type Out = f32;

    #[inline(always)]
    fn write(&self, sums: &[i32; LANES], vector: usize, _: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.0.apply(sums, vector)[..out.len()]);
    }
}

/// Codes, with what comes before rounding.
pub(crate) struct Rounded<'a> {
    pub channels: Channels,
    /// Comes after the residual, if there is one.
    pub activation: Activation,
    /// Where the layer's own values are.
    pub to: Affine,
    pub residual: Option<Residual<'a>>,
}

/// What is added to a layer's rounded values.
pub(crate) struct Residual<'a> {
    /// Of the output's shape.
    pub codes: &'a [u8],
    pub from: Affine,
    /// Where the sum's values are.
    pub to: Affine,
}

impl Finish for Rounded<'_> {
    type Out = u8;

    #[inline(always)]
    fn write(&self, sums: &[i32; LANES], vector: usize, at: usize, out: &mut [u8]) {
        let mut values = self.channels.apply(sums, vector);
        let codes: [u8; LANES] = match &self.residual {
            None => {
                activate(&mut values, self.activation);
                values.map(|value| self.to.code(value))
            }
            Some(residual) => {
                let mut added = [0; LANES];
                match residual.codes[at..at + out.len()].first_chunk() {
                    Some(codes) => added = *codes,
                    None => added[..out.len()].copy_from_slice(&residual.codes[at..at + out.len()]),
                }
                let own = values.map(|value| self.to.value(self.to.code(value)));
                let mut sums: [f32; LANES] = std::array::from_fn(|i| own[i] + residual.from.value(added[i]));
                activate(&mut sums, self.activation);
                sums.map(|value| residual.to.code(value))
            }
        };
        match out.first_chunk_mut() {
            Some(out) => *out = codes,
            None => out.copy_from_slice(&codes[..out.len()]),
        }
    }
}

#[inline(always)]
pub(super) fn activate(values: &mut [f32; LANES], activation: Activation) {
    match activation {
        Activation::None => {}
        Activation::Relu => values.iter_mut().for_each(|v| *v = if *v < 0.0 { 0.0 } else { *v }),
        Activation::Relu6 => values.iter_mut().for_each(|v| *v = relu6(*v)),
        Activation::Gelu => values.iter_mut().for_each(|v| *v = gelu(*v)),
    }
}
