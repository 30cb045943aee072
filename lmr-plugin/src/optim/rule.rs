//! One step of one parameter.

use candle_core::{CpuStorage, DType, InplaceOp2, InplaceOp3, Layout, Tensor, Var};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CHUNK, OptimizerError, dense, dense_mut};
use crate::Result;

/// Added to the root of AdamW's second average.
const EPS: f64 = 1e-8;

/// How a gradient becomes a step. Momentum μ and weight decay λ are given apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub enum Rule {
    /// `v ← μ·v + g + λ·w`, `w ← w − lr·v`; PyTorch's `SGD` without dampening.
    #[default]
    #[serde(rename = "sgd")]
    Sgd,
    /// `m ← μ·m + (1−μ)·g`, `v ← β₂·v + (1−β₂)·g²`, `w ← (1−lr·λ)·w − lr·m̂/(√v̂ + 1e-8)`, where `m̂ = m/(1−μᵗ)` and
    /// `v̂ = v/(1−β₂ᵗ)` at step t, β₂ = 0.999 unless an attack's recipe has another; PyTorch's `AdamW`. For transformers.
    #[serde(rename = "adamw")]
    AdamW,
}

/// The numbers of a step.
#[derive(Clone, Copy)]
pub(super) struct Step {
    /// What gradients are multiplied with first.
    pub scale: f64,
    pub momentum: f64,
    /// What AdamW's second average keeps of itself at every step.
    pub beta2: f64,
    pub weight_decay: f64,
    pub lr: f64,
    /// Counted from 1.
    pub number: u32,
}

impl Rule {
    /// How many averages it keeps.
    pub(super) fn averages(self) -> usize {
        match self {
            Self::Sgd => 1,
            Self::AdamW => 2,
        }
    }

    /// Changes `weight` and its averages in place.
    pub(super) fn apply(self, step: Step, weight: &Var, averages: &mut [Tensor], grad: &Tensor) -> Result<()> {
        let Step { scale, momentum, beta2, weight_decay, lr, number } = step;
        // AdamW's step, and the factor on the second average, with the averages' beginning at zero made up for.
        let power = i32::try_from(number).unwrap_or(i32::MAX);
        let size = lr / (1.0 - momentum.powi(power));
        let unbiased = 1.0 / (1.0 - beta2.powi(power));
        let w = weight.as_tensor();
        let fast = w.device().is_cpu() && w.dtype() == DType::F32 && w.is_contiguous();
        match (self, averages) {
            (Self::Sgd, [v]) if fast => {
                let (scale, momentum, decay, lr) = (scale as f32, momentum as f32, weight_decay as f32, lr as f32);
                v.inplace_op3(grad, w, &Zip3(|v, g, w| momentum * v + (scale * g + decay * w)))?;
                w.inplace_op2(v, &Zip2(|w, v| w - lr * v))?;
            }
            (Self::Sgd, [v]) => {
                let w = w.detach();
                let push = (grad.affine(scale, 0.0)? + w.affine(weight_decay, 0.0)?)?;
                *v = (v.affine(momentum, 0.0)? + push)?;
                weight.set(&(w - v.affine(lr, 0.0)?)?)?;
            }
            (Self::AdamW, [m, v]) if fast => {
                let (scale, beta1, beta2, eps) = (scale as f32, momentum as f32, beta2 as f32, EPS as f32);
                let (kept, size, unbiased) = ((1.0 - lr * weight_decay) as f32, size as f32, unbiased as f32);
                m.inplace_op2(grad, &Zip2(|m, g| beta1 * m + (1.0 - beta1) * (scale * g)))?;
                v.inplace_op2(grad, &Zip2(|v, g| beta2 * v + (1.0 - beta2) * (scale * g) * (scale * g)))?;
                w.inplace_op3(m, v, &Zip3(|w, m, v: f32| kept * w - size * m / ((unbiased * v).sqrt() + eps)))?;
            }
            (Self::AdamW, [m, v]) => {
                let grad = grad.affine(scale, 0.0)?;
                *m = (m.affine(momentum, 0.0)? + grad.affine(1.0 - momentum, 0.0)?)?;
                *v = (v.affine(beta2, 0.0)? + grad.sqr()?.affine(1.0 - beta2, 0.0)?)?;
                let push = (m.affine(size, 0.0)? / v.affine(unbiased, 0.0)?.sqrt()?.affine(1.0, EPS)?)?;
                weight.set(&(w.detach().affine(1.0 - lr * weight_decay, 0.0)? - push)?)?;
            }
            _ => return Err(OptimizerError::LostAverages.into()),
        }
        Ok(())
    }
}

