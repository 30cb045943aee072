//! Backdoor purification for image classifiers on Candle.

pub mod attacks;
pub mod data;
pub mod error;
pub mod losses;
pub mod model;
pub mod models;
pub mod nn;
pub mod optim;
pub mod predict;
pub mod quantization;
pub mod rng;
pub mod run;
pub mod stage;
pub mod stages;
pub mod train;
pub mod triggers;
pub mod truth;

pub use error::{Error, Result};
