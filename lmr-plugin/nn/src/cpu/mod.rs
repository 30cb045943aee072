//! The fast path: f32 on the CPU.

mod access;
mod activation;
mod conv;
mod exchange;
mod graph;
mod grid;
pub mod int8;
mod layout;
mod norm;
mod pool;
mod scratch;
mod simd;
mod stash;
mod tokens;

pub(crate) use activation::{activate, fused};
pub(crate) use conv::ops::{conv2d, conv2d_inference};
pub use conv::trial::{Pass, Trial};
pub(crate) use exchange::{enter, leave};
pub(crate) use graph::conv_bn::{Tensors, conv_bn};
pub(crate) use graph::trunk::{Kind, Step, trunk};
pub(crate) use pool::{average, global_avg_pool, max_pool2d};
pub(crate) use tokens::attention::attend;
pub(crate) use tokens::layer_norm::layer_norm;
pub(crate) use tokens::layout::{enter_tokens, leave_tokens};
pub(crate) use tokens::linear::linear;
