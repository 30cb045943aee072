//! Layers on codes: activations are bytes, images channels-last `u8[B,H,W,C]`, tokens `u8[B,T,D]`, rows `u8[B,D]`; sums of
//! their products with signed bytes are exact in 32 bits.
//!
//! A code is the integer of a [`Grid`](crate::Grid) plus what makes it positive ([`Affine`]); what that adds to a sum is
//! known from the weights' own sum. Where layers round, all kernels share one formula (`finish.rs`), so they agree to the bit.
//!
//! # How
//!
//! - Channels-last, the taps of a kernel's row are one run of bytes, read where it is: no matrix of patches is built. Only
//!   where there is padding, or a run is no multiple of four bytes, a task copies its part of the images first.
//! - With AVX-512 VNNI a tile of 6 pixels by 64 output channels (8 by 48, 12 by 32, 14 by 16) stays in registers; an
//!   instruction adds four products to each of 16 sums. AVX2 sums pairs of 16-bit products, anything else runs plain loops.
//! - A task is about 256 output pixels: several images, or rows of one, or rows of features. Each panel of weights is read
//!   once for all of them.
//! - Depthwise convolutions widen each byte to a lane, so that the same instruction adds one product.
//! - Layer norm sums codes and their squares as integers; attention is computed in f32, head by head.
//!
//! # How fast
//!
//! Images per second of processor time on one thread of a Zen 5 server, best of five (`cargo xtask bench int8 --threads 1 --runs 4`):
//! inference in f32 on the kernels that [the crate](crate) describes, and with integers.
//!
//! | Network | images | f32 | integers | times |
//! |---|---|---|---|---|
//! | ResNet-18 of width 16 | 128 of 32x32 | 4,050 | 6,650 | 1.6 |
//! | ResNet-18 | 128 of 32x32 | 386 | 737 | 1.9 |
//! | PreAct-ResNet-18 | 128 of 32x32 | 355 | 729 | 2.1 |
//! | VGG-16 with batch norm | 128 of 32x32 | 650 | 1,380 | 2.1 |
//! | MobileNetV2 | 128 of 32x32 | 1,950 | 3,880 | 2.0 |
//! | ViT-Tiny, patch 4 | 32 of 32x32 | 213 | 440 | 2.1 |
//! | ViT-B/16 | 8 of 224x224 | 4.3 | 16.2 | 3.8 |
//! | ResNet-34 | 4 of 224x224 | 14.6 | 109 | 7.5 |
//! | MobileNetV2 | 8 of 224x224 | 51.9 | 310 | 6.0 |
//!
//! - What comes after the sums is in instructions of AVX-512, too: left to the compiler, which made single numbers of it, width 16
//!   did 4,800 images.
//! - PyTorch 2.15 (`torch.ao.quantization`, engine `x86`, which is oneDNN's) did 8,130 to 8,350, 801 to 836 and 117 to 122 of the
//!   first two lines and of ResNet-34, in turns with this, which then did 6,180 to 7,100, 716 to 745 and 104 to 107; its engine
//!   `fbgemm` did 3,100 and 556 of the first two.
//! - With few images the f32 kernels leave lanes empty, these do not: pixels take the place of images.
//! - A convolution of 64 to 64 channels at 32x32, batch 64, runs at 394 billion products a second (AVX-512 VNNI), 61 (AVX2), 30
//!   (plain); 512 to 512 at 4x4 at 475, 67, 32. In f32, Winograd's algorithm stands for 245 and 200 there with AVX-512: without
//!   VNNI, integers are exact but no faster.
//! - Winograd's algorithm on integers would need 16-bit products at half the rate for 2.25 times fewer: nothing is gained.

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
mod work;

use candle_core::{Result, bail};

use crate::layers::ConvConfig;

pub use access::{codes, values};
pub use affine::Affine;
pub use attention::attend;
pub use depthwise::Depthwise;
pub use finish::{Channels, Real, Residual, Rounded};
pub use layer_norm::layer_norm;
pub use packing::Dense;
pub use pointwise::{add, batch_norm, decode, decode_images, encode, encode_images};
pub use pool::{max_pool, mean};

use packing::GROUP;

/// Output channels of a vector.
const LANES: usize = 16;

/// [`GROUP`] weights for each of [`LANES`] output channels; one cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Vector([i8; LANES * GROUP]);

/// What computes sums of products. There are only those whose instructions this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(Instructions);

/// The instructions of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instructions {
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
        let special =
            [vnni::available().then_some(Instructions::Vnni), avx2::available().then_some(Instructions::Avx2)];
        #[cfg(not(target_arch = "x86_64"))]
        let special = [None; 0];
        special.into_iter().flatten().chain([Instructions::Plain]).map(Self)
    }

    /// The fastest that this machine has.
    pub fn best() -> Self {
        Self::available().next().unwrap_or(Self(Instructions::Plain))
    }
}

/// Codes of images, or of rows as images of one pixel.
#[derive(Clone, Copy)]
pub struct Images<'a> {
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
        if [kh, kw, config.stride, config.dilation].contains(&0) {
            bail!("integer convolution: nothing may be 0 in {config:?}, kernel {kh}x{kw}");
        }
        let output =
            |size: usize, taps: usize| config.padding.outputs(size, config.dilation * (taps - 1) + 1, config.stride);
        match (output(self.h, kh), output(self.w, kw)) {
            (Some(h), Some(w)) => Ok((h, w)),
            _ => bail!("integer convolution: a {}x{} image is smaller than its {kh}x{kw} kernel", self.h, self.w),
        }
    }
}
