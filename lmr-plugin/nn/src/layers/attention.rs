//! Multi-head self-attention (Vaswani et al., 2017).

use super::Linear;
use crate::error::{GeometryError, Result};
use crate::params::{Builder, Init};

/// `out(softmax(q · kᵀ / √d) · v)` per head, with q, k and v from one projection.
///
/// Checkpoints with three separate projections have to be joined when they are read.
#[derive(Clone, Debug)]
pub struct SelfAttention {
    pub(crate) qkv: Linear,
    pub(crate) out: Linear,
    pub(crate) heads: usize,
}

impl SelfAttention {
    /// Attention of `heads` heads over `features` features at the builder's path, with the names of PyTorch's
    /// `MultiheadAttention`: `in_proj_weight`, `in_proj_bias`, `out_proj.*`. Fresh weights are normal with standard
    /// deviation 0.02 as in the ViT of timm, biases 0.
    pub fn new(features: usize, heads: usize, b: &Builder) -> Result<Self> {
        if heads == 0 || !features.is_multiple_of(heads) {
            return Err(GeometryError::Heads { layer: b.path().into(), features, heads }.into());
        }
        let weight = b.parameter("in_proj_weight", (3 * features, features), Init::Normal { std: 0.02 })?;
        let bias = b.parameter("in_proj_bias", 3 * features, Init::Zeros)?;
        let qkv = Linear::of(weight, Some(bias), &format!("{}.in_proj", b.path()));
        let out = Linear::narrow_normal(features, features, &b.pp("out_proj"))?;
        Ok(Self { qkv, out, heads })
    }
}
