//! The stages of Logit-Margin Repulsion, one file each.

mod delta_prune;
mod error;
mod estimate;
mod logit_repel;
mod recover;
mod teacher;

pub use delta_prune::{DeltaPrune, PrunedColumns};
pub use error::PurifyError;
pub use estimate::{BackdoorClass, Estimate, Estimated};
pub use logit_repel::{HeadDelta, LogitRepel, RepelEpoch, RepelReport, Repelled};
pub use recover::{Recover, Recovered};
pub use teacher::Teacher;
