//! Trainable layers, and the seam between the portable path and the fast CPU path.
//!
//! # Two paths
//!
//! [`Path::of`] decides once per operation: f32 on the CPU takes the kernels in `cpu`, everything else takes plain Candle
//! operations (`portable`), which are right on every device, forward and backward. Nothing outside this module knows which
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
//! | convolution, and its gradient with respect to the input | per position, a matrix product of packed weights with the rows that the taps gather; taps on padding are left out | `gather.rs` |
//! | gradient with respect to the weights, 12 output channels and more | outer products: output gradients transposed in registers, inputs broadcast | `correlate/outer.rs` |
//! | the same, fewer channels, and depthwise beyond 9 taps | dot products along the images | `correlate/dot.rs` |
//! | batch norm, residual, ReLU | statistics while a convolution's rows are in the cache; one pass forward, two backward | `norm.rs` |
//! | depthwise convolution and its gradients | per row of images, all taps summed in registers | `depthwise.rs` |
//! | pre-activation, VGG and MobileNetV2 networks in training | all layers before the pooling are one Candle operation on reused buffers | `graph.rs` |
//! | linear layers of a transformer | tokens stand where images do: 1x1 convolutions | `tokens.rs` |
//! | layer norm, softmax | along vectors of tokens, no lane is ever added to another | `layer_norm.rs`, `attention.rs` |
//! | residual blocks in training | the whole chain is one Candle operation on reused buffers | `chain.rs`, `scratch.rs` |
//!
//! Work is cut into chunks by shape alone and sums are added in a fixed order, so results are bit-identical for any number
//! of threads. Vectors come from `pulp`: one source for AVX-512, AVX2, NEON and plain floats.
//!
//! # Why so
//!
//! Measured on one core of a Zen 5 server whose peak is 240 GFLOP/s, batch 128, 3x3 kernels. The machine was busy: figures
//! per kernel are the best of many runs, figures per step CPU time. "Nominal" counts the products with padding as well.
//!
//! - Leaving out padding saves 4 % of the products on 32x32 images, 31 % on 4x4. Convolving padded planes as one long row,
//!   the usual way to vectorize NCHW, adds 6 % and 56 % instead, and moves every activation in and out of its layout.
//! - The gather kernel reaches 235 nominal GFLOP/s for 64 channels at 32x32, 254 for 128 at 16x16 and 311 for 512 at 4x4:
//!   89 to 97 % of the peak in products that count. Nothing short of fewer products (Winograd) can speed it up much.
//!   16 channels at 32x32 reach 193.
//! - Iterating over images outside and panels inside, with less depth per block so that rows stay in the first-level
//!   cache, gained nothing and lost up to 15 %: the second level keeps up.
//! - Dot products gave 160 nominal GFLOP/s for weight gradients of 64 channels at 8x8, where outer products give 215.
//!   With few channels the transposition does not pay: 8 to 8 channels at 28x28 take 0.8 ms by dot products and 1.7 ms by
//!   outer products, 3 to 64 at 32x32 take 6 and 10 ms (with the bias and Candle's part). Transposing in registers (0.06 ns per float) instead of through
//!   the compiler's shuffles (0.2 ns) is what made outer products win.
//! - One Candle operation per layer took 252 ms of CPU time for a training step of ResNet-18 of width 16 at 32x32; one for
//!   all residual blocks takes 150 ms. The difference is Candle's adding up of gradients in fresh tensors, and the kernel
//!   clearing fresh pages.
//! - Depthwise 3x3 convolutions, best of nine on one thread, by the kernel for dense convolutions and by their own: 96
//!   channels at 32x32 16.0 and 14.4 ms forward, 51.9 and 44.7 ms backward; 192 at 16x16, batch 32, 1.7 and 1.8 ms, 8.7 and
//!   6.4 ms. A training step of MobileNetV2 at 32x32 takes 390 to 400 and 370 to 380 ms: rows from memory are the limit.
//! - Whole steps in CPU seconds on one thread, against PyTorch 2.15 (channels_last) on one thread; one to three steps each,
//!   so good to about a tenth. Training: MobileNetV2 at 32x32, batch 128, 0.37 and 0.37; VGG-16 with batch norm, the same,
//!   1.20 and 1.36; ViT-Tiny with patch 4 at 32x32, batch 32, 0.83 and 0.91; ViT-B/16 at 224x224, batch 2, 1.95 and 2.40.
//!   Inference at 224x224: ViT-B/16, batch 8, 2.20 and 3.05; ResNet-34, batch 16, 0.79 and 0.54, and batch 4, 0.67 and
//!   0.16: with fewer than 16 images, lanes of every vector stay empty.
//!
//! Not tried: Winograd's F(2x2, 3x3), which in this layout needs no shuffles and would leave 44 % of the products. With 16
//! channels and fewer its transforms would cost about what it saves.

mod activation;
mod attention;
mod batch_norm;
mod block;
mod conv;
mod conv_bn;
mod cpu;
mod forward;
mod grid;
mod layer_norm;
mod linear;
mod ops;
mod params;
mod patch_embedding;
mod path;
mod pool;
mod portable;
mod trunk;

pub use activation::Activation;
pub use attention::SelfAttention;
pub use batch_norm::BatchNorm2d;
pub use block::BasicBlock;
pub use conv::{Conv2d, ConvConfig, ConvSpec};
pub use conv_bn::ConvBn;
pub use forward::{Eval, Forward, Train, Weighted};
pub use grid::Grid;
pub use layer_norm::LayerNorm;
pub use linear::Linear;
pub use ops::{
    adaptive_avg_pool2d, attend, avg_pool2d, conv2d, conv2d_inference, global_avg_pool, layer_norm, linear, max_pool2d,
    to_images, to_internal, to_tokens,
};
pub use params::{Builder, Init, Params, Slot, StateDict, WeightsError};
pub use patch_embedding::PatchEmbedding;
pub use path::{Path, with_portable_path};
pub use trunk::{Layer, Node, Trunk};

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
