//! Stages that look at a model with the answer in hand, one file each.

mod evaluate;

pub use evaluate::{Evaluate, Evaluation, FormEvaluation};
