//! lmr-pipeline

pub mod datasets;
pub mod hub;
