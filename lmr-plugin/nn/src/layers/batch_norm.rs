//! Batch normalization over `f32[B,C,H,W]` with PyTorch's conventions.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use candle_core::{Tensor, Var};

use crate::error::{Error, Result};
use crate::params::{Builder, Init};

/// `γ (x - mean) / √(var + ε) + β` per channel.
#[derive(Clone, Debug)]
pub struct BatchNorm2d {
    weight: Var,
    bias: Var,
    running_mean: Var,
    running_var: Var,
    batches: Arc<AtomicI64>,
    name: String,
}

/// Which statistics batch norm uses while it trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BatchNormMode {
    /// The batch's own statistics; running statistics are updated (momentum 0.1, unbiased variance).
    #[default]
    Batch,
    /// The running statistics, which stay as they are; weights still train.
    Running,
}

/// What batch norm saw in a batch, per channel.
pub(crate) struct Moments {
    pub mean: Tensor,
    /// Biased.
    pub var: Tensor,
    /// Values per channel.
    pub count: usize,
}

impl BatchNorm2d {
    /// ε, added to the variance.
    pub const EPS: f64 = 1e-5;
    /// The share of a new batch in the running statistics.
    pub const MOMENTUM: f64 = 0.1;

    /// Batch norm at the builder's path, over `channels` channels.
    pub fn new(channels: usize, b: &Builder) -> Result<Self> {
        Ok(Self {
            weight: b.parameter("weight", channels, Init::Ones)?,
            bias: b.parameter("bias", channels, Init::Zeros)?,
            running_mean: b.buffer("running_mean", channels, Init::Zeros)?,
            running_var: b.buffer("running_var", channels, Init::Ones)?,
            batches: b.counter("num_batches_tracked")?,
            name: b.path().to_string(),
        })
    }

    /// The full name, such as `layer1.0.bn1`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// γ: `f32[C]`.
    pub fn weight(&self) -> &Var {
        &self.weight
    }

    /// β: `f32[C]`.
    pub fn bias(&self) -> &Var {
        &self.bias
    }

    /// `f32[C]`.
    pub fn running_mean(&self) -> &Var {
        &self.running_mean
    }

    /// `f32[C]`, unbiased.
    pub fn running_var(&self) -> &Var {
        &self.running_var
    }

    /// `γ / √(running_var + ε)` and `β - running_mean · scale`: what batch norm is with running statistics.
    /// Differentiable in γ and β, unless `detached`.
    pub fn scale_shift(&self, detached: bool) -> Result<(Tensor, Tensor)> {
        let of = |var: &Var| if detached { var.as_detached_tensor() } else { var.as_tensor().clone() };
        let std = (self.running_var.as_detached_tensor() + Self::EPS)?.sqrt()?;
        let scale = of(&self.weight).div(&std)?;
        let shift = (of(&self.bias) - (self.running_mean.as_detached_tensor() * &scale)?)?;
        Ok((scale, shift))
    }

    /// Moves the running statistics towards a batch's.
    pub(crate) fn track(&self, moments: &Moments) -> Result<()> {
        self.check_count(moments.count)?;
        let Moments { mean, var, count } = moments;
        let unbias = *count as f64 / (*count as f64 - 1.0);
        for (running, new, factor) in [(&self.running_mean, mean, 1.0), (&self.running_var, var, unbias)] {
            let kept = running.as_detached_tensor().affine(1.0 - Self::MOMENTUM, 0.0)?;
            running.set(&(kept + new.detach().affine(Self::MOMENTUM * factor, 0.0)?)?)?;
        }
        self.batches.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Refuses statistics over a single value, whose variance is meaningless.
    pub(crate) fn check_count(&self, count: usize) -> Result<()> {
        if count > 1 {
            return Ok(());
        }
        Err(Error::NoVariance { layer: self.name.clone() })
    }
}
