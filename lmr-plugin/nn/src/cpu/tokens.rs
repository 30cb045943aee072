//! The layout of tokens: `f32[G,D,I,T]`, where the batch is `G` blocks of `I` images with `T` tokens each.
//!
//! To the kernels this is the layout of images with one position per block: features stand where channels do, and the
//! tokens of a block where its images do. A linear layer is then a 1x1 convolution, layer norm and softmax run along
//! vectors without ever adding up lanes, and a head is a run of whole rows.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::super::{Activation, ConvConfig};
use super::access::{slice, tensor, with_slice};
use super::activation::{Bounds, activate_in_place, fused, slope_in_place};
use super::finish::Finish;
use super::geometry::Geometry;
use super::layer::{convolve, input_gradient, weight_gradient};
use super::layout::Dims;
use super::norm::channel_sums;
use super::scratch::Scratch;
use super::single::{Stash, keep, kept};

/// Dimensions of blocked tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TokenDims {
    /// Blocks of images.
    pub g: usize,
    /// Features.
    pub d: usize,
    /// Images in a block.
    pub images: usize,
    /// Tokens of an image.
    pub tokens: usize,
}

impl TokenDims {
    pub fn of(x: &Tensor) -> Result<Self> {
        match *x.dims() {
            [g, d, images, tokens] => Ok(Self { g, d, images, tokens }),
            ref other => bail!("expected blocked tokens of 4 dimensions, found {other:?}"),
        }
    }

    /// Floats in a row of one feature.
    pub fn n(&self) -> usize {
        self.images * self.tokens
    }

    pub fn shape(&self) -> [usize; 4] {
        [self.g, self.d, self.images, self.tokens]
    }

    /// As activations with one position per block.
    pub fn dims(&self) -> Dims {
        Dims { g: self.g, h: 1, w: 1, c: self.d, n: self.n() }
    }
}

/// Most tokens in a block: beyond this, the rows that a panel of weights meets leave the second-level cache.
const MAX_BLOCK: usize = 272;

/// How many images make a block, out of `batch` of `tokens` tokens: as many as fill whole vectors best.
fn images_per_block(batch: usize, tokens: usize) -> usize {
    let cost = |images: &usize| {
        let n = images * tokens;
        let idle_lanes = n.next_multiple_of(16) as f64 / n as f64;
        if *images > 1 && n > MAX_BLOCK { 1.5 * idle_lanes } else { idle_lanes }
    };
    let divisors = (1..=batch).filter(|images| batch.is_multiple_of(*images));
    divisors.min_by(|a, b| cost(a).total_cmp(&cost(b))).unwrap_or(1)
}

/// `f32[B,T,D]` to blocked; differentiable.
pub(in super::super) fn enter_tokens(x: &Tensor) -> Result<Tensor> {
    let (b, t, d) = x.dims3()?;
    let images = images_per_block(b, t);
    x.reshape((b / images, images, t, d))?.permute((0, 3, 1, 2))?.contiguous()
}

/// Blocked to `f32[B,T,D]`; differentiable.
pub(in super::super) fn leave_tokens(x: &Tensor) -> Result<Tensor> {
    let TokenDims { g, d, images, tokens } = TokenDims::of(x)?;
    x.permute((0, 2, 3, 1))?.contiguous()?.reshape((g * images, tokens, d))
}

/// `activation(W · x + b)` for every token.
struct Linear {
    geometry: Geometry,
    activation: Activation,
    /// What the activation is applied to, where backward needs it.
    before: Option<Stash<Scratch>>,
}

/// `conv(x)` by one-image parts where a batch of one block would leave threads idle.
fn project(x: &[f32], weight: &[f32], geometry: &Geometry, bias: &[f32], bounds: Bounds, y: &mut [f32]) {
    /// Output features of a part.
    const PART: usize = 96;
    let finish = |bias| Finish::Activate { bias: Some(bias), residual: None, bounds };
    if geometry.y.g > 1 {
        convolve(x, weight, geometry, finish(bias), y);
        return;
    }
    let (inputs, n) = (geometry.x.c, geometry.y.n);
    let parts = weight.par_chunks(PART * inputs).zip(bias.par_chunks(PART));
    y.par_chunks_mut(PART * n).zip(parts).for_each(|(y, (weight, bias))| {
        let geometry = Geometry { y: Dims { c: bias.len(), ..geometry.y }, ..*geometry };
        convolve(x, weight, &geometry, finish(bias), y);
    });
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let geometry = &self.geometry;
        let mut y = vec![0.0; geometry.y.len()];
        let (bounds, rest) = fused(self.activation);
        project(slice(x, lx)?, slice(w, lw)?, geometry, slice(b, lb)?, bounds, &mut y);
        if rest != Activation::None {
            if let Some(stash) = &self.before {
                let mut before = Scratch::take(y.len());
                before.copy_from_slice(&y);
                keep(stash, before)?;
            }
            activate_in_place(&mut y, rest);
        }
        let [g, _, images, tokens] = lx.shape().dims4()?.into();
        Ok((CpuStorage::F32(y), Shape::from((g, geometry.y.c, images, tokens))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let geometry = &self.geometry;
        let mut dz = Scratch::take(geometry.y.len());
        with_slice(dy, |dy| {
            dz.copy_from_slice(dy);
            Ok(())
        })?;
        match (self.activation, &self.before) {
            (activation, _) if Bounds::of(activation).is_some() => with_slice(y, |y| {
                slope_in_place(&mut dz, y, activation);
                Ok(())
            })?,
            (activation, Some(stash)) => slope_in_place(&mut dz, kept(stash)?, activation),
            (_, None) => bail!("a linear layer that was not recorded ran backward"),
        }
        let dx = match x.track_op() {
            true => {
                let mut dx = vec![0.0; geometry.x.len()];
                with_slice(weight, |weight| {
                    input_gradient(&dz, weight, geometry, None, &mut dx);
                    Ok(())
                })?;
                Some(tensor(dx, x.dims())?)
            }
            false => None,
        };
        let dw = with_slice(x, |x| Ok(weight_gradient(x, &dz, geometry)))?;
        let db = channel_sums(&dz, geometry.y);
        Ok((dx, Some(tensor(dw, weight.dims())?), Some(tensor(db, bias.dims())?)))
    }
}

/// `activation(W · x + b)` of blocked tokens; differentiable.
pub(in super::super) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
    let dims = TokenDims::of(x)?;
    let (outputs, inputs) = weight.dims2()?;
    if inputs != dims.d || bias.dims() != [outputs] {
        let (weight, bias) = (weight.dims(), bias.dims());
        bail!("linear: a weight of {weight:?} and a bias of {bias:?} do not fit tokens of {} features", dims.d);
    }
    let geometry = Geometry::new(dims.dims(), [outputs, inputs, 1, 1], ConvConfig::default())?;
    let recorded = x.track_op() || weight.track_op() || bias.track_op();
    let op = Linear { geometry, activation, before: recorded.then(Stash::default) };
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_fill_vectors_and_fit_the_cache() {
        for (batch, tokens, expected) in [(8, 197, 1), (128, 65, 4), (1, 65, 1), (7, 65, 1), (64, 17, 16), (6, 5, 3)] {
            assert_eq!(images_per_block(batch, tokens), expected, "{batch} x {tokens}");
        }
    }
}
