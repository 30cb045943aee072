//! Backdoor purification for image classifiers on Candle.
//!
//! Everything here works on tensors: no files, no network, no configuration format, nothing printed. Every stage is a
//! config struct with a typed method, to be called from any training loop:
//!
//! ```no_run
//! # use lmr_plugin::{data::CleanSet, model::Model, purify::*, run::Run, Result};
//! # fn purify(model: &Model, clean: &CleanSet) -> Result<()> {
//! let run = Run::quiet(0);
//! let class = Estimate::default().estimate(model, clean, &run)?.backdoor_class();
//! let repelled = LogitRepel::default().repel(model, class, clean, &run)?;
//! let pruned = DeltaPrune::default().prune(model, &repelled.delta)?;
//! Recover::default().recover(model, &repelled.received, &pruned, clean, &run)?;
//! # Ok(())
//! # }
//! ```
//!
//! | module | what is there |
//! |---|---|
//! | [`purify`] | what finds the backdoor class and removes the backdoor |
//! | [`deploy`] | what quantizes or prunes a model, and the forms that leaves it in |
//! | [`examine`] | what measures a model with the answer in hand |
//! | [`attacks`] | what implants a backdoor |
//! | [`stage`] | what a stage is, and who may see the attack |
//! | [`losses`], [`optim`], [`train`] | the losses of the method, SGD and AdamW, the one training loop |
//! | [`zoo`], [`nn`] | architectures; trainable layers with a portable and a fast CPU path |
//! | [`data`], [`triggers`], [`generators`] | images, clean sets, augmentation; τ(x); networks that make triggers |
//! | [`model`], [`predict`] | what stages need of a network, anyone's; a model and the form it is in; inference over images |
//! | [`ranges`] | the numbers that options are made of, each within its range by type |
//! | [`run`], [`rng`] | seed, progress, cancellation; random streams |

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
