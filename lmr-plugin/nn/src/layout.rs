//! How activations lie in memory. What tells the layouts apart, their numbers of dimensions, is known here alone.

use candle_core::Tensor;

use crate::error::{GeometryError, Result};

/// How the elements of an activation lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As callers know it: images `f32[B,C,H,W]`, tokens `f32[B,T,D]`, rows of features `f32[B,D]`.
    Standard,
    /// As the CPU kernels keep it between two layers: images `f32[G,H,W,C,N]`, which are `G` blocks of `N`; tokens
    /// `f32[G,D,I,T]`, which are those of `G` blocks of `I` images.
    Blocked,
}

impl Layout {
    /// That of images, or of rows of features.
    pub fn of_images(x: &Tensor) -> Self {
        if x.rank() == 5 { Self::Blocked } else { Self::Standard }
    }

    /// That of tokens, or of rows of features.
    pub fn of_tokens(x: &Tensor) -> Self {
        if x.rank() == 4 { Self::Blocked } else { Self::Standard }
    }
}

/// `[B,C,H,W]` of images in either layout.
pub(crate) fn image_dims(x: &Tensor) -> Result<[usize; 4]> {
    match (Layout::of_images(x), x.dims()) {
        (Layout::Blocked, &[g, h, w, c, n]) => Ok([g * n, c, h, w]),
        (Layout::Standard, &[b, c, h, w]) => Ok([b, c, h, w]),
        (_, other) => Err(GeometryError::NotImages { found: other.to_vec() }.into()),
    }
}

/// D of tokens in either layout.
pub(crate) fn token_features(x: &Tensor) -> Result<usize> {
    match (Layout::of_tokens(x), x.dims()) {
        (Layout::Blocked, &[_, features, _, _]) | (Layout::Standard, &[_, _, features]) => Ok(features),
        (_, other) => Err(GeometryError::NotTokens { found: other.to_vec() }.into()),
    }
}

/// How many images or rows of features there are.
pub(crate) fn rows(x: &Tensor) -> usize {
    match (Layout::of_images(x), x.dims()) {
        (Layout::Blocked, &[g, _, _, _, n]) => g * n,
        (_, dims) => dims.first().copied().unwrap_or_default(),
    }
}
