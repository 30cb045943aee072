#![doc = include_str!("../README.md")]

pub mod attacks;
pub mod data;
pub mod deploy;
pub mod error;
pub mod examine;
pub mod generators;
pub mod losses;
pub mod model;

pub mod optim;
pub mod predict;
pub mod purify;
pub mod ranges;
pub mod run;
pub mod stage;

pub mod train;
pub mod triggers;
pub mod zoo;

pub use error::{Error, Result};
pub use lmr_nn as nn;
pub use lmr_nn::rng;
