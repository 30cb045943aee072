//! Removes whole filters by their norm, as a user would to make the model smaller.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::faults;
use crate::Result;
use crate::model::Deployed;
use crate::models::{Classifier, Prunable};
use crate::pruning::{self, Norm};
use crate::stage::{CleanOnly, Context, ModelUse, Outcome, Stage};

/// In every convolution (shortcuts included, the head not) zeroes the filters with the smallest norm, with their
/// biases; in a vision transformer the hidden units of every MLP. Batch norm stays, so a pruned channel emits the constant
/// that its batch norm makes of zero. Nothing is fine-tuned afterwards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct StructuredPrune {
    /// Share of each layer's filters, in [0, 1); at least one filter stays.
    pub ratio: f64,
    /// What makes a filter small: `l1` or `l2`.
    pub norm: Norm,
}

impl Default for StructuredPrune {
    fn default() -> Self {
        Self { ratio: 0.5, norm: Norm::L1 }
    }
}

/// One layer's pruning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranked {
    /// The layer's name.
    pub layer: String,
    /// Its filters or hidden units in all.
    pub filters: usize,
    /// The zeroed ones, ascending.
    pub pruned: Vec<usize>,
}

impl StructuredPrune {
    /// Prunes `model` in place. In a layer of n filters, `n − round(ratio·n)` with the largest norm stay (of tied ones
    /// those with the higher index go).
    pub fn prune(&self, model: &dyn Classifier) -> Result<Vec<Ranked>> {
        let mut layers = Vec::new();
        for Prunable { name, weight, bias } in model.prunable() {
            let norms = self.norm.of(weight)?;
            let pruned = pruning::smallest(&norms, self.ratio);
            for var in [Some(weight), bias].into_iter().flatten() {
                let keep = pruning::mask(var, &pruned)?;
                var.set(&var.as_tensor().detach().broadcast_mul(&keep)?)?;
            }
            layers.push(Ranked { layer: name.to_string(), filters: norms.len(), pruned });
        }
        Ok(layers)
    }
}

#[derive(Serialize)]
struct Report {
    ratio: f64,
    layers: Vec<Ranked>,
}

impl Stage for StructuredPrune {
    const KIND: &'static str = "structured-prune";
    const SUMMARY: &'static str = "zeroes the filters with the smallest norm in every convolution";
    const MODEL: ModelUse = ModelUse::Deploys;
    type Needs = ();
    type Gives = ();
    type Sees = CleanOnly;

    fn faults(&self) -> Vec<String> {
        faults([((0.0..1.0).contains(&self.ratio), "ratio", "a number in [0, 1)", self.ratio.to_string())])
    }

    fn run(&self, ctx: &mut Context<'_>, (): (), _: &CleanOnly) -> Result<Outcome<()>> {
        let layers = self.prune(ctx.model.full_precision()?)?;
        ctx.model.deploy(Deployed::Pruned);
        Outcome::new((), &Report { ratio: self.ratio, layers })
    }

    fn restore(&self, ctx: &mut Context<'_>, (): &()) -> Result<()> {
        ctx.model.deploy(Deployed::Pruned);
        Ok(())
    }
}
