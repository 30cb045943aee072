//! The operations behind [`Forward`](crate::Forward), each dispatched to the portable path or the CPU kernels.
//!
//! Every operation takes images and tokens in either [`Layout`] and returns what it was given.

mod conv;
mod elementwise;
mod norm;
mod pool;
mod tokens;
mod trunk;

use candle_core::Tensor;

use crate::cpu;
use crate::error::Result;
use crate::layout::Layout;
use crate::path::Path;

pub(crate) use conv::{conv_bn_batch, scale_shift};
pub use conv::{conv_transpose2d, conv2d, conv2d_inference};
pub(crate) use norm::batch_norm_batch;
pub use pool::{adaptive_avg_pool2d, avg_pool2d, global_avg_pool, max_pool2d, upsample2d};
pub use tokens::{attend, layer_norm, linear};
pub(crate) use tokens::{class_token, embed, mean_patch};
pub(crate) use trunk::trunk_batch;

/// Images in the layout that the following layers like best.
pub fn to_internal(x: &Tensor) -> Result<Tensor> {
    match Path::of(x) {
        Path::Cpu if Layout::of_images(x) == Layout::Standard => Ok(cpu::enter(x)?),
        _ => Ok(x.clone()),
    }
}

/// `f32[B,C,H,W]`, whatever the layout of `x`.
pub fn to_images(x: &Tensor) -> Result<Tensor> {
    match Layout::of_images(x) {
        Layout::Blocked => Ok(cpu::leave(x)?),
        Layout::Standard => Ok(x.clone()),
    }
}

/// `f32[B,T,D]`, whatever the layout of the tokens `x`.
pub fn to_tokens(x: &Tensor) -> Result<Tensor> {
    match Layout::of_tokens(x) {
        Layout::Blocked => Ok(cpu::leave_tokens(x)?),
        Layout::Standard => Ok(x.clone()),
    }
}

/// As many equal shares of the images or rows, in order; differentiable.
pub(crate) fn split(x: &Tensor, shares: usize) -> Result<Vec<Tensor>> {
    // Blocks are shared out whole.
    let blocks = Layout::of_images(x) == Layout::Blocked;
    let x = if blocks && !x.dims()[0].is_multiple_of(shares) { to_images(x)? } else { x.clone() };
    Ok(x.chunk(shares, 0)?.iter().map(Tensor::contiguous).collect::<candle_core::Result<_>>()?)
}

/// The images or rows of all parts, which have one layout, in order; differentiable.
pub(crate) fn join(parts: &[Tensor]) -> Result<Tensor> {
    Ok(Tensor::cat(parts, 0)?)
}

/// Runs `f` on the CPU kernels' layout and returns the result in the layout of `x`.
fn in_blocks<T>(
    x: &Tensor,
    residual: Option<&Tensor>,
    f: impl FnOnce(&Tensor, Option<&Tensor>) -> candle_core::Result<(Tensor, T)>,
) -> Result<(Tensor, T)> {
    let residual = residual.map(to_internal).transpose()?;
    let (y, more) = f(&to_internal(x)?, residual.as_ref())?;
    Ok((if Layout::of_images(x) == Layout::Blocked { y } else { to_images(&y)? }, more))
}

/// Runs `f` on blocked tokens and returns the result in the layout of `x`.
fn in_token_blocks(x: &Tensor, f: impl FnOnce(&Tensor) -> candle_core::Result<Tensor>) -> Result<Tensor> {
    match Layout::of_tokens(x) {
        Layout::Blocked => Ok(f(x)?),
        Layout::Standard => Ok(cpu::leave_tokens(&f(&cpu::enter_tokens(x)?)?)?),
    }
}
