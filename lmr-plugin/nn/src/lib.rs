//! Trainable layers, and the seam between the portable path and the fast CPU path.
//!
//! Layers take their parameters from a [`Builder`], fresh or from a checkpoint. A network says once what it computes, and an
//! interpreter ([`Forward`]) says how: [`Train`], [`Eval`], [`Frozen`], [`Branches`], or one of the caller's own.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use lmr_nn::{Activation, BatchNorm2d, Builder, Conv2d, ConvBn, ConvConfig, ConvSpec, Forward, Linear, Result, Train, rng};
//!
//! struct Network {
//!     stem: ConvBn,
//!     head: Linear,
//! }
//!
//! impl Network {
//!     fn new(b: &Builder) -> Result<Self> {
//!         let config = ConvConfig { padding: 1.into(), ..ConvConfig::default() };
//!         let spec = ConvSpec { in_channels: 3, out_channels: 16, kernel: (3, 3), bias: false, config };
//!         let conv = Conv2d::new(&spec, &b.pp("conv"))?;
//!         let stem = ConvBn::new(conv, BatchNorm2d::new(16, &b.pp("bn"))?)?;
//!         Ok(Self { stem, head: Linear::new(16, 10, &b.pp("head"))? })
//!     }
//!
//!     fn forward(&self, how: &mut dyn Forward, images: &Tensor) -> Result<Tensor> {
//!         let x = how.input(images)?;
//!         let x = how.convolution((&self.stem).into(), &x, None, Activation::Relu)?;
//!         let x = how.global_avg_pool(&x)?;
//!         how.linear(&self.head, &x, Activation::None)
//!     }
//! }
//!
//! let b = Builder::fresh(rng::stream(0, "init"), &Device::Cpu);
//! let network = Network::new(&b)?;
//! let params = b.finish()?;
//! let images = Tensor::zeros((4, 3, 32, 32), DType::F32, &Device::Cpu)?;
//! let gradients = network.forward(&mut Train::default(), &images)?.sqr()?.mean_all()?.backward()?;
//! assert!(params.trainable().all(|(_, var)| gradients.get(var).is_some()));
//! # Ok::<(), lmr_nn::Error>(())
//! ```
//!
//! # Two paths
//!
//! [`Path::of`] decides once per operation: f32 on the CPU takes the kernels in `cpu`, everything else takes plain Candle
//! operations (`portable`), which are right on every device, forward and backward. Nothing outside this crate knows which
//! runs; tests compare the two with [`with_portable_path`]. Candle's own gradients of max pooling, of ReLU at 0 and of
//! strided convolutions on some sizes are wrong, so neither path uses them.
//!
//! # The CPU path
//!
//! Between layers, activations are `f32[G,H,W,C,N]`: `G` blocks of `N` images (`G = 1` for a batch of 128), the image
//! index innermost. A SIMD vector is then the same pixel of 16 images, and every kernel tap, stride, dilation and border is
//! a choice of whole rows:
//!
//! | Operation | Algorithm | File |
//! |---|---|---|
//! | 3x3 convolution with stride 1, from 8 channels to 8 and more: forward and both gradients | Winograd's F(4x4, 3x3): 36 products where a direct sum needs 144 | `conv/winograd/` |
//! | any other convolution, and its gradient with respect to the input | per position, a matrix product of packed weights with the rows that the taps gather; taps on padding are left out | `conv/gather.rs` |
//! | gradient with respect to the weights, 12 output channels and more | outer products: output gradients transposed in registers, inputs broadcast | `conv/correlate/outer.rs` |
//! | the same, fewer channels, and depthwise beyond 9 taps | dot products along the images | `conv/correlate/dot.rs` |
//! | batch norm, residual, ReLU | statistics while a convolution's rows are in the cache; one pass forward, two backward | `norm/` |
//! | depthwise convolution and its gradients | per row of images, all taps summed in registers | `conv/depthwise.rs` |
//! | linear layers of a transformer | tokens stand where images do: 1x1 convolutions | `tokens/linear.rs` |
//! | layer norm, softmax | along vectors of tokens, no lane is ever added to another | `tokens/layer_norm.rs`, `tokens/attention.rs` |
//! | linear layers and convolutions of quantized models | bytes times signed bytes, summed exactly in 32 bits | `int8/` |
//! | convolutional networks in training | all layers before the pooling are one Candle operation on reused buffers | `graph/`, `scratch.rs` |
//!
//! Work is cut into chunks by shape alone and sums are added in a fixed order, so results are bit-identical for any number
//! of threads. Vectors come from `pulp`: one source for AVX-512, AVX2, NEON and plain floats.
//!
//! # Why so
//!
//! Measured on one core of a Zen 5 server whose peak is 250 GFLOP/s, batch 128, 3x3 kernels, other work on the machine.
//! GFLOP/s count a direct sum, products with padding included, so Winograd's can exceed the peak. `cargo xtask bench ops`
//! prints the table for any width, `cargo bench -p lmr-nn --profile dev` times the same passes with criterion.
//!
//! | Layer | direct forward | Winograd forward | input | weights |
//! |---|---|---|---|---|
//! | 16 to 16, 32x32 | 193 | 260 | 255 | 150 |
//! | 64 to 64, 32x32 | 235 | 490 | 515 | 430 |
//! | 128 to 128, 16x16 | 254 | 660 | 660 | 440 |
//! | 256 to 256, 8x8 | | 555 | 560 | 440 |
//! | 512 to 512, 4x4 | 311 | 395 | 410 | 415 |
//!
//! - Winograd with the points 0, ±√2, ±1/√2 and infinity is off by twice as much as a direct sum (root mean square over
//!   random values, 16 to 512 channels); with the usual points 0, ±1, ±2 by five times as much. F(2x2, 3x3) is as exact as
//!   a direct sum, but does nearly twice the products for transforms that cost the same.
//! - What bounds it: with 64 channels at 32x32 the transforms, which read every input 2.25 times; with 512 channels at
//!   4x4 the weights, which become four times as large. The transforms work a column at a time: neighbouring positions lie
//!   so far apart (32 KiB) that 36 streams at once evict each other from the first-level cache, which cost 1.6 times the
//!   time of the whole layer. Asking for the next channel in advance gained another 7 to 12 %.
//! - Blocks of fewer images, so that transformed inputs stay in the second-level cache, read the weights more often and
//!   lost 12 % (64 images, 64 channels) to half the speed (48 images, 512 channels).
//! - Direct kernels: leaving out padding saves 4 % of the products on 32x32 images, 31 % on 4x4. Convolving padded planes as
//!   one long row, the usual way to vectorize NCHW, adds 6 % and 56 % instead, and moves every activation in and out of its
//!   layout. They reach 89 to 97 % of the peak in products that count.
//! - Dot products gave 160 GFLOP/s for weight gradients of 64 channels at 8x8, where direct outer products give 215. With
//!   few channels the transposition does not pay: 8 to 8 channels at 28x28 take 0.8 ms by dot products and 1.7 ms by outer
//!   products. Transposing in registers (0.06 ns per float) instead of through the compiler's shuffles (0.2 ns) is what made
//!   outer products win.
//! - One Candle operation per layer took 252 ms of CPU time for a training step of ResNet-18 of width 16 at 32x32 where one
//!   for all residual blocks took 150 ms (before Winograd; now 130, with the first layer in the same operation). The
//!   difference is Candle's adding up of gradients in fresh tensors, and the kernel clearing fresh pages. For the same
//!   reason programs had better keep freed pages for ten seconds ([`runtime`]).
//! - Depthwise 3x3 convolutions, best of nine on one thread, by the kernel for dense convolutions and by their own: 96
//!   channels at 32x32 16.0 and 14.4 ms forward, 51.9 and 44.7 ms backward; 192 at 16x16, batch 32, 1.7 and 1.8 ms, 8.7 and
//!   6.4 ms. A training step of MobileNetV2 at 32x32 takes 390 to 400 and 370 to 380 ms: rows from memory are the limit.
//! - Whole steps in CPU seconds on one thread, against PyTorch 2.15 (channels_last) on one thread; one to three steps each,
//!   so good to about a tenth. Training: VGG-16 with batch norm at 32x32, batch 128, 1.20 and 1.36; ViT-Tiny with patch 4 at
//!   32x32, batch 32, 0.83 and 0.91; ViT-B/16 at 224x224, batch 2, 1.95 and 2.40. Inference of ViT-B/16 at 224x224, batch 8,
//!   2.20 and 3.05.
//! - The factors of several tiles are multiplied at once where there are few images: the transformed weights of 512 channels
//!   are 38 MB, and were read for every tile. With 16 photographs of 224x224 a ResNet-34 went from 10.7 to 13.7 images/s on
//!   one busy thread, with 4 of them from 3.3 to 5.8. Direct kernels still leave lanes empty with fewer than 16 images.
//! - MobileNetV2 at 32x32, batch 128, on two threads trains 2.6 times as fast as PyTorch (three pairs, 2.1 to 3.2). ReLU6 is
//!   cut off in batch norm's pass; a pass of its own each way is what it took before.

