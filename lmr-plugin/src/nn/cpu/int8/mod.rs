//! Layers on codes: activations are bytes, images channels-last `u8[B,H,W,C]`, tokens `u8[B,T,D]`, rows `u8[B,D]`; sums of
//! their products with signed bytes are exact in 32 bits.
//!
//! An activation's byte is the integer of its [`Grid`](super::super::Grid) plus what makes it positive ([`Affine`]).

mod access;
mod affine;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod bands;
mod convolve;
mod depthwise;
mod finish;
mod layer_norm;
mod packing;
mod plain;
mod pointwise;
mod pool;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vnni;

use candle_core::{Result, bail};

use super::super::ConvConfig;

pub(crate) use access::{codes, values};
pub(crate) use affine::Affine;
pub(crate) use attention::attend;
pub(crate) use depthwise::Depthwise;
pub(crate) use finish::{Channels, Real, Residual, Rounded};
pub(crate) use layer_norm::layer_norm;
pub(crate) use packing::Dense;
pub(crate) use pointwise::{add, batch_norm, decode, decode_images, encode, encode_images};
pub(crate) use pool::{max_pool, mean};

use packing::GROUP;

/// Output channels of a vector.
const LANES: usize = 16;

/// [`GROUP`] weights for each of [`LANES`] output channels; one cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Vector([i8; LANES * GROUP]);

/// What computes sums of products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// AVX-512 with its instruction for sums of four products of bytes.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Plain loops.
    Plain,
}

impl Kernel {
    /// Those that this machine has, the fastest first.
    pub fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let special = [vnni::available().then_some(Self::Vnni), avx2::available().then_some(Self::Avx2)];
        #[cfg(not(target_arch = "x86_64"))]
        let special = [None; 0];
        special.into_iter().flatten().chain([Self::Plain])
    }

    /// The fastest that this machine has.
    pub fn best() -> Self {
        Self::available().next().unwrap_or(Self::Plain)
    }
}

/// Codes of images, or of rows as images of one pixel.
#[derive(Clone, Copy)]
pub(crate) struct Images<'a> {
    bytes: &'a [u8],
    b: usize,
    h: usize,
    w: usize,
    c: usize,
}

impl<'a> Images<'a> {
    /// Images `u8[B,H,W,C]`.
    pub fn new(bytes: &'a [u8], [b, h, w, c]: [usize; 4]) -> Result<Self> {
        if bytes.len() != b * h * w * c {
            bail!("integer images: {} bytes are not {b}x{h}x{w}x{c}", bytes.len());
        }
        Ok(Self { bytes, b, h, w, c })
    }

    /// B.
    pub fn count(&self) -> usize {
        self.b
    }

    /// Height and width after a convolution with a weight of this shape.
    pub fn output(&self, &[_, _, kh, kw]: &[usize; 4], config: &ConvConfig) -> Result<(usize, usize)> {
        let output = |size: usize, taps: usize| {
            let extent = config.dilation * (taps - 1) + 1;
            (size + 2 * config.padding).checked_sub(extent).map(|room| room / config.stride + 1)
        };
        match (output(self.h, kh), output(self.w, kw)) {
            (Some(h), Some(w)) => Ok((h, w)),
            _ => bail!("integer convolution: a {}x{} image is smaller than its {kh}x{kw} kernel", self.h, self.w),
        }
    }
}
