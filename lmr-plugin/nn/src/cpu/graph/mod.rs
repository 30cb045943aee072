//! Several layers as one Candle operation.

pub(crate) mod conv_bn;
mod links;
pub(crate) mod trunk;
