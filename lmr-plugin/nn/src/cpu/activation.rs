//! Activations in one pass each way.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use pulp::{Arch, Simd};
use rayon::prelude::*;

use super::access::{slice, tensor, with_slice};
use crate::layers::Activation;

/// Values that one task maps.
const CHUNK: usize = 1 << 14;

/// `erf(x) = x · P(x²) / Q(x²)` for |x| up to [`ERF_END`], beyond which it is 1 in f32: a least-squares fit weighted for an
/// even relative error of 2e-8. Evaluated in f32 it is off by at most 4e-7.
const ERF_P: [f32; 6] =
    [std::f32::consts::FRAC_2_SQRT_PI, 0.189_662_46, 0.052_667_506, 0.003_738_157, 2.850_577_3e-4, 2.066_505_4e-6];
const ERF_Q: [f32; 6] = [1.0, 0.501_416_74, 0.113_817_15, 0.014_913_901, 0.001_157_329_8, 3.827_012e-5];
const ERF_END: f32 = 3.9;

/// The error function.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-ERF_END, ERF_END);
    let square = x * x;
    let horner = |c: [f32; 6]| c.iter().rev().fold(0.0, |sum, c| sum * square + c);
    x * horner(ERF_P) / horner(ERF_Q)
}

/// `e^x` for x up to 88, within 2e-7 of its value; 0 below -87.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // x = n ln 2 + r with a whole n and |r| at most ln(2)/2; adding 1.5·2^23 rounds, and leaves n in the lowest bits, so
    // that no conversion to an integer keeps the compiler from using vectors. ln 2 in two parts keeps r exact.
    const ROUND: f32 = 12_582_912.0;
    let rounded = x.max(-87.5) * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x.max(-87.5) - n * 0.693_359_4) + n * 2.121_944_4e-4;
    // Taylor's series to r⁷.
    let series = [1.0, 1.0, 0.5, 1.0 / 6.0, 1.0 / 24.0, 1.0 / 120.0, 1.0 / 720.0, 1.0 / 5040.0];
    let power = series.iter().rev().fold(0.0, |sum, c| sum * r + c);
    let scale = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { power * scale }
}

/// `x Φ(x)`.
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// `Φ(x) + x φ(x)`.
#[inline(always)]
fn gelu_slope(x: f32) -> f32 {
    const DENSITY: f32 = 0.398_942_3;
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * DENSITY * exp(-0.5 * x * x)
}

/// Where an activation cuts values off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bounds {
    pub low: f32,
    pub high: f32,
}

impl Bounds {
    /// Nowhere.
    pub const NONE: Self = Self { low: f32::NEG_INFINITY, high: f32::INFINITY };

    /// Those of an activation that does nothing else.
    pub fn of(activation: Activation) -> Option<Self> {
        match activation {
            Activation::None => Some(Self::NONE),
            Activation::Relu => Some(Self { low: 0.0, ..Self::NONE }),
            Activation::Relu6 => Some(Self { low: 0.0, high: 6.0 }),
            Activation::Gelu => None,
        }
    }

    /// Cuts off; NaN stays NaN.
    #[inline(always)]
    pub fn cut<S: Simd>(self, simd: S, v: S::f32s) -> S::f32s {
        // Of two operands, `max` and `min` give the second if one is NaN.
        simd.min_f32s(simd.splat_f32s(self.high), simd.max_f32s(simd.splat_f32s(self.low), v))
    }

    /// Multiplies `grad` by the slope at values that were cut off.
    pub fn slope_in_place(self, grad: &mut [f32], at: &[f32]) {
        if self != Self::NONE {
            each_pair(grad, at, |g, v| if v > self.low && v < self.high { g } else { 0.0 });
        }
    }

    /// `grad` where `v` is strictly between the bounds, else 0.
    #[inline(always)]
    pub fn slope<S: Simd>(self, simd: S, grad: S::f32s, v: S::f32s) -> S::f32s {
        let zero = simd.splat_f32s(0.0);
        let above = simd.select_f32s(simd.greater_than_f32s(v, simd.splat_f32s(self.low)), grad, zero);
        simd.select_f32s(simd.greater_than_f32s(simd.splat_f32s(self.high), v), above, zero)
    }
}

/// What the convolution kernels apply themselves, and what is left to do.
pub(crate) fn fused(activation: Activation) -> (Bounds, Activation) {
    match Bounds::of(activation) {
        Some(bounds) => (bounds, Activation::None),
        None => (Bounds::NONE, activation),
    }
}

/// Applies an activation in place.
pub(crate) fn activate_in_place(x: &mut [f32], activation: Activation) {
    fn each(x: &mut [f32], f: impl Fn(f32) -> f32 + Sync) {
        let arch = Arch::new();
        x.par_chunks_mut(CHUNK).for_each(|x| arch.dispatch(|| x.iter_mut().for_each(|x| *x = f(*x))));
    }
    // Comparisons rather than `max`, so that NaN stays NaN.
    match activation {
        Activation::None => {}
        Activation::Relu => each(x, |x| if x < 0.0 { 0.0 } else { x }),
        Activation::Relu6 => each(x, relu6),
        Activation::Gelu => each(x, gelu),
    }
}

#[inline(always)]
pub(crate) fn relu6(x: f32) -> f32 {
    let x = if x < 0.0 { 0.0 } else { x };
    if x > 6.0 { 6.0 } else { x }
}

/// Multiplies `grad` by the slope of an activation. `at` is the activation's input; for ReLU and ReLU6, its output does as
/// well.
pub(crate) fn slope_in_place(grad: &mut [f32], at: &[f32], activation: Activation) {
    match Bounds::of(activation) {
        Some(bounds) => bounds.slope_in_place(grad, at),
        None => each_pair(grad, at, |g, x| g * gelu_slope(x)),
    }
}

fn each_pair(grad: &mut [f32], at: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    let arch = Arch::new();
    grad.par_chunks_mut(CHUNK).zip(at.par_chunks(CHUNK)).for_each(|(grad, at)| {
        arch.dispatch(|| grad.iter_mut().zip(at).for_each(|(grad, &at)| *grad = f(*grad, at)));
    });
}

/// An activation as an operation.
struct Activate(Activation);

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = slice(x, l)?.to_vec();
        activate_in_place(&mut y, self.0);
        Ok((CpuStorage::F32(y), l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = with_slice(dy, |dy| Ok(dy.to_vec()))?;
        with_slice(x, |x| {
            slope_in_place(&mut dx, x, self.0);
            Ok(())
        })?;
        Ok(Some(tensor(dx, x.dims())?))
    }
}

/// Applies an activation to a tensor of any shape; differentiable.
pub(crate) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Activate(activation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_and_gelu_agree_with_f64() {
        for i in -20_000..=20_000 {
            let x = i as f32 / 230.0;
            let e = f64::from(x).exp();
            assert!((f64::from(exp(x)) - e).abs() <= 2e-7 * e + 1e-37, "exp({x}): {}, expected {e}", exp(x));
        }
        // Φ at a few points, to 9 digits.
        for (x, phi) in [(0.0, 0.5), (1.0, 0.841_344_746), (-2.0, 0.022_750_132), (3.5, 0.999_767_371), (9.0, 1.0)] {
            assert!((f64::from(gelu(x as f32)) - x * phi).abs() < 1e-6, "gelu({x})");
            let slope = phi + x * 0.398_942_280_4 * (-0.5 * x * x).exp();
            assert!((f64::from(gelu_slope(x as f32)) - slope).abs() < 1e-6, "slope at {x}");
        }
    }
}
