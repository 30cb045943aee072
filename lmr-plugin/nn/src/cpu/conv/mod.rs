//! Convolutions.

mod correlate;
mod depthwise;
pub(crate) mod finish;
mod gather;
pub(crate) mod geometry;
pub(crate) mod kernels;
pub(crate) mod ops;
mod product;
mod transpose;
pub(crate) mod trial;
mod weights;
mod winograd;
