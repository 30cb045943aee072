//! lmr-pipeline
