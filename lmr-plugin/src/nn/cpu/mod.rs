//! The fast path: f32 on the CPU.

mod access;
mod activation;
mod attention;
mod chain;
mod conv;
mod correlate;
mod depthwise;
mod gather;
mod geometry;
mod graph;
mod grid;
mod layer;
mod layer_norm;
mod layout;
mod links;
mod matmul;
mod norm;
mod pool;
mod scratch;
mod simd;
mod single;
mod statistics;
mod tokens;
mod transpose;
mod weights;

pub(super) use activation::activate;
pub(super) use attention::attend;
pub(super) use chain::{Block, basic_blocks};
pub(super) use conv::{conv2d, conv2d_inference};
pub(super) use graph::{Kind, Step, trunk};
pub(super) use layer_norm::layer_norm;
pub(super) use layout::{enter, leave};
pub(super) use pool::{average, global_avg_pool, max_pool2d};
pub(super) use single::{Layer, conv_bn};
pub(super) use tokens::{enter_tokens, leave_tokens, linear};
