//! Stochastic gradient descent with momentum and weight decay, and learning-rate schedules.

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, InplaceOp2, InplaceOp3, Layout, Storage, Tensor, Var};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::nn::Params;
use crate::{Error, Result};

/// `v ← μ·v + g + wd·w`, `w ← w − lr·v` for every trainable parameter; PyTorch's `SGD` without dampening.
pub struct Sgd {
    groups: Vec<Group>,
    momentum: f64,
    weight_decay: f64,
}

struct Group {
    name: String,
    var: Var,
    velocity: Tensor,
    keep: Option<Tensor>,
}

impl Sgd {
    /// An optimizer of all trainable parameters, with zero velocity.
    pub fn new(params: &Params, momentum: f64, weight_decay: f64) -> Result<Self> {
        let groups = params
            .trainable()
            .map(|(name, var)| {
                let velocity = Tensor::zeros(var.shape(), var.dtype(), var.device())?;
                Ok(Group { name: name.to_string(), var: var.clone(), velocity, keep: None })
            })
            .collect::<Result<Vec<_>>>()?;
        if groups.is_empty() {
            return Err(Error::invalid("the model has no trainable parameters"));
        }
        Ok(Self { groups, momentum, weight_decay })
    }

    /// Freezes at zero the elements of parameter `name` where `keep` (0 or 1, of the parameter's shape) is 0: their
    /// gradient and velocity vanish, and they are zeroed again after every step.
    pub fn freeze(&mut self, name: &str, keep: &Tensor) -> Result<()> {
        let group = self
            .groups
            .iter_mut()
            .find(|group| group.name == name)
            .ok_or_else(|| Error::invalid(format!("no trainable parameter is called `{name}`")))?;
        group.keep = Some(keep.to_dtype(group.var.dtype())?.broadcast_as(group.var.shape())?.contiguous()?);
        Ok(())
    }

    /// One step at learning rate `lr`. With `clip_norm`, gradients are first scaled so that their global 2-norm is at
    /// most that. Returns the global norm before clipping. A parameter without gradient is an error: it means that the
    /// graph was cut somewhere.
    pub fn step(&mut self, grads: &GradStore, lr: f64, clip_norm: Option<f64>) -> Result<f64> {
        let mut squares = 0.0;
        let mut picked = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            let grad = grads
                .get(&group.var)
                .ok_or_else(|| Error::invalid(format!("parameter `{}` received no gradient", group.name)))?;
            let grad = match &group.keep {
                Some(keep) => (grad * keep)?,
                None => grad.contiguous()?,
            };
            squares += sum_of_squares(&grad)?;
            picked.push(grad);
        }
        let norm = squares.sqrt();
        let scale = match clip_norm {
            Some(limit) if norm > limit => limit / norm,
            _ => 1.0,
        };
        let rule = Rule { scale, momentum: self.momentum, weight_decay: self.weight_decay, lr };
        for (group, grad) in self.groups.iter_mut().zip(&picked) {
            rule.apply(group, grad)?;
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

#[derive(Clone, Copy)]
struct Rule {
    scale: f64,
    momentum: f64,
    weight_decay: f64,
    lr: f64,
}

impl Rule {
    fn apply(self, group: &mut Group, grad: &Tensor) -> Result<()> {
        let weight = group.var.as_tensor();
        if weight.device().is_cpu() && weight.dtype() == DType::F32 && weight.is_contiguous() {
            group.velocity.inplace_op3(grad, weight, &UpdateVelocity(self))?;
            weight.inplace_op2(&group.velocity, &UpdateWeight(self))?;
        } else {
            let weight = weight.detach();
            let push = (grad.affine(self.scale, 0.0)? + weight.affine(self.weight_decay, 0.0)?)?;
            group.velocity = (group.velocity.affine(self.momentum, 0.0)? + push)?;
            group.var.set(&(weight - group.velocity.affine(self.lr, 0.0)?)?)?;
        }
        Ok(())
    }
}

struct UpdateVelocity(Rule);

impl InplaceOp3 for UpdateVelocity {
    fn name(&self) -> &'static str {
        "sgd-velocity"
    }

    fn cpu_fwd(
        &self,
        v: &mut CpuStorage,
        v_layout: &Layout,
        g: &CpuStorage,
        g_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> candle_core::Result<()> {
        let Rule { scale, momentum, weight_decay, .. } = self.0;
        let (scale, momentum, weight_decay) = (scale as f32, momentum as f32, weight_decay as f32);
        let (g, w) = (dense(g, g_layout)?, dense(w, w_layout)?);
        dense_mut(v, v_layout)?.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK).zip(w.par_chunks(CHUNK))).for_each(
            |(v, (g, w))| {
                for ((v, &g), &w) in v.iter_mut().zip(g).zip(w) {
                    *v = momentum * *v + (scale * g + weight_decay * w);
                }
            },
        );
        Ok(())
    }
}

struct UpdateWeight(Rule);