/// Replaces every `a` by a function of `a` and `b`.
struct Zip2<F>(F);

/// Replaces every `a` by a function of `a`, `b` and `c`.
struct Zip3<F>(F);

impl<F: Fn(f32, f32) -> f32 + Sync> InplaceOp2 for Zip2<F> {
    fn name(&self) -> &'static str {
        "optimizer-zip2"
    }

    fn cpu_fwd(
        &self,
        a: &mut CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (a, b) = (dense_mut(a, a_layout)?, dense(b, b_layout)?);
        a.par_chunks_mut(CHUNK).zip(b.par_chunks(CHUNK)).for_each(|(a, b)| {
            for (a, &b) in a.iter_mut().zip(b) {
                *a = self.0(*a, b);
            }
        });
        Ok(())
    }
}

impl<F: Fn(f32, f32, f32) -> f32 + Sync> InplaceOp3 for Zip3<F> {
    fn name(&self) -> &'static str {
        "optimizer-zip3"
    }

    fn cpu_fwd(
        &self,
        a: &mut CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
        c: &CpuStorage,
        c_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (a, b, c) = (dense_mut(a, a_layout)?, dense(b, b_layout)?, dense(c, c_layout)?);
        a.par_chunks_mut(CHUNK).zip(b.par_chunks(CHUNK).zip(c.par_chunks(CHUNK))).for_each(|(a, (b, c))| {
            for ((a, &b), &c) in a.iter_mut().zip(b).zip(c) {
                *a = self.0(*a, b, c);
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use rstest::rstest;

    use super::*;

    const START: [f32; 5] = [1.0, -0.5, 0.25, 2.0, -3.0];

    const SGD: [f32; 5] = [-0.1522306, -0.2537347, -0.2029826, -0.0845611, -0.4229083];
    const ADAMW: [f32; 5] = [0.7291227, -0.3549413, -0.0351739, 1.7364913, -2.760147];

    /// Weights after three steps from [1, -0.5, 0.25, 2, -3] with the gradients 3·w, w + 1 and 0.5 - w, lr 0.1, momentum
    /// 0.9, weight decay 0.01; by PyTorch 2.15's `SGD` and `AdamW`, clipped to half in the last step by scaling.
    #[rstest]
    #[case(Rule::Sgd, SGD)]
    #[case(Rule::AdamW, ADAMW)]
    fn steps_follow_pytorch(#[case] rule: Rule, #[case] expected: [f32; 5], #[values(false, true)] fast: bool) {
        let weight = Var::new(&START, &Device::Cpu).unwrap();
        // The portable branch runs for any other type.
        let weight = if fast { weight } else { Var::from_tensor(&weight.to_dtype(DType::F64).unwrap()).unwrap() };
        let mut averages: Vec<Tensor> = (0..rule.averages()).map(|_| weight.zeros_like().unwrap()).collect();
        for (number, scale) in [(1, 1.0), (2, 1.0), (3, 0.5)] {
            let w = weight.as_tensor();
            let grad = match number {
                1 => w.affine(3.0, 0.0),
                2 => w.affine(1.0, 1.0),
                _ => w.affine(-1.0, 0.5),
            };
            let step = Step { scale, momentum: 0.9, beta2: 0.999, weight_decay: 0.01, lr: 0.1, number };
            rule.apply(step, &weight, &mut averages, &grad.unwrap().detach()).unwrap();
        }
        let found = weight.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-6), "{found:?}, expected {expected:?}");
    }
}
