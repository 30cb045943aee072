//! The operations of a transformer.

use candle_core::Tensor;

use super::{in_token_blocks, to_images, to_tokens};
use crate::error::{GeometryError, Result};
use crate::layers::Activation;
use crate::layout::{Layout, token_features};
use crate::path::Path;
use crate::{cpu, portable};

/// Whether the CPU kernels take `x` as tokens; a plain matrix they leave to Candle.
fn on_token_kernels(x: &Tensor) -> bool {
    Path::of(x) == Path::Cpu && x.rank() > 2
}

/// `activation(x · Wᵀ + b)` over the last dimension of `f32[B,D]` or tokens; differentiable in every tensor.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
    if on_token_kernels(x) {
        let zeros = match bias {
            Some(_) => None,
            None => Some(Tensor::zeros(weight.dim(0)?, x.dtype(), x.device())?),
        };
        if let Some(bias) = bias.or(zeros.as_ref()) {
            return in_token_blocks(x, |x| cpu::linear(x, weight, bias, activation));
        }
    }
    let y = portable::linear(x, weight)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    activation.apply(&y)
}

/// Layer norm over the last dimension of `f32[B,D]` or tokens; differentiable in every tensor.
pub fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Tensor> {
    match on_token_kernels(x) {
        true => in_token_blocks(x, |x| cpu::layer_norm(x, gamma, beta, eps)),
        false => portable::layer_norm(x, gamma, beta, eps),
    }
}

/// Attention of `heads` heads: tokens of `3·D` features, q, k and v, to tokens of `D` features. Differentiable.
pub fn attend(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let features = token_features(qkv)?;
    if heads == 0 || !features.is_multiple_of(3 * heads) {
        return Err(GeometryError::Attention { features, heads }.into());
    }
    match Path::of(qkv) {
        Path::Cpu => in_token_blocks(qkv, |qkv| cpu::attend(qkv, heads)),
        Path::Portable => portable::attend(qkv, heads),
    }
}

/// Tokens of images in any layout: the class token, then every patch through a linear map, rows first; plus positions.
/// `weight` is `f32[D,C,p,p]` for patches of p by p pixels, `class` `f32[1,1,D]`, `position` `f32[1,T,D]`.
pub(crate) fn embed(
    images: &Tensor,
    (weight, bias): (&Tensor, Option<&Tensor>),
    class: &Tensor,
    position: &Tensor,
) -> Result<Tensor> {
    let images = to_images(images)?;
    let (b, c, h, w) = images.dims4()?;
    let (features, channels, patch, _) = weight.dims4()?;
    let tokens = position.dim(1)?;
    let fits = c == channels && h.is_multiple_of(patch) && w.is_multiple_of(patch);
    if !fits || 1 + (h / patch) * (w / patch) != tokens {
        let (image, patch) = ([c, h, w], [channels, patch, patch]);
        return Err(GeometryError::Patches { image, patches: tokens - 1, patch }.into());
    }
    let (rows, columns) = (h / patch, w / patch);
    let patches = images.contiguous()?.reshape(&[b, c, rows, patch, columns, patch])?.permute([0, 2, 4, 1, 3, 5])?;
    // The class token is a patch of zeros whose bias is the token itself.
    let patches = patches.contiguous()?.reshape((b, rows * columns, c * patch * patch))?.pad_with_zeros(1, 1, 0)?;
    let weight = weight.reshape((features, c * patch * patch))?;
    let offset = match bias {
        Some(bias) => {
            let bias = bias.reshape((1, 1, features))?.broadcast_as((1, tokens - 1, features))?;
            Tensor::cat(&[class, &bias.contiguous()?], 1)?
        }
        None => class.pad_with_zeros(1, 0, tokens - 1)?,
    };
    let offset = (offset + position)?;
    match Path::of(&images) {
        Path::Cpu => {
            let x = linear(&cpu::enter_tokens(&patches)?, &weight, None, Activation::None)?;
            Ok(x.broadcast_add(&offset.transpose(1, 2)?.unsqueeze(2)?)?)
        }
        Path::Portable => Ok(portable::linear(&patches, &weight)?.broadcast_add(&offset)?),
    }
}

/// The first token of every image: `f32[B,D]`.
pub(crate) fn class_token(x: &Tensor) -> Result<Tensor> {
    match Layout::of_tokens(x) {
        Layout::Blocked => {
            let (g, d, images, _) = x.dims4()?;
            Ok(x.narrow(3, 0, 1)?.squeeze(3)?.transpose(1, 2)?.contiguous()?.reshape((g * images, d))?)
        }
        Layout::Standard => Ok(x.narrow(1, 0, 1)?.squeeze(1)?),
    }
}

/// The mean over all tokens of every image but the first: `f32[B,D]`.
pub(crate) fn mean_patch(x: &Tensor) -> Result<Tensor> {
    let x = to_tokens(x)?;
    let patches = x.dim(1)?.checked_sub(1).filter(|&patches| patches > 0);
    let patches = patches.ok_or_else(|| GeometryError::NoPatches { found: x.dims().to_vec() })?;
    Ok(x.narrow(1, 1, patches)?.contiguous()?.mean(1)?)
}
