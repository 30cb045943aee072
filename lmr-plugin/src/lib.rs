//! Backdoor purification for image classifiers on Candle.

pub mod data;
pub mod error;
pub mod models;
pub mod nn;
pub mod rng;

pub use error::{Error, Result};