impl InplaceOp2 for UpdateWeight {
    fn name(&self) -> &'static str {
        "sgd-weight"
    }

    fn cpu_fwd(
        &self,
        w: &mut CpuStorage,
        w_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> candle_core::Result<()> {
        let lr = self.0.lr as f32;
        let v = dense(v, v_layout)?;
        dense_mut(w, w_layout)?.par_chunks_mut(CHUNK).zip(v.par_chunks(CHUNK)).for_each(|(w, v)| {
            for (w, &v) in w.iter_mut().zip(v) {
                *w -= lr * v;
            }
        });
        Ok(())
    }
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

/// How the learning rate moves over a training; warm-up comes on top.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Stays where it is.
    Constant,
    /// Falls to 0 along half a cosine.
    #[default]
    Cosine,
    /// Rises linearly from a tenth over the first 30% of the steps, then falls to 0 along half a cosine.
    OneCycle,
}

impl Schedule {
    /// The factor on the base learning rate at `step` of `total`, after `warmup` steps of linear rise.
    pub fn factor(self, step: usize, total: usize, warmup: usize) -> f64 {
        let cosine = |from: usize| {
            let progress = step.saturating_sub(from) as f64 / total.saturating_sub(from).max(1) as f64;
            0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos())
        };
        if step < warmup {
            return (step + 1) as f64 / warmup as f64;
        }
        match self {
            Self::Constant => 1.0,
            Self::Cosine => cosine(warmup),
            Self::OneCycle => {
                let peak = total * 3 / 10;
                if step < peak { 0.1 + 0.9 * (step + 1) as f64 / peak as f64 } else { cosine(peak) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Builder, Init};
    use crate::rng;
    use candle_core::Device;
    use rstest::rstest;

    /// `torch.optim.SGD(lr=0.1, momentum=0.9, weight_decay=0.01)` on loss = 3·w for three steps from w = 1.
    #[test]
    fn momentum_and_decay_follow_pytorch() {
        let b = Builder::fresh(rng::stream(0, "test"), &Device::Cpu);
        let w = b.parameter("w", 1, Init::Ones).unwrap();
        let mut sgd = Sgd::new(&b.finish().unwrap(), 0.9, 0.01).unwrap();
        let (mut weight, mut velocity) = (1.0f64, 0.0f64);
        for _ in 0..3 {
            let grads = (w.as_tensor() * 3.0).unwrap().sum_all().unwrap().backward().unwrap();
            sgd.step(&grads, 0.1, None).unwrap();
            velocity = 0.9 * velocity + 3.0 + 0.01 * weight;
            weight -= 0.1 * velocity;
            let found = w.to_vec1::<f32>().unwrap()[0];
            assert!((f64::from(found) - weight).abs() < 1e-6, "{found} against {weight}");
        }
    }

    #[test]
    fn frozen_elements_stay_zero_and_others_move() {
        let b = Builder::fresh(rng::stream(0, "test"), &Device::Cpu);
        let w = b.parameter("w", (2, 2), Init::Ones).unwrap();
        let mut sgd = Sgd::new(&b.finish().unwrap(), 0.9, 0.1).unwrap();
        sgd.freeze("w", &Tensor::new(&[[1f32, 0.]], &Device::Cpu).unwrap()).unwrap();
        for _ in 0..3 {
            let grads = w.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            sgd.step(&grads, 0.1, None).unwrap();
        }
        let rows = w.to_vec2::<f32>().unwrap();
        assert!(rows.iter().all(|row| row[1] == 0.0 && row[0] != 1.0), "{rows:?}");
    }

    #[test]
    fn a_cut_graph_is_an_error() {
        let b = Builder::fresh(rng::stream(0, "test"), &Device::Cpu);
        let w = b.parameter("w", 1, Init::Ones).unwrap();
        b.parameter("lost", 1, Init::Ones).unwrap();
        let mut sgd = Sgd::new(&b.finish().unwrap(), 0.9, 0.0).unwrap();
        let grads = w.sum_all().unwrap().backward().unwrap();
        let message = sgd.step(&grads, 0.1, None).unwrap_err().to_string();
        assert!(message.contains("`lost` received no gradient"), "{message}");
    }

    #[rstest]
    #[case(Schedule::Constant, 0, 0, 1.0)]
    #[case(Schedule::Cosine, 0, 0, 1.0)]
    #[case(Schedule::Cosine, 50, 0, 0.5)]
    #[case(Schedule::Cosine, 4, 10, 0.5)]
    #[case(Schedule::Cosine, 10, 10, 1.0)]
    #[case(Schedule::OneCycle, 29, 0, 1.0)]
    #[case(Schedule::OneCycle, 100, 0, 0.0)]
    fn schedules_pass_through(
        #[case] schedule: Schedule,
        #[case] step: usize,
        #[case] warmup: usize,
        #[case] factor: f64,
    ) {
        assert!((schedule.factor(step, 100, warmup) - factor).abs() < 1e-9);
    }
}
