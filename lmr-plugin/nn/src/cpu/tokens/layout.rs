//! The layout of tokens: `f32[G,D,I,T]`, where the batch is `G` blocks of `I` images with `T` tokens each.
//!
//! To the kernels this is the layout of images with one position per block: features stand where channels do, and the
//! tokens of a block where its images do. A linear layer is then a 1x1 convolution, layer norm and softmax run along
//! vectors without ever adding up lanes, and a head is a run of whole rows.

use candle_core::{Result, Tensor, bail};

use crate::cpu::layout::Dims;

/// Dimensions of blocked tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TokenDims {
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
pub(crate) fn enter_tokens(x: &Tensor) -> Result<Tensor> {
    let (b, t, d) = x.dims3()?;
    let images = images_per_block(b, t);
    x.reshape((b / images, images, t, d))?.permute((0, 3, 1, 2))?.contiguous()
}

/// Blocked to `f32[B,T,D]`; differentiable.
pub(crate) fn leave_tokens(x: &Tensor) -> Result<Tensor> {
    let TokenDims { g, d, images, tokens } = TokenDims::of(x)?;
    x.permute((0, 2, 3, 1))?.contiguous()?.reshape((g * images, tokens, d))
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
