//! The fast path: f32 on the CPU.

mod access;
mod chain;
mod conv;
mod correlate;
mod finish;
mod gather;
mod geometry;
mod grid;
mod layer;
mod layout;
mod links;
mod norm;
mod pool;
mod product;
mod scratch;
mod simd;
mod single;
mod transpose;
mod trial;
mod weights;
mod winograd;

pub(super) use chain::{Block, basic_blocks};
pub(super) use conv::{conv2d, conv2d_inference};
pub(super) use layout::{enter, leave};
pub(super) use pool::{global_avg_pool, max_pool2d};
pub(super) use single::{Layer, conv_bn};
pub use trial::{Pass, Trial};
