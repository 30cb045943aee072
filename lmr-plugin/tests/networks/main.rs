//! Whole networks on the layers of `nn`: both paths, any number of threads, several forms at once, frozen, generators.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod branches;
mod generators;
mod paths;
mod threads;
