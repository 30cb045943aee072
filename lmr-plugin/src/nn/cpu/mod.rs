//! The fast path: f32 on the CPU.

mod access;
mod block;
mod conv;
mod correlate;
mod gather;
mod geometry;
mod layer;
mod layout;
mod norm;
mod pool;
mod simd;
mod transpose;
mod weights;

pub(super) use block::{Layer, basic_block, conv_bn};
pub(super) use conv::{conv2d, conv2d_inference};
pub(super) use layout::{enter, leave};
pub(super) use pool::{global_avg_pool, max_pool2d};

/// Room for a result.
fn output(len: usize) -> Vec<f32> {
    vec![0.0; len]
}
