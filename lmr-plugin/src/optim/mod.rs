//! The optimizer, stochastic gradient descent or AdamW, and learning-rate schedules.

mod error;
mod rule;
mod schedule;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Layout, Storage, Tensor, Var};
use rayon::prelude::*;

pub use error::OptimizerError;
pub use rule::Rule;
pub use schedule::Schedule;

use crate::Result;
use crate::nn::Params;
use crate::ranges::{BelowOne, NonNegative, Positive};
use rule::Step;

/// Moves every trainable parameter along its gradient as a [`Rule`] says; also clips, and freezes single elements.
pub struct Optimizer {
    groups: Vec<Group>,
    rule: Rule,
    momentum: f64,
    /// What AdamW's second average keeps of itself.
    beta2: f64,
    weight_decay: f64,
    /// Steps so far.
    steps: u32,
}

/// A parameter and what is kept about it.
struct Group {
    name: String,
    var: Var,
    /// Averages of the gradient, as many as the rule needs, of the parameter's shape.
    averages: Vec<Tensor>,
    keep: Option<Tensor>,
}

impl Optimizer {
    /// An optimizer of all trainable parameters, with averages of zero.
    pub fn new(params: &Params, rule: Rule, momentum: BelowOne, weight_decay: NonNegative) -> Result<Self> {
        let groups = params
            .trainable()
            .map(|(name, var)| {
                let zeros = || Tensor::zeros(var.shape(), var.dtype(), var.device());
                let averages = (0..rule.averages()).map(|_| zeros()).collect::<candle_core::Result<_>>()?;
                Ok(Group { name: name.to_string(), var: var.clone(), averages, keep: None })
            })
            .collect::<Result<Vec<_>>>()?;
        if groups.is_empty() {
            return Err(OptimizerError::NoTrainable.into());
        }
        Ok(Self { groups, rule, momentum: momentum.get(), beta2: 0.999, weight_decay: weight_decay.get(), steps: 0 })
    }

    /// With another β₂ than AdamW's usual 0.999.
    pub fn with_beta2(self, beta2: BelowOne) -> Self {
        Self { beta2: beta2.get(), ..self }
    }

    /// Freezes at zero the elements of parameter `name` where `keep` (0 or 1, of the parameter's shape) is 0: their
    /// gradient and its averages vanish, and they are zeroed again after every step.
    pub fn freeze(&mut self, name: &str, keep: &Tensor) -> Result<()> {
        let group = self
            .groups
            .iter_mut()
            .find(|group| group.name == name)
            .ok_or_else(|| OptimizerError::NoSuchParameter { name: name.into() })?;
        group.keep = Some(keep.to_dtype(group.var.dtype())?.broadcast_as(group.var.shape())?.contiguous()?);
        Ok(())
    }

    /// One step at learning rate `lr`. With `clip_norm`, gradients are first scaled so that their global 2-norm is at
    /// most that. Returns the global norm before clipping. A parameter without gradient is an error: it means that the
    /// graph was cut somewhere.
    pub fn step(&mut self, grads: &GradStore, lr: f64, clip_norm: Option<Positive>) -> Result<f64> {
        let mut squares = 0.0;
        let mut picked = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            let grad = grads.get(&group.var).ok_or_else(|| OptimizerError::NoGradient { name: group.name.clone() })?;
            let grad = match &group.keep {
                Some(keep) => (grad * keep)?,
                None => grad.contiguous()?,
            };
            squares += sum_of_squares(&grad)?;
            picked.push(grad);
        }
        let norm = squares.sqrt();
        let scale = match clip_norm {
            Some(limit) if norm > limit.get() => limit.get() / norm,
            _ => 1.0,
        };
        self.steps = self.steps.saturating_add(1);
        let Self { momentum, beta2, weight_decay, steps, .. } = *self;
        let step = Step { scale, momentum, beta2, weight_decay, lr, number: steps };
        for (group, grad) in self.groups.iter_mut().zip(&picked) {
            self.rule.apply(step, &group.var, &mut group.averages, grad)?;
            if let Some(keep) = &group.keep {
                group.var.set(&(group.var.as_tensor().detach() * keep)?)?;
            }
        }
        Ok(norm)
    }
}

/// Elements that one thread works on at a time, and whose sum is rounded as one.
const CHUNK: usize = 1 << 15;

/// The sum of the squares of all elements.
fn sum_of_squares(t: &Tensor) -> Result<f64> {
    let (storage, layout) = t.storage_and_layout();
    if let Storage::Cpu(storage) = &*storage
        && t.dtype() == DType::F32
    {
        let of_chunk = |chunk: &[f32]| chunk.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        let sums: Vec<f64> = dense(storage, layout)?.par_chunks(CHUNK).map(of_chunk).collect();
        return Ok(sums.iter().sum());
    }
    Ok(f64::from(t.sqr()?.sum_all()?.to_dtype(DType::F32)?.to_scalar::<f32>()?))
}

fn dense<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    match (layout.contiguous_offsets(), storage) {
        (Some((start, end)), CpuStorage::F32(values)) => Ok(&values[start..end]),
        _ => candle_core::bail!("expected contiguous f32"),
    }
}

fn dense_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> candle_core::Result<&'a mut [f32]> {
    match (layout.contiguous_offsets(), storage) {
        (Some((start, end)), CpuStorage::F32(values)) => Ok(&mut values[start..end]),
        _ => candle_core::bail!("expected contiguous f32"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Builder, Init};
    use crate::rng;
    use candle_core::Device;
    use rstest::rstest;

    fn optimizer(b: &Builder, rule: Rule, weight_decay: f64) -> Optimizer {
        let (momentum, decay) = (BelowOne::literal(0.9), NonNegative::new(weight_decay).unwrap());
        Optimizer::new(&b.finish().unwrap(), rule, momentum, decay).unwrap()
    }

    #[rstest]
    fn frozen_elements_stay_zero_and_others_move(#[values(Rule::Sgd, Rule::AdamW)] rule: Rule) {
        let b = Builder::fresh(rng::stream(0, "test"), &Device::Cpu);
        let w = b.parameter("w", (2, 2), Init::Ones).unwrap();
        let mut steps = optimizer(&b, rule, 0.1);
        steps.freeze("w", &Tensor::new(&[[1f32, 0.]], &Device::Cpu).unwrap()).unwrap();
        for _ in 0..3 {
            let grads = w.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            steps.step(&grads, 0.1, None).unwrap();
        }
        let rows = w.to_vec2::<f32>().unwrap();
        assert!(rows.iter().all(|row| row[1] == 0.0 && row[0] != 1.0), "{rows:?}");
    }

    #[test]
    fn a_cut_graph_is_an_error() {
        let b = Builder::fresh(rng::stream(0, "test"), &Device::Cpu);
        let w = b.parameter("w", 1, Init::Ones).unwrap();
        b.parameter("lost", 1, Init::Ones).unwrap();
        let mut steps = optimizer(&b, Rule::Sgd, 0.0);
        let grads = w.sum_all().unwrap().backward().unwrap();
        let message = steps.step(&grads, 0.1, None).unwrap_err().to_string();
        assert!(message.contains("`lost` received no gradient"), "{message}");
    }
}
