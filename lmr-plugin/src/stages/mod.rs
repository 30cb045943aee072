//! The stages of Logit-Margin Repulsion and of deployment, one file each.

mod delta_prune;
mod estimate;
mod evaluate;
mod logit_repel;
mod quantize;
mod recover;
mod structured_prune;
mod teacher;

pub use delta_prune::{DeltaPrune, PrunedColumns};
pub use estimate::{BackdoorClass, Estimate, Estimated};
pub use evaluate::{Evaluate, Evaluation};
pub use logit_repel::{HeadDelta, LogitRepel, RepelEpoch, Repelled};
pub use quantize::Quantize;
pub use recover::{Recover, Recovered};
pub use structured_prune::{PruneForm, Ranked, Scope, StructuredPrune};
pub use teacher::Teacher;

/// `key: expected ..., found ...` for every check that fails.
pub(crate) fn faults<const N: usize>(checks: [(bool, &str, &str, String); N]) -> Vec<String> {
    checks
        .into_iter()
        .filter(|(holds, ..)| !holds)
        .map(|(_, key, expected, found)| format!("{key}: expected {expected}, found {found}"))
        .collect()
}