mod branches;
mod cpu;
mod error;
mod forward;
mod grid;
mod layers;
mod layout;
mod mode;
mod nearest;
mod ops;
mod padding;
mod params;
mod path;
mod pool;
mod portable;
pub mod rng;
pub mod runtime;

pub use branches::{Branch, Branches};
pub use cpu::{Pass, Trial, int8};
pub use error::{Error, GeometryError, Result, WeightsError};
pub use forward::{Eval, Forward, Frozen, Train};
pub use grid::Grid;
pub use layers::{
    Activation, BatchNorm2d, BatchNormMode, Conv2d, ConvBn, ConvConfig, ConvSpec, ConvTranspose2d, Convolution, Layer,
    LayerNorm, Linear, Node, PatchEmbedding, SelfAttention, Trunk, Weighted,
};
pub use layout::Layout;
pub use mode::Mode;
pub use ops::{
    adaptive_avg_pool2d, attend, avg_pool2d, conv_transpose2d, conv2d, conv2d_inference, global_avg_pool, layer_norm,
    linear, max_pool2d, to_images, to_internal, to_tokens, upsample2d,
};
pub use padding::Padding;
pub use params::{Builder, Init, Params, Slot, StateDict};
pub use path::{Path, with_compute_dtype, with_portable_path};
pub use pool::pooled_size;
